"""Test ``lightning_gradwatch.exchanges``: what one of several processes knows reaches the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from lightning_gradwatch import ClipByGlobalNorm
from lightning_gradwatch.inquest import Inquests
from lightning_gradwatch.report.origin import Witness
from lightning_gradwatch.settings import Settings
from lightning_gradwatch.surroundings import Surroundings
from lightning_gradwatch.watching import Watch


def test_losses_of_several_processes_become_their_mean(data):
    """Until an exchange the loss of a reading is not known; then it is the mean, and both processes judge alike."""
    net = nn.Linear(8, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watch = Watch(Settings())
    watch.join(alone=False)
    watch.start(net, num_optimizers=1, anywhere=bool)
    for step in range(20):
        watch.before_backward(net(torch.ones(1, 8)).sum() * 0 + 1.0)
        net.weight.grad = torch.ones_like(net.weight)
        watch.before_step(0, optimizer, step)
        watch.after_step(0)
        watch.end_batch()
        assert np.isnan(watch.history.losses).all()
        watch.agree(lambda values: [(value + 3.0) / 2 for value in values[:-4]] + [0.0] * 4)
    assert watch.history.losses.tolist() == [2.0] * 20


def test_a_failure_in_another_process_switches_this_one_off_as_well(caplog):
    """After an exchange all processes are off together, and no more exchanges happen."""
    net = nn.Linear(8, 3)
    watch = Watch(Settings())
    watch.join(alone=False)
    watch.start(net, num_optimizers=1, anywhere=bool)
    calls = []
    for _ in range(60):
        watch.end_batch()
        watch.agree(lambda values: calls.append(values) or [*values[:-4], 0.5, 0.0, 0.0, 0.0])
    assert len(calls) == 1
    assert watch.disabled_reason == "it failed in another process, which says why"


def test_a_failure_that_the_log_does_not_know_is_told_by_its_own_process(caplog):
    """A process that tells nothing else tells its own failure, once all processes know of it."""
    watch = Watch(Settings())
    watch.join(alone=False)
    watch.start(nn.Linear(8, 3), num_optimizers=1, tells=False, anywhere=bool)
    watch.disable("OSError: mine")
    assert caplog.text == ""
    for _ in range(40):
        watch.agree(lambda values: [*values[:-4], 0.5, 0.0, 0.0, 0.0])
    assert caplog.text.count("failed in one of several processes: OSError: mine") == 1


def test_a_clipper_that_fails_in_one_process_ends_clipping_in_all(caplog):
    """The process that writes the log tells it, and the one that failed tells why."""

    class Broken:
        def clip_(self, norms):
            raise OSError("mine")

    watches = []
    for clipper, tells in ((ClipByGlobalNorm(1.0), True), (Broken(), False)):
        net = nn.Linear(8, 3)
        net.weight.grad = torch.ones_like(net.weight)
        watch = Watch(Settings(clipper=clipper))
        watch.join(alone=False)
        watch.start(net, num_optimizers=1, tells=tells, anywhere=bool)
        watch.before_step(0, torch.optim.SGD(net.parameters(), lr=0.1), 0)
        watch.end_batch()
        watches.append(watch)
    for _ in range(40):
        for watch in watches:
            watch.agree(lambda values: [*values[:-4], 0.0, 0.0, 0.5, 0.0])
    assert [watch.disabled_reason for watch in watches] == [None, None]
    assert caplog.text.count("clipper failed in another process, training goes on unclipped in all") == 1
    assert caplog.text.count("failed in one of several processes: clipper Broken: OSError: mine") == 1


def second_of_two(gather: Any) -> tuple[Watch, nn.Module, Any]:
    """Return the watch of the second of two processes, a network with finite gradients and its optimizer."""
    watch, net = Watch(Settings()), nn.Linear(4, 1)
    watch.join(alone=False, surroundings=Surroundings(1, 2, gather=gather))
    watch.start(net, num_optimizers=1, tells=False)
    return watch, net, torch.optim.SGD(net.parameters(), lr=0.1)


def break_step(watch: Watch, net: nn.Module, optimizer: Any, step: int, *, broken: bool) -> None:
    """Make a step with gradients of ones or NaN."""
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, float("nan") if broken else 1.0)
    watch.before_step(0, optimizer, step)
    watch.after_step(0)
    watch.end_batch()


def test_at_the_end_everything_that_was_asked_is_answered():
    """Two rows began since the last exchange: two rounds, each of one exchange and one question, and a last one."""
    calls: list[Any] = []

    def gather(line: bytes) -> list[bytes]:
        calls.append(Witness.decode(line, 1).step)
        return [Witness(0).encode(), line]

    watch, net, optimizer = second_of_two(gather)
    for step, broken in enumerate((True, False, True)):
        break_step(watch, net, optimizer, step, broken=broken)
        watch.agree(lambda values: calls.append("mean") or values)
    assert calls == []
    watch.agree(lambda values: calls.append("mean") or values, now=True)
    assert calls == ["mean", 0, "mean", 2, "mean"]


def test_what_fails_when_the_others_have_answered_does_not_end_training(monkeypatch):
    """No error of ours reaches the training loop, and the others hear of it at the next exchange."""

    def fail(*_: Any) -> None:
        raise PermissionError("ours")

    watch, net, optimizer = second_of_two(lambda line: [Witness(0).encode(), line])
    break_step(watch, net, optimizer, 0, broken=True)
    monkeypatch.setattr(Inquests, "answer", fail)
    said: list[float] = []

    def mean(values: Any) -> Any:
        said.append(values[-4])
        return values

    watch.agree(mean, now=True)
    assert watch.disabled_reason == "PermissionError: ours"
    # Once it was well and once it was off; then nothing is exchanged any more.
    assert said == [0.0, 1.0]
    watch.agree(mean, now=True)
    assert len(said) == 2
