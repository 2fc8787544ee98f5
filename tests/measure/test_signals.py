"""Test ``lightning_gradwatch.measure.signals``."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from probe_oracle import Outputs, by_name, num_hooks, probed, recorded, rms
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everywhere
from torch.utils.checkpoint import checkpoint

from lightning_gradwatch.measure import recurrence, signals
from lightning_gradwatch.measure.layers import find_layers
from lightning_gradwatch.measure.signals import SignalProbe

INPUTS = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
IMAGES = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def fed(inputs: Tensor, net: nn.Module) -> Tensor:
    """Return a loss of a network, in the precision that it has."""
    # Not the square: after a layer norm its gradient is nothing but rounding.
    return net(inputs.to(next(net.parameters()).dtype)).pow(3).mean()


class Backwards(nn.Module):
    """Registers its layers in another order than it calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.first, self.never = nn.Linear(3, 1), nn.Linear(5, 3), nn.Linear(2, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.first(inputs).sigmoid())


class Pair(nn.Linear):
    """Returns a tuple."""

    def forward(self, inputs: Tensor) -> Any:
        return super().forward(inputs), inputs.sum()


class Named(nn.Linear):
    """Returns a dictionary."""

    def forward(self, inputs: Tensor) -> Any:
        return {"out": super().forward(inputs), "number": 3}


class Several(nn.Module):
    """Its layers return a tuple and a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.named = Pair(5, 4), Named(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.named(self.pair(inputs)[0].tanh())["out"]


class Tied(nn.Module):
    """Calls one layer three times."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 5), nn.Linear(5, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        for _ in range(3):
            inputs = self.body(inputs).relu()
        return self.head(inputs)


class Scaled(nn.Module):
    """Owns a parameter and contains other layers, which speak for it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.inner = nn.Parameter(torch.ones(3)), nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(inputs) * self.scale


def convolutions() -> nn.Module:
    """Return convolutions with normalization."""
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.GroupNorm(1, 2), nn.GELU()
    )


NETS = {
    "stack": (partial(nn.Sequential, nn.Linear(5, 4), nn.ReLU(), nn.LayerNorm(4), nn.Linear(4, 1)), INPUTS, "0 2 3"),
    "backwards": (Backwards, INPUTS, "first last"),
    "several": (Several, INPUTS, "pair named"),
    "tied": (Tied, INPUTS, "body head"),
    "container": (lambda: nn.Sequential(Scaled(), nn.Linear(3, 1)), INPUTS, "0.inner 1"),
    "convolutions": (convolutions, IMAGES, "0 1 3 4"),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True),
        IMAGES.flatten(0, 1),
        "self_attn norm1 linear1 linear2 norm2",
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", NETS)
def test_signal_and_delta_are_those_of_plain_autograd(case, dtype):
    """Each layer's output and its gradient have the size that autograd itself tells, in forward order."""
    make, inputs, names = NETS[case]
    torch.manual_seed(0)
    net = make().to(dtype)
    snapshot = probed(net, partial(fed, inputs))
    expected = Outputs(net, names.split(), partial(fed, inputs))
    digits = 1e-12 if dtype is torch.float64 else 1e-5
    assert [snapshot.layers[column] for column in snapshot.order] == expected.order == names.split()
    for measured, oracle in ((snapshot.signal, expected.signal), (snapshot.delta, expected.delta)):
        wanted = {name: oracle(name) for name in expected.order}
        assert by_name(snapshot, measured) == pytest.approx(wanted, rel=digits, abs=0)


@pytest.mark.parametrize("activation", ["module", "function", "method"])
def test_an_activation_in_place_does_not_change_what_its_layer_was(activation):
    """Signal and delta are those before ``relu_``, as for the same network without it."""

    class Net(nn.Sequential):
        def forward(self, inputs: Tensor, *, kind: str = activation) -> Tensor:
            hidden = self[0](inputs)
            if kind == "module":
                return self[1](nn.ReLU(inplace=True)(hidden))
            return self[1](F.relu_(hidden) if kind == "function" else hidden.relu_())

    net = Net(nn.Linear(5, 4), nn.Linear(4, 1)).double()
    twin = nn.Sequential(net[0], nn.ReLU(), net[1])
    snapshot = probed(net, partial(fed, INPUTS))
    expected = Outputs(twin, ["0", "2"], partial(fed, INPUTS))
    assert snapshot.signal == pytest.approx([expected.signal("0"), expected.signal("2")], rel=1e-12)
    assert snapshot.delta == pytest.approx([expected.delta("0"), expected.delta("2")], rel=1e-12)
    assert snapshot.dead[0] == pytest.approx(1 - float((net[0](INPUTS) > 0).any(dim=0).double().mean()))


