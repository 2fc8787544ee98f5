"""Test ``lightning_gradwatch.remedy.adaptive``."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import measure_model, twin
from torch import Tensor, nn

from lightning_gradwatch.measure.activations import describe_layers
from lightning_gradwatch.measure.graph import read_topology
from lightning_gradwatch.measure.layers import find_layers
from lightning_gradwatch.measure.norms import norms_of
from lightning_gradwatch.remedy.adaptive import AdaptiveClip

LAYERS = {
    "linear": nn.Linear(5, 4),
    "one output": nn.Linear(5, 1),
    "one input": nn.Linear(1, 4),
    "convolution": nn.Conv2d(3, 4, 3),
    "grouped convolution": nn.Conv1d(4, 6, 3, groups=2),
    "embedding": nn.Embedding(6, 3),
    "lstm": nn.LSTM(3, 4),
    "attention": nn.MultiheadAttention(4, 2),
    "normalization": nn.LayerNorm(5),
    "prelu": nn.PReLU(),
    "complex": nn.Linear(3, 4, dtype=torch.complex64),
    "double": nn.Linear(3, 4, dtype=torch.float64),
    "bfloat16": nn.Linear(3, 4, dtype=torch.bfloat16),
}


def clipped_by_hand(weight: Tensor, gradient: Tensor, clip_factor: float, eps: float) -> np.ndarray:
    """Clip as the paper says, unit by unit, in float64 (complex where the gradient is)."""
    kind = np.complex128 if gradient.is_complex() else np.float64
    w, g = (part.detach().to(torch.complex128).numpy() for part in (weight, gradient))
    w, g = (w, g.copy()) if kind is np.complex128 else (w.real, g.real.copy())
    units = [(slice(None),)] if g.ndim < 2 else [(unit,) for unit in range(len(g))]
    for unit in units if g.ndim else [()]:
        largest = clip_factor * max(np.sqrt((np.abs(w[unit]) ** 2).sum()), eps)
        size = np.sqrt((np.abs(g[unit]) ** 2).sum())
        if size > largest:
            g[unit] = g[unit] * (largest / size)
    return g


def with_random_gradients(layer: nn.Module, seed: int = 0, scale: float = 0.1) -> nn.Module:
    """Copy a layer and give it gradients, some above the bound and some below."""
    generator = torch.Generator().manual_seed(seed)
    copied = twin(layer)
    for parameter in copied.parameters():
        sizes = scale * 10.0 ** torch.randint(
            -3, 2, (parameter.shape[0], *[1] * (parameter.ndim - 1)), generator=generator
        )
        parameter.grad = (torch.randn(parameter.shape, generator=generator) * sizes).to(parameter.dtype)
    return copied


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("clip_factor", "eps"), [(0.01, 1e-3), (0.16, 0.5)])
def test_each_unit_is_clipped_as_the_paper_says(name, clip_factor, eps):
    """Rows, output channels and whole vectors come out as by hand, and the returned norms are theirs."""
    model = with_random_gradients(LAYERS[name])
    expected = [clipped_by_hand(p, p.grad, clip_factor, eps) for p in model.parameters()]
    returned = AdaptiveClip(clip_factor, eps, clip_last_layer=True).clip_(measure_model(model))
    rtol = 2e-2 if name == "bfloat16" else 1e-5
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        found = parameter.grad.to(torch.complex128).numpy()
        np.testing.assert_allclose(
            found if gradient.dtype == np.complex128 else found.real, gradient, rtol=rtol, atol=0
        )
    torch.testing.assert_close(returned, norms_of([p.grad for p in model.parameters()]), rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_a_unit_of_a_transposed_convolution_is_an_output_channel(groups, dimensions):
    """The weight that reaches one output channel is what an equal plain convolution has in one row."""
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dimensions - 1]
    model = with_random_gradients(kind(4, 6, 3, groups=groups, bias=False))
    # Group g maps inputs [2g, 2g + 2) to outputs [3g, 3g + 3), stored as [in, out / groups, ...].
    as_rows = lambda part: torch.cat([piece.transpose(0, 1) for piece in part.chunk(groups)])  # noqa: E731
    expected = clipped_by_hand(as_rows(model.weight), as_rows(model.weight.grad), 0.01, 1e-3)
    AdaptiveClip(clip_last_layer=True).clip_(measure_model(model))
    np.testing.assert_allclose(as_rows(model.weight.grad).numpy(), expected, rtol=1e-5)


def test_layers_of_several_dtypes_are_clipped_together():
    """What does not fit into one call comes out the same."""
    layers = [LAYERS[name] for name in ("linear", "double", "bfloat16", "complex", "convolution")]
    model = nn.ModuleList(with_random_gradients(layer) for layer in layers)
    alone = [with_random_gradients(layer) for layer in layers]
    clipper = AdaptiveClip(clip_last_layer=True)
    clipper.clip_(measure_model(model))
    for together, single in zip(model, alone, strict=True):
        clipper.clip_(measure_model(single))
        for one, other in zip(together.parameters(), single.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("coalesced", [False, True])
def test_only_the_rows_that_were_looked_up_are_clipped(coalesced):
    """A sparse gradient comes out as the dense one would."""
    sparse, dense = nn.Embedding(6, 3, sparse=True), nn.Embedding(6, 3)
    dense.load_state_dict(sparse.state_dict())
    for embedding in (sparse, dense):
        (embedding(torch.tensor([1, 1, 4])) * torch.tensor([[1.0], [2.0], [1e-4]])).sum().backward()
    if coalesced:
        sparse.weight.grad = sparse.weight.grad.coalesce()
    clipper = AdaptiveClip(clip_last_layer=True)
    ours, theirs = clipper.clip_(measure_model(sparse)), clipper.clip_(measure_model(dense))
    torch.testing.assert_close(sparse.weight.grad.to_dense(), dense.weight.grad)
    torch.testing.assert_close(ours, theirs)


def head_first() -> tuple[nn.Module, Tensor]:
    """Return a network that registers its head first, and a loss of it."""
    net = nn.ModuleDict({"head": nn.Linear(3, 2), "body": nn.Linear(4, 3)})
    return net, net["head"](torch.relu(net["body"](torch.randn(5, 4)))).square().mean()


def test_the_last_layer_is_the_one_that_no_other_depends_on():
    """As the graph of the loss tells, wherever it is registered."""
    net, loss = head_first()
    layers = find_layers(net)
    told = describe_layers(net, layers, read_topology(loss, layers))
    loss.mul(1e3).backward()
    before = [parameter.grad.clone() for parameter in net.parameters()]
    AdaptiveClip().clip_(replace(measure_model(net), descriptions=told))
    kept = [torch.equal(parameter.grad, old) for parameter, old in zip(net.parameters(), before, strict=True)]
    assert kept == [True, True, False, False]


def test_without_a_graph_the_last_layer_is_the_last_registered_matrix():
    """What stands behind it, such as a normalization, is clipped like all others."""
    net = with_random_gradients(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3), nn.LayerNorm(3)), scale=1e3)
    before = twin(net)
    AdaptiveClip().clip_(measure_model(net))
    kept = [torch.equal(p.grad, old.grad) for p, old in zip(net.parameters(), before.parameters(), strict=True)]
    assert kept == [False, False, True, True, False, False]


def test_a_model_that_is_its_last_layer_is_left_alone():
    """With nothing to clip the norms are those before."""
    net = with_random_gradients(nn.Linear(4, 3), scale=1e3)
    norms = measure_model(net)
    assert AdaptiveClip().clip_(norms) is norms.norms


@given(st.floats(1e-3, 1.0), st.floats(1e-4, 1e4), st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_no_unit_ends_above_its_bound_and_clipping_twice_is_clipping_once(clip_factor, scale, seed):
    """Each unit keeps its direction, ends at most at its share of the weights, and stays there."""
    model = with_random_gradients(nn.Sequential(nn.Linear(5, 4), nn.Conv1d(3, 4, 3)), seed, scale)
    before, clipper = twin(model), AdaptiveClip(clip_factor, clip_last_layer=True)
    clipper.clip_(measure_model(model))
    once = twin(model)
    clipper.clip_(measure_model(model))
    for new, first, old in zip(model.parameters(), once.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(new.grad, first.grad, rtol=1e-5, atol=0)
        assert torch.equal(new.grad.sign(), old.grad.sign())
        units = (part.detach().reshape(len(part) if part.ndim > 1 else 1, -1) for part in (new.grad, new))
        gradient_norms, weight_norms = (torch.linalg.vector_norm(part, dim=1) for part in units)
        assert (gradient_norms <= clip_factor * weight_norms.clamp(min=1e-3) * (1 + 1e-5)).all()


def test_large_gradients_all_end_the_same_whatever_multiplies_them():
    """Only the direction of a unit counts once it is above its bound."""
    ends = []
    for scale in (1e3, 1e6):
        model = with_random_gradients(LAYERS["linear"], scale=scale)
        AdaptiveClip(clip_last_layer=True).clip_(measure_model(model))
        ends.append(model.weight.grad)
    torch.testing.assert_close(*ends)


def test_small_gradients_stay_as_they_are_bit_for_bit():
    """Below the bound nothing changes, zero stays zero, and the norms are those measured."""
    model = with_random_gradients(nn.Linear(5, 4), scale=1e-9)
    model.weight.grad[1] = 0
    before, norms = twin(model), measure_model(model)
    returned = AdaptiveClip(clip_last_layer=True).clip_(norms)
    for new, old in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(new.grad, old.grad)
    assert torch.equal(returned, norms.norms)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_unit_that_is_not_finite_is_left_and_the_others_are_clipped(bad):
    """Neither NaN nor zeros are spread."""
    model = with_random_gradients(nn.Linear(5, 4), scale=1e3)
    model.weight.grad[2, 3] = bad
    before = twin(model)
    AdaptiveClip(clip_last_layer=True).clip_(measure_model(model))
    torch.testing.assert_close(model.weight.grad[2], before.weight.grad[2], rtol=0, atol=0, equal_nan=True)
    others = [0, 1, 3]
    expected = clipped_by_hand(model.weight[others], before.weight.grad[others], 0.01, 1e-3)
    np.testing.assert_allclose(model.weight.grad[others].numpy(), expected, rtol=1e-5)


def test_weights_of_zero_can_be_trained():
    """Eps is what a unit without weights is measured by, so that it gets a gradient at all."""
    model = with_random_gradients(nn.Linear(5, 4), scale=1e3)
    nn.init.zeros_(model.weight)
    AdaptiveClip(clip_last_layer=True).clip_(measure_model(model))
    torch.testing.assert_close(torch.linalg.vector_norm(model.weight.grad, dim=1), torch.full((4,), 1e-5))


def test_squares_that_overflow_in_float32_are_summed_in_float64():
    """Given norms in float64, as where a second look was needed, gradients of 1e30 are clipped as any others."""
    model = with_random_gradients(nn.Linear(5, 4), scale=1e30)
    expected = clipped_by_hand(model.weight, model.weight.grad, 0.01, 1e-3)
    norms = measure_model(model)
    exact = norms_of([p.grad for p in model.parameters()], torch.float64)
    returned = AdaptiveClip(clip_last_layer=True).clip_(replace(norms, norms=exact))
    np.testing.assert_allclose(model.weight.grad.numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(float(returned[0]), np.linalg.norm(expected), rtol=1e-5)


@pytest.mark.parametrize("name", ["clip_factor", "eps"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), True, "1"])
def test_a_setting_that_is_no_bound_is_refused(name, value):
    """The error names the setting and what came."""
    with pytest.raises(ValueError, match=f"`{name}` must be a positive finite number. Got {value!r}"):
        AdaptiveClip(**{name: value})


def test_a_number_for_the_last_layer_is_refused():
    """It is a yes or a no."""
    with pytest.raises(TypeError, match=r"`clip_last_layer` must be True or False\. Got 1"):
        AdaptiveClip(clip_last_layer=1)
