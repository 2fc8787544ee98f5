"""Test ``lightning_gradwatch.measure.reader``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from oracle import norm
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gradwatch.measure import reading as reading_module
from lightning_gradwatch.measure.norms import GradientNorms
from lightning_gradwatch.measure.reader import Reader, _learning_rates, _rates_on_a_device, describe_optimizer
from lightning_gradwatch.measure.snapshot import GradientSnapshot
from lightning_gradwatch.remedy.clipping import ClipByGlobalNorm, ClipByValue


def net() -> nn.Sequential:
    """Make a small net with the same weights each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 2))


def backward(model: nn.Module) -> Tensor:
    """Run one backward pass and return the loss."""
    loss = model(torch.linspace(-1, 1, 15).reshape(5, 3)).square().mean()
    loss.backward()
    return loss


def gradient_norm(parameters: Sequence[Tensor]) -> float:
    """Compute the norm of all gradients as one vector by the oracle; NaN without one."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return norm(*gradients) if gradients else float("nan")


def read(
    reader: Reader,
    number: int,
    optimizer: torch.optim.Optimizer,
    step: int,
    clip: Callable[[GradientNorms], Tensor] | None = None,
    **more: Any,
) -> GradientSnapshot:
    """Read, clip, send and ask for the numbers."""
    reading = reader.read(number, optimizer, step, **more)
    if clip:
        reading.clip_(clip)
    reading.send()
    return reading.snapshot()


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """Sum norms in float64 from the start, as on CUDA, and let the numbers come late."""
    with (
        mock.patch("lightning_gradwatch.measure.norms.sums_in_double", return_value=True),
        mock.patch("lightning_gradwatch.measure.reading.sums_in_double", return_value=True),
    ):
        yield


@pytest.fixture
def late() -> Iterator[None]:
    """Run a test as on CUDA."""
    with as_on_cuda():
        yield


@pytest.fixture(params=[False, True], ids=["as on a CPU", "as on CUDA"])
def anywhere(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a test both ways."""
    if request.param:
        with as_on_cuda():
            yield
    else:
        yield


def given_gradients(*gradients: Tensor) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Make a model of one layer a gradient, with an optimizer."""
    lists = [nn.ParameterList([nn.Parameter(torch.zeros(gradient.shape))]) for gradient in gradients]
    for layer, gradient in zip(lists, gradients, strict=True):
        layer[0].grad = gradient.clone()
    model = nn.ModuleList(lists)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.usefixtures("anywhere")
def test_a_snapshot_holds_what_the_oracle_measures():
    """Norms, bias norms, weight norms, loss and step are those of flattened float64 tensors."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = backward(model)
    snapshot = read(Reader(model), 2, optimizer, 17, loss=loss)
    layers = [model[0], model[2], model[3]]
    np.testing.assert_allclose(snapshot.norms, [gradient_norm(list(m.parameters())) for m in layers], rtol=1e-6)
    np.testing.assert_allclose(snapshot.bias_norms, [gradient_norm([m.bias]) for m in layers], rtol=1e-6)
    weights = [torch.cat([p.detach().double().reshape(-1) for p in m.parameters()]).norm() for m in layers]
    np.testing.assert_allclose(snapshot.weight_norms, weights, rtol=1e-6)
    assert snapshot.clipped_norms is snapshot.norms
    assert snapshot.present.all()
    assert (snapshot.step, snapshot.optimizer, snapshot.loss) == (17, 2, pytest.approx(loss.item()))
    np.testing.assert_allclose(snapshot.learning_rates, 0.1)


@pytest.mark.usefixtures("anywhere")
def test_each_layer_has_the_learning_rate_of_its_group():
    """A layer that the optimizer does not hold has none, and is not present."""
    model = net()
    groups = [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[3].parameters()}]
    optimizer = torch.optim.SGD(groups, lr=torch.tensor(0.25))
    backward(model)
    snapshot = read(Reader(model), 0, optimizer, 0)
    np.testing.assert_array_equal(snapshot.learning_rates, [0.5, np.nan, 0.25])
    assert snapshot.present.tolist() == [True, False, True]
    assert np.isnan(snapshot.norms[1])
    assert np.isnan(snapshot.loss)


