"""Test ``lightning_gradwatch.stepper``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_gradwatch import ClipByGlobalNorm
from lightning_gradwatch.measure.reader import Reader
from lightning_gradwatch.poisoned import Poison, PoisonedSteps
from lightning_gradwatch.settings import Settings
from lightning_gradwatch.stepper import Stepper
from lightning_gradwatch.steps import OptimizerStep


def stepper_for(net: nn.Module, warnings: list[str] | None = None, *, elsewhere: bool = False, **settings: Any) -> Any:
    """Return a stepper and an optimizer for a network whose gradients are all 3."""
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    chosen = Settings(**settings)
    poisoned = PoisonedSteps(chosen.on_nonfinite, chosen.max_consecutive_skips)
    told = [] if warnings is None else warnings
    stepper = Stepper(chosen, Reader(net), poisoned, told.append, clips_elsewhere=elsewhere)
    return stepper, torch.optim.SGD(net.parameters(), lr=0.1)


def test_gradients_are_measured_before_they_are_clipped():
    """One reading has the norms of both, and the gradients are those of the clipper."""
    net = nn.Linear(4, 1, bias=False)
    stepper, optimizer = stepper_for(net, clipper=ClipByGlobalNorm(1.0))
    snapshot = stepper.read(OptimizerStep(0, optimizer, 5)).snapshot()
    assert (snapshot.step, snapshot.norms.tolist()) == (5, [6.0])
    assert snapshot.clipped_norms.tolist() == pytest.approx([1.0])
    assert net.weight.grad.norm() == pytest.approx(1.0)


def test_the_factor_of_a_loss_scaler_is_taken_out():
    """Its value is asked for by scaling a one, which waits for nothing."""
    net = nn.Linear(4, 1, bias=False)
    stepper, optimizer = stepper_for(net)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    reading = stepper.read(OptimizerStep(0, optimizer, 0, scaler, unscales=True), torch.tensor(16.0))
    assert reading.snapshot().norms.tolist() == [0.75]
    assert reading.snapshot().loss == 2.0
    unscaled = stepper.read(OptimizerStep(0, optimizer, 1, scaler), torch.tensor(16.0)).snapshot()
    assert (unscaled.norms.tolist(), unscaled.loss) == ([6.0], 2.0)


@pytest.mark.parametrize(
    ("fused", "elsewhere", "kept"), [(False, False, True), (True, False, False), (True, True, True)]
)
def test_gradients_are_kept_for_a_look_after_the_step(fused, elsewhere, kept):
    """Not where the optimizer writes to them itself and nobody is known to clip."""
    net = nn.Linear(4, 1)
    stepper, optimizer = stepper_for(net, elsewhere=elsewhere)
    optimizer.param_groups[0]["fused"] = fused
    reading = stepper.read(OptimizerStep(0, optimizer, 0))
    assert (reading._measured is not None) is kept
    stepper.look_again(reading)
    assert reading._measured is None


@pytest.mark.parametrize("change", ["in place", "replaced", "dropped", "not at all"])
def test_what_others_make_of_gradients_is_noticed_by_the_change(change):
    """In place, by another tensor or by None; where nobody did anything nothing is read a second time."""
    net = nn.Linear(4, 1, bias=False)
    stepper, optimizer = stepper_for(net)
    reading = stepper.read(OptimizerStep(0, optimizer, 0))
    if change == "in place":
        net.weight.grad.mul_(0.5)
    elif change == "replaced":
        net.weight.grad = net.weight.grad * 0.5
    elif change == "dropped":
        net.weight.grad = None
    stepper.look_again(reading)
    expected = {"in place": 3.0, "replaced": 3.0, "dropped": 0.0, "not at all": 6.0}[change]
    assert reading.snapshot().clipped_norms.tolist() == [expected]
    assert (reading.snapshot().clipped_norms is reading.snapshot().norms) is (change == "not at all")


@pytest.mark.parametrize(
    ("settings", "together", "reads"),
    [({}, False, False), ({}, True, False), ({"clipper": ClipByGlobalNorm(1.0)}, False, True)],
)
def test_after_a_failure_only_what_was_asked_for_goes_on(settings, together, reads):
    """A clipper clips on; where nothing is sharded no process needs this one."""
    stepper, optimizer = stepper_for(nn.Linear(4, 1), **settings)
    assert (
        stepper.read_unwatched(OptimizerStep(0, optimizer, 0), together=together, failed_now=False) is not None
    ) is reads


def test_a_clipper_that_fails_costs_the_clipping_only():
    """It is named, and not tried again; the numbers are still read."""

    class Broken:
        def clip_(self, norms):
            raise OSError("mine")

    warnings: list[str] = []
    stepper, optimizer = stepper_for(nn.Linear(4, 1, bias=False), warnings, clipper=Broken())
    for step in range(3):
        assert stepper.read(OptimizerStep(0, optimizer, step)).snapshot().norms.tolist() == [6.0]
    assert warnings == ["clipper failed, training goes on unclipped: Broken: OSError: mine"]


def test_where_another_process_does_not_clip_this_one_stops_as_well():
    """Each process would train on gradients of its own otherwise; it is told once."""
    warnings: list[str] = []
    stepper, optimizer = stepper_for(nn.Linear(4, 1, bias=False), warnings, clipper=ClipByGlobalNorm(1.0))
    stepper.stop_clipping()
    stepper.stop_clipping()
    snapshot = stepper.read(OptimizerStep(0, optimizer, 0)).snapshot()
    assert snapshot.clipped_norms.tolist() == [6.0]
    assert warnings == ["clipper failed in another process, training goes on unclipped in all"]


def test_what_cannot_go_on_is_told_once(monkeypatch):
    """Where not even measuring works, nothing pretends to clip."""

    def fail(*args, **kwargs):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(Reader, "read", fail)
    warnings: list[str] = []
    stepper, optimizer = stepper_for(nn.Linear(4, 1), warnings, clipper=ClipByGlobalNorm(1.0))
    about = OptimizerStep(0, optimizer, 0)
    assert [stepper.read_unwatched(about, together=False, failed_now=True) for _ in range(3)] == [None] * 3
    assert warnings == ["cannot clip any more, training goes on without: ZeroDivisionError: ours"]


@pytest.mark.parametrize(
    ("on_nonfinite", "scaled", "gone", "reason"),
    [
        ("warn", False, False, ""),
        ("skip", False, True, ""),
        ("skip", True, False, ""),
        ("raise", False, False, "step 7"),
    ],
)
def test_a_poisoned_step_is_dropped_where_that_is_asked(on_nonfinite, scaled, gone, reason):
    """A loss scaler drops such steps itself."""
    net = nn.Linear(4, 1)
    stepper, optimizer = stepper_for(net, on_nonfinite=on_nonfinite)
    net.weight.grad[0, 0] = float("nan")
    about = OptimizerStep(0, optimizer, 7, torch.amp.GradScaler("cpu") if scaled else None)
    poison = stepper.drop_(about, stepper.read(about), excused=scaled)
    assert (net.weight.grad is None) is gone
    assert (poison is not None) is (gone or bool(reason))
    if poison is not None:
        assert poison.sick == ("(root)",)
        assert poison.reason.startswith(reason)
        assert bool(poison.reason) is bool(reason)


@pytest.mark.parametrize("broken", [False, True])
def test_what_cannot_be_measured_is_looked_at_plainly(broken):
    """A step is dropped although measuring it failed, and no step is dropped because measuring it failed."""
    net = nn.Linear(4, 1)
    stepper, optimizer = stepper_for(net, on_nonfinite="skip")
    if broken:
        net.bias.grad[0] = float("inf")
    poison = stepper.drop_(OptimizerStep(0, optimizer, 7), None)
    assert (net.bias.grad is None) is broken
    assert (poison == Poison()) is broken


def agreeing(monkeypatch: Any, *, in_step: bool, sharded: bool = False, other: bool = False) -> Any:
    """Return a stepper of one of two processes, its optimizer, its network, and what it has said to the other."""
    net, said = nn.Linear(4, 1), []
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    monkeypatch.setattr(Reader, "sharded", lambda *_: sharded)
    stepper = Stepper(
        Settings(on_nonfinite="skip"),
        Reader(net),
        PoisonedSteps("skip", 3),
        print,
        clips_elsewhere=False,
        anywhere=lambda mine: said.append(mine) or mine or other,
        in_step=in_step,
    )
    return stepper, torch.optim.SGD(net.parameters(), lr=0.1), net, said


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("in_step", [False, True])
def test_processes_wait_for_each_other_only_where_all_of_them_come(monkeypatch, in_step, sharded, scaled):
    """They agree on every step that all of them come to; who steps by hand what is not sharded is never waited for."""
    stepper, optimizer, net, said = agreeing(monkeypatch, in_step=in_step, sharded=sharded)
    about = OptimizerStep(0, optimizer, 0, torch.amp.GradScaler("cpu") if scaled else None)
    asks = in_step or sharded
    assert stepper.drop_(about, stepper.read(about)) is None
    assert said == [False] * asks
    net.weight.grad[0, 0] = float("nan")
    poison = stepper.drop_(about, stepper.read(about))
    assert said == [False, True] * asks
    assert (poison.sick, poison.agreed) == (("(root)",), asks)
    stepper.decide_alone()
    assert stepper.drop_(about, None) is None
    assert len(said) == 2 * asks


@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize("seen", ["measured", "not measured", "not even looked at"])
def test_what_a_process_sees_does_not_decide_whether_it_agrees(monkeypatch, seen, other):
    """However little one process knows of a step, it says so to the others, and does as they do."""

    def fail(*_):
        raise RuntimeError("out of memory")

    stepper, optimizer, net, said = agreeing(monkeypatch, in_step=True, other=other)
    about = OptimizerStep(0, optimizer, 0)
    reading = stepper.read(about) if seen == "measured" else None
    if seen == "not even looked at":
        monkeypatch.setattr("lightning_gradwatch.stepper.gradients_finite", fail)
    assert stepper.drop_(about, reading) == (Poison(agreed=True) if other else None)
    assert said == [False]
    assert (net.weight.grad is None) is other


def test_a_layer_that_the_optimizer_gets_later_is_agreed_on(monkeypatch):
    """DDP does not average what was frozen when it began: nothing is taken for the same in all processes."""
    stepper, optimizer, net, said = agreeing(monkeypatch, in_step=True, other=True)
    late = nn.Parameter(torch.ones(2))
    late.grad = torch.ones(2)
    optimizer.add_param_group({"params": [late]})
    about = OptimizerStep(0, optimizer, 0)
    assert stepper.drop_(about, stepper.read(about)).agreed
    assert (said, net.weight.grad, late.grad) == ([False], None, None)


def test_what_was_agreed_on_is_done_whatever_fails(monkeypatch):
    """A reading that cannot be let go of costs nothing: the others have dropped the step already."""
    stepper, optimizer, net, _ = agreeing(monkeypatch, in_step=True, other=True)
    about = OptimizerStep(0, optimizer, 0)
    reading = stepper.read(about)

    def fail():
        raise RuntimeError("out of memory")

    monkeypatch.setattr(reading, "release", fail)
    assert stepper.drop_(about, reading) == Poison(agreed=True)
    assert net.weight.grad is None


def test_a_switched_off_watch_still_knows_the_loss():
    """Other processes ask where a step came from: without it they would hear of a loss that is not finite."""
    stepper, optimizer = stepper_for(nn.Linear(4, 1), on_nonfinite="skip")
    reading = stepper.read_unwatched(
        OptimizerStep(0, optimizer, 0), torch.tensor(0.5), together=False, failed_now=False
    )
    assert reading.snapshot().loss == 0.5


def test_a_sharded_step_is_measured_once_whatever_failed_after_it(monkeypatch):
    """Other processes measure once a step: only what failed before that is tried again."""
    stepper, optimizer = stepper_for(nn.Linear(4, 1))
    monkeypatch.setattr(Reader, "sharded", lambda *_: True)
    about = OptimizerStep(0, optimizer, 0)
    stepper.read(about)
    assert stepper.read_unwatched(about, together=True, failed_now=True) is None
    assert stepper.read_unwatched(about, together=True, failed_now=False) is not None
    stepper._measured_before = stepper.reader.num_measured
    assert stepper.read_unwatched(about, together=True, failed_now=True) is not None


def test_gradients_made_in_inference_mode_are_read():
    """They keep no count of changes; replacing them is noticed all the same."""
    net = nn.Linear(4, 1, bias=False)
    stepper, optimizer = stepper_for(net)
    with torch.inference_mode():
        net.weight.grad = torch.full((1, 4), 3.0)
    reading = stepper.read(OptimizerStep(0, optimizer, 0))
    stepper.look_again(reading)
    assert reading.snapshot().clipped_norms.tolist() == [6.0]
