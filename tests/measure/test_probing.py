"""Test ``lightning_gradwatch.measure.probing``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from probe_oracle import probed
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gradwatch.measure import probing
from lightning_gradwatch.measure.layers import find_layers
from lightning_gradwatch.measure.probing import MIN_CALLS, ProbeReading
from lightning_gradwatch.measure.signals import Call, SignalProbe, Signals, Units
from lightning_gradwatch.measure.updates import WeightSample


def call(
    column: int, norm: float, size: int, *deltas: tuple[float, bool], training: bool = True, fed_by_cut: Any = ()
) -> Call:
    """Return a call as a probe records it."""
    found = [(torch.tensor(delta, dtype=torch.float64), ours) for delta, ours in deltas]
    return Call(column, torch.tensor(norm, dtype=torch.float64), size, 1, training, frozenset(fed_by_cut), found)


def read(signals: Signals, num_layers: int, **settings: Any) -> Any:
    """Return the snapshot of what was recorded."""
    names = [f"layer{number}" for number in range(num_layers)]
    return ProbeReading(1, 30, names, signals, settings.pop("sample", None), **settings).snapshot()


def test_all_calls_of_a_layer_count_together():
    """The root mean square is over all numbers of all calls, by hand."""
    calls = [
        call(2, 6.0, 4, (1.0, True)),
        call(0, 3.0, 9, (2.0, True)),
        call(2, 8.0, 12, (3.0, True)),
        # Nothing came back.
        call(3, 5.0, 25),
    ]
    snapshot = read(Signals(calls), 4)
    assert (snapshot.step, snapshot.optimizer, snapshot.order.tolist()) == (30, 1, [2, 0, 3])
    assert snapshot.sizes == pytest.approx([9, math.nan, 16, 25], nan_ok=True)
    assert snapshot.signal == pytest.approx([1.0, math.nan, 10 / 4, 1.0], nan_ok=True)
    assert snapshot.delta == pytest.approx([2 / 3, math.nan, math.sqrt(10) / 4, math.nan], nan_ok=True)


def test_the_steps_own_backward_pass_is_preferred():
    """Gradients of a penalty do not count where the step's own were announced, and count where nobody announces."""
    both = [call(0, 1.0, 4, (100.0, False), (2.0, True))]
    assert read(Signals(both), 1).delta.tolist() == [1.0]
    alone = [call(0, 1.0, 4, (6.0, False), (8.0, False))]
    assert read(Signals(alone), 1).delta == pytest.approx([10 / math.sqrt(8)])


@pytest.mark.parametrize("norm", [1e-200, 1e200, math.inf, math.nan, 0.0])
def test_numbers_of_any_size_stay_what_they_are(norm):
    """Squares that float64 cannot hold are not taken, and what is not finite is told as such."""
    snapshot = read(Signals([call(0, norm, 4, (norm, True)), call(0, norm, 4, (norm, True))]), 1)
    assert snapshot.signal == pytest.approx([norm / 2], rel=1e-12, abs=0, nan_ok=True)
    assert snapshot.delta == pytest.approx([norm / 2], rel=1e-12, abs=0, nan_ok=True)


@pytest.mark.parametrize(("scale", "factor"), [(None, 1.0), (2.0**16, 2.0**16), (0.0, math.nan)])
def test_a_loss_scalers_factor_is_taken_out_of_gradients_alone(scale, factor):
    """Deltas and profiles are those of the loss itself; of a factor of zero nothing could be known."""
    calls = [call(0, 4.0, 4, (8.0, True)) for _ in range(MIN_CALLS)]
    times = [(0, torch.tensor([6.0, 12.0]), [9, 4])]
    snapshot = read(Signals(calls, times=times), 1, scale=None if scale is None else torch.tensor(scale))
    assert snapshot.signal == pytest.approx([2.0])
    assert snapshot.delta == pytest.approx([4.0 / factor], nan_ok=True)
    expected = [[2.0 / factor, 6.0 / factor], *([] if math.isnan(factor) else [[4.0 / factor] * MIN_CALLS])]
    for profile, deltas in zip(snapshot.time, expected, strict=True):
        assert profile.delta == pytest.approx(deltas, nan_ok=True)