def test_an_output_without_a_gradient_has_a_signal_and_no_delta():
    """A frozen part under no_grad is called, and nothing comes back to it."""

    class Net(nn.Sequential):
        def forward(self, inputs: Tensor) -> Tensor:
            with torch.no_grad():
                features = self[0](inputs)
            return self[1](features)

    snapshot = probed(Net(nn.Linear(5, 4), nn.Linear(4, 1)).double(), partial(fed, INPUTS))
    assert (snapshot.signal > 0).all()
    assert np.isnan(snapshot.delta).tolist() == [True, False]


@pytest.mark.parametrize("announced", [True, False])
def test_recomputation_is_not_recorded_again(announced):
    """Under activation checkpointing each call counts once, also where nobody says that the backward pass begins."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4)), nn.Linear(4, 1)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(checkpoint(self.body, inputs, use_reentrant=False))

    net, probe = Net().double(), SignalProbe()
    probe.begin(find_layers(net))
    loss = fed(INPUTS, net)
    if announced:
        probe.pause()
    loss.backward()
    snapshot = recorded(net, probe)
    expected = Outputs(nn.Sequential(*net.body, net.head), ["0", "2", "3"], partial(fed, INPUTS))
    assert snapshot.sizes.tolist() == [24, 24, 6]
    assert snapshot.delta == pytest.approx([expected.delta(name) for name in ("0", "2", "3")], rel=1e-12)


# ---- units


def unit_net(weight: list[list[float]], activation: Any) -> nn.Module:
    """Return a layer with these weights and no bias, and an activation behind it."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(2, len(weight), bias=False), nn.Linear(len(weight), 1)
            self.layer.weight.data = torch.tensor(weight)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(activation(self.layer(inputs)))

    return Net()


# Of the samples the first unit of UNITS is alive for most, the second for one, the third for none, the last for all.
SAMPLES = torch.tensor([[1.0, -0.5], [-0.5, 1.0], [2.0, 1.0], [2.0, 3.0]])
UNITS = [[1.0, -1.0], [-1.0, 1.0], [-5.0, -6.0], [1.0, 1.0]]


@pytest.mark.parametrize(
    ("activation", "dead"),
    [
        (nn.ReLU(), 0.25),
        (nn.ReLU(inplace=True), 0.25),
        (nn.ReLU6(), 0.25),
        (torch.relu, 0.25),
        (F.relu, 0.25),
        (F.relu_, 0.25),
        (torch.Tensor.relu_, 0.25),
        (nn.LeakyReLU(), np.nan),
        (nn.GELU(), np.nan),
    ],
)
def test_a_unit_is_dead_that_is_zero_for_every_sample(activation, dead):
    """Of four units one is dead; zeros for half of the samples are what a ReLU is."""
    snapshot = probed(unit_net(UNITS, activation), lambda net: net(SAMPLES).sum())
    assert snapshot.dead == pytest.approx([dead, np.nan], nan_ok=True)
    assert np.isnan(snapshot.saturated).all()


@pytest.mark.parametrize(
    ("activation", "scale", "saturated"),
    [
        (nn.Sigmoid(), 1.0, 0.0),
        (nn.Sigmoid(), 7.0, 0.25),
        (torch.sigmoid, 7.0, 0.25),
        (torch.Tensor.sigmoid_, 7.0, 0.25),
        (torch.special.expit, 7.0, 0.25),
        (nn.Tanh(), 1.0, 0.0),
        (torch.tanh, 4.0, 0.25),
        (nn.Hardtanh(), 2.0, 0.25),
        (nn.Hardsigmoid(), 4.0, 0.25),
        # Slopes down to 0 on one side only, and no bounds: never both.
        (nn.LogSigmoid(), 7.0, np.nan),
        (nn.ReLU(), 7.0, np.nan),
    ],
)
def test_a_unit_is_saturated_that_is_flat_for_every_sample(activation, scale, saturated):
    """One unit sees only large values, the others at least one between them; by hand."""
    samples = torch.tensor([[1.0, 0.1], [-1.0, 0.1], [1.5, -0.1]])
    weight = [[scale, 0.0], [0.0, scale], [0.1, 0.0], [0.0, 0.0]]
    snapshot = probed(unit_net(weight, activation), lambda net: net(samples).sum())
    assert snapshot.saturated == pytest.approx([saturated, np.nan], nan_ok=True)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("flat", [True, False])
