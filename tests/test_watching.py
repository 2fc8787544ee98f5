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


def test_a_clipper_clips_also_where_a_sink_could_not_be_made(data, caplog):
    """What was asked for by name does not hang on a disk that is full, and the log says that it goes on."""

    def make_sinks() -> list[Any]:
        raise OSError("disk full")

    net, watch = nn.Linear(8, 3), Watch(Settings(clipper=ClipByGlobalNorm(1e-6)))
    before = net.weight.detach().clone()
    train(net, data, watch, rate=1.0, make_sinks=make_sinks)
    assert 0 < float((net.weight.detach() - before).norm()) < 1e-5
    assert "`clipper` and `on_nonfinite` go on: OSError: disk full" in caplog.text


def test_a_rule_that_fails_is_named_and_the_others_go_on(data, caplog):
    """One rule's error costs that rule only."""

    def broken(observations: Any) -> Any:
        raise KeyError("mine")

    from lightning_gradwatch import default_rules

    watch = Watch(Settings(rules=[broken, *default_rules()]))
    train(deep_net(nn.Sigmoid, 12), data, watch)
    assert caplog.text.count("is switched off, the others go on: KeyError: 'mine'") == 1
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