@pytest.mark.usefixtures("anywhere")
def test_layers_without_a_gradient_are_not_present():
    """Frozen layers and layers that were not used are NaN and not present; their weights are still measured."""
    model = net()
    model[0].requires_grad_(requires_grad=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reader = Reader(model)
    backward(model)
    model[3].zero_grad()
    snapshot = read(reader, 0, optimizer, 0)
    assert snapshot.present.tolist() == [False, True, False]
    assert np.isfinite(snapshot.norms).tolist() == [False, True, False]
    assert np.isfinite(snapshot.weight_norms).all()
    assert snapshot.finite


@pytest.mark.usefixtures("anywhere")
def test_a_nan_gradient_is_present():
    """A NaN gradient is present and not finite."""
    model, optimizer = given_gradients(torch.tensor([float("nan")]), torch.ones(4))
    snapshot = read(Reader(model), 0, optimizer, 0)
    assert snapshot.present.all()
    assert not snapshot.finite
    assert snapshot.norms[1] == 2.0


@pytest.mark.usefixtures("anywhere")
def test_a_scale_is_divided_out_of_norms_that_are_still_scaled():
    """Where the optimizer unscales inside its step, the scaler's factor is in neither the norms nor the loss."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = backward(model)
    reader = Reader(model)
    plain = read(reader, 0, optimizer, 0, loss=loss)
    for parameter in model.parameters():
        parameter.grad *= 1024
    scaled = read(reader, 0, optimizer, 1, loss=loss * 1024, scale=torch.tensor(1024.0), unscales=True)
    for name in ("norms", "clipped_norms", "bias_norms"):
        np.testing.assert_allclose(getattr(scaled, name), getattr(plain, name), rtol=1e-6)
    assert scaled.loss == pytest.approx(plain.loss)


@pytest.mark.supports("fused optimizers under a loss scaler")
@pytest.mark.usefixtures("anywhere")
def test_what_a_fused_optimizer_has_unscaled_is_not_divided_again():
    """Before its step gradients are scaled, after it they are not: both rows are what was used."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    backward(model)
    layers = [list(layer.parameters()) for layer in (model[0], model[2], model[3])]
    expected = [gradient_norm(layer) for layer in layers]
    model.zero_grad()
    scaler.scale(model(torch.linspace(-1, 1, 15).reshape(5, 3)).square().mean()).backward()
    np.testing.assert_allclose([gradient_norm(layer) for layer in layers], np.array(expected) * 1024, rtol=1e-6)
    reading = Reader(model).read(0, optimizer, 0, scale=scaler.scale(torch.ones(())), unscales=True)
    scaler.step(optimizer)
    reading.measure_again()
    scaler.update()
    snapshot = reading.snapshot()
    np.testing.assert_allclose(snapshot.norms, expected, rtol=1e-6)
    np.testing.assert_allclose(snapshot.clipped_norms, expected, rtol=1e-6)


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_step_that_a_fused_optimizer_dropped_is_not_finite(value):
    """It leaves the gradients as they were, so that no row is mistaken for one that was used."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(model(torch.linspace(-1, 1, 15).reshape(5, 3)).square().mean()).backward()
    model[0].bias.grad[0] = value
    reading = Reader(model).read(0, optimizer, 0, scale=scaler.scale(torch.ones(())), unscales=True)
    scaler.step(optimizer)
    reading.measure_again()
    snapshot = reading.snapshot()
    assert not snapshot.finite
    assert np.isfinite(snapshot.clipped_norms).tolist() == [False, True, True]
    np.testing.assert_allclose(snapshot.clipped_norms, snapshot.norms, rtol=1e-6)


@pytest.mark.usefixtures("anywhere")
def test_a_scale_is_divided_out_of_the_loss_alone_where_gradients_were_unscaled():
    """A scaler that has unscaled the gradients before leaves its factor in the loss only."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = backward(model)
    plain = read(Reader(model), 0, optimizer, 0, loss=loss)
    clip = ClipByGlobalNorm(1e9).clip_
    scaled = read(Reader(model), 0, optimizer, 0, clip, loss=loss * 512, scale=torch.tensor(512.0))
    for name in ("norms", "clipped_norms", "bias_norms"):
        np.testing.assert_allclose(getattr(scaled, name), getattr(plain, name), rtol=1e-6)
    assert scaled.loss == pytest.approx(plain.loss)


@pytest.mark.usefixtures("anywhere")
def test_weights_are_measured_at_first_and_now_and_then():
    """The first five readings measure the weights, then every 50th; between, the newest measurement stands."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reader = Reader(model)
    backward(model)
    fresh = []
    for step in range(101):
        with torch.no_grad():
            model[3].weight.fill_(float(step))
            model[3].bias.zero_()
        snapshot = read(reader, 0, optimizer, step)
        fresh += [step] if snapshot.weight_norms[2] == pytest.approx(step * np.sqrt(8)) else []
    assert fresh == [0, 1, 2, 3, 4, 50, 100]


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize(
    ("gradients", "clip"),
    [
        ([torch.full((4,), 1e30), torch.ones(4)], ClipByValue(1.0)),
        ([torch.full((4,), 1e30), torch.ones(4)], ClipByGlobalNorm(1.0)),
        ([torch.full((4,), 1e-25), torch.full((4,), 1e3)], ClipByGlobalNorm(1.0)),
        ([torch.full((4,), 1e-25), torch.ones(4)], ClipByGlobalNorm(100.0)),
        ([torch.zeros(4), torch.full((4,), 1e3)], ClipByValue(1.0)),
    ],
    ids=["overflow by value", "overflow by norm", "tiny, clipped", "tiny, not clipped", "zero"],
)
def test_norms_before_clipping_are_exact_however_extreme(gradients, clip):
    """What float32 squares cannot hold is measured again before the clipper changes it, and after."""
    model, optimizer = given_gradients(*gradients)
    parameters = list(model.parameters())
    before = [gradient_norm([p]) for p in parameters]
    snapshot = read(Reader(model), 0, optimizer, 0, clip.clip_)
    np.testing.assert_allclose(snapshot.norms, before, rtol=1e-6)
    np.testing.assert_allclose(snapshot.clipped_norms, [gradient_norm([p]) for p in parameters], rtol=1e-6)


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("gradient", [1.0, 1e30])
def test_the_clipper_is_called_once(gradient):
    """A clipper that remembers sees each step once, after an overflow too."""
    calls = []

    def clip(norms):
        calls.append(norms.norms.tolist())
        return norms.norms

    model, optimizer = given_gradients(torch.full((4,), gradient))
    read(Reader(model), 0, optimizer, 0, clip)
    assert calls == [[pytest.approx(2 * gradient)]]


@pytest.mark.usefixtures("anywhere")
def test_reading_again_sees_what_someone_else_has_clipped():
    """After another's clipping the same gradients have smaller norms; those before it stay."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    backward(model)
    before = [gradient_norm(list(layer.parameters())) for layer in (model[0], model[2], model[3])]
    reading = Reader(model).read(0, optimizer, 0)
    total = gradient_norm(list(model.parameters()))
    torch.nn.utils.clip_grad_norm_(model.parameters(), total / 10)
    reading.measure_again()
    np.testing.assert_allclose(reading.snapshot().norms, before, rtol=1e-5)
    np.testing.assert_allclose(reading.snapshot().clipped_norms, np.array(before) / 10, rtol=1e-4)


@pytest.mark.usefixtures("anywhere")
def test_reading_changes_nothing():
    """Weights, gradients and the random state are bit-identical after graph and gradients were read."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reader = Reader(model)
    loss = model(torch.randn(5, 3)).square().mean()
    reader.read_graph(loss)
    loss.backward()
    state = [t.clone() for p in model.parameters() for t in (p.detach(), p.grad)]
    random = torch.get_rng_state()
    versions = [p._version for p in model.parameters()]
    grads = [id(p.grad) for p in model.parameters()]
    for step in range(60):
        reading = reader.read(0, optimizer, step, loss=loss)
        reading.measure_again()
        reading.snapshot()
    assert all(
        torch.equal(a, b) for a, b in zip(state, (t for p in model.parameters() for t in (p, p.grad)), strict=True)
    )
    assert torch.equal(torch.get_rng_state(), random)
    assert [p._version for p in model.parameters()] == versions
    assert [id(p.grad) for p in model.parameters()] == grads


@pytest.fixture
def transfers(monkeypatch) -> Counter[str]:
    """Count every way in which a tensor's numbers come to the host."""
    counts: Counter[str] = Counter()

    def counting(name: str, original: Callable) -> Callable:
        def counted(self, *arguments, **more):
            counts[name] += 1
            return original(self, *arguments, **more)

        return counted

    for name in ("cpu", "item", "tolist", "__float__", "__bool__", "__int__", "__index__"):
        monkeypatch.setattr(Tensor, name, counting(name, getattr(Tensor, name)))
    return counts


@pytest.mark.usefixtures("anywhere")
@pytest.mark.supports("one transfer to the host a reading")
@pytest.mark.parametrize("num_before", [0, 7], ids=["with weights", "without weights"])
def test_a_reading_is_one_transfer(transfers, num_before):
    """One ``cpu()`` a reading, with or without the weights, and nothing else that waits for the device."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reader = Reader(model)
    loss, scale = backward(model), torch.tensor(2.0)
    for step in range(num_before):
        read(reader, 0, optimizer, step, loss=loss)
    transfers.clear()
    read(reader, 0, optimizer, num_before, loss=loss, scale=scale, unscales=True)
    assert transfers == {"cpu": 1}


def test_a_clipper_costs_one_transfer_more(transfers):
    """On a CPU norms before clipping have to be known before they are changed, so those after come apart."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = backward(model)
    read(Reader(model), 0, optimizer, 0, ClipByGlobalNorm(1e-3).clip_, loss=loss)
    assert transfers == {"cpu": 2}


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("clip", [ClipByGlobalNorm(1e-3).clip_, ClipByValue(1e-3).clip_], ids=["norm", "value"])
def test_as_on_cuda_a_clipper_and_another_after_it_cost_no_transfer_more(transfers, clip):
    """Weights, loss, scale and three sets of norms go to the host at once."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reading = Reader(model).read(0, optimizer, 0, backward(model), torch.tensor(1.0))
    reading.clip_(clip)
    for parameter in model.parameters():
        parameter.grad.mul_(0.5)
    assert transfers == {}
    reading.measure_again()
    snapshot = reading.snapshot()
    assert transfers == {"cpu": 1}
    layers = [list(layer.parameters()) for layer in (model[0], model[2], model[3])]
    np.testing.assert_allclose(snapshot.clipped_norms, [gradient_norm(layer) for layer in layers], rtol=1e-6)
    assert np.isfinite(snapshot.weight_norms).all()
    assert (snapshot.norms > snapshot.clipped_norms).all()


class CountCalls(TorchDispatchMode):
    """Counts the operations that reach the device."""

    def __init__(self):
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_the_operations_of_a_reading_are_few_and_known():
    """All gradients are read by one fused call; the count does not grow with the number of layers."""
    for depth in (2, 20):
        model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(depth)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        reader = Reader(model)
        loss = backward(model)
        for step in range(5):
            read(reader, 0, optimizer, step, loss=loss)
        with CountCalls() as mode:
            read(reader, 0, optimizer, 5, loss=loss)
        # The loss is detached and reshaped, joined to the norms, and both go to the host; which dtype holds them is
        # found out on the host.
        quiet = {"detach", "view", "lift_fresh", "promote_types"}
        operations = {name: count for name, count in mode.calls.items() if name not in quiet}
        assert operations == {"_foreach_norm": 1, "stack": 1, "cat": 1}


def test_the_graph_is_read_until_every_trainable_layer_is_seen():
    """Two losses of a GAN tell one order; what the first said of a layer stays."""
    model = nn.ModuleDict({"critic": nn.Linear(4, 1), "generator": nn.Linear(3, 4)})
    reader = Reader(model)
    assert reader.order == (0, 1)
    reader.read_graph(model["critic"](torch.ones(2, 4)).sum())
    assert reader.topology.order == (0,)
    reader.read_graph(model["critic"](torch.tanh(model["generator"](torch.ones(2, 3)))).sum())
    assert reader.topology.order == (0, 1)
    assert [about.activation for about in reader.descriptions] == ["output", "tanh"]
    before = reader.topology
    reader.read_graph(torch.relu(model["generator"](torch.ones(2, 3))).sum())
    assert reader.topology is before


def test_outlets_of_several_losses_are_joined():
    """A trunk that has one head for each of two losses ends in both, and an encoder that was pretrained goes on."""
    trunk, one, other = (nn.Linear(2, 2) for _ in range(3))
    reader = Reader(nn.ModuleList([trunk, one, other]))
    reader.read_graph(one(trunk(torch.ones(1, 2))).sum())
    reader.read_graph(other(trunk(torch.ones(1, 2))).sum())
    assert [about.outlets for about in reader.descriptions] == [(1, 2), (1,), (2,)]


def test_a_layer_that_is_never_used_does_not_keep_the_graph_open():
    """After four graphs no more is read."""
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    reader = Reader(model)
    for _ in range(4):
        reader.read_graph(model[0](torch.ones(1, 2)).sum())
    before = reader.topology
    reader.read_graph(model[1](torch.ones(1, 2)).sum())
    assert reader.topology is before


def test_layers_in_forward_order_whatever_their_registration():
    """The reader's order is that of the graph."""
    model = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 2)])
    reader = Reader(model)
    reader.read_graph(model[0](torch.relu(model[1](torch.ones(1, 2)))).sum())
    assert reader.order == (1, 0)