def test_units_of_a_convolution_are_its_channels(batched, norm, flat):
    """A channel that is zero at every place of every sample is dead; flattened, each place is a unit of its own."""
    convolution = nn.Conv2d(2, 4, 3, bias=True)
    with torch.no_grad():
        convolution.weight[1], convolution.bias[1] = 0.0, -1.0
    parts = [convolution, nn.BatchNorm2d(4, affine=False, track_running_stats=False)] if norm else [convolution]
    net = nn.Sequential(*parts[: 2 if batched else 1], *([nn.Flatten()] if flat and batched else []), nn.ReLU())
    if norm and batched:
        net[1].eval()
        net[1].register_buffer("running_mean", torch.zeros(4))
        net[1].register_buffer("running_var", torch.ones(4))
    images = IMAGES.float() if batched else IMAGES.float()[0]
    snapshot = probed(net, lambda net: net(images).sum())
    value = convolution(images).relu()
    channels = value if batched else value[None]
    units = channels.flatten(1) if flat and batched else channels.permute(0, 2, 3, 1).reshape(-1, 4)
    assert snapshot.dead[0] == pytest.approx(1 - float((units > 0).any(dim=0).double().mean()))
    assert snapshot.dead[0] >= 0.25


def test_a_unit_that_is_alive_in_any_call_is_alive():
    """A layer that is called twice with different inputs has the units of both calls, also after a backward pass."""
    net = unit_net([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]], torch.relu)
    probe = SignalProbe()
    probe.begin(find_layers(net))
    for sign in (1.0, -1.0):
        loss = net(sign * torch.ones(3, 2)).sum()
        probe.pause()
        loss.backward()
        probe.resume()
    assert recorded(net, probe).dead[0] == pytest.approx(1 / 3)


