"""Test ``lightning_gradwatch.remedy.clipping``."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_gradwatch.measure.layers import find_layers, index_parameters
from lightning_gradwatch.measure.norms import GradientNorms, measure_gradients, norms_of
from lightning_gradwatch.remedy.clipping import ClipByGlobalNorm, ClipByValue, Clipper

CLIPPERS = [ClipByGlobalNorm(0.5), ClipByValue(0.1)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]


def with_gradients(*gradients: Tensor) -> list[nn.Parameter]:
    """Make parameters that have these gradients."""
    parameters = [nn.Parameter(torch.zeros(g.shape, dtype=g.dtype)) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    return parameters


def measure(parameters: list[nn.Parameter]) -> GradientNorms:
    """Measure the gradients of parameters."""
    index = index_parameters(find_layers(nn.ParameterList(parameters)), [parameters])
    assert index is not None
    return measure_gradients(index)


def random_gradients(seed: int, *dtypes: torch.dtype, scale: float = 1.0) -> list[Tensor]:
    """Draw a gradient of each dtype."""
    generator = torch.Generator().manual_seed(seed)
    return [(scale * torch.randn(4, 5, generator=generator)).to(dtype) for dtype in dtypes]


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
        else:
            parts = [torch.view_as_real(p.grad) if p.grad.is_complex() else p.grad for p in parameters]
            assert all(part.abs().max() <= 0.1 * 1.01 for part in parts)
        once = [p.grad.clone() for p in parameters]
        clipper.clip_(measure(parameters))
        for parameter, first in zip(parameters, once, strict=True):
            torch.testing.assert_close(parameter.grad, first, rtol=1e-2, atol=0)


@pytest.mark.parametrize("clipper", CLIPPERS, ids=["norm", "value"])
def test_small_gradients_stay_as_they_are(clipper):
    """Below the bound not a bit changes, and zero stays zero."""
    gradients = [*random_gradients(0, torch.float32, torch.float16, scale=1e-3), torch.zeros(3), torch.zeros(0)]
    parameters = with_gradients(*gradients)
    clipper.clip_(measure(parameters))
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(parameters, gradients, strict=True))


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
@pytest.mark.parametrize("clipper", [ClipByGlobalNorm(1.0), ClipByValue(1.5)], ids=["norm", "value"])
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


@pytest.mark.parametrize("clipper", CLIPPERS, ids=["norm", "value"])
def test_no_gradient_is_no_error(clipper):
    """With nothing to clip, nothing comes back."""
    assert clipper.clip_(measure([nn.Parameter(torch.ones(2))])).shape == (0,)


@pytest.mark.parametrize("clipper", CLIPPERS, ids=["norm", "value"])
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


@pytest.mark.parametrize("clipper", CLIPPERS, ids=["norm", "value"])
def test_both_are_clippers(clipper):
    """They follow the protocol by which a person writes their own."""
    assert isinstance(clipper, Clipper)
    assert not isinstance(nn.Linear(1, 1), Clipper)


@pytest.mark.parametrize(("kind", "name"), [(ClipByGlobalNorm, "max_norm"), (ClipByValue, "max_value")])
@pytest.mark.parametrize("bound", [0, -1.0, float("nan"), float("inf"), True, "1", None])
def test_a_bound_that_is_none_is_refused(kind, name, bound):
    """The error names the setting and what came."""
    with pytest.raises(ValueError, match=f"`{name}` must be a positive finite number. Got {bound!r}"):
        kind(bound)
