"""Test ``lightning_gradwatch.watching``: the core, driven by a loop without Lightning."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from models import deep_net, module_in, train, trainer_in
from torch import nn

from lightning_gradwatch import ClipByGlobalNorm, GradWatch
from lightning_gradwatch.inquest import Inquests
from lightning_gradwatch.report.origin import Witness
from lightning_gradwatch.settings import Settings
from lightning_gradwatch.surroundings import Surroundings
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
    assert watch._steps.pending[0].reading._measured is not None
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


def test_the_loss_of_a_shorter_window_is_a_mean_as_well():
    """Where fewer losses came than each was divided by (the end of an epoch), the loss is still their mean."""
    net = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watch = Watch(Settings())
    watch.start(net, num_optimizers=1)
    for step, num_losses in enumerate((4, 3)):
        for _ in range(num_losses):
            loss = net(torch.ones(1, 2)).sum() * 0 + 2.0 / 4
            watch.before_backward(loss)
            loss.backward()
        watch.before_step(0, optimizer, step, divided_by=4)
        watch.after_step(0)
        watch.end_batch()
    assert watch.history.losses.tolist() == [2.0, pytest.approx(2.0)]


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


def test_steps_that_nobody_announces_are_told_once(caplog):
    """An optimizer that is stepped behind the Trainer's back is named, and nothing pretends to have seen it."""
    net = nn.Linear(8, 3)
    watch = Watch(Settings())
    watch.start(net, num_optimizers=1)
    for _ in range(3):
        watch.after_step(0)
        watch.end_batch()
    assert caplog.text.count("optimizer 0 has stepped without a word to GradWatch") == 1
    assert len(watch.history) == 0


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


def test_a_finished_watch_keeps_no_model_alive(data):
    """Of the columns only names are kept for the next fit."""
    net = deep_net(nn.ReLU, 2)
    seen = weakref.ref(net[0].weight)
    watch = Watch(Settings())
    train(net, data, watch)
    del net
    gc.collect()
    assert seen() is None


def test_a_loss_that_goes_on_changing_is_the_one_of_its_moment():
    """The number is copied: what the person adds to it later is not the loss of the step."""
    net = nn.Linear(2, 1)
    watch = Watch(Settings())
    watch.start(net, num_optimizers=1)
    total = net(torch.ones(1, 2)).sum().detach() * 0 + 1.0
    watch.before_backward(total)
    total += 41.0
    net.weight.grad = torch.ones_like(net.weight)
    watch.before_step(0, torch.optim.SGD(net.parameters(), lr=0.1), 0)
    watch.end_batch()
    assert watch.history.losses.tolist() == [1.0]


def test_a_layer_that_was_trained_once_is_never_called_disconnected():
    """However long ago: the readings that are kept do not reach back to it, and a checkpoint does not forget it."""
    torch.manual_seed(0)
    trunk, head = nn.Linear(4, 4), nn.Linear(4, 1)
    net = nn.ModuleList([trunk, head])
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    watch = Watch(Settings(probe_every_n_steps=None))
    watch.start(net, num_optimizers=1)
    for step in range(300):
        if step == 150:
            state, watch = watch.state_dict(), Watch(Settings(probe_every_n_steps=None))
            watch.load_state_dict(state)
            watch.start(net, num_optimizers=1)
        hidden = trunk(torch.ones(2, 4))
        optimizer.zero_grad()
        head(hidden if step < 10 else hidden.detach()).sum().backward()
        watch.before_step(0, optimizer, step)
        optimizer.step()
        watch.after_step(0)
        watch.end_batch()
    assert not watch.history.readings(0).present[:, 0].any()
    assert watch.diagnoses == []
    assert watch.disabled_reason is None


class Hiding(nn.Module):
    """A network with two layers in a plain list and one that its optimizer forgets."""

    def __init__(self):
        super().__init__()
        self.blocks = [nn.Linear(8, 8), nn.Linear(8, 8)]
        self.head, self.extra = nn.Linear(8, 3), nn.Linear(3, 3)

    def forward(self, x):
        for block in self.blocks:
            x = torch.relu(block(x))
        return self.extra(self.head(x))


@pytest.mark.parametrize(("known", "tells"), [(True, True), (False, True), (True, False)])
def test_what_no_optimizer_holds_is_told_at_the_start(caplog, known, tells):
    """Two lines of INFO after the first one, where the optimizers are known, on the process that tells; no fault."""
    caplog.set_level("INFO", logger="lightning_gradwatch")
    net = Hiding()
    optimizers = [torch.optim.SGD(net.head.parameters(), lr=0.1)] if known else []
    watch = Watch(Settings())
    watch.start(net, num_optimizers=1, tells=tells, optimizers=optimizers)
    told = [(r.levelname, r.getMessage().split(" (")[0]) for r in caplog.records if r.name == "lightning_gradwatch"]
    assert told[1:] == (
        [
            ("INFO", "GradWatch  no optimizer holds extra"),
            ("INFO", "GradWatch  self.blocks of Hiding is a plain list with 2 modules"),
        ]
        if known and tells
        else []
    )
    assert len(told) == (0 if not tells else 3 if known else 1)
    assert watch.disabled_reason is None
    assert watch.diagnoses == []


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