def test_an_activation_belongs_to_the_layer_that_made_its_input():
    """Of two branches the one whose output goes into the ReLU has its dead units, not the one that was called last."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(5, 4), nn.Linear(5, 4)
            nn.init.constant_(self.one.bias, -100.0)

        def forward(self, inputs: Tensor) -> Tensor:
            one, other = self.one(inputs), self.other(inputs)
            return torch.relu(one) + other

    snapshot = probed(Branches(), lambda net: net(INPUTS.float()).sum())
    assert snapshot.dead == pytest.approx([1.0, np.nan], nan_ok=True)


def test_the_line_of_a_function_is_told_and_that_of_a_module_is_not():
    """``torch.sigmoid(self.fc(x))`` has a place, ``nn.Sigmoid()`` has none."""
    probe = SignalProbe()
    net = nn.Sequential(nn.Linear(5, 4), nn.Sigmoid(), nn.Linear(4, 2))
    probed(net, lambda net: torch.sigmoid(net(INPUTS.float())).sum(), probe)
    line = test_the_line_of_a_function_is_told_and_that_of_a_module_is_not.__code__.co_firstlineno + 4
    assert list(probe.places) == [1]
    assert probe.places[1].endswith(f"test_signals.py:{line}")


# ---- cut tensors


class TrunkAndHead(nn.Module):
    """Puts something between a trunk and a head, and has the head called in some way."""

    def __init__(self, between: Any, around: Any = None) -> None:
        super().__init__()
        self.trunk, self.head = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4)), nn.Linear(4, 2)
        self.between, self.around = between, around or (lambda function, hidden: function(hidden))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.around(self.head, self.between(self.trunk(inputs)))


def asked(head: nn.Module, hidden: Tensor) -> Tensor:
    """Ask the head for labels before it learns, as self-training and double Q-learning do."""
    with torch.no_grad():
        labels = head(hidden * 2).argmax(1)
    return head(torch.ones(6, 4)) * labels[:, None]


@pytest.mark.parametrize(
    ("between", "around", "fed"),
    [
        (lambda x: x.detach(), None, [0, 0, 1]),
        (lambda x: torch.from_numpy(x.detach().numpy()) * 2, None, [0, 0, 1]),
        (lambda x: x.detach().relu(), None, [0, 0, 1]),
        (lambda x: x, None, [0, 0, 0]),
        (lambda x: x + (x.round() - x).detach(), None, [0, 0, 0]),
        # Nothing of what no graph was made for.
        (lambda x: x, asked, [0, 0, 0]),
        # Checkpointing runs its part without a graph first, and again in backward.
        (lambda x: x, lambda head, x: checkpoint(nn.Sequential(head, nn.Tanh()), x, use_reentrant=True), [0, 0, 0]),
    ],
    ids=["detach", "numpy", "activation", "whole", "straight through", "asked", "checkpointed"],
)
def test_a_layer_that_learns_is_told_to_be_fed_by_a_cut_tensor(between, around, fed):
    """Only the layer behind the cut; what is computed without any graph feeds no learning."""
    snapshot = probed(TrunkAndHead(between, around), lambda net: net(INPUTS.float()).square().sum())
    assert snapshot.fed_by_cut.tolist() == fed


def both(head: nn.Module, hidden: Tensor) -> Tensor:
    """Have the head learn from what is cut, and the trunk from something else."""
    return head(hidden.detach()) + hidden.sum()


def by_numpy(head: nn.Module, hidden: Tensor) -> Tensor:
    """Do the same with an array between them."""
    return head(torch.from_numpy(hidden.detach().numpy()).relu()) + hidden.mean()


@pytest.mark.parametrize("around", [both, by_numpy])
def test_what_is_cut_from_layers_that_learn_feeds_no_one(around):
    """A probe on detached features stems from the trunk, and the trunk has its gradient from elsewhere."""
    probe, net = SignalProbe(), TrunkAndHead(lambda x: x, around)
    probe.begin(find_layers(net))
    net(INPUTS.float()).sum().backward()
    assert [call.fed_by_cut for call in probe._signals.calls] == [set(), set(), {1}]
    assert recorded(net, probe).fed_by_cut.tolist() == [0, 0, 0]


@pytest.mark.parametrize("state", ["hidden", "cell", "output"])
@pytest.mark.parametrize("cut", [lambda x: x.detach(), lambda x: x], ids=["detached", "without graph"])
def test_each_output_of_a_layer_stems_from_it(state, cut):
    """The states of a recurrent layer as much as what it returns first."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.LSTM(5, 4), nn.Linear(4, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            with torch.set_grad_enabled(cut(inputs) is not inputs):
                output, (hidden, cell) = self.body(inputs)
            return self.head(cut({"hidden": hidden, "cell": cell, "output": output}[state])[-1])

    assert probed(Net(), lambda net: net(INPUTS.float()[:, None]).sum()).fed_by_cut.tolist() == [0, 1]


@pytest.mark.parametrize("frozen", [True, False])
def test_only_what_could_be_trained_is_cut(frozen):
    """A generator that a GAN has frozen by now, though not yet when the batch began, feeds nothing that is cut."""
    net, probe = TrunkAndHead(lambda x: x.detach()), SignalProbe()

    def step(net: nn.Module) -> Tensor:
        net.trunk.requires_grad_(not frozen)
        return net(INPUTS.float()).sum()

    assert probed(net, step, probe).fed_by_cut.tolist() == [0, 0, 0 if frozen else 1]


def test_a_probe_that_has_ended_keeps_no_layer():
    """What it needed of the layers, to ask whether they can be trained, is let go."""
    net, probe = nn.Sequential(nn.Linear(5, 1)), SignalProbe()
    gone = weakref.ref(net[0])
    probed(net, lambda net: net(INPUTS.float()).sum(), probe)
    del net
    gc.collect()
    assert gone() is None


def test_checkpointed_layers_are_fed_by_nothing_that_is_cut():
    """Within a reentrant checkpoint each layer has an input without a graph, and that is no cut."""
    net = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    run = lambda net: checkpoint(net, INPUTS.float().requires_grad_(), use_reentrant=True).sum()  # noqa: E731
    probe = SignalProbe()
    probe.begin(find_layers(net))
    loss = run(net)
    assert [call.fed_by_cut for call in probe._signals.calls] == [frozenset()] * 3
    loss.backward()
    probe.end()


def test_what_was_cut_in_one_batch_is_forgotten_in_the_next():
    """A tensor that a person keeps from the batch before is an input like any other."""
    kept: list[Tensor] = []

    def keeps(hidden: Tensor) -> Tensor:
        kept.append(hidden.detach())
        return kept[0]

    net, probe = TrunkAndHead(keeps), SignalProbe()
    fed = [probed(net, lambda net: net(INPUTS.float()).sum(), probe).fed_by_cut[2] for _ in range(2)]
    assert fed == [1, 0]


