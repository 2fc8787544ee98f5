"""Test ``lightning_gradwatch.measure.norms``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_gradwatch.measure.layers import find_layers, index_parameters
from lightning_gradwatch.measure.norms import GradientNorms, measure_gradients, norms_of, read_to_host

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]
# What overflows, vanishes or loses digits when float32 squares it.
EXTREMES = [0.0, 1.0, -3.0, 1e30, -1e30, 1e-30, 1e-41, 6e4, float("inf"), float("nan")]


def oracle(tensor: Tensor) -> float:
    """Flatten everything to float64 and take the norm."""
    dense = (tensor.to_dense() if tensor.layout != torch.strided else tensor).detach()
    flat = (torch.view_as_real(dense) if dense.is_complex() else dense).to(torch.float64).reshape(-1)
    return float(np.sqrt(np.square(flat.numpy()).sum()))


def with_gradients(gradients: Sequence[Tensor]) -> GradientNorms:
    """Measure given gradients as those of a model's parameters."""
    parameters = [nn.Parameter(torch.zeros(g.shape, dtype=g.dtype)) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    index = index_parameters(find_layers(nn.ParameterList(parameters)), [parameters])
    assert index is not None
    return measure_gradients(index)


tensors = st.builds(
    lambda values, dtype: torch.tensor(values, dtype=torch.float64).to(dtype),
    st.lists(st.sampled_from(EXTREMES) | st.floats(-100, 100, width=32), max_size=6),
    st.sampled_from(DTYPES),
)


@given(st.lists(tensors, min_size=1, max_size=5))
@settings(deadline=None, max_examples=80)
@pytest.mark.filterwarnings("ignore:Casting complex")
def test_norms_on_the_host_are_those_of_float64(gradients):
    """Whatever dtypes are mixed, and however large or small, each norm is that of the float64 oracle."""
    host = read_to_host(with_gradients(gradients))
    np.testing.assert_allclose(host.norms, [oracle(g) for g in gradients], rtol=1e-5)
    assert host.clipped_norms is host.norms
    assert host.weight_norms.size == 0
    assert np.isnan(host.loss)


@given(st.sampled_from(DTYPES), st.sampled_from([0.25, 2.0, 1024.0]), st.integers(0, 2**31))
@settings(deadline=None, max_examples=20)
def test_scaling_the_gradients_scales_the_norms(dtype, factor, seed):
    """A power of two multiplies every norm by itself, exactly."""
    generator = torch.Generator().manual_seed(seed)
    gradients = [torch.randn(3, 5, generator=generator).to(dtype), torch.randn(7, generator=generator).to(dtype)]
    torch.testing.assert_close(norms_of([g * factor for g in gradients]), norms_of(gradients) * factor)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_stays_zero(dtype):
    """The norm of zeros, and of a tensor without elements, is exactly 0."""
    host = read_to_host(with_gradients([torch.zeros(3, dtype=dtype), torch.zeros(0, 4, dtype=dtype)]))
    assert host.norms.tolist() == [0.0, 0.0]
    assert not host.overflowed


def test_no_gradient_at_all_has_no_norms():
    """Without gradients the norms are empty and the global norm is 0."""
    model = nn.Linear(2, 1)
    index = index_parameters(find_layers(model), [model.parameters()])
    assert index is not None
    measured = measure_gradients(index)
    assert measured.norms.shape == (0,)
    assert measured.global_norm().item() == 0.0
    assert read_to_host(measured).norms.size == 0


def test_gradients_that_are_none_are_left_out():
    """Members tell which parameters the norms belong to."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 1))
    model[1](torch.tensor([[3.0, 4.0]])).sum().backward()
    index = index_parameters(find_layers(model), [model.parameters()])
    assert index is not None
    measured = measure_gradients(index, optimizer=3)
    assert measured.members.tolist() == [2, 3]
    assert measured.norms.tolist() == [5.0, 1.0]
    assert measured.optimizer == 3
    assert measured.gradients[0] is model[1].weight.grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(dtype):
    """The norm may be above what half precision holds, alone or beside other dtypes."""
    large = torch.full((100,), 6e4).to(dtype)
    expected = oracle(large)
    alone, mixed = norms_of([large]), norms_of([large, torch.ones(4), torch.ones(4, dtype=torch.float64)])
    assert alone.dtype == torch.float32
    assert alone.item() == pytest.approx(expected)
    assert mixed.tolist() == pytest.approx([expected, 2.0, 2.0])


@pytest.mark.parametrize("coalesced", [False, True])
def test_a_sparse_gradient_is_measured_by_its_sums(coalesced):
    """Rows that came twice are added up before they are squared."""
    embedding = nn.Embedding(6, 3, sparse=True)
    (embedding(torch.tensor([1, 1, 4])) * torch.tensor([[1.0], [2.0], [4.0]])).sum().backward()
    gradient = embedding.weight.grad
    assert gradient is not None
    assert not gradient.is_coalesced()
    if coalesced:
        gradient = gradient.coalesce()
    assert oracle(gradient) == pytest.approx(np.sqrt(3 * 9 + 3 * 16))
    for factor in (1.0, 1e-30, 1e30):
        measured = with_gradients([gradient * factor, torch.ones(4)])
        host = read_to_host(measured)
        np.testing.assert_allclose(host.norms, [oracle(gradient * factor), 2.0], rtol=1e-6)


@given(st.lists(st.floats(0, 1e37), min_size=1, max_size=8))
@settings(deadline=None, max_examples=40)
def test_the_global_norm_is_that_of_all_gradients_as_one(norms):
    """The squares of large norms do not overflow and those of small ones do not vanish."""
    measured = with_gradients([torch.tensor([norm]) for norm in norms])
    expected = oracle(torch.tensor(norms, dtype=torch.float32).double())
    assert measured.global_norm().item() == pytest.approx(expected, rel=1e-5, abs=1e-43)


def test_the_norms_need_no_graph():
    """Gradients that are part of a graph (``create_graph=True``) are measured without extending it."""
    gradient = torch.ones(4, requires_grad=True) * 2
    assert not norms_of([gradient]).requires_grad
    host = read_to_host(with_gradients([(gradient * 1e-30).detach().requires_grad_()]))
    assert host.norms.tolist() == pytest.approx([4e-30])


def test_one_transfer_brings_clipped_norms_weight_norms_and_the_loss():
    """What is sent together comes back apart, as float64."""
    measured = with_gradients([torch.tensor([3.0, 4.0]), torch.tensor([1.0])])
    loss = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    host = read_to_host(measured, torch.tensor([0.5, 0.1]), torch.tensor([7.0, 8.0, 9.0]), loss)
    assert host.norms.tolist() == [5.0, 1.0]
    np.testing.assert_allclose(host.clipped_norms, [0.5, 0.1], rtol=1e-6)
    assert host.weight_norms.tolist() == [7.0, 8.0, 9.0]
    assert host.loss == 2.5
    assert host.norms.dtype == np.float64


def test_an_overflow_of_the_squares_is_told():
    """``overflowed`` says that the gradient is finite although its norm on the device is not."""
    assert read_to_host(with_gradients([torch.full((2,), 1e30)])).overflowed
    assert not read_to_host(with_gradients([torch.full((2,), float("inf"))])).overflowed
    assert not read_to_host(with_gradients([torch.full((2,), float("nan"))])).overflowed
