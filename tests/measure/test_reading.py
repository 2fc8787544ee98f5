"""Test ``lightning_gradwatch.measure.reading``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gradwatch.measure.reading import Reader, describe_optimizer
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


def oracle(parameters: Sequence[Tensor]) -> float:
    """Flatten all gradients to float64 and take the norm; NaN without one."""
    flat = [p.grad.double().reshape(-1) for p in parameters if p.grad is not None]
    return float(torch.cat(flat).norm()) if flat else float("nan")


def given_gradients(*gradients: Tensor) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Make a model of one layer a gradient, with an optimizer."""
    lists = [nn.ParameterList([nn.Parameter(torch.zeros(gradient.shape))]) for gradient in gradients]
    for layer, gradient in zip(lists, gradients, strict=True):
        layer[0].grad = gradient.clone()
    model = nn.ModuleList(lists)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def test_a_snapshot_holds_what_the_oracle_measures():
    """Norms, bias norms, weight norms, loss and step are those of flattened float64 tensors."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = backward(model)
    snapshot, _ = Reader(model).read(2, optimizer, 17, loss=loss)
    layers = [model[0], model[2], model[3]]
    np.testing.assert_allclose(snapshot.norms, [oracle(list(m.parameters())) for m in layers], rtol=1e-6)
    np.testing.assert_allclose(snapshot.bias_norms, [oracle([m.bias]) for m in layers], rtol=1e-6)
    weights = [torch.cat([p.detach().double().reshape(-1) for p in m.parameters()]).norm() for m in layers]
    np.testing.assert_allclose(snapshot.weight_norms, weights, rtol=1e-6)
    assert snapshot.clipped_norms is snapshot.norms
    assert snapshot.present.all()
    assert (snapshot.step, snapshot.optimizer, snapshot.loss) == (17, 2, pytest.approx(loss.item()))
    np.testing.assert_allclose(snapshot.learning_rates, 0.1)


def test_each_layer_has_the_learning_rate_of_its_group():
    """A layer that the optimizer does not hold has none, and is not present."""
    model = net()
    groups = [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[3].parameters()}]
    optimizer = torch.optim.SGD(groups, lr=torch.tensor(0.25))
    backward(model)
    snapshot, _ = Reader(model).read(0, optimizer, 0)
    np.testing.assert_array_equal(snapshot.learning_rates, [0.5, np.nan, 0.25])
    assert snapshot.present.tolist() == [True, False, True]
    assert np.isnan(snapshot.norms[1])
    assert np.isnan(snapshot.loss)


def test_layers_without_a_gradient_are_not_present():
    """Frozen layers and layers that were not used are NaN and not present; their weights are still measured."""
    model = net()
    model[0].requires_grad_(requires_grad=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reader = Reader(model)
    backward(model)
    model[3].zero_grad()
    snapshot, _ = reader.read(0, optimizer, 0)
    assert snapshot.present.tolist() == [False, True, False]
    assert np.isfinite(snapshot.norms).tolist() == [False, True, False]
    assert np.isfinite(snapshot.weight_norms).all()
    assert snapshot.finite


def test_a_nan_gradient_is_present():
    """A NaN gradient is present and not finite."""
    model, optimizer = given_gradients(torch.tensor([float("nan")]), torch.ones(4))
    snapshot, _ = Reader(model).read(0, optimizer, 0)
    assert snapshot.present.all()
    assert not snapshot.finite
    assert snapshot.norms[1] == 2.0


def test_scales_are_divided_out():
    """A loss scaler's factor is in neither the norms nor the loss."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = backward(model)
    reader = Reader(model)
    plain, _ = reader.read(0, optimizer, 0, loss=loss)
    for parameter in model.parameters():
        parameter.grad *= 1024
    clip = ClipByGlobalNorm(1e9).clip_
    scaled, measured = reader.read(0, optimizer, 0, clip, loss * 512, gradient_scale=1024.0, loss_scale=512.0)
    for name in ("norms", "clipped_norms", "bias_norms"):
        np.testing.assert_allclose(getattr(scaled, name), getattr(plain, name), rtol=1e-6)
    assert scaled.loss == pytest.approx(plain.loss)
    np.testing.assert_allclose(reader.read_again(measured, 1024.0), plain.norms, rtol=1e-6)


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
        snapshot, _ = reader.read(0, optimizer, step)
        fresh += [step] if snapshot.weight_norms[2] == pytest.approx(step * np.sqrt(8)) else []
    assert fresh == [0, 1, 2, 3, 4, 50, 100]


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
    before = [oracle([p]) for p in parameters]
    snapshot, _ = Reader(model).read(0, optimizer, 0, clip.clip_)
    np.testing.assert_allclose(snapshot.norms, before, rtol=1e-6)
    np.testing.assert_allclose(snapshot.clipped_norms, [oracle([p]) for p in parameters], rtol=1e-6)


