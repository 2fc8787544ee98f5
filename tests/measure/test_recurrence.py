"""Test ``lightning_gradwatch.measure.recurrence``."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from probe_oracle import num_hooks, probed, recorded
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from lightning_gradwatch.measure.layers import find_layers
from lightning_gradwatch.measure.recurrence import Tap
from lightning_gradwatch.measure.signals import SignalProbe

STEPS, SAMPLES, WIDTH, HIDDEN = 7, 3, 4, 5
LENGTHS = {"packed": [7, 4, 2], "packed unsorted": [4, 7, 2]}


class Reader(nn.Module):
    """Reads a sequence and answers from the last state and from all outputs."""

    def __init__(self, kind: type[nn.RNNBase], **settings: Any) -> None:
        super().__init__()
        self.rnn = kind(WIDTH, HIDDEN, **settings)
        self.head = nn.LazyLinear(2)

    def forward(self, inputs: Any, **named: Any) -> Tensor:
        outputs, _ = self.rnn(input=inputs) if named else self.rnn(inputs)
        outputs = outputs.data if isinstance(outputs, PackedSequence) else outputs
        return self.head(outputs).pow(3).sum()


def sequences(form: str, batch_first: bool) -> Tensor:
    """Return sequences as a module wants them."""
    if form == "unbatched":
        return torch.randn(STEPS, WIDTH, dtype=torch.float64)
    inputs = torch.randn(STEPS, SAMPLES, WIDTH, dtype=torch.float64)
    return inputs.transpose(0, 1).contiguous() if batch_first else inputs


def given(form: str, inputs: Tensor, batch_first: bool) -> Any:
    """Return sequences, packed where that is asked."""
    if form not in LENGTHS:
        return inputs
    return pack_padded_sequence(inputs, LENGTHS[form], batch_first=batch_first, enforce_sorted=form == "packed")


def norms_by_autograd(net: nn.Module, form: str, inputs: Tensor, batch_first: bool) -> list[float]:
    """Return the root mean square of the gradient of each time step's input, over the samples that have that step."""
    leaf = inputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(given(form, leaf, batch_first)), leaf)
    steps = gradient[:, None] if form == "unbatched" else gradient.transpose(0, 1) if batch_first else gradient
    lengths = LENGTHS.get(form, [STEPS] * steps.shape[1])
    numbers = [[steps[t, n].numpy() for n in range(steps.shape[1]) if lengths[n] > t] for t in range(STEPS)]
    return [float(np.sqrt(np.mean(np.square(parts)))) for parts in numbers]


@pytest.mark.parametrize("needs_gradient", [False, True])
@pytest.mark.parametrize("form", ["batched", "unbatched", "packed", "packed unsorted"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"batch_first": True}, {"num_layers": 2, "bidirectional": True, "batch_first": True}],
    ids=["plain", "batch first", "stacked and bidirectional"],
)
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_the_gradient_of_each_time_step_is_that_of_plain_autograd(kind, settings, form, needs_gradient):
    """Each step's input has the gradient that autograd tells; other gradients stay the same to the last bit."""
    batch_first = settings.get("batch_first", False)
    inputs = sequences(form, batch_first)
    net = Reader(kind, **settings).double()
    net(given(form, inputs, batch_first))
    plain = copy.deepcopy(net)
    leaf = inputs.clone().requires_grad_(needs_gradient)
    snapshot = probed(net, lambda net: net(given(form, leaf, batch_first)))
    (profile,) = snapshot.time
    assert (snapshot.layers[profile.column], profile.recurrent) == ("rnn", True)
    assert profile.delta == pytest.approx(norms_by_autograd(plain, form, inputs, batch_first), rel=1e-10)
    plain(given(form, inputs, batch_first)).backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(net.parameters(), plain.parameters(), strict=True))
    assert (leaf.grad is not None) is needs_gradient
    assert num_hooks(net) == 0


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_the_signal_of_a_packed_sequence_is_that_of_its_numbers(kind):
    """Of what a recurrent module returns, the outputs count and not the last states."""
    net, inputs = Reader(kind).double(), sequences("packed", batch_first=False)
    packed = given("packed", inputs, batch_first=False)
    snapshot = probed(net, lambda net: net(packed))
    padded, _ = pad_packed_sequence(net.rnn(packed)[0])
    assert snapshot.sizes[0] == sum(LENGTHS["packed"]) * HIDDEN
    assert snapshot.signal[0] == pytest.approx(float(padded.detach().square().sum() / snapshot.sizes[0]) ** 0.5)


def test_of_several_calls_the_longest_sequence_is_told():
    """An encoder that reads a sentence and a word is told by the sentence."""
    net, inputs = Reader(nn.GRU).double(), sequences("batched", batch_first=False)
    snapshot = probed(net, lambda net: net(inputs[:2]) + net(inputs) + net(inputs[:3]))
    (profile,) = snapshot.time
    assert len(profile.delta) == STEPS


def test_a_named_argument_is_an_input_as_well():
    """``rnn(input=x)`` has a profile too."""
    inputs = sequences("batched", batch_first=False)
    snapshot = probed(Reader(nn.LSTM).double(), lambda net: net(inputs, named=True))
    assert len(snapshot.time[0].delta) == STEPS


