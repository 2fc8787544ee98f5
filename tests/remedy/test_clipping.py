"""Test ``lightning_gradwatch.remedy.clipping``."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import measure, measure_model, random_gradients, twin, with_gradients
from torch import nn

from lightning_gradwatch.measure.norms import norms_of
from lightning_gradwatch.remedy.clipping import ClipByGlobalNorm, ClipByLayerNorm, ClipByValue, Clipper

CLIPPERS = [ClipByGlobalNorm(0.5), ClipByValue(0.1), ClipByLayerNorm(0.5)]
NAMES = ["norm", "value", "layer"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_clipping_by_norm_is_what_torch_does(max_norm, scale, seed):
    """Gradients come out as from ``torch.nn.utils.clip_grad_norm_``, and the returned norms are theirs."""
    gradients = random_gradients(seed, torch.float32, torch.float32, torch.float64, scale=scale)
    ours, theirs = with_gradients(*gradients), with_gradients(*gradients)
    returned = ClipByGlobalNorm(max_norm).clip_(measure(ours))
    torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, expected.grad)
    torch.testing.assert_close(returned, norms_of([p.grad for p in ours if p.grad is not None]), rtol=1e-5, atol=1e-9)


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_clipping_by_value_is_what_torch_does(max_value, scale, seed):
    """Gradients come out as from ``torch.nn.utils.clip_grad_value_``, bit for bit."""
    gradients = random_gradients(seed, torch.float32, torch.bfloat16, torch.float64, scale=scale)
    ours, theirs = with_gradients(*gradients), with_gradients(*gradients)
    returned = ClipByValue(max_value).clip_(measure(ours))
    torch.nn.utils.clip_grad_value_(theirs, max_value)
    for mine, expected in zip(ours, theirs, strict=True):
        assert torch.equal(mine.grad, expected.grad)
    torch.testing.assert_close(returned, norms_of([p.grad for p in ours if p.grad is not None]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_result_is_within_the_bound(dtype, scale):
    """No norm, and no real or imaginary part, is above the bound, and clipping twice is clipping once."""
    for clipper, seed in itertools.product(CLIPPERS, range(3)):
        parameters = with_gradients(*random_gradients(seed, dtype, torch.float32, scale=scale))
        before = measure(parameters).global_norm()
        after = clipper.clip_(measure(parameters))
        total = torch.linalg.vector_norm(after)
        assert total <= before * 1.01
        if isinstance(clipper, ClipByGlobalNorm):
            assert total <= 0.5 * 1.01
        elif isinstance(clipper, ClipByLayerNorm):
            assert (after <= 0.5 * 1.01).all()
        else:
            parts = [torch.view_as_real(p.grad) if p.grad.is_complex() else p.grad for p in parameters]
            assert all(part.abs().max() <= 0.1 * 1.01 for part in parts)
        once = [p.grad.clone() for p in parameters]
        clipper.clip_(measure(parameters))
        for parameter, first in zip(parameters, once, strict=True):
            torch.testing.assert_close(parameter.grad, first, rtol=1e-2, atol=0)


@pytest.mark.parametrize("clipper", CLIPPERS, ids=NAMES)
def test_small_gradients_stay_as_they_are(clipper):
    """Below the bound not a bit changes, and zero stays zero."""
    gradients = [*random_gradients(0, torch.float32, torch.float16, scale=1e-3), torch.zeros(3), torch.zeros(0)]
    parameters = with_gradients(*gradients)
    clipper.clip_(measure(parameters))
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(parameters, gradients, strict=True))


def several_layers() -> nn.Module:
    """Return layers of one, two and many parameters, with gradients of very different sizes."""
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.LSTM(4, 5, 2), nn.Linear(5, 2, bias=False))
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.randn_like(parameter) * 10.0 ** (number % 5 - 3)
    return model


@pytest.mark.parametrize("order", ["registered", "reversed", "weights first"])
@pytest.mark.parametrize("max_norm", [1e-3, 0.3, 5.0])
def test_clipping_by_layer_is_what_torch_does_for_each_layer(order, max_norm):
    """Gradients come out as from ``clip_grad_norm_`` of each module alone, however the optimizer orders them."""
    model = several_layers()
    expected = twin(model)
    for layer in expected:
        nn.utils.clip_grad_norm_(layer.parameters(), max_norm)
    parameters = list(model.parameters())
    if order == "reversed":
        parameters.reverse()
    if order == "weights first":
        parameters.sort(key=lambda parameter: parameter.ndim == 1)
    returned = ClipByLayerNorm(max_norm).clip_(measure_model(model, parameters))
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(returned, norms_of([p.grad for p in parameters]), rtol=1e-5, atol=1e-9)


def test_a_layer_without_a_gradient_in_one_step_changes_no_other():
    """Where gradients stand is looked up again when a layer drops out, and when it comes back."""
    model, clipper = several_layers(), ClipByLayerNorm(0.3)
    for dropped in (None, 1, None):
        expected = twin(model)
        if dropped is not None:
            for module in (model[dropped], expected[dropped]):
                module.zero_grad()
        for layer in expected:
            nn.utils.clip_grad_norm_(layer.parameters(), 0.3)
        clipper.clip_(measure_model(model))
        for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_clipping_by_layer_leaves_the_layer_that_is_not_finite(bad):
    """That layer stays as it is, and the others are clipped as if it were not there."""
    sick, well = with_gradients(torch.tensor([bad, 2.0]), torch.tensor([300.0]))
    ClipByLayerNorm(1.0).clip_(measure([sick, well]))
    torch.testing.assert_close(sick.grad, torch.tensor([bad, 2.0]), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(well.grad, torch.tensor([1.0]))


@pytest.mark.parametrize("size", [1e200, 1e-200])
def test_clipping_by_layer_knows_norms_whose_squares_float64_cannot_hold(size):
    """A layer of such numbers ends at the bound, or stays as it is below it."""
    linear = nn.Linear(2, 1, dtype=torch.float64)
    linear.weight.grad, linear.bias.grad = (
        torch.tensor([[3.0, 4.0]]).double() * size,
        torch.tensor([12.0]).double() * size,
    )
    norms = measure_model(linear)
    norms.norms.copy_(torch.tensor([5.0, 12.0], dtype=torch.float64) * size)
    returned = ClipByLayerNorm(6.5).clip_(norms)
    expected = torch.tensor([2.5, 6.0]) if size > 1 else torch.tensor([5.0, 12.0]).double() * size
    torch.testing.assert_close(returned, expected.double(), rtol=1e-5, atol=0)


def test_clipping_by_norm_keeps_the_direction():
    """All gradients are multiplied by one number."""
    gradients = random_gradients(1, torch.float32, torch.float32)
    parameters = with_gradients(*gradients)
    ClipByGlobalNorm(0.1).clip_(measure(parameters))
    ratios = torch.cat([(p.grad / g).reshape(-1) for p, g in zip(parameters, gradients, strict=True)])
    torch.testing.assert_close(ratios, ratios[0].expand_as(ratios))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_clipping_by_norm_leaves_what_is_not_finite(bad):
    """Where one element is not finite, no gradient changes: neither NaN nor zeros are spread."""
    gradients = [torch.tensor([bad, 2.0]), torch.tensor([300.0])]
    parameters = with_gradients(*gradients)
    ClipByGlobalNorm(1.0).clip_(measure(parameters))
    for parameter, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=0, equal_nan=True)


def test_clipping_by_value_bounds_infinity_and_leaves_nan():
    """An infinite element becomes the bound, NaN stays NaN."""
    (parameter,) = with_gradients(torch.tensor([float("inf"), float("-inf"), float("nan"), 0.25]))
    ClipByValue(2.0).clip_(measure([parameter]))
    torch.testing.assert_close(parameter.grad, torch.tensor([2.0, -2.0, float("nan"), 0.25]), equal_nan=True)


def test_a_bound_that_half_precision_cannot_hold_is_no_error():
    """A ``max_value`` above 65504 leaves finite float16 gradients as they are."""
    gradient = torch.tensor([6e4, -1.0]).half()
    (parameter,) = with_gradients(gradient)
    ClipByValue(1e6).clip_(measure([parameter]))
    assert torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize("coalesced", [False, True])
@pytest.mark.parametrize("clipper", [ClipByGlobalNorm(1.0), ClipByValue(1.5), ClipByLayerNorm(1.0)], ids=NAMES)
def test_sparse_gradients_are_clipped_as_dense_ones(clipper, coalesced):
    """An embedding's sparse gradient, its rows added up or not, comes out as the dense one would."""
    torch.manual_seed(0)
    embedding, head = nn.Embedding(6, 3, sparse=True), nn.Linear(3, 2)
    head(embedding(torch.tensor([1, 1, 4]))).square().sum().mul(10).backward()
    if coalesced:
        embedding.weight.grad = embedding.weight.grad.coalesce()
    sparse = [embedding.weight, *head.parameters()]
    dense = copy.deepcopy(sparse)
    for parameter, original in zip(dense, sparse, strict=True):
        parameter.grad = original.grad.to_dense().clone()
    ours, theirs = clipper.clip_(measure(sparse)), clipper.clip_(measure(dense))
    assert sparse[0].grad.layout == torch.sparse_coo
    for parameter, expected in zip(sparse, dense, strict=True):
        torch.testing.assert_close(parameter.grad.to_dense(), expected.grad)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("clipper", CLIPPERS, ids=NAMES)