@pytest.mark.parametrize("gradient", [1.0, 1e30])
def test_the_clipper_is_called_once(gradient):
    """A clipper that remembers sees each step once, after an overflow too."""
    calls = []

    def clip(norms):
        calls.append(norms.norms.tolist())
        return norms.norms

    model, optimizer = given_gradients(torch.full((4,), gradient))
    Reader(model).read(0, optimizer, 0, clip)
    assert calls == [[pytest.approx(2 * gradient)]]


def test_reading_again_sees_what_someone_else_has_clipped():
    """After another's clipping the same gradients have smaller norms."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    backward(model)
    reader = Reader(model)
    before, measured = reader.read(0, optimizer, 0)
    torch.nn.utils.clip_grad_norm_(model.parameters(), before.global_norm / 10)
    np.testing.assert_allclose(reader.read_again(measured), before.norms / 10, rtol=1e-4)


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
        _, measured = reader.read(0, optimizer, step, loss=loss)
        reader.read_again(measured)
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


@pytest.mark.parametrize("num_before", [0, 7], ids=["with weights", "without weights"])
def test_a_reading_is_one_transfer(transfers, num_before):
    """One ``cpu()`` a reading, with or without the weights, and nothing else that waits for the device."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reader = Reader(model)
    loss = backward(model)
    for step in range(num_before):
        reader.read(0, optimizer, step, loss=loss)
    transfers.clear()
    reader.read(0, optimizer, num_before, loss=loss)
    assert transfers == {"cpu": 1}


def test_a_clipper_costs_one_transfer_more(transfers):
    """Norms before clipping have to be known before they are changed, so those after come apart."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = backward(model)
    Reader(model).read(0, optimizer, 0, ClipByGlobalNorm(1e-3).clip_, loss)
    assert transfers == {"cpu": 2}


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
            reader.read(0, optimizer, step, loss=loss)
        with CountCalls() as mode:
            reader.read(0, optimizer, 5, loss=loss)
        # The loss is detached and reshaped, joined to the norms, and both go to the host.
        operations = {name: count for name, count in mode.calls.items() if name not in ("detach", "view", "lift_fresh")}
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


def test_a_layer_that_is_added_later_is_appended():
    """A new layer in a new group becomes the last column; earlier columns keep their places, and the graph is read."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reader = Reader(model)
    loss = backward(model)
    reader.read_graph(loss)
    reader.read(0, optimizer, 0)
    model.insert(0, nn.Linear(3, 3))
    model.new = nn.Linear(2, 2)
    optimizer.add_param_group({"params": model.new.parameters(), "lr": 0.7})
    optimizer.add_param_group({"params": model[0].parameters(), "lr": 0.9})
    loss = model(torch.randn(5, 3)).square().mean()
    loss.backward()
    snapshot, _ = reader.read(0, optimizer, 1)
    assert len(snapshot.norms) == len(reader.layers) == len(reader.descriptions) == len(reader.order)
    assert "new" in [layer.name for layer in reader.layers]
    held = {id(p) for layer in reader.layers for p in layer.parameters.values()}
    assert {id(p) for p in model.parameters()} <= held
    place = [layer.name for layer in reader.layers].index("new")
    assert snapshot.norms[place] == pytest.approx(oracle(list(model.new.parameters())))
    assert snapshot.learning_rates[place] == pytest.approx(0.7)
    assert reader._graphs_left == 1


def test_a_parameter_outside_the_model_is_a_layer():
    """A stray parameter of the optimizer gets a column of its own at the end."""
    model = net()
    temperature = nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([*model.parameters(), temperature], lr=0.1)
    reader = Reader(model)
    backward(model)
    temperature.grad = torch.tensor(-3.0)
    snapshot, _ = reader.read(0, optimizer, 0)
    assert reader.layers[-1].name == "(outside the model) 0"
    assert snapshot.norms[-1] == 3.0
    assert len(snapshot.norms) == 4
    again, _ = reader.read(0, optimizer, 1)
    assert len(again.norms) == 4


def test_two_optimizers_are_read_apart():
    """Each optimizer's reading has its own layers present, and a layer added by one has a column for both."""
    model = net()
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    second = torch.optim.Adam(model[3].parameters(), lr=0.2)
    reader = Reader(model)
    backward(model)
    one, _ = reader.read(0, first, 0)
    assert one.present.tolist() == [True, False, False]
    second.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    two, _ = reader.read(1, second, 0)
    assert two.present.tolist() == [False, False, True, False]
    one, _ = reader.read(0, first, 1)
    assert one.present.tolist() == [True, False, False, False]
    assert len(one.weight_norms) == 4


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