class Masks(nn.LSTM):
    """Writes to its input, which torch refuses where that asks for a gradient."""

    def forward(self, inputs: Tensor) -> Any:
        return super().forward(inputs.mul_(0.5))


class Counts(nn.LSTM):
    """Turns its input into numpy, which torch refuses as well."""

    def forward(self, inputs: Tensor) -> Any:
        self.largest = inputs.numpy().max()
        return super().forward(inputs)


def looks_closely(module: nn.Module, args: Any, output: Any) -> None:
    """Do with an input what torch refuses where that asks for a gradient."""
    args[0].numpy()


def hooked(register: str) -> nn.Module:
    """Return a recurrent module with a hook of the person's own that would notice another input."""
    rnn = nn.LSTM(WIDTH, HIDDEN)
    if register == "register_forward_hook":
        rnn.register_forward_hook(looks_closely)
    elif register == "register_forward_pre_hook":
        # It runs before ours, and sees what the person gave.
        rnn.register_forward_pre_hook(lambda _, args: (args[0].mul_(0.5),))
    else:
        rnn.seen = []
        getattr(rnn, register)(lambda _, *gradients: rnn.seen.append(gradients[0][0] is None))
    return rnn


def frozen() -> nn.Module:
    """Return a recurrent module that nobody trains."""
    return nn.LSTM(WIDTH, HIDDEN).requires_grad_(requires_grad=False)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing when gradients are computed")
@pytest.mark.parametrize(
    "make",
    [
        lambda: Masks(WIDTH, HIDDEN),
        lambda: Counts(WIDTH, HIDDEN),
        frozen,
        lambda: hooked("register_forward_hook"),
        lambda: hooked("register_full_backward_hook"),
    ],
    ids=["writes", "counts", "frozen", "forward hook", "backward hook"],
)
def test_an_input_stays_as_it_is_where_somebody_would_notice(make):
    """What the module and its hooks are given asks for no gradient, and nothing is told along time."""
    given_inputs: list[bool] = []
    net = nn.ModuleDict({"rnn": make(), "head": nn.Linear(HIDDEN, 1)})
    original = type(net["rnn"]).forward

    def run(net: nn.ModuleDict) -> Tensor:
        inputs = torch.randn(STEPS, SAMPLES, WIDTH)
        outputs = net["rnn"](inputs)[0]
        given_inputs.append(inputs.requires_grad)
        # A frozen module builds no graph that nobody else would have.
        assert outputs.requires_grad is not (make is frozen)
        return net["head"](outputs).sum()

    snapshot = probed(net, run)
    assert snapshot.time == ()
    assert given_inputs == [False]
    assert type(net["rnn"]).forward is original
    assert getattr(net["rnn"], "seen", [True]) == [True]


def test_a_pre_hook_of_the_persons_own_comes_first():
    """A hook that writes to the input gets the one that the person gave, and the profile is that of what it returns."""
    net = nn.ModuleDict({"rnn": hooked("register_forward_pre_hook"), "head": nn.Linear(HIDDEN, 1)})
    snapshot = probed(net, lambda net: net["head"](net["rnn"](torch.ones(STEPS, SAMPLES, WIDTH))[0]).sum())
    assert len(snapshot.time[0].delta) == STEPS


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_checkpointed_module_keeps_its_input(use_reentrant):
    """Activation checkpointing compares what it saves both times: nothing is replaced, and training goes on."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(WIDTH, HIDDEN), nn.Linear(HIDDEN, 1)

        def forward(self, inputs: Tensor) -> Tensor:
            run = lambda x: self.rnn(x)[0] * 1.0  # noqa: E731 - what is checkpointed
            return self.head(checkpoint(run, inputs, use_reentrant=use_reentrant)).sum()

    net, probe = Net(), SignalProbe()
    plain = copy.deepcopy(net)
    inputs = torch.randn(STEPS, SAMPLES, WIDTH, requires_grad=use_reentrant)
    probe.begin(find_layers(net))
    loss = net(inputs)
    probe.pause()
    loss.backward()
    snapshot = recorded(net, probe)
    assert snapshot.time == ()
    plain(inputs.detach().requires_grad_(use_reentrant)).backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(net.parameters(), plain.parameters(), strict=True))


def test_inference_tensors_and_no_grad_are_left_alone():
    """Where no gradient can come, none is asked for."""
    net = Reader(nn.GRU)
    with torch.inference_mode():
        inputs = torch.ones(STEPS, SAMPLES, WIDTH)

    def run(net: nn.Module) -> Tensor:
        with torch.no_grad():
            net(torch.ones(STEPS, SAMPLES, WIDTH))
        return net(inputs.clone())

    net(inputs.clone())
    with torch.inference_mode():
        probe = SignalProbe()
        probe.begin(find_layers(net))
        net(inputs)
        probe.end()
    assert probe.failure == ""
    assert len(probed(net, run).time) == 1


def test_a_copied_or_pickled_tap_does_nothing():
    """Only the module that is probed has a tap that is listened to."""
    tap = Tap(lambda *_: 3)
    assert tap(nn.GRU(1, 1), (), {}) == 3
    assert copy.deepcopy(tap)(nn.GRU(1, 1), (), {}) is None
    assert pickle.loads(pickle.dumps(tap))(nn.GRU(1, 1), (), {}) is None
