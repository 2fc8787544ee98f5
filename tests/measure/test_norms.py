"""Test ``lightning_gradwatch.measure.norms``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from lightning_gradwatch.measure.layers import find_layers, index_parameters
from lightning_gradwatch.measure.norms import GradientNorms, measure_gradients, norms_of, read_to_host
from lightning_gradwatch.remedy.clipping import ClipByGlobalNorm, ClipByValue
from lightning_gradwatch.settings import Settings
from lightning_gradwatch.watching import Watch

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


def test_one_transfer_brings_norms_weight_norms_and_the_loss():
    """What is sent together comes back apart, as float64."""
    measured = with_gradients([torch.tensor([3.0, 4.0]), torch.tensor([1.0])])
    loss = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    host = read_to_host(measured, torch.tensor([7.0, 8.0, 9.0]), loss)
    assert host.norms.tolist() == [5.0, 1.0]
    assert host.weight_norms.tolist() == [7.0, 8.0, 9.0]
    assert host.loss == 2.5
    assert host.norms.dtype == np.float64


def test_an_overflow_of_the_squares_is_told():
    """``overflowed`` says that the gradient is finite although its norm on the device is not."""
    assert read_to_host(with_gradients([torch.full((2,), 1e30)])).overflowed
    assert not read_to_host(with_gradients([torch.full((2,), float("inf"))])).overflowed
    assert not read_to_host(with_gradients([torch.full((2,), float("nan"))])).overflowed


def test_a_precision_may_be_asked_for():
    """With ``dtype`` the squares are summed in it, so that nothing that is finite comes out infinite."""
    norms = norms_of([torch.full((4,), 1e30), torch.full((4,), 6e4, dtype=torch.float16)], torch.float64)
    assert norms.dtype == torch.float64
    assert norms.tolist() == pytest.approx([2e30, 1.2e5], rel=1e-3)


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    """Return a mesh of this process alone, and leave no process group behind."""
    distributed.init_process_group("gloo", init_method=(tmp_path / "store").as_uri(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        distributed.destroy_process_group()


def partly_sharded(mesh: DeviceMesh, factor: float = 1.0) -> nn.Sequential:
    """Make a net of a plain, a sharded and a plain layer whose gradients are all ``factor``."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    for name, parameter in list(net[1].named_parameters()):
        setattr(net[1], name, nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Shard(0)])))
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter) * factor
    return net


@pytest.mark.parametrize("factor", [1.0, 1e30, 1e-30])
def test_sharded_and_plain_gradients_keep_their_order(mesh: DeviceMesh, factor: float):
    """Where some parameters are DTensors and some are not, each norm is its own, also one measured again."""
    net = partly_sharded(mesh, factor)
    index = index_parameters(find_layers(net), [net.parameters()])
    assert index is not None
    measured = measure_gradients(index)
    assert type(measured.norms) is Tensor
    expected = factor * np.sqrt([16, 4, 16, 4, 8, 2])
    np.testing.assert_allclose(read_to_host(measured, norms_of(index.parameters)).norms, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("clipper", "expected"),
    [
        (None, [20**0.5, 20**0.5, 10**0.5]),
        (ClipByGlobalNorm(1.0), [0.4**0.5, 0.4**0.5, 0.2**0.5]),
        (ClipByValue(0.5), [5**0.5, 5**0.5, 2.5**0.5]),
    ],
    ids=["no clipper", "by norm", "by value"],
)
def test_a_net_that_is_sharded_in_part_is_watched_and_clipped(mesh: DeviceMesh, clipper, expected):
    """A watched step with sharded and plain layers has the right norms before and after clipping."""
    net = partly_sharded(mesh)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    watch = Watch(Settings(clipper=clipper))
    watch.start(net, 1)
    watch.before_step(0, optimizer, 0)
    watch.end_batch()
    assert watch.disabled_reason is None
    np.testing.assert_allclose(watch.history.norms, [[20**0.5, 20**0.5, 10**0.5]], rtol=1e-6)
    np.testing.assert_allclose(watch.history.clipped_norms, [expected], rtol=1e-5)
    whole = [getattr(p.grad, "full_tensor", lambda p=p: p.grad)() for p in net.parameters()]
    assert float(sum(g.square().sum() for g in whole)) == pytest.approx(sum(np.square(expected)), rel=1e-5)