@pytest.mark.usefixtures("anywhere")
def test_a_layer_that_is_added_later_is_appended():
    """A new layer in a new group becomes the last column; earlier columns keep their places, and the graph is read."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reader = Reader(model)
    loss = backward(model)
    reader.read_graph(loss)
    read(reader, 0, optimizer, 0)
    model.insert(0, nn.Linear(3, 3))
    model.new = nn.Linear(2, 2)
    optimizer.add_param_group({"params": model.new.parameters(), "lr": 0.7})
    optimizer.add_param_group({"params": model[0].parameters(), "lr": 0.9})
    loss = model(torch.randn(5, 3)).square().mean()
    loss.backward()
    snapshot = read(reader, 0, optimizer, 1)
    assert len(snapshot.norms) == len(reader.layers) == len(reader.descriptions) == len(reader.order)
    assert "new" in [layer.name for layer in reader.layers]
    held = {id(p) for layer in reader.layers for p in layer.parameters.values()}
    assert {id(p) for p in model.parameters()} <= held
    place = [layer.name for layer in reader.layers].index("new")
    assert snapshot.norms[place] == pytest.approx(gradient_norm(list(model.new.parameters())))
    assert snapshot.learning_rates[place] == pytest.approx(0.7)
    assert reader._graphs_left == 1


def test_a_layer_that_is_unfrozen_later_is_described_so_at_the_next_look_at_the_weights():
    """Also where no gradient comes to it then; one that is frozen meanwhile (toggled optimizers) stays as it was."""
    model = net()
    model[0].requires_grad_(False)
    reader = Reader(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    backward(model)
    told = []
    for step in range(51):
        if step == 10:
            model[0].requires_grad_(True)
            model[3].requires_grad_(False)
        read(reader, 0, optimizer, step)
        told.append([about.trainable for about in reader.descriptions])
    assert told[:50] == [[False, True, True]] * 50
    assert told[50] == [True, True, True]


@pytest.mark.usefixtures("anywhere")
def test_a_parameter_outside_the_model_is_a_layer():
    """A stray parameter of the optimizer gets a column of its own at the end."""
    model = net()
    temperature = nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([*model.parameters(), temperature], lr=0.1)
    reader = Reader(model)
    backward(model)
    temperature.grad = torch.tensor(-3.0)
    snapshot = read(reader, 0, optimizer, 0)
    assert reader.layers[-1].name == "(outside the model) 0"
    assert snapshot.norms[-1] == 3.0
    assert len(snapshot.norms) == 4
    again = read(reader, 0, optimizer, 1)
    assert len(again.norms) == 4


@pytest.mark.usefixtures("anywhere")
def test_two_optimizers_are_read_apart():
    """Each optimizer's reading has its own layers present, and a layer added by one has a column for both."""
    model = net()
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    second = torch.optim.Adam(model[3].parameters(), lr=0.2)
    reader = Reader(model)
    backward(model)
    one = read(reader, 0, first, 0)
    assert one.present.tolist() == [True, False, False]
    second.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    two = read(reader, 1, second, 0)
    assert two.present.tolist() == [False, False, True, False]
    one = read(reader, 0, first, 1)
    assert one.present.tolist() == [True, False, False, False]
    assert len(one.weight_norms) == 4