def test_the_mode_of_each_layer_is_told():
    """Training or evaluation, as it was when the layer was called."""
    net = TrunkAndHead(lambda x: x)
    net.trunk[0].eval()
    assert probed(net, lambda net: net(INPUTS.float()).sum()).training.tolist() == [0, 1, 1]


# ---- nothing is left, kept or changed


class Returns(nn.Module):
    """Returns its own parameter, which lives longer than any step."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.ones(3))

    def forward(self) -> Tensor:
        return self.prompt


class Prompted(nn.Module):
    """Feeds a parameter that a module returns, and a recurrent module with an input that asks for its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.learned, self.rnn, self.start = Returns(), nn.GRU(3, 2), Returns()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.rnn(self.start().expand(4, 3) * 1.0)[0].sum() + self.learned().sum() + self.rnn(inputs)[0].sum()


@pytest.mark.parametrize("end", ["step", "error in forward", "error in backward"])
def test_hooks_are_there_only_during_a_probe(end):
    """After ``end`` nothing hangs on a module, a parameter, an input of a person's own, or torch itself."""
    net, probe = Prompted(), SignalProbe()
    inputs = torch.ones(4, 3, requires_grad=True)
    for _ in range(2):
        probe.begin(find_layers(net))
        assert num_hooks(net) > 0
        loss = net(inputs)
        if end == "error in forward":
            with pytest.raises(RuntimeError):
                net(torch.ones(7, 7))
        elif end == "error in backward":
            loss.register_hook(lambda gradient: gradient.view(7, 7))
            with pytest.raises(RuntimeError):
                loss.backward()
        else:
            loss.backward()
        probe.end()
        assert num_hooks(net) == 0
        assert not inputs._backward_hooks
    assert probe.failure == ""


@pytest.mark.parametrize("backward", [True, False])
def test_no_activation_is_kept(backward):
    """Outputs die as soon as the person lets go of them, those too on which no backward pass ever runs."""
    saved: list[weakref.ref[Any]] = []

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, inputs: Tensor) -> Tensor:
            kept = inputs * 1.0
            saved.append(weakref.ref(kept))
            # Not by save_for_backward, whose tensors a backward pass frees: as long as the graph lives, so do these.
            ctx.kept = kept
            return inputs * kept

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return 2 * gradient * ctx.kept

    class Squares(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return Square.apply(super().forward(inputs))

    net, probe = nn.Sequential(Squares(5, 4), nn.ReLU(), Squares(4, 4)), SignalProbe()
    for module in net:
        module.register_forward_hook(lambda _, __, output: saved.append(weakref.ref(output)))
    probe.begin(find_layers(net))
    loss = net(INPUTS.float()).sum()
    assert len(saved) == 5
    if backward:
        loss.backward()
    del loss
    gc.collect()
    assert [reference() for reference in saved] == [None] * 5
    probe.end()


@pytest.mark.parametrize("where", ["forward", "backward", "time", "activation"])
def test_an_error_inside_a_hook_harms_nobody(monkeypatch, where):
    """Loss and gradients are the same, and the probe says why it has given up."""

    def fails(*arguments: Any) -> Any:
        raise RuntimeError("broken on purpose")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(5, 4), nn.Linear(4, 1)

        def forward(self, inputs: Tensor) -> Tensor:
            return torch.relu(self.head(self.rnn(inputs)[0]))

    net = Net()
    plain, probe = copy.deepcopy(net), SignalProbe()
    probe.begin(find_layers(net))
    if where == "time":
        monkeypatch.setattr(recurrence, "norms_along", fails)
    else:
        monkeypatch.setattr(signals, "alive_units" if where == "activation" else "norm_in_pieces", fails)
    if where == "backward":
        monkeypatch.undo()
    loss = net(INPUTS.float()).sum()
    probe.pause()
    if where == "backward":
        monkeypatch.setattr(signals, "norm_in_pieces", fails)
    loss.backward()
    probe.resume()
    probe.end()
    assert probe.failure == "RuntimeError: broken on purpose"
    expected = plain(INPUTS.float()).sum()
    expected.backward()
    assert torch.equal(loss, expected)
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(net.parameters(), plain.parameters(), strict=True))
    assert num_hooks(net) == 0


