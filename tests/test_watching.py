"""Test ``lightning_gradwatch.watching``: the core, driven by a loop without Lightning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from models import deep_net, module_in, train, trainer_in
from torch import nn

from lightning_gradwatch import ClipByGlobalNorm, GradWatch
from lightning_gradwatch.settings import Settings
from lightning_gradwatch.watching import Watch


def test_a_plain_loop_and_the_trainer_give_the_same_history(pl, tmp_path, data):
    """The callback holds nothing that the core could: the same seed gives the same rows to the last bit."""
    torch.manual_seed(4)
    core = Watch(Settings())
    net = deep_net(nn.Sigmoid, 12)
    train(net, data, core)
    torch.manual_seed(4)
    watch = GradWatch()
    trainer_in(pl, tmp_path, watch, max_steps=8).fit(module_in(pl, deep_net(nn.Sigmoid, 12)), data)
    assert np.array_equal(core.history.norms, watch.history.norms)
    assert [d.message for d in core.diagnoses] == [d.message for d in watch.diagnoses]
    assert core.history.layers == tuple(name.removeprefix("net.") for name in watch.history.layers)


def test_finite_gradients_whose_squares_overflow_are_clipped_by_their_true_norm():
    """Gradients of 1e30 are neither called infinite nor left unclipped: a second pass in float64 knows their norm."""
    net = nn.Linear(4, 1, bias=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    watch = Watch(Settings(clipper=ClipByGlobalNorm(2.0)))
    watch.start(net, num_optimizers=1)
    net.weight.grad = torch.full((1, 4), 1e30)
    watch.before_step(0, optimizer, 0)
    watch.end_batch()
    assert watch.history.norms[0, 0] == pytest.approx(2e30)
    assert watch.history.clipped_norms[0, 0] == pytest.approx(2.0)
    assert float(net.weight.grad.norm()) == pytest.approx(2.0)
    assert watch.diagnoses == []


def test_reports_are_due_at_the_logging_interval_and_not_lost_between(data, sink):
    """The logging interval marks the next reading as due, once."""
    train(deep_net(nn.ReLU, 3, he=True), data, Watch(Settings()), make_sinks=lambda: [sink])
    assert [report.due for report in sink.reports] == [False, True] * 4
    assert [report.log_step for report in sink.reports] == list(range(8))


def test_a_process_that_tells_nothing_makes_no_sinks(data, caplog):
    """Other ranks than zero measure and judge in silence."""

    def make_sinks() -> list[Any]:
        raise AssertionError("not on this rank")

    watch = Watch(Settings())
    train(deep_net(nn.Sigmoid, 12), data, watch, make_sinks=make_sinks, tells=False)
    assert [d.rule for d in watch.diagnoses] == ["vanishing.depth"]
    assert not [record for record in caplog.records if record.name == "lightning_gradwatch"]


def test_a_sink_that_cannot_be_made_switches_the_watch_off_not_the_training(data, caplog):
    """What fails at the start is told, and training goes on unwatched."""

    def make_sinks() -> list[Any]:
        raise OSError("disk full")

    watch = Watch(Settings())
    train(deep_net(nn.ReLU, 3), data, watch, make_sinks=make_sinks)
    assert watch.disabled_reason == "OSError: disk full"
    assert caplog.text.count("disk full") >= 2


def test_a_rule_that_fails_is_named_and_the_others_go_on(data, caplog):
    """One rule's error costs that rule only."""

    def broken(observations: Any) -> Any:
        raise KeyError("mine")

    from lightning_gradwatch import default_rules

    watch = Watch(Settings(rules=[broken, *default_rules()]))
    train(deep_net(nn.Sigmoid, 12), data, watch)
    assert caplog.text.count("rule broken failed and is switched off: KeyError: 'mine'") == 1
    assert [d.rule for d in watch.diagnoses] == ["vanishing.depth"]


def test_layers_that_appear_during_training_get_columns(data):
    """A parameter group that is added later appends columns; what was before is not present."""
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(net[2].parameters(), lr=0.1)
    watch = Watch(Settings())
    watch.start(net, num_optimizers=1)
    stray = nn.Parameter(torch.ones(1))
    for step, (inputs, labels) in zip(range(4), data, strict=False):
        if step == 2:
            optimizer.add_param_group({"params": [stray]})
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(inputs), labels) * stray.sum()
        watch.before_backward(loss)
        loss.backward()
        watch.before_step(0, optimizer, step)
        optimizer.step()
        watch.after_step(0)
        watch.end_batch()
    assert watch.disabled_reason is None
    assert watch.history.layers == ("0", "2", "(outside the model) 0")
    assert watch.history.present.tolist() == [[False, True, False]] * 2 + [[False, True, True]] * 2


def test_a_watch_that_was_switched_off_holds_on_to_nothing():
    """After a failure no open step keeps gradients alive."""
    net = nn.Linear(8, 3)
    watch = Watch(Settings())
    watch.start(net, num_optimizers=1, clips_elsewhere=True)
    net(torch.ones(1, 8)).sum().backward()
    watch.before_step(0, torch.optim.SGD(net.parameters(), lr=0.1), 0)
    assert watch._steps.pending[0].measured is not None
    watch.disable("a failure")
    assert watch._steps.pending == {}


def test_nothing_holds_on_to_gradients_after_the_step(data):
    """Where someone else clips, the gradients are let go as soon as they have been read again."""
    net = nn.Linear(8, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watch = Watch(Settings())
    watch.start(net, num_optimizers=1, clips_elsewhere=True)
    net(torch.ones(1, 8)).sum().backward()
    watch.before_step(0, optimizer, 0)
    net.weight.grad.mul_(0.5)
    watch.after_step(0)
    assert watch._steps.pending[0].measured is None
    watch.end_batch()
    assert (watch.history.clipped_norms < watch.history.norms).all()