@pytest.mark.usefixtures("anywhere")
def test_weights_that_nobody_asked_for_are_measured_again():
    """LBFGS evaluates its closure many times a step and only the last reading counts: its weights are known."""
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters())
    reader = Reader(model)
    backward(model)
    expected = [norm(*layer.parameters()) for layer in (model[0], model[2], model[3])]
    for step in range(3):
        for _ in range(20):
            reading = reader.read(0, optimizer, step)
            reading.send()
        np.testing.assert_allclose(reading.snapshot().weight_norms, expected, rtol=1e-6)


@pytest.fixture
def second_looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note how many tensors each second look takes."""
    looks: list[int] = []
    original = reading_module.measure_exactly
    monkeypatch.setattr(
        reading_module, "measure_exactly", lambda tensors: looks.append(len(tensors)) or original(tensors)
    )
    return looks


def test_what_stays_zero_is_looked_at_again_every_tenth_reading(second_looks):
    """A dead layer costs a second look in float64 each tenth reading, and none between."""
    model, optimizer = given_gradients(torch.zeros(4), torch.ones(4), torch.zeros(3))
    reader = Reader(model)
    looked = []
    for step in range(31):
        assert read(reader, 0, optimizer, step).norms.tolist() == [0.0, 2.0, 0.0]
        looked += [step] * len(second_looks)
        second_looks.clear()
    assert looked == [0, 10, 20, 30]


def test_what_was_zero_and_became_tiny_is_found_at_the_tenth_reading():
    """A gradient of 1e-30, whose squares float32 takes for zero, hides behind a known zero for ten readings at most."""
    model, optimizer = given_gradients(torch.zeros(4), torch.ones(4))
    reader = Reader(model)
    rows = []
    for step in range(12):
        model[0][0].grad.fill_(0.0 if step < 3 else 1e-30)
        rows.append(read(reader, 0, optimizer, step).norms[0])
    assert rows[:10] == [0.0] * 10
    np.testing.assert_allclose(rows[10:], [2e-30] * 2, rtol=1e-6)


@pytest.mark.parametrize("between", [1.0, 1e-21, 1e30, float("nan")])
def test_what_was_not_zero_in_the_last_reading_is_found_at_once(between):
    """Only what read zero before may be taken for zero."""
    model, optimizer = given_gradients(torch.zeros(4), torch.ones(4))
    reader = Reader(model)
    for step, value in enumerate([0.0, between, 1e-30]):
        model[0][0].grad.fill_(value)
        last = read(reader, 0, optimizer, step).norms[0]
    np.testing.assert_allclose(last, 2e-30, rtol=1e-6)


@pytest.mark.usefixtures("late")
def test_as_on_cuda_nothing_hides_behind_a_zero(second_looks):
    """Where norms are summed in float64 a tiny gradient is found at once, without a second look."""
    model, optimizer = given_gradients(torch.zeros(4), torch.ones(4))
    reader = Reader(model)
    rows = []
    for step in range(4):
        model[0][0].grad.fill_(0.0 if step < 2 else 1e-30)
        rows.append(read(reader, 0, optimizer, step).norms[0])
    np.testing.assert_allclose(rows, [0.0, 0.0, 2e-30, 2e-30], rtol=1e-6)
    assert second_looks == []


@pytest.mark.usefixtures("anywhere")
def test_a_learning_rate_is_that_of_the_step_however_late_the_numbers_are_asked_for():
    """A scheduler writes into a learning rate that is a tensor, before the numbers of the step are asked for."""
    model, optimizer = given_gradients(torch.ones(4), torch.ones(4))
    rate = torch.tensor(0.25)
    optimizer.param_groups[0]["lr"] = rate
    reading = Reader(model).read(0, optimizer, 0)
    reading.send()
    rate.fill_(0.5)
    assert reading.snapshot().learning_rates.tolist() == [0.25, 0.25]


@pytest.mark.usefixtures("anywhere")
def test_a_learning_rate_that_a_scheduler_replaces_is_that_of_the_step():
    """The same for plain numbers."""
    model, optimizer = given_gradients(torch.ones(4))
    reading = Reader(model).read(0, optimizer, 0)
    reading.send()
    optimizer.param_groups[0]["lr"] = 0.5
    assert reading.snapshot().learning_rates.tolist() == [0.1]


@pytest.mark.usefixtures("anywhere")
def test_an_optimizer_that_chooses_its_own_rate_has_none():
    """Adafactor with a relative step has a learning rate of None, which reads NaN."""
    model, optimizer = given_gradients(torch.ones(4))
    optimizer.param_groups[0]["lr"] = None
    snapshot = read(Reader(model), 0, optimizer, 0)
    assert np.isnan(snapshot.learning_rates).all()
    assert snapshot.norms.tolist() == [2.0]


def test_only_rates_on_a_device_are_sent():
    """Plain numbers need no transfer; tensors go together, whatever their shape."""
    assert _rates_on_a_device([0.1, None]) is None
    there = [torch.tensor(0.1, device="meta"), torch.tensor([0.2], device="meta", dtype=torch.float64)]
    joined = _rates_on_a_device([0.1, there[0], None, there[1]])
    assert joined is not None
    assert (joined.shape, joined.device.type) == ((2,), "meta")


def test_rates_from_a_device_come_back_to_their_groups():
    """Each number that arrived belongs to the next group whose rate was on a device."""
    there = torch.tensor(0.0, device="meta")
    rates = _learning_rates([0.1, there, None, 0.25, there], np.array([0.5, 0.75]))
    np.testing.assert_array_equal(rates, [0.1, 0.5, np.nan, 0.25, 0.75])


class Lazy(nn.Module):
    """Has a layer whose parameters get their shape with the first use, when that comes."""

    def __init__(self):
        super().__init__()
        self.first, self.lazy = nn.Linear(3, 4), nn.LazyLinear(2)

    def forward(self, inputs, use_it=False):
        hidden = self.first(inputs)
        return self.lazy(hidden) if use_it else hidden


@pytest.mark.supports("lazy layers")
@pytest.mark.usefixtures("anywhere")
def test_lazy_parameters_that_are_never_used_do_no_harm():
    """They have neither gradient nor weights; all others are read, weights too, and a clipper clips."""
    model = Lazy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reader = Reader(model)
    model(torch.ones(2, 3)).sum().backward()
    for step in range(7):
        snapshot = read(reader, 0, optimizer, step, ClipByGlobalNorm(1e9).clip_)
        np.testing.assert_allclose(snapshot.norms, [gradient_norm(list(model.first.parameters())), np.nan], rtol=1e-6)
        np.testing.assert_allclose(snapshot.weight_norms, [norm(*model.first.parameters()), np.nan], rtol=1e-6)
        assert snapshot.present.tolist() == [True, False]


@pytest.mark.supports("lazy layers")
@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("factor", [1.0, 1e-30])
def test_a_lazy_parameter_is_measured_once_it_has_a_shape(factor):
    """From the first use on gradient and weights are read, though the weights were not due."""
    model = Lazy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reader = Reader(model)
    model(torch.ones(2, 3)).sum().backward()
    for step in range(7):
        read(reader, 0, optimizer, step)
    optimizer.zero_grad()
    (model(torch.ones(2, 3), use_it=True).sum() * factor).backward()
    snapshot = read(reader, 0, optimizer, 7)
    layers = [list(model.first.parameters()), list(model.lazy.parameters())]
    np.testing.assert_allclose(snapshot.norms, [gradient_norm(layer) for layer in layers], rtol=1e-6)
    np.testing.assert_allclose(snapshot.bias_norms, [gradient_norm(layer[1:]) for layer in layers], rtol=1e-6)
    np.testing.assert_allclose(snapshot.weight_norms, [norm(*layer) for layer in layers], rtol=1e-6)
    assert snapshot.present.all()


@pytest.mark.usefixtures("anywhere")
def test_a_step_without_any_gradient_is_read():
    """A training step that returned None leaves no gradient: nothing is present, the weights are known."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    snapshot = read(Reader(model), 0, optimizer, 0, ClipByGlobalNorm(1.0).clip_)
    assert not snapshot.present.any()
    assert snapshot.global_norm == 0.0
    assert np.isfinite(snapshot.weight_norms).all()