@pytest.mark.parametrize(
    ("dtype", "scale", "unscaled"),
    [(torch.float16, None, True), (torch.float16, 2.0, False), (torch.bfloat16, None, False), (None, None, False)],
    ids=str,
)
def test_float16_without_a_scaler_is_noted(dtype, scale, unscaled):
    """Autocast makes it of the layers' outputs; bfloat16 reaches as far down as float32."""
    net, probe = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)), SignalProbe()
    probe.begin(find_layers(net))
    with torch.autocast("cpu", dtype=dtype or torch.float16, enabled=dtype is not None):
        loss = net(torch.ones(2, 4)).float().sum()
    loss.backward()
    signals = probe.take()
    probe.end()
    assert read(signals, 2, scale=None if scale is None else torch.tensor(scale)).unscaled_float16 is unscaled


@pytest.mark.parametrize("num_calls", [MIN_CALLS - 1, MIN_CALLS])
def test_many_calls_of_one_layer_make_a_profile(num_calls):
    """From eight calls on there is one, in the order of the calls; a call to which nothing came back is a gap."""
    calls = [call(0, 1.0, 4, (float(n), True)) for n in range(num_calls)]
    calls[3].deltas.clear()
    profiles = read(Signals(calls), 1).time
    assert len(profiles) == (num_calls >= MIN_CALLS)
    for profile in profiles:
        expected = [n / 2 if n != 3 else math.nan for n in range(num_calls)]
        assert (profile.column, profile.recurrent) == (0, False)
        assert profile.delta == pytest.approx(expected, nan_ok=True)


def test_calls_without_any_gradient_make_no_profile():
    """A loop that samples without gradients is not one along time."""
    assert read(Signals([call(0, 1.0, 4) for _ in range(20)]), 1).time == ()


def test_a_hand_written_recurrence_has_the_profile_that_autograd_tells():
    """Of a cell called step after step, the gradient of each output is told, first step first."""
    cell, states = nn.GRUCell(3, 4), []

    def unrolled(net: nn.Module) -> Tensor:
        states[:] = [torch.zeros(2, 4)]
        for step in range(12):
            states.append(net[0](torch.full((2, 3), float(step)), states[-1]))
            if states[-1].requires_grad:
                states[-1].retain_grad()
        return states[-1].pow(3).sum()

    snapshot = probed(nn.Sequential(cell), unrolled)
    expected = [float(state.grad.double().square().mean().sqrt()) for state in states[1:]]
    assert snapshot.time[0].delta == pytest.approx(expected, rel=1e-5)


def test_shares_of_units_are_those_that_are_not_alive_and_not_steep():
    """One share a layer; what was not asked stays unknown."""
    units = {1: Units(alive=torch.tensor([True, False, False, True])), 0: Units(steep=torch.tensor([False, True]))}
    snapshot = read(Signals([call(0, 1.0, 1), call(1, 1.0, 1)], units=units), 3)
    assert snapshot.dead == pytest.approx([math.nan, 0.5, math.nan], nan_ok=True)
    assert snapshot.saturated == pytest.approx([0.5, math.nan, math.nan], nan_ok=True)


def test_what_is_true_of_one_call_is_true_of_the_layer():
    """A layer was in training mode, or was fed by a cut tensor, where that holds for any call; else it is not known."""
    calls = [
        call(0, 1.0, 1, training=False),
        call(1, 1.0, 1, fed_by_cut={0}),
        call(1, 1.0, 1),
        call(3, 1.0, 1, training=False, fed_by_cut={0}),
        call(0, 1.0, 1, training=True),
    ]
    snapshot = read(Signals(calls), 4)
    assert snapshot.training == pytest.approx([1, 1, math.nan, 0], nan_ok=True)
    assert snapshot.fed_by_cut == pytest.approx([0, 1, math.nan, 1], nan_ok=True)