class SelfAttention(nn.MultiheadAttention):
    """Attention of a sequence to itself."""

    def forward(self, inputs: Tensor, **masks: Any) -> Any:
        return super().forward(inputs, inputs, inputs, need_weights=False)[0]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("frozen", ["no_grad", "requires_grad=False"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: SelfAttention(8, 2, batch_first=True),
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
    ],
)
def test_the_fast_path_of_attention_in_eval_mode_is_left_alone(make, frozen):
    """A frozen transformer gives the same bits in a probe as outside of it, and activations behind it are seen."""
    teacher = make().eval().requires_grad_(requires_grad=frozen == "no_grad")
    net = nn.ModuleList([teacher, nn.Linear(8, 8)])
    inputs, padding = torch.randn(4, 6, 8), torch.zeros(4, 6, dtype=torch.bool)
    padding[0, 4:] = True

    def forward() -> Tensor:
        with torch.set_grad_enabled(frozen != "no_grad"):
            return teacher(inputs, src_key_padding_mask=padding)

    expected, probe = forward(), SignalProbe()
    probe.begin(find_layers(net))
    found = forward()
    loss = torch.relu(net[1](found)).sum()
    probe.pause()
    loss.backward()
    assert torch.equal(found, expected)
    snapshot = recorded(net, probe)
    assert by_name(snapshot, snapshot.dead).keys() == {"1"}


@pytest.mark.parametrize("how", ["deepcopy", "save"])
def test_a_copy_of_a_module_in_a_probe_has_no_part_in_it(how):
    """Whoever copies or saves the network in the middle of a step gets one that trains, and that nobody listens to."""
    net, probe = nn.Sequential(nn.Linear(5, 4), nn.LSTM(4, 3)), SignalProbe()
    probe.begin(find_layers(net))
    loss = net(INPUTS.float())[0].sum()
    if how == "deepcopy":
        other = copy.deepcopy(net)
    else:
        torch.save(net, file := io.BytesIO())
        other = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    other(INPUTS.float())[0].sum().backward()
    loss.backward()
    assert recorded(net, probe).sizes.tolist() == [24, 18]
    assert not other[1].weight_hh_l0.grad.isnan().any()


def test_nothing_is_recorded_while_an_optimizer_steps():
    """LBFGS evaluates its closure many times inside its step: only the first time counts, and none for the next."""
    net, probe = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1)), SignalProbe()
    expected = Outputs(net, ["0", "2"], partial(fed, INPUTS))

    def evaluate() -> None:
        loss = fed(INPUTS, net)
        probe.pause()
        loss.backward()
        probe.resume()

    probe.begin(find_layers(net))
    evaluate()
    taken = probe.take()
    evaluate()
    assert len(taken.calls) == 2
    assert float(taken.calls[0].norm) == pytest.approx(expected.signal("0") * 24**0.5)
    assert not probe.holds
    probe.go_on()
    evaluate()
    assert probe.holds
    probe.end()


def test_a_scripted_module_is_left_alone():
    """A scripted layer runs as it is, and the others are recorded."""
    with pytest.warns(DeprecationWarning, match=r"torch\.jit"):
        scripted = torch.jit.script(nn.Linear(5, 4))
    net = nn.Sequential(scripted, nn.Linear(4, 1))
    snapshot = probed(net, lambda net: net(INPUTS.float()).sum())
    assert [snapshot.layers[column] for column in snapshot.order] == ["1"]


def test_many_calls_cost_one_look_each():
    """An activation finds its layer without going through all calls: what is looked at does not grow with them."""
    cell, looks = nn.Linear(3, 3), []

    class Counted(SignalProbe):
        def _note_units(self, name: str, output: Tensor, call: Any) -> None:
            looks.append(call.column)
            super()._note_units(name, output, call)

    def unrolled(net: nn.Module) -> Tensor:
        state = torch.ones(2, 3)
        for _ in range(50):
            state = torch.tanh(net[0](state) + state)
        return state.sum()

    snapshot = probed(nn.Sequential(cell), unrolled, Counted())
    assert looks == [0] * 50
    assert len(snapshot.time[0].delta) == 50


def test_numbers_that_square_to_infinity_are_measured():
    """In double precision gradients of 1e200 have a size, and nothing fails."""
    net = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 1)).double()
    snapshot = probed(net, lambda net: (net(INPUTS) * 1e120).sum())
    assert snapshot.delta[1] == pytest.approx(1e120)
    assert rms([net[1].weight]) > 0