@pytest.mark.usefixtures("late")
def test_numbers_that_come_late_are_those_of_their_own_step():
    """As on CUDA a reading may be asked for after the next one began; nothing of the one gets into the other."""
    model, optimizer = given_gradients(torch.ones(4), torch.ones(2))
    reader = Reader(model)
    open_readings = []
    for step in range(3):
        for parameter in model.parameters():
            parameter.grad.fill_(float(step + 1))
        with torch.no_grad():
            model[0][0].fill_(float(step))
        loss = torch.tensor(float(step))
        reading = reader.read(0, optimizer, step, loss=loss)
        reading.send()
        open_readings.append(reading)
    assert all(reading.under_way for reading in open_readings)
    for step, reading in enumerate(open_readings):
        snapshot = reading.snapshot()
        assert (snapshot.step, snapshot.loss) == (step, float(step))
        np.testing.assert_allclose(snapshot.norms, (step + 1) * np.sqrt([4, 2]))
        assert snapshot.weight_norms[0] == 2.0 * step


def test_only_sharded_parameters_need_all_processes():
    """Plain parameters are measured by each process alone."""
    model = net()
    assert not Reader(model).sharded(0, torch.optim.SGD(model.parameters(), lr=0.1))


@contextmanager
def nothing_waits() -> Iterator[None]:
    """Fail where the host waits for the CUDA device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.supports("CUDA: the reading waits for nothing")
@pytest.mark.parametrize(
    ("dtype", "factor"),
    [
        *((dtype, factor) for dtype in (torch.float32, torch.bfloat16, torch.float64) for factor in (1.0, 1e-30, 1e30)),
        (torch.float16, 1.0),
    ],
)
@pytest.mark.parametrize(
    "clip", [None, ClipByGlobalNorm(1e-3).clip_, ClipByValue(1e-3).clip_], ids=["no clipper", "by norm", "by value"]
)
def test_on_cuda_a_reading_waits_for_nothing_and_is_exact(dtype, factor, clip):
    """Reading, clipping and sending never wait for the device, and the numbers are those of the oracle."""
    model = net().to("cuda", dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=torch.tensor(0.25, device="cuda"))
    loss = model(torch.linspace(-1, 1, 15, device="cuda", dtype=dtype).reshape(5, 3)).square().mean()
    loss.backward()
    scale, reader = torch.tensor(2.0, device="cuda"), Reader(model)
    layers = [list(layer.parameters()) for layer in (model[0], model[2], model[3])]
    for parameter in model.parameters():
        parameter.grad.mul_(factor)
    # The first pinned memory of a process is asked of the driver.
    read(reader, 0, optimizer, 0, loss=loss, scale=scale)
    before = [gradient_norm(layer) for layer in layers]
    with nothing_waits():
        reading = reader.read(0, optimizer, 1, loss, scale)
        if clip is not None:
            reading.clip_(clip)
        reading.send()
    assert reading.under_way
    snapshot = reading.snapshot()
    np.testing.assert_allclose(snapshot.norms, before, rtol=1e-6)
    if clip is None:
        assert snapshot.clipped_norms is snapshot.norms
    else:
        rounding = {torch.float32: 1e-5, torch.float64: 1e-9}.get(dtype, 1e-2)
        np.testing.assert_allclose(snapshot.clipped_norms, [gradient_norm(layer) for layer in layers], rtol=rounding)
    np.testing.assert_allclose(snapshot.weight_norms, [norm(*layer) for layer in layers], rtol=1e-6)
    assert snapshot.learning_rates.tolist() == [0.25] * 3
    assert snapshot.loss == pytest.approx(loss.item() / 2)


@pytest.mark.gpu
@pytest.mark.supports("CUDA: the reading waits for nothing")
def test_on_cuda_reading_what_someone_else_has_clipped_waits_for_nothing():
    """Norms before and after another's clipping are sent together, without a wait."""
    model = net().to("cuda")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(5, 3, device="cuda")).square().mean().backward()
    reader = Reader(model)
    read(reader, 0, optimizer, 0)
    before = gradient_norm(list(model.parameters()))
    with nothing_waits():
        reading = reader.read(0, optimizer, 1)
        torch._foreach_mul_([parameter.grad for parameter in model.parameters()], 0.5)
        reading.measure_again()
    snapshot = reading.snapshot()
    assert snapshot.global_norm == pytest.approx(before, rel=1e-6)
    assert snapshot.clipped_global_norm == pytest.approx(before / 2, rel=1e-6)


