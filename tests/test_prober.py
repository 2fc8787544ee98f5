"""Test ``lightning_gradwatch.prober``."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from models import deep_net, train
from probe_oracle import num_hooks
from torch import nn
from torch.overrides import _get_current_function_mode_stack

from lightning_gradwatch import prober as module
from lightning_gradwatch.measure.functions import ActivationCalls
from lightning_gradwatch.measure.reader import Reader
from lightning_gradwatch.prober import COMPILED, Prober, ProbeSchedule
from lightning_gradwatch.settings import Settings
from lightning_gradwatch.steps import OptimizerStep
from lightning_gradwatch.watching import Watch

INPUTS = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))


def make_net() -> nn.Module:
    """Return two layers."""
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))


class Loop:
    """Drives a prober as the core does, one optimizer a network."""

    def __init__(self, every_n_steps: int | None = 50, *nets: nn.Module) -> None:
        self.nets = nets or (make_net(),)
        self.reader = Reader(nn.ModuleList(self.nets))
        self.prober = Prober(every_n_steps)
        self.optimizers = [torch.optim.SGD(net.parameters(), lr=0.01) for net in self.nets]
        self.step = 0
        self.prober.start(self.reader)

    def begin(self) -> None:
        known = self.prober.schedule.known
        due = not known or any(map(self.prober.schedule.wants, known))
        self.prober.begin_batch(self.reader.layers, due=due)

    def backward(self, number: int = 0, *, opaque: bool = False) -> None:
        loss = self.nets[number](INPUTS).square().mean()
        self.prober.before_backward(opaque=opaque)
        loss.backward()
        self.prober.after_backward()

    def make_step(self, number: int = 0, *, wanted: bool = True, again: Any = lambda: None) -> Any:
        about = OptimizerStep(number, self.optimizers[number], self.step)
        reading = self.prober.take(about, self.reader, wanted=wanted)
        again()
        self.optimizers[number].step()
        if reading is not None:
            reading.measure_updates()
        if wanted:
            self.prober.after_step()
        self.step += 1
        return reading

    def batch(self, *numbers: int) -> list[Any]:
        self.begin()
        readings = []
        for number in numbers or (0,):
            self.backward(number)
            readings.append(self.make_step(number))
        self.prober.end_batch()
        assert num_hooks(*self.nets) == 0
        return readings


def probed_steps(schedule: ProbeSchedule, steps: int) -> list[int]:
    """Return the steps of optimizer 0 that are probed where each can be."""
    probed = []
    for step in range(steps):
        wanted = schedule.wants(0)
        probed += [step] if wanted else []
        schedule.stepped(0, probed=wanted)
    return probed


@pytest.mark.parametrize(("every", "then"), [(1, list(range(5, 24))), (7, [7, 14, 21]), (10, [10, 20]), (50, [])])
def test_the_first_steps_and_then_every_nth_are_probed(every, then):
    """Five steps from the start, and the multiples of n after them."""
    assert probed_steps(ProbeSchedule(every), 24) == [0, 1, 2, 3, 4, *then]


def test_a_step_that_told_nothing_is_made_up_for():
    """``again`` asks for one more probe, and the rhythm stays."""
    schedule = ProbeSchedule(10)
    assert probed_steps(schedule, 8) == [0, 1, 2, 3, 4]
    schedule.again(0)
    assert probed_steps(schedule, 5) == [0, 2]


def test_each_optimizer_has_a_schedule_of_its_own_and_an_idle_one_is_not_waited_for():
    """One that has not stepped for 20 batches asks for no probe until it steps again."""
    schedule = ProbeSchedule(50)
    schedule.stepped(1, probed=True)
    for _ in range(20):
        schedule.batch_over()
    assert schedule.wants(1)
    schedule.batch_over()
    assert not schedule.wants(1)
    schedule.stepped(1, probed=False)
    assert schedule.wants(1)
    assert schedule.known == [1]


def test_a_schedule_goes_on_from_a_checkpoint():
    """Its state is plain lists, and what follows is the same."""
    schedule, restored = ProbeSchedule(10), ProbeSchedule(10)
    probed_steps(schedule, 13)
    state = schedule.state_dict()
    assert state == [[0, 13, 20, 0]]
    restored.load_state_dict(state)
    assert probed_steps(restored, 20) == probed_steps(schedule, 20) == [7, 17]


def test_the_probes_of_a_run_belong_to_their_steps():
    """Each reading is of its own step, with the update that this step made; other batches have no hook."""
    loop = Loop(10)
    readings = [loop.batch()[0] for _ in range(12)]
    snapshots = [reading.snapshot() for reading in readings if reading is not None]
    assert [snapshot.step for snapshot in snapshots] == [0, 1, 2, 3, 4, 10]
    for snapshot in snapshots:
        assert (snapshot.signal > 0).all()
        assert (snapshot.update_ratio > 0).all()


def test_no_probe_where_none_is_wanted():
    """``None`` switches probes off, and says so."""
    loop = Loop(None)
    assert loop.batch() == [None]
    assert loop.prober.off.startswith("switched off")


def test_two_optimizers_share_a_batch():
    """Each step has the signals of its own forward pass, and only its own layers have an update."""
    loop = Loop(50, make_net(), make_net())
    first, second = (reading.snapshot() for reading in loop.batch(0, 1))
    for snapshot, used, other in ((first, slice(0, 2), slice(2, 4)), (second, slice(2, 4), slice(0, 2))):
        assert (snapshot.delta[used] > 0).all()
        assert (snapshot.update_ratio[used] > 0).all()
        assert [int(n) for n in snapshot.order] == list(range(4))[used]
        assert str(snapshot.update_ratio[other]) == str(snapshot.delta[other]) == "[nan nan]"


def test_a_closure_that_is_evaluated_again_leaves_nothing_for_the_next_step():
    """LBFGS: each step is probed by the first evaluation of its own closure, none by that of the step before."""
    loop = Loop(50)
    for _ in range(4):
        with torch.no_grad():
            expected = float(loop.nets[0][0](INPUTS).double().square().mean().sqrt())
        loop.begin()
        loop.backward()
        reading = loop.make_step(again=lambda: [loop.backward() for _ in range(3)])
        loop.prober.end_batch()
        assert reading.snapshot().signal[0] == pytest.approx(expected, rel=1e-5)
        assert not loop.prober._probe.holds


def test_a_step_that_nobody_wants_to_see_does_not_stop_the_next_one_in_the_batch():
    """What was recorded for it is dropped, and the other optimizer of the batch is probed."""
    loop = Loop(50, make_net(), make_net())
    loop.begin()
    loop.backward(0)
    assert loop.make_step(0, wanted=False) is None
    loop.backward(1)
    reading = loop.make_step(1)
    loop.prober.end_batch()
    assert [int(n) for n in reading.snapshot().order] == [2, 3]


def test_accumulated_gradients_are_probed_in_the_first_batch():
    """What was recorded waits for the step, and no further batch is recorded until then."""
    loop = Loop(50)
    loop.begin()
    loop.backward()
    loop.prober.end_batch()
    assert num_hooks(*loop.nets) == 0
    loop.begin()
    assert num_hooks(*loop.nets) == 0
    loop.backward()
    snapshot = loop.make_step().snapshot()
    assert snapshot.sizes.tolist() == [24, 12]


@pytest.mark.parametrize("found", ["before", "in the graph"])
def test_it_steps_aside_where_the_model_is_compiled(found):
    """No hook is put in place, or none any more, and nothing is probed in this run."""
    net = make_net()
    if found == "before":
        net[0].compile(backend="eager")
    loop = Loop(50, net)
    loop.begin()
    assert (num_hooks(net) == 0) is (found == "before")
    loop.prober.before_backward(opaque=found != "before")
    assert (loop.prober.off, num_hooks(net)) == (COMPILED, 0)
    loop.begin()
    assert num_hooks(net) == 0


@pytest.mark.parametrize("where", ["hook", "update"])
def test_an_error_switches_only_the_probe_off(monkeypatch, where):
    """Steps go on without readings, and the reason can be told."""

    def fails(*arguments: Any) -> Any:
        raise RuntimeError("broken on purpose")

    loop = Loop(50)
    if where == "hook":
        monkeypatch.setattr("lightning_gradwatch.measure.signals.norm_in_pieces", fails)
    else:
        monkeypatch.setattr(module, "WeightSample", fails)
    assert loop.batch() == [None]
    assert loop.prober.off == "failed: RuntimeError: broken on purpose"
    monkeypatch.undo()
    assert loop.batch() == [None]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda prober: pickle.loads(pickle.dumps(prober))])
def test_a_copy_keeps_the_schedule_and_nothing_of_a_fit_under_way(duplicate):
    """In the middle of a probe it can be copied and pickled; the copy has no hooks."""
    loop = Loop(50)
    loop.batch()
    loop.begin()
    loop.backward()
    other = duplicate(loop.prober)
    assert other.schedule.state_dict() == loop.prober.schedule.state_dict()
    assert not other._probe.running
    assert loop.make_step() is not None
    loop.prober.stop()
    assert num_hooks(*loop.nets) == 0


def test_the_probe_hears_of_no_function_while_gradients_are_read(monkeypatch):
    """Reading calls torch some times a layer, and each of these would be told to the probe, in a probe step."""
    listening = []
    read = Reader.read

    def watched(self, *args, **kwargs):
        listening.append(any(isinstance(mode, ActivationCalls) for mode in _get_current_function_mode_stack()))
        return read(self, *args, **kwargs)

    monkeypatch.setattr(Reader, "read", watched)
    net, watch = deep_net(nn.ReLU, 3), Watch(Settings(probe_every_n_steps=1))
    data = [(torch.randn(4, 8), torch.randint(0, 3, (4,)))] * 3
    train(net, data, watch)
    assert listening == [False] * 3
    assert len(watch.probes) == 3


def test_that_there_are_no_probes_is_said_once():
    """With the reason, and with what is judged all the same; where they run there is nothing to say."""
    assert Prober(50).why_none() == ""
    prober = Prober(None)
    assert prober.why_none().startswith("no signal probe (switched off: probe_every_n_steps=None); what is still")
    assert prober.why_none() == ""
