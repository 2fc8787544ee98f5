"""Test ``lightning_gradwatch.measure.norms``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import norm
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gradwatch.measure.layers import ParameterIndex, find_layers, index_parameters
from lightning_gradwatch.measure.norms import (
    GradientNorms,
    inexact,
    measure_exactly,
    measure_gradients,
    measure_with_weights,
    norms_of,
    sums_in_double,
)
from lightning_gradwatch.remedy.clipping import ClipByGlobalNorm, ClipByValue
from lightning_gradwatch.settings import Settings
from lightning_gradwatch.watching import Watch

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]
# What overflows, vanishes or loses digits when float32 squares it.
EXTREMES = [0.0, 1.0, -3.0, 1e30, -1e30, 1e-30, 1e-41, 6e4, float("inf"), float("nan")]


def index_of(model: nn.Module) -> ParameterIndex:
    """Index all parameters of a model as those of one optimizer."""
    index = index_parameters(find_layers(model), [model.parameters()])
    assert index is not None
    return index


def with_gradients(gradients: Sequence[Tensor]) -> GradientNorms:
    """Measure given gradients as those of a model's parameters."""
    parameters = [nn.Parameter(torch.zeros(g.shape, dtype=g.dtype)) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    return measure_gradients(index_of(nn.ParameterList(parameters)))


class CountCalls(TorchDispatchMode):
    """Counts the operations that reach the device."""

    def __init__(self):
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sum norms in float64 from the start, as on CUDA."""
    monkeypatch.setattr("lightning_gradwatch.measure.norms.sums_in_double", lambda _: True)


tensors = st.builds(
    lambda values, dtype: torch.tensor(values, dtype=torch.float64).to(dtype),
    st.lists(st.sampled_from(EXTREMES) | st.floats(-100, 100, width=32), max_size=6),
    st.sampled_from(DTYPES),
)


@given(st.lists(tensors, min_size=1, max_size=5))
@settings(deadline=None, max_examples=80)
@pytest.mark.filterwarnings("ignore:Casting complex")
def test_norms_that_are_not_called_inexact_are_those_of_float64(gradients):
    """Whatever dtypes are mixed, and however large or small, a norm is right or is known to need a second look."""
    expected = np.array([norm(gradient) for gradient in gradients])
    norms = norms_of(gradients).double().numpy()
    again = inexact(norms, np.array([gradient.numel() for gradient in gradients]))
    np.testing.assert_allclose(norms[~again], expected[~again], rtol=1e-5)


@given(st.lists(tensors, min_size=1, max_size=5))
@settings(deadline=None, max_examples=80)
@pytest.mark.filterwarnings("ignore:Casting complex")
def test_a_second_look_is_exact(gradients):
    """In float64 every norm is that of the oracle, whatever dtypes are mixed, and stays infinite or NaN."""
    exact = measure_exactly(gradients)
    assert exact.dtype == np.float64
    np.testing.assert_allclose(exact, [norm(gradient) for gradient in gradients], rtol=1e-12)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex128], ids=str)
@pytest.mark.parametrize("value", [0.0, 1.0, 1e30, 1e-30, float("inf"), float("nan")])
def test_where_norms_are_summed_in_float64_they_need_no_second_look(dtype, value):
    """As on CUDA: 1e30 and 1e-30 are exact at once, alone and beside other dtypes."""
    if dtype == torch.float16:
        value = min(value, 6e4) if value == 1e30 else value
    gradient = torch.full((3, 2), value).to(dtype)
    for together in ([gradient], [torch.ones(4), gradient, torch.ones(1, dtype=torch.bfloat16)]):
        norms = norms_of(together)
        assert norms.dtype == torch.float64
        np.testing.assert_allclose(norms, [norm(part) for part in together], rtol=1e-12)


def test_norms_are_summed_in_float64_where_that_is_free():
    """CUDA reads each number once in its own dtype; on a CPU float64 costs a copy, and MPS has none."""
    assert {kind: sums_in_double(torch.device(kind)) for kind in ("cuda", "cpu", "mps")} == {
        "cuda": True,
        "cpu": False,
        "mps": False,
    }


@given(st.floats(0, 1e38), st.integers(0, 10**9))
@settings(deadline=None, max_examples=100)
def test_inexact_is_what_loses_digits_in_squares(value, size):
    """A norm is inexact below 1e-19 for each element on average; nothing of no elements is."""
    (told,) = inexact(np.array([value]), np.array([size]))
    assert told == (value < 1e-19 * np.sqrt(size))


def test_what_is_not_finite_is_inexact():
    """Infinity may be an overflow of squares; NaN may hide nothing, but is looked at as well."""
    assert inexact(np.array([np.inf, np.nan, 0.0]), np.array([1, 1, 0])).tolist() == [True, True, False]


@given(st.sampled_from(DTYPES), st.sampled_from([0.25, 2.0, 1024.0]), st.integers(0, 2**31))
@settings(deadline=None, max_examples=20)
def test_scaling_the_gradients_scales_the_norms(dtype, factor, seed):
    """A power of two multiplies every norm by itself, exactly."""
    generator = torch.Generator().manual_seed(seed)
    gradients = [torch.randn(3, 5, generator=generator).to(dtype), torch.randn(7, generator=generator).to(dtype)]
    torch.testing.assert_close(norms_of([g * factor for g in gradients]), norms_of(gradients) * factor)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_stays_zero(dtype):
    """The norm of zeros, and of a tensor without elements, is exactly 0, on a second look too."""
    nothing = [torch.zeros(3, dtype=dtype), torch.zeros(0, 4, dtype=dtype)]
    assert norms_of(nothing).tolist() == [0.0, 0.0]
    assert measure_exactly(nothing).tolist() == [0.0, 0.0]


def test_no_gradient_at_all_has_no_norms():
    """Without gradients the norms are empty and the global norm is 0; the weights are measured all the same."""
    model = nn.Linear(2, 1)
    measured = measure_gradients(index_of(model))
    assert measured.norms.shape == (0,)
    assert measured.global_norm().item() == 0.0
    measured, weights = measure_with_weights(index_of(model))
    assert measured.norms.shape == (0,)
    assert measured.global_norm().item() == 0.0
    assert weights.tolist() == pytest.approx([norm(p) for p in model.parameters()])


def test_gradients_that_are_none_are_left_out():
    """Members tell which parameters the norms belong to."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 1))
    model[1](torch.tensor([[3.0, 4.0]])).sum().backward()
    measured = measure_gradients(index_of(model), optimizer=3)
    assert measured.members.tolist() == [2, 3]
    assert measured.norms.tolist() == [5.0, 1.0]
    assert measured.optimizer == 3
    assert measured.gradients[0] is model[1].weight.grad


def some_gradients(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Make a net with a lazy layer, and gradients of its two used layers but for one bias."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1), nn.LazyLinear(4))
    model[1].to(dtype)
    for parameter in model[:2].parameters():
        parameter.grad = torch.randn(parameter.shape).to(parameter.dtype)
    model[0].bias.grad = None
    return model


@pytest.mark.filterwarnings("ignore:Complex modules")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_and_weights_together_are_what_they_are_apart(dtype):
    """Each number belongs to its gradient or its parameter; a lazy parameter without a shape has none."""
    model = some_gradients(dtype)
    index = index_of(model)
    together, weights = measure_with_weights(index, optimizer=2)
    apart = measure_gradients(index, optimizer=2)
    assert index.filled.tolist() == [0, 1, 2, 3]
    assert together.members.tolist() == apart.members.tolist() == [0, 2, 3]
    assert together.optimizer == 2
    torch.testing.assert_close(together.norms, apart.norms, check_dtype=False)
    np.testing.assert_allclose(weights, [norm(p) for p in model[:2].parameters()], rtol=1e-6)
    assert measure_with_weights(index, weights=False)[1] is None


@pytest.mark.parametrize("later", ["float64", "sparse", "bfloat16"])
def test_gradients_of_which_some_change_their_kind_later_are_measured(later):
    """Parameters were alike when they were indexed; then a person converts a layer, or one gives sparse gradients."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    index = index_of(model)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape)
    assert measure_gradients(index).alike
    if later == "sparse":
        model[1].weight.grad = model[1].weight.grad.to_sparse()
    else:
        model[1].to(getattr(torch, later))
    np.testing.assert_allclose(
        measure_gradients(index).norms, [norm(p.grad.to_dense()) for p in model.parameters()], rtol=1e-2
    )


def test_a_fault_of_the_device_is_told_as_it_is(monkeypatch):
    """Memory that is full is none of the reasons for which another way is tried: the fused call is made once."""
    index, calls = index_of(some_gradients()), []

    def full(*args, **kwargs):
        calls.append(args)
        raise torch.OutOfMemoryError("the device is full")

    monkeypatch.setattr(torch, "_foreach_norm", full)
    with pytest.raises(torch.OutOfMemoryError, match="the device is full"):
        measure_gradients(index)
    assert len(calls) == 1


def test_where_some_have_moved_a_clipper_is_not_told_that_all_are_alike(monkeypatch):
    """As when part of a model goes to another device: the fused call fails, and is not tried by a clipper either."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    index = index_of(model)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape)
    assert measure_gradients(index).alike
    model[1].double()
    fused, tried = torch._foreach_norm, []

    def fails_once(*arguments, **more):
        if not tried:
            tried.append(1)
            raise RuntimeError("Expected all tensors to be on the same device")
        return fused(*arguments, **more)

    monkeypatch.setattr(torch, "_foreach_norm", fails_once)
    measured = measure_gradients(index)
    assert (tried, measured.alike) == ([1], False)
    np.testing.assert_allclose(measured.norms, [norm(p.grad) for p in model.parameters()], rtol=1e-6)


def test_gradients_and_weights_are_read_in_one_pass():
    """One fused call for all, as for the gradients alone."""
    index = index_of(some_gradients())
    for weights in (False, True):
        with CountCalls() as mode:
            measure_with_weights(index, weights=weights)
        assert (mode.calls["_foreach_norm"], mode.calls["stack"]) == (1, 1)


def test_each_dtype_is_one_pass():
    """However many and in whatever order, the tensors of each dtype are read in one call, halves summed in float32."""
    dtypes = [torch.bfloat16, torch.float32, torch.float16, torch.float64, torch.bfloat16, torch.float32]
    gradients = [torch.full((4,), float(i)).to(dtype) for i, dtype in enumerate(dtypes)]
    with CountCalls() as mode:
        norms = norms_of(gradients)
    assert norms.tolist() == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    assert mode.calls["_foreach_norm"] == 4


def test_each_device_is_one_pass():
    """Tensors of two devices, in any order, are read in one fused call a device, and join on that of the first."""
    here, there = torch.ones(3), torch.ones(2, device="meta")
    with CountCalls() as mode:
        norms = norms_of([there, here, there, here, here])
    assert mode.calls["_foreach_norm"] == 2
    assert norms.shape == (5,)
    assert norms.device.type == "meta"


@pytest.mark.gpu
@pytest.mark.supports("several devices in one model")
@pytest.mark.parametrize("first", ["cpu", "cuda"])
def test_norms_of_two_devices_keep_their_order(first):
    """Each norm is its own, in the order of the tensors, on the device of the first."""
    other = {"cpu": "cuda", "cuda": "cpu"}[first]
    places = [first, other, other, first]
    norms = norms_of([torch.full((4,), float(i), device=place) for i, place in enumerate(places)])
    assert norms.device.type == first
    assert norms.tolist() == [0.0, 2.0, 4.0, 6.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(dtype):
    """The norm may be above what half precision holds, alone or beside other dtypes."""
    large = torch.full((100,), 6e4).to(dtype)
    expected = norm(large)
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
    assert norm(gradient) == pytest.approx(np.sqrt(3 * 9 + 3 * 16))
    assert norms_of([gradient, torch.ones(4)]).tolist() == pytest.approx([norm(gradient), 2.0])
    for factor in (1.0, 1e-30, 1e30):
        exact = measure_exactly([gradient * factor, torch.ones(4)])
        np.testing.assert_allclose(exact, [norm(gradient * factor), 2.0], rtol=1e-12)


@given(st.lists(st.floats(0, 1e37), min_size=1, max_size=8))
@settings(deadline=None, max_examples=40)
def test_the_global_norm_is_that_of_all_gradients_as_one(norms):
    """The squares of large norms do not overflow and those of small ones do not vanish."""
    measured = with_gradients([torch.tensor([norm]) for norm in norms])
    expected = norm(torch.tensor(norms, dtype=torch.float32))
    assert measured.global_norm().item() == pytest.approx(expected, rel=1e-5, abs=1e-43)


def test_the_norms_need_no_graph():
    """Gradients that are part of a graph (``create_graph=True``) are measured without extending it."""
    gradient = torch.ones(4, requires_grad=True) * 2
    assert not norms_of([gradient]).requires_grad
    np.testing.assert_allclose(measure_exactly([gradient * 1e-30]), [4e-30], rtol=1e-6)


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


def test_sharded_and_plain_gradients_keep_their_order(mesh: DeviceMesh):
    """Where some parameters are DTensors and some are not, each norm is its own and a plain number."""
    index = index_of(partly_sharded(mesh))
    assert index.sharded
    measured, weights = measure_with_weights(index)
    assert type(measured.norms) is Tensor
    assert type(weights) is Tensor
    np.testing.assert_allclose(measured.norms, np.sqrt([16, 4, 16, 4, 8, 2]), rtol=1e-6)
    np.testing.assert_allclose(weights, [norm(parameter) for parameter in index.parameters], rtol=1e-6)


@pytest.mark.parametrize("factor", [1.0, 1e30, 1e-30])
def test_a_second_look_at_sharded_gradients_is_exact(mesh: DeviceMesh, factor: float):
    """Sharded and plain tensors are looked at together and keep their order."""
    gradients = [parameter.grad for parameter in partly_sharded(mesh, factor).parameters()]
    expected = float(torch.tensor(factor)) * np.sqrt([16, 4, 16, 4, 8, 2])
    np.testing.assert_allclose(measure_exactly(gradients), expected, rtol=1e-12)


@pytest.mark.parametrize("dtypes", [[torch.float32], [torch.bfloat16], [torch.bfloat16, torch.float32, torch.float64]])
@pytest.mark.parametrize("in_double", [False, True], ids=["as on a CPU", "as on CUDA"])
def test_sharded_tensors_of_several_dtypes_are_measured_as_plain_ones_are(
    mesh: DeviceMesh, monkeypatch, dtypes, in_double
):
    """Half precision beside others makes no difference to shards."""
    monkeypatch.setattr("lightning_gradwatch.measure.norms.sums_in_double", lambda _: in_double)
    plain = [torch.full((100,), 6e4 + number).to(dtype) for number, dtype in enumerate(dtypes)]
    sharded = [distribute_tensor(tensor, mesh, [Shard(0)]) for tensor in plain]
    np.testing.assert_allclose(norms_of(sharded), [norm(tensor) for tensor in plain], rtol=1e-5)


def test_a_sharded_net_needs_one_collective_with_weights_and_without(mesh: DeviceMesh, monkeypatch):
    """All norms of a mesh are put together at once: each collective more would be a wait for all processes."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    for layer in net:
        for name, parameter in list(layer.named_parameters()):
            setattr(layer, name, nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Shard(0)])))
    net.requires_grad_()
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    calls = []
    full_tensor = DTensor.full_tensor
    monkeypatch.setattr(DTensor, "full_tensor", lambda self, **more: calls.append(1) or full_tensor(self, **more))
    index = index_of(net)
    measure_with_weights(index, weights=False)
    assert len(calls) == 1
    measure_with_weights(index, weights=True)
    assert len(calls) == 2


@pytest.mark.parametrize("order", ["ab", "pab", "bpa", "apbbpab"])
def test_each_mesh_is_a_pass_of_its_own(mesh: DeviceMesh, order: str):
    """Plain tensors and those of two meshes, in any order, are each measured right."""
    other = init_device_mesh("cpu", (1, 1))
    places = {"p": None, "a": (mesh, [Shard(0)]), "b": (other, [Shard(0), Shard(0)])}
    plain = [torch.full((4,), float(number + 1)) for number in range(len(order))]
    made = [
        tensor if places[letter] is None else distribute_tensor(tensor, *places[letter])
        for letter, tensor in zip(order, plain, strict=True)
    ]
    for measure in (norms_of, measure_exactly):
        assert measure(made).tolist() == [2.0 * (number + 1) for number in range(len(order))]


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


@pytest.mark.parametrize("factor", [1e30, 1e-30])
def test_extreme_gradients_that_are_sharded_in_part_are_watched(mesh: DeviceMesh, factor: float):
    """What float32 cannot hold is found in shards as well."""
    net = partly_sharded(mesh, factor)
    watch = Watch(Settings())
    watch.start(net, 1)
    watch.before_step(0, torch.optim.SGD(net.parameters(), 0.1), 0)
    watch.end_batch()
    assert watch.disabled_reason is None
    np.testing.assert_allclose(watch.history.norms, [factor * np.sqrt([20, 20, 10])], rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_tensors_lose_no_digits(dtype):
    """A CPU adds the squares of a float32 tensor up in float32; a large one is read piece by piece."""
    large, small = torch.rand(2**23).to(dtype), torch.rand(5)
    norms = norms_of([large, small, large.view(2, -1)])
    assert norms.tolist() == pytest.approx([float(t.double().norm()) for t in (large, small, large)], rel=5e-6)