@pytest.mark.parametrize(
    ("origins", "fed"),
    [
        (set(), 0),
        ({0}, 1),
        # It learns, in one of its calls and in every one.
        ({1}, 0),
        ({2}, 0),
        ({0, 1, 2}, 1),
        # Of what this step has not called nothing is known.
        ({3}, 0),
    ],
)
def test_a_cut_counts_where_nothing_came_back_to_a_layer_that_it_stems_from(origins, fed):
    """A detached copy of what learns on another way is no harm, and one lost layer among the origins is."""
    calls = [
        call(0, 1.0, 1),
        call(1, 1.0, 1, (1.0, True)),
        call(1, 1.0, 1),
        call(2, 1.0, 1, (0.0, False)),
        call(4, 1.0, 1, (1.0, True), fed_by_cut=origins),
    ]
    assert read(Signals(calls), 5).fed_by_cut == pytest.approx([0, 0, 0, math.nan, fed], nan_ok=True)


@pytest.mark.parametrize("both_ways", [True, False])
def test_a_profile_tells_whether_its_layer_reads_both_ways(both_ways):
    """A bidirectional module's profile says so."""
    rnn = nn.GRU(3, 2, bidirectional=both_ways)
    snapshot = probed(nn.ModuleList([rnn]), lambda net: net[0](torch.ones(9, 2, 3))[0].sum())
    assert [(len(profile.delta), profile.recurrent, profile.both_ways) for profile in snapshot.time] == [
        (9, True, both_ways)
    ]


class Syncs(TorchDispatchMode):
    """Counts what would make a host wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.supports("one transfer to the host a probe")
def test_a_probe_takes_one_transfer_to_the_host(monkeypatch):
    """Everything that a probe sees, with the update and the loss scale, comes over at once; no number by itself."""
    transfers = []

    class Counts(probing.Transfer):
        def __init__(self, parts: Any) -> None:
            transfers.append(len(parts))
            super().__init__(parts)

    monkeypatch.setattr(probing, "Transfer", Counts)
    net = nn.Sequential(nn.Conv1d(3, 4, 1), nn.Tanh(), nn.Flatten(), nn.Linear(20, 7), nn.ReLU(), nn.Linear(7, 5))
    rnn = nn.ModuleList([net, nn.LSTM(5, 5, batch_first=True)])
    layers, probe, inputs = find_layers(rnn), SignalProbe(), torch.ones(2, 3, 5)
    with Syncs() as syncs:
        probe.begin(layers)
        loss = net(rnn[1](inputs)[0]).sum()
        probe.pause()
        loss.backward()
        probe.resume()
        signals = probe.take()
        sample = WeightSample(layers, range(len(layers)))
        reading = ProbeReading(0, 0, [layer.name for layer in layers], signals, sample, torch.tensor(2.0))
        with torch.no_grad():
            net[0].weight.mul_(1.5)
        probe.end()
        reading.measure_updates()
        assert len(transfers) == 1
        snapshot = reading.snapshot()
    assert (len(transfers), syncs.names, probe.failure) == (1, [], "")
    assert np.isfinite(snapshot.delta).all()
    assert len(snapshot.time) == 1
    assert snapshot.update_ratio[1:].tolist() == [0.0] * (len(layers) - 1)


def test_of_an_optimizer_that_holds_some_layers_only_those_have_an_update():
    """The others are not measured, and a weight of zero that has moved is infinitely far."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    nn.init.zeros_(net[2].weight)
    signals = Signals([call(0, 1.0, 1, (1.0, True))])
    reading = ProbeReading(0, 0, ["0", "1", "2"], signals, WeightSample(find_layers(net), [1, 2]))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.25)
        net[2].weight += 1.0
    reading.measure_updates()
    assert reading.snapshot().update_ratio == pytest.approx([math.nan, 0.25, math.inf], nan_ok=True)


def test_a_probe_of_nothing_is_empty():
    """A step of which nothing was recorded has a snapshot of unknown numbers."""
    snapshot = read(Signals(), 2)
    assert snapshot.order.tolist() == []
    names = ("sizes", "signal", "delta", "dead", "update_ratio", "training", "fed_by_cut")
    assert all(np.isnan(getattr(snapshot, name)).all() for name in names)
