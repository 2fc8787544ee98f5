"""Test ``lightning_gradwatch.measure.signal_history``."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_gradwatch.measure.signal_history import SignalHistory, widened_signals
from lightning_gradwatch.measure.snapshot import SignalSnapshot, TimeProfile

COLUMNS = ("sizes", "signal", "delta", "dead", "saturated", "update_ratio", "training", "fed_by_cut")


def snapshot(step: int, optimizer: int = 0, num_layers: int = 3, num_steps: int = 5) -> SignalSnapshot:
    """Return a snapshot with numbers of its own."""
    generator = np.random.default_rng(step)
    values = {name: generator.random(num_layers) for name in COLUMNS}
    values["dead"][0] = np.nan
    time = (
        TimeProfile(1, generator.random(num_steps), both_ways=True),
        TimeProfile(0, np.full(2, np.inf), recurrent=False),
    )
    names = tuple(f"layer{number}" for number in range(num_layers))
    return SignalSnapshot(
        step, optimizer, names, order=np.array([2, 0]), time=time, unscaled_float16=step % 2 == 0, **values
    )


def assert_equal(one: SignalSnapshot, other: SignalSnapshot) -> None:
    """Hold all numbers of two snapshots against each other."""
    assert (one.step, one.optimizer, one.layers) == (other.step, other.optimizer, other.layers)
    assert one.unscaled_float16 is other.unscaled_float16
    for name in ("order", *COLUMNS):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
        assert getattr(one, name).dtype == getattr(other, name).dtype
    assert [(t.column, t.recurrent, t.both_ways, t.delta.tolist()) for t in one.time] == [
        (t.column, t.recurrent, t.both_ways, t.delta.tolist()) for t in other.time
    ]


def test_it_is_a_sequence_of_what_was_added():
    """Oldest first, by index, by slice and one by one; and the steps of one optimizer alone."""
    history = SignalHistory()
    for step in range(6):
        history.append(snapshot(step, optimizer=step % 2))
    assert [s.step for s in history] == [0, 1, 2, 3, 4, 5]
    assert (len(history), history[-1].step, [s.step for s in history[1:3]]) == (6, 5, [1, 2])
    assert [s.step for s in history.of(1)] == [1, 3, 5]
    assert history.of(2) == []


def test_a_long_run_keeps_the_first_the_newest_and_an_even_choice_between():
    """However many are added there are at most 256, in order, with the newest 16 without a gap."""
    history = SignalHistory()
    for step in range(1000):
        history.append(snapshot(step, num_layers=1))
        assert len(history) <= 256
    steps = [s.step for s in history]
    assert steps == sorted(set(steps))
    assert steps[0] == 0
    assert steps[-16:] == list(range(984, 1000))
    assert len(steps) == 256
    # Evenly: no stretch of the run is lost.
    assert max(np.diff(steps)) <= 2 * np.ceil(1000 / 240)


@pytest.mark.parametrize(("num_layers", "num_steps"), [(100, 5), (1, 1000)])
def test_memory_is_bounded_by_layers_and_by_time_steps(num_layers, num_steps):
    """More than the bound is never kept, beyond the newest 16."""
    history = SignalHistory(max_bytes=200_000)
    for step in range(400):
        history.append(snapshot(step, num_layers=num_layers, num_steps=num_steps))
        kept = sum(
            sum(getattr(s, name).nbytes for name in COLUMNS) + sum(profile.delta.nbytes for profile in s.time)
            for s in history
        )
        assert kept <= 200_000 or len(history) <= 16
    assert len(history) >= 16
    assert history[0].step == 0


def test_the_first_of_each_optimizer_stays():
    """Also where another optimizer was probed before it, and is probed far more often."""
    history = SignalHistory()
    for step in range(1000):
        history.append(snapshot(step, optimizer=int(step in (9, 500, 990)), num_layers=1))
    assert history.of(1)[0].step == 9
    assert history[0].step == 0
    restored = SignalHistory()
    restored.load_state_dict(history.state_dict(), history[0].layers)
    assert [s.step for s in restored] == [0, 9, *range(984, 1000)]


def test_a_checkpoint_keeps_the_newest_and_the_first_as_plain_values():
    """The newest 16, and how it began, come back to the last bit through weights-only loading."""
    history, restored = SignalHistory(), SignalHistory()
    for step in range(20):
        history.append(snapshot(step))
    torch.save(history.state_dict(), file := io.BytesIO())
    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    restored.load_state_dict(state, history[0].layers)
    assert [s.step for s in restored] == [0, *range(4, 20)]
    for one, other in zip(restored, [history[0], *history[-16:]], strict=True):
        assert_equal(one, other)


def test_a_checkpoint_that_does_not_know_of_float16_is_taken_back():
    """Older ones have no word on it: nothing is claimed of them, and nothing else is lost."""
    history, taken = SignalHistory(), SignalHistory()
    history.append(snapshot(0))
    (saved,) = history.state_dict()
    del saved["unscaled_float16"]
    taken.load_state_dict([saved], history[0].layers)
    assert_equal(taken[0], replace(history[0], unscaled_float16=False))


def test_snapshots_of_another_model_are_left_out():
    """Layers that have other names now are not mixed up with the old ones."""
    history, restored = SignalHistory(), SignalHistory()
    history.append(snapshot(0))
    restored.load_state_dict(history.state_dict(), ["layer0", "other", "layer2"])
    assert len(restored) == 0


@pytest.mark.parametrize("how", ["widen", "load"])
def test_layers_that_appear_later_were_not_measured(how):
    """Old snapshots get a NaN for each new layer and keep what they know."""
    names = ("layer0", "layer1", "layer2", "new")
    history = SignalHistory()
    history.append(snapshot(0))
    if how == "widen":
        history.widen(names)
    else:
        state = history.state_dict()
        history = SignalHistory()
        history.load_state_dict(state, names)
    assert history[0].layers == names
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(history[0], name), [*getattr(snapshot(0), name), np.nan])
    assert widened_signals(history[0], names) is history[0]