def test_no_gradient_is_no_error(clipper):
    """With nothing to clip, nothing comes back."""
    assert clipper.clip_(measure([nn.Parameter(torch.ones(2))])).shape == (0,)


@pytest.mark.parametrize("clipper", CLIPPERS, ids=NAMES)
def test_gradients_with_a_graph_are_clipped_without_extending_it(clipper):
    """What ``backward(create_graph=True)`` leaves is clipped as ``torch.nn.utils`` does: outside the graph."""
    (parameter,) = with_gradients(torch.ones(4))
    gradient = torch.ones(4, requires_grad=True) * 3
    parameter.grad = gradient
    before = gradient.grad_fn
    returned = clipper.clip_(measure([parameter]))
    assert parameter.grad is gradient
    assert gradient.grad_fn is before
    assert not returned.requires_grad
    assert gradient.abs().max() < 3


@pytest.mark.parametrize("clipper", CLIPPERS, ids=NAMES)
def test_all_are_clippers(clipper):
    """They follow the protocol by which a person writes their own."""
    assert isinstance(clipper, Clipper)
    assert not isinstance(nn.Linear(1, 1), Clipper)


@pytest.mark.parametrize(
    ("kind", "name"), [(ClipByGlobalNorm, "max_norm"), (ClipByValue, "max_value"), (ClipByLayerNorm, "max_norm")]
)
@pytest.mark.parametrize("bound", [0, -1.0, float("nan"), float("inf"), True, "1", None])
def test_a_bound_that_is_none_is_refused(kind, name, bound):
    """The error names the setting and what came."""
    with pytest.raises(ValueError, match=f"`{name}` must be a positive finite number. Got {bound!r}"):
        kind(bound)