def test_optimizers_are_described_in_plain_values():
    """Class, momentum and eps; 0 where there is none or it is no plain number."""
    weights = [nn.Parameter(torch.zeros(1))]
    adam = describe_optimizer(torch.optim.Adam(weights, eps=1e-5))
    assert (adam.kind, adam.momentum, adam.eps) == ("Adam", 0.0, 1e-5)
    sgd = torch.optim.SGD(weights, lr=0.1, momentum=0.5)
    assert describe_optimizer(sgd).momentum == 0.5
    sgd.param_groups[0]["momentum"] = None
    assert describe_optimizer(sgd).momentum == 0.0
    sgd.param_groups.clear()
    assert describe_optimizer(sgd).kind == "SGD"


def test_a_subclass_of_a_known_optimizer_is_told_by_what_it_is_made_of():
    """A person's own ``MySGD(torch.optim.SGD)`` steps as SGD does."""

    class Mine(torch.optim.SGD):
        pass

    assert describe_optimizer(Mine([nn.Parameter(torch.zeros(1))], lr=0.1)).kind == "SGD"


def test_of_layers_that_were_left_out_those_are_noted_that_nothing_has_trained() -> None:
    """Pretrained ones rest on purpose; what is noted stays noted when the layers are described again."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    nn.init.orthogonal_(model[1].weight)
    reader = Reader(model)
    reader.note_left_out(["0", "1", "2.bias"])
    assert [about.left_out for about in reader.descriptions] == [True, False, False]
    reader.read_graph(model(torch.randn(4, 8)).sum())
    assert [about.left_out for about in reader.descriptions] == [True, False, False]
