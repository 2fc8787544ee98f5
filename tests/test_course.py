"""Test ``lightning_gradwatch.course``: how each step of a run is read, looked at again and settled."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import deep_net, module_in, train, trainer_in
from torch import nn

from lightning_gradwatch import ClipByGlobalNorm, GradWatch
from lightning_gradwatch.settings import Settings
from lightning_gradwatch.watching import Watch


def test_reports_are_due_at_the_logging_interval_and_not_lost_between(data, sink):
    """The logging interval marks the next reading as due, once."""
    train(deep_net(nn.ReLU, 3, he=True), data, Watch(Settings()), make_sinks=lambda: [sink])
    assert [report.due for report in sink.reports] == [False, True] * 4
    assert [report.log_step for report in sink.reports] == list(range(8))


def test_an_optimizer_that_joins_late_is_due_with_the_others(sink):
    """What the logging interval asked for before its first step does not make that step due."""
    net = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watch = Watch(Settings())
    watch.start(net, num_optimizers=2, make_sinks=lambda: [sink])
    for step in range(6):
        watch.begin_batch(step, due=step % 2 == 1)
        net.weight.grad = torch.ones_like(net.weight)
        number = int(step >= 4)
        watch.before_step(number, optimizer, step)
        watch.after_step(number)
        watch.end_batch()
    assert [(r.snapshot.optimizer, r.due) for r in sink.reports] == [
        (0, False),
        (0, True),
        (0, False),
        (0, True),
        (1, False),
        (1, True),
    ]


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
    assert watch._steps.pending[0].reading._measured is None
    watch.end_batch()
    assert (watch.history.clipped_norms < watch.history.norms).all()


@pytest.fixture
def late(monkeypatch):
    """Let the CPU stand for CUDA: norms summed in float64, numbers that nobody waits for."""
    for module in ("norms", "reading"):
        monkeypatch.setattr(f"lightning_gradwatch.measure.{module}.sums_in_double", lambda _: True)


@pytest.mark.parametrize("rate", [0.1, 1e-4])
def test_numbers_that_arrive_late_are_judged_at_the_next_step(data, sink, late, rate):
    """A reading is settled when its optimizer steps again, the last one at the end; the rows and steps are its own."""
    lengths = []

    class Counts(Watch):
        def end_batch(self):
            told = super().end_batch()
            lengths.append(len(self.history))
            return told

    torch.manual_seed(4)
    watch = Counts(Settings())
    train(deep_net(nn.Sigmoid, 12), data, watch, rate=rate, make_sinks=lambda: [sink])
    assert lengths == [0, 1, 2, 3, 4, 5, 6, 7]
    assert [report.log_step for report in sink.reports] == list(range(8))
    assert [report.due for report in sink.reports] == [False, True] * 4
    assert watch.history.steps.tolist() == list(range(8))
    assert [(d.rule, d.step) for d in watch.diagnoses] == [("vanishing.depth", 3)]


def test_late_numbers_are_those_of_an_ordinary_run(data, monkeypatch):
    """Summed in float64 from the start, the history is that of float32 to seven digits, and so are the diagnoses."""
    watches = []
    for patched in (False, True):
        if patched:
            for module in ("norms", "reading"):
                monkeypatch.setattr(f"lightning_gradwatch.measure.{module}.sums_in_double", lambda _: True)
        torch.manual_seed(4)
        watches.append(Watch(Settings(clipper=ClipByGlobalNorm(0.05))))
        train(deep_net(nn.Tanh, 6), data, watches[-1])
    first, second = (watch.history for watch in watches)
    for column in ("norms", "clipped_norms", "weight_norms", "losses"):
        np.testing.assert_allclose(getattr(second, column), getattr(first, column), rtol=1e-6)
    assert [d.message for d in watches[0].diagnoses] == [d.message for d in watches[1].diagnoses]


def test_stopping_and_dropping_do_not_come_late(pl, tmp_path, data, late):
    """``stop_on`` and ``on_nonfinite`` wait for the numbers: the run ends, and the step is dropped, where it must."""
    watch = GradWatch(stop_on=["vanishing"])
    trainer = trainer_in(pl, tmp_path, watch, max_steps=50)
    trainer.fit(module_in(pl, deep_net(nn.Sigmoid, 12)), data)
    assert trainer.global_step == watch.diagnoses[0].step + 1 == 4

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        return loss * float("nan") if batch_idx == 2 else loss

    watch = GradWatch(on_nonfinite="skip")
    module = module_in(pl, training_step=training_step)
    trainer_in(pl, tmp_path, watch, max_steps=5).fit(module, data)
    assert watch.skipped_steps == 1
    assert all(bool(torch.isfinite(p).all()) for p in module.parameters())
    assert [(d.rule, d.step) for d in watch.diagnoses] == [("non_finite", 2)]


def test_the_transfers_of_a_late_step_are_one(data, late, monkeypatch):
    """Norms, clipped norms, weights and loss travel together, with a clipper of ours or somebody else's as well."""
    from lightning_gradwatch.measure import reading

    sizes = []

    class Counts(reading.Transfer):
        def __init__(self, parts):
            sizes.append([len(part) for part in parts])
            super().__init__(parts)

    monkeypatch.setattr(reading, "Transfer", Counts)
    train(deep_net(nn.ReLU, 2), data, Watch(Settings()), steps=6)
    assert sizes == [[6, 6, 1]] * 5 + [[6, 1]]
    sizes.clear()
    train(deep_net(nn.ReLU, 2), data, Watch(Settings(clipper=ClipByGlobalNorm(1.0))), steps=6)
    assert sizes == [[6, 6, 1, 6]] * 5 + [[6, 1, 6]]
    sizes.clear()
    train(deep_net(nn.ReLU, 2), data, Watch(Settings()), steps=6, clips_elsewhere=True)
    assert sizes == [[6, 6, 1, 6]] * 5 + [[6, 1, 6]]


def test_a_checkpoint_has_what_is_still_on_its_way(data, late):
    """A reading whose numbers nobody has asked for yet is settled before the checkpoint is made."""
    net = nn.Linear(8, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watch = Watch(Settings())
    watch.start(net, num_optimizers=1)
    net.weight.grad = torch.ones_like(net.weight)
    watch.before_step(0, optimizer, 0)
    watch.after_step(0)
    watch.end_batch()
    assert len(watch.history) == 0
    assert watch.state_dict()["record"]["history"]["steps"].tolist() == [0]


def test_late_numbers_let_the_gradients_go_where_no_step_came(late):
    """A step that a loss scaler drops has no end; at the end of the batch its gradients are let go all the same."""
    net = nn.Linear(8, 3)
    watch = Watch(Settings())
    watch.start(net, num_optimizers=1, clips_elsewhere=True)
    net.weight.grad = torch.ones_like(net.weight)
    watch.before_step(0, torch.optim.SGD(net.parameters(), lr=0.1), 0)
    assert watch._steps.pending[0].reading._measured is not None
    watch.end_batch()
    assert watch._steps.pending[0].reading._measured is None
