"""Rows of docs/support.md about training loops: how steps are made, ended, resumed and scheduled."""

from __future__ import annotations

import copy
import csv
import json
import logging
import signal
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from forked import python
from models import CLASSES, WIDTH, deep_net, healthy_net, module_in, trainer_in
from oracle import SavedGradients, assert_same, before_clipping, same_weights, saves_gradients, totals
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_gradwatch import ClipByGlobalNorm, ClipByValue, GradientFault, GradWatch

# Resuming in the middle of an epoch is what these tests are about.
MIDDLE_OF_EPOCH = "ignore:You're resuming from a checkpoint that ended before the epoch ended"
# These tests write into the directory of the test more than once.
NOT_EMPTY = "ignore:Checkpoint directory .* exists and is not empty"


def loss_of(module: Any, batch: Any) -> Any:
    return nn.functional.cross_entropy(module.net(batch[0]), batch[1])


def manual(pl: Any, net: nn.Module | None = None, **hooks: Any) -> Any:
    module = module_in(pl, net, **hooks)
    module.automatic_optimization = False
    return module


def watched(pl: Any, directory: Any, data: Any, make: Any, watch: GradWatch, others: Any = list, **kwargs: Any) -> Any:
    """Train without and with GradWatch and hold the two runs against each other to the last bit.

    Args:
        pl: The Lightning package.
        directory: Where the runs write.
        data: What is trained on.
        make: Makes the module.
        watch: The GradWatch; a healthy run is expected.
        others: Makes further callbacks.
        kwargs: Settings of the Trainer.

    Returns:
        What the optimizers used in the watched run, its module, and its Trainer.
    """
    runs = []
    for callbacks in ([], [watch]):
        torch.manual_seed(1)
        module = make()
        saved = saves_gradients(module)
        trainer = trainer_in(pl, directory, *callbacks, *others(), **kwargs)
        trainer.fit(module, data)
        runs.append((saved, module, trainer))
    (plain_saved, plain, plain_trainer), (saved, module, trainer) = runs
    assert plain_saved.steps == saved.steps
    assert same_weights(plain, module)
    assert plain_trainer.global_step == trainer.global_step
    assert watch.disabled_reason is None
    assert watch.diagnoses == []
    return saved, module, trainer


def step_without_log(self: Any, batch: Any, batch_idx: int) -> Any:
    return self.net(batch[0])


def keeps_losses(losses: list[float]) -> Any:
    """Return a training_step that notes each loss."""

    def training_step(self, batch, batch_idx):
        loss = loss_of(self, batch)
        losses.append(float(loss.detach()))
        return loss

    return training_step


def adam(parameters: Any) -> Any:
    return torch.optim.AdamW(parameters, 0.01)


# ---- accumulation


@pytest.mark.supports("gradient accumulation")
@pytest.mark.parametrize("every", [3, 5])
def test_the_shorter_window_at_the_end_of_an_epoch_is_a_reading_as_well(pl, tmp_path, data, every):
    """Where batches do not fill the last window of an epoch, that step is read with what the optimizer used."""
    watch = GradWatch()
    settings = {"max_steps": -1, "max_epochs": 2, "accumulate_grad_batches": every}
    saved, _, trainer = watched(pl, tmp_path, data, lambda: module_in(pl), watch, **settings)
    assert_same(watch.history, saved)
    windows = -(-8 // every)
    assert watch.history.steps.tolist() == list(range(2 * windows))
    assert trainer.global_step == 2 * windows


@pytest.mark.supports("gradient accumulation")
def test_the_loss_of_a_window_is_the_mean_of_its_batches(pl, tmp_path, data):
    """At the shorter end of an epoch, too, although Lightning divides each loss by the length of a full window."""
    losses: list[float] = []
    module, watch = module_in(pl, training_step=keeps_losses(losses)), GradWatch()
    trainer_in(pl, tmp_path, watch, max_steps=-1, max_epochs=2, accumulate_grad_batches=3).fit(module, data)
    means = [np.mean(losses[first:last]) for first, last in ((0, 3), (3, 6), (6, 8), (8, 11), (11, 14), (14, 16))]
    assert watch.history.losses == pytest.approx(np.array(means), rel=1e-6)
    assert watch.diagnoses == []


@pytest.mark.supports("a schedule of gradient accumulation")
def test_a_schedule_of_accumulation_is_followed(pl, tmp_path, data):
    """GradientAccumulationScheduler changes the window from epoch to epoch: a row for each step that is made."""

    def others():
        return [pl.callbacks.GradientAccumulationScheduler({0: 1, 1: 4, 2: 8})]

    watch = GradWatch()
    saved, _, _ = watched(pl, tmp_path, data, lambda: module_in(pl), watch, others, max_steps=-1, max_epochs=3)
    assert_same(watch.history, saved)
    assert watch.history.steps.tolist() == list(range(8 + 2 + 1))


@pytest.mark.supports("gradient accumulation")
def test_accumulation_by_hand_reads_only_the_batches_that_step(pl, tmp_path, data):
    """Under manual optimization a row stands for every call of ``step``, with the gradients summed so far."""

    def training_step(self, batch, batch_idx):
        self.manual_backward(loss_of(self, batch) / 3)
        if batch_idx % 3 == 2:
            self.optimizers().step()
            self.optimizers().zero_grad()

    watch = GradWatch()
    saved = SavedGradients()
    # torch's hook after the step sees them before zero_grad.
    saved, _, _ = watched(
        pl, tmp_path, data, lambda: manual(pl, training_step=training_step), watch, max_steps=-1, max_epochs=3
    )
    assert_same(watch.history, saved)
    assert len(watch.history) == 6


# ---- several optimizers


def two_optimizers(first_rate: float = 0.05, second_rate: float = 0.05) -> Any:
    def configure_optimizers(self):
        return [
            torch.optim.SGD(self.net[0].parameters(), first_rate),
            torch.optim.SGD(self.net[2].parameters(), second_rate),
        ]

    return configure_optimizers


@pytest.mark.supports("several optimizers")
def test_optimizers_that_step_irregularly_have_a_history_each(pl, tmp_path, data):
    """One optimizer steps in every batch, the other in some and twice in one: each keeps rows of its own."""
    order: list[int] = []

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        self.manual_backward(loss_of(self, batch))
        first.step()
        first.zero_grad()
        order.append(0)
        for _ in range({1: 1, 2: 2, 6: 1}.get(batch_idx, 0)):
            second.step()
            order.append(1)
            second.zero_grad()
            self.manual_backward(loss_of(self, batch))
            first.zero_grad()

    def make():
        order.clear()
        return manual(pl, training_step=training_step, configure_optimizers=two_optimizers())

    watch = GradWatch()
    saved, _, _ = watched(pl, tmp_path, data, make, watch, max_steps=-1, max_epochs=1)
    assert_same(watch.history, saved)
    assert watch.history.optimizers.tolist() == order
    assert order.count(1) == 4
    for number, layer in enumerate(("net.0", "net.2")):
        own = watch.history.readings(number)
        expected = [step[layer] for step, made in zip(saved.steps, order, strict=True) if made == number]
        assert own.norms[:, number] == pytest.approx(expected, rel=1e-5)
        assert not own.present[:, 1 - number].any()


@pytest.mark.supports("optimizers toggled by toggle_optimizer")
def test_toggled_optimizers_are_read_apart(pl, tmp_path, data):
    """Layers whose gradients are switched off while the other optimizer has its turn are neither dead nor frozen."""

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(loss_of(self, batch))
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    watch = GradWatch()
    saved, _, _ = watched(
        pl,
        tmp_path,
        data,
        lambda: manual(pl, training_step=training_step, configure_optimizers=two_optimizers()),
        watch,
        max_steps=32,
    )
    assert_same(watch.history, saved)
    assert watch.history.optimizers.tolist() == [0, 1] * 16
    watch.assert_healthy()


class Pair(nn.Module):
    """A generator and a discriminator."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, WIDTH))
        self.discriminator = nn.Sequential(nn.Linear(WIDTH, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))


@pytest.mark.supports("generator and discriminator")
@pytest.mark.parametrize("discriminator_steps", [1, 3])
def test_a_generator_and_its_discriminator_are_read_apart(pl, tmp_path, data, discriminator_steps):
    """Each loss leaves gradients in the other's network; a row holds only those of the optimizer that steps."""

    def training_step(self, batch, batch_idx):
        real = batch[0]
        generator, discriminator = self.optimizers()
        judged = nn.functional.binary_cross_entropy_with_logits
        # The generator's loss goes through the discriminator and leaves gradients there.
        fake = self.net.generator(torch.randn(len(real), 4))
        generator.zero_grad()
        verdict = self.net.discriminator(fake)
        self.manual_backward(judged(verdict, torch.ones_like(verdict)))
        generator.step()
        for _ in range(discriminator_steps):
            # Without detach the discriminator's loss reaches the generator, whose gradients stay until its next turn.
            fake = self.net.generator(torch.randn(len(real), 4))
            discriminator.zero_grad()
            verdict = self.net.discriminator(torch.cat([real, fake]))
            truth = torch.cat([torch.ones(len(real), 1), torch.zeros(len(real), 1)])
            self.manual_backward(judged(verdict, truth))
            discriminator.step()

    def configure_optimizers(self):
        return [
            torch.optim.Adam(self.net.generator.parameters(), 1e-3),
            torch.optim.Adam(self.net.discriminator.parameters(), 1e-3),
        ]

    watch = GradWatch()
    saved, module, _ = watched(
        pl,
        tmp_path,
        data,
        lambda: manual(pl, Pair(), training_step=training_step, configure_optimizers=configure_optimizers),
        watch,
        max_steps=-1,
        max_epochs=2,
    )
    assert_same(watch.history, saved)
    assert watch.history.optimizers.tolist() == ([0] + [1] * discriminator_steps) * 16
    assert all(parameter.grad is not None for parameter in module.parameters())
    by_optimizer = watch.history.present[watch.history.optimizers == 0]
    assert by_optimizer.tolist() == [[True, True, False, False]] * 16


@pytest.mark.supports("several optimizers")
@pytest.mark.parametrize("interval", [1, 3])
def test_scalars_of_several_optimizers_are_flushed_once_a_batch(pl, tmp_path, data, interval):
    """A logger is called once a batch, at the batch's place, with each optimizer's scalars under names of their own."""

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        for optimizer in (first, first, second):
            optimizer.zero_grad()
            self.manual_backward(loss_of(self, batch))
            optimizer.step()

    logger = Mock(spec=pl.loggers.CSVLogger)
    logger.log_dir = logger.save_dir = str(tmp_path)
    module = manual(pl, training_step=training_step, configure_optimizers=two_optimizers())
    watch = GradWatch()
    trainer = trainer_in(pl, tmp_path, watch, max_steps=-1, max_epochs=1, logger=logger, log_every_n_steps=interval)
    trainer.fit(module, data)
    told = [call.kwargs["step"] for call in logger.log_metrics.mock_calls]
    assert told == list(range(interval - 1, 8, interval))
    for call in logger.log_metrics.mock_calls:
        names = {name for name in call.args[0] if name.startswith("gradwatch/global_norm/")}
        assert names == {"gradwatch/global_norm/optimizer_0", "gradwatch/global_norm/optimizer_1"}
    assert watch.disabled_reason is None


@pytest.mark.supports("several optimizers")
def test_a_file_of_scalars_has_one_row_a_batch(pl, tmp_path, data):
    """In a CSV file both optimizers' norms stand in the row of their batch, and are those that the history has."""

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(loss_of(self, batch))
            optimizer.step()

    logger = pl.loggers.CSVLogger(tmp_path)
    module = manual(pl, training_step=training_step, configure_optimizers=two_optimizers())
    watch = GradWatch()
    trainer_in(pl, tmp_path, watch, max_steps=12, logger=logger, log_every_n_steps=1).fit(module, data)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(6))
    for number in (0, 1):
        told = [float(row[f"gradwatch/global_norm/optimizer_{number}"]) for row in rows]
        assert told == pytest.approx(watch.history.readings(number).norms[:, number].tolist(), rel=1e-6)


@pytest.mark.supports("optimizers with learning rates of their own")
def test_optimizers_have_their_own_learning_rates(pl, tmp_path, data):
    """A row holds the rate of the optimizer that steps, for its own layers alone."""

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(loss_of(self, batch))
            optimizer.step()

    watch = GradWatch()
    saved, _, _ = watched(
        pl,
        tmp_path,
        data,
        lambda: manual(pl, training_step=training_step, configure_optimizers=two_optimizers(0.1, 0.01)),
        watch,
        max_steps=8,
    )
    assert_same(watch.history, saved)
    expected = np.array([[0.1, np.nan], [np.nan, 0.01]] * 4)
    assert np.array_equal(watch.history.learning_rates, expected, equal_nan=True)


@pytest.mark.supports("parameter groups with learning rates of their own")
def test_parameter_groups_have_their_own_learning_rates(pl, tmp_path, data):
    """Each layer's column holds the rate of the group that it is in."""

    def configure_optimizers(self):
        groups = [{"params": self.net[0].parameters()}, {"params": self.net[2].parameters(), "lr": 0.01}]
        return torch.optim.SGD(groups, lr=0.1)

    watch = GradWatch()
    saved, _, _ = watched(pl, tmp_path, data, lambda: module_in(pl, configure_optimizers=configure_optimizers), watch)
    assert_same(watch.history, saved)
    assert watch.history.learning_rates.tolist() == [[0.1, 0.01]] * 5


# ---- optimizers with closures


@pytest.mark.supports("LBFGS")
@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_lbfgs_is_read_as_the_gradients_of_its_last_evaluation(pl, tmp_path, data, line_search):
    """However often the closure runs, a step is one row: the gradients that the optimizer saw last."""
    evaluations: list[int] = []

    def training_step(self, batch, batch_idx):
        evaluations.append(batch_idx)
        return loss_of(self, batch)

    def optimizer(parameters):
        return torch.optim.LBFGS(parameters, lr=0.1, max_iter=4, line_search_fn=line_search)

    def make():
        evaluations.clear()
        return module_in(pl, optimizer=optimizer, training_step=training_step)

    watch = GradWatch()
    saved, _, _ = watched(pl, tmp_path, data, make, watch, max_steps=6)
    assert_same(watch.history, saved)
    assert watch.history.steps.tolist() == list(range(6))
    assert len(evaluations) >= 6 * 4


@pytest.mark.supports("LBFGS")
def test_lbfgs_is_clipped_at_every_evaluation(pl, tmp_path, data):
    """GradWatch's clipper bounds each gradient that LBFGS sees, and the row tells it before and after."""
    callback, before = before_clipping(pl)
    module = module_in(pl, optimizer=lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3))
    after, watch = saves_gradients(module), GradWatch(clipper=ClipByGlobalNorm(0.1))
    trainer_in(pl, tmp_path, callback, watch, max_steps=4).fit(module, data)
    assert len(before.steps) > 4
    assert_same(watch.history, after, "clipped_norms")
    assert totals(after) == pytest.approx([0.1] * 4, rel=1e-4)
    assert watch.disabled_reason is None


@pytest.mark.supports("manual optimization with a closure")
def test_a_closure_under_manual_optimization_is_read_after_it_has_run(pl, tmp_path, data):
    """``step(closure=...)`` computes gradients inside the step; the row is about these."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()

        def closure():
            loss = loss_of(self, batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            return loss

        optimizer.step(closure=closure)

    watch = GradWatch()
    saved, _, _ = watched(pl, tmp_path, data, lambda: manual(pl, training_step=training_step), watch)
    assert_same(watch.history, saved)
    assert np.isfinite(watch.history.losses).all()


@pytest.mark.supports("LBFGS")
def test_lbfgs_with_a_closure_under_manual_optimization(pl, tmp_path, data):
    """The closure that manual optimization hands to LBFGS runs several times and leaves one row a step."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()

        def closure():
            optimizer.zero_grad()
            loss = loss_of(self, batch)
            self.manual_backward(loss)
            return loss

        optimizer.step(closure=closure)

    def make():
        return manual(pl, optimizer=lambda p: torch.optim.LBFGS(p, 0.1, max_iter=3), training_step=training_step)

    watch = GradWatch()
    saved, _, _ = watched(pl, tmp_path, data, make, watch)
    assert_same(watch.history, saved)


# ---- clipping


@pytest.mark.parametrize(
    "algorithm",
    [
        pytest.param("norm", marks=pytest.mark.supports("Trainer(gradient_clip_val=...) by norm")),
        pytest.param("value", marks=pytest.mark.supports("Trainer(gradient_clip_val=...) by value")),
    ],
)
@pytest.mark.parametrize("every", [1, 3])
def test_the_norms_before_and_after_the_trainers_clipping_are_both_right(pl, tmp_path, data, algorithm, every):
    """One column holds what Lightning was about to clip, the other what the optimizer used."""
    watch = GradWatch()
    befores: list[SavedGradients] = []

    def others():
        callback, before = before_clipping(pl)
        befores.append(before)
        return [callback]

    after, _, _ = watched(
        pl,
        tmp_path,
        data,
        lambda: module_in(pl),
        watch,
        others,
        max_steps=4,
        max_epochs=4,
        accumulate_grad_batches=every,
        gradient_clip_val=0.02,
        gradient_clip_algorithm=algorithm,
    )
    assert_same(watch.history, befores[-1], "norms")
    assert_same(watch.history, after, "clipped_norms")
    assert (watch.history.norms > watch.history.clipped_norms).all()


@pytest.mark.supports("a module's own configure_gradient_clipping")
def test_a_module_that_clips_each_network_by_itself(pl, tmp_path, data):
    """Two bounds for two layers: both columns are right, also where a layer is within its bound."""

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        nn.utils.clip_grad_norm_(self.net[0].parameters(), 0.01)
        nn.utils.clip_grad_norm_(self.net[2].parameters(), 1e6)

    callback, before = before_clipping(pl)
    module = module_in(pl, configure_gradient_clipping=configure_gradient_clipping)
    after, watch = saves_gradients(module), GradWatch()
    trainer_in(pl, tmp_path, watch, callback).fit(module, data)
    assert_same(watch.history, before, "norms")
    assert_same(watch.history, after, "clipped_norms")
    assert watch.history.clipped_norms[:, 0] == pytest.approx([0.01] * 5, rel=1e-3)
    assert watch.history.clipped_norms[:, 1] == pytest.approx(watch.history.norms[:, 1], rel=1e-6)
    assert watch.diagnoses == []


@pytest.mark.supports("manual optimization with self.clip_gradients")
def test_clipping_by_hand_has_happened_when_gradients_are_read(pl, tmp_path, data):
    """``self.clip_gradients`` runs before Lightning tells of the step: both columns are what the optimizer used."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss_of(self, batch))
        self.clip_gradients(optimizer, gradient_clip_val=0.05, gradient_clip_algorithm="norm")
        optimizer.step()

    watch = GradWatch()
    saved, _, _ = watched(pl, tmp_path, data, lambda: manual(pl, training_step=training_step), watch)
    assert_same(watch.history, saved, "norms")
    assert_same(watch.history, saved, "clipped_norms")
    assert totals(saved) == pytest.approx([0.05] * 5, rel=1e-4)


@pytest.mark.supports("manual optimization with a clipper of GradWatch")
@pytest.mark.parametrize("clipper", [ClipByGlobalNorm(0.05), ClipByValue(0.01)])
def test_the_clipper_bounds_each_optimizer_of_a_manual_loop(pl, tmp_path, data, clipper):
    """Both optimizers are clipped, each by its own gradients, and both columns are right."""

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(loss_of(self, batch))
            optimizer.step()

    callback, before = before_clipping(pl)
    module = manual(pl, training_step=training_step, configure_optimizers=two_optimizers())
    after, watch = saves_gradients(module), GradWatch(clipper=clipper)
    trainer_in(pl, tmp_path, callback, watch, max_steps=8).fit(module, data)
    assert_same(watch.history, before, "norms")
    assert_same(watch.history, after, "clipped_norms")
    if isinstance(clipper, ClipByGlobalNorm):
        assert totals(after) == pytest.approx([0.05] * 8, rel=1e-4)
    assert watch.disabled_reason is None
    assert watch.diagnoses == []


# ---- dropping steps


def poisoned(batches: set[int]) -> Any:
    """Return a training_step whose loss is NaN in some batches."""

    def training_step(self, batch, batch_idx):
        loss = loss_of(self, batch)
        return loss * float("nan") if batch_idx in batches else loss

    return training_step


@pytest.mark.supports("dropping steps of accumulated gradients")
def test_a_window_with_one_poisoned_batch_is_dropped_whole(pl, tmp_path, data):
    """One NaN among the batches of a window drops the step of that window, and of no other."""
    module = module_in(pl, optimizer=adam, training_step=poisoned({4}))
    saved, watch = saves_gradients(module), GradWatch(on_nonfinite="skip")
    trainer = trainer_in(
        pl, tmp_path, watch, max_steps=-1, max_epochs=1, accumulate_grad_batches=2, gradient_clip_val=0.1
    )
    trainer.fit(module, data)
    assert [bool(step) for step in saved.steps] == [True, True, False, True]
    assert watch.skipped_steps == 1
    assert np.isfinite(watch.history.norms).all(axis=1).tolist() == [True, True, False, True]
    assert {float(state["step"]) for state in trainer.optimizers[0].state.values()} == {3.0}
    assert [d.step for d in watch.diagnoses] == [2]


@pytest.mark.supports("dropping steps of one of several optimizers")
def test_only_the_optimizer_with_the_nan_loses_its_step(pl, tmp_path, data):
    """A NaN in one optimizer's gradients drops its step; the other's goes on in the same batch."""

    def training_step(self, batch, batch_idx):
        for number, optimizer in enumerate(self.optimizers()):
            optimizer.zero_grad()
            self.manual_backward(loss_of(self, batch) * (float("nan") if (batch_idx, number) == (2, 1) else 1.0))
            optimizer.step()

    module = manual(pl, training_step=training_step, configure_optimizers=two_optimizers())
    saved, watch = saves_gradients(module), GradWatch(on_nonfinite="skip")
    trainer_in(pl, tmp_path, watch, max_steps=-1, max_epochs=1).fit(module, data)
    assert [row for row, step in enumerate(saved.steps) if not step] == [5]
    assert watch.skipped_steps == 1
    assert [(d.optimizer, d.layers) for d in watch.diagnoses] == [(1, ("net.2",))]
    assert all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters())


@pytest.mark.supports("dropping steps of LBFGS")
@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_a_poisoned_step_of_lbfgs_is_dropped(pl, tmp_path, data, line_search):
    """A batch whose loss is NaN moves no weight of LBFGS, and counts as one step."""
    weights: list[Any] = []

    def optimizer(parameters):
        return torch.optim.LBFGS(parameters, lr=0.1, max_iter=4, line_search_fn=line_search)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        weights.append(self.net[0].weight.detach().clone())

    hooks = {"training_step": poisoned({3}), "on_train_batch_end": on_train_batch_end}
    module, watch = module_in(pl, optimizer=optimizer, **hooks), GradWatch(on_nonfinite="skip")
    trainer_in(pl, tmp_path, watch, max_steps=6).fit(module, data)
    moved = [not torch.equal(one, other) for one, other in pairwise(weights)]
    assert moved == [True, True, False, True, True]
    assert watch.skipped_steps == 1
    assert all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters())
    assert watch.disabled_reason is None


# ---- schedules


class Rates:
    """Notes the learning rate that each step of an optimizer really used."""

    def __init__(self, module: Any, schedule: Any) -> None:
        self.used: list[float] = []
        make = module.configure_optimizers

        def configure_optimizers() -> Any:
            optimizer = make()
            optimizer.register_step_pre_hook(lambda optimizer, *_: self.used.append(optimizer.param_groups[0]["lr"]))
            return {"optimizer": optimizer, "lr_scheduler": schedule(optimizer)}

        module.configure_optimizers = configure_optimizers


@pytest.mark.supports("learning rate schedules")
@pytest.mark.parametrize(
    "schedule",
    [
        lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5),
        lambda optimizer: {
            "scheduler": torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=16),
            "interval": "step",
        },
        lambda optimizer: {
            "scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
            "interval": "step",
            "frequency": 3,
        },
    ],
    ids=["epoch", "one-cycle", "every-third-step"],
)
def test_learning_rates_follow_a_schedule(pl, tmp_path, data, schedule):
    """The rates of the history are those with which each step was made."""
    module = module_in(pl)
    saved = saves_gradients(module)
    rates, watch = Rates(module, schedule), GradWatch()
    trainer_in(pl, tmp_path, watch, max_steps=-1, max_epochs=2).fit(module, data)
    assert_same(watch.history, saved)
    assert len(set(rates.used)) > 1
    for column in watch.history.learning_rates.T:
        assert column.tolist() == rates.used
    assert watch.disabled_reason is None
    assert watch.diagnoses == []


# ---- what stands between the batches


def with_validation(pl: Any, **hooks: Any) -> Any:
    def validation_step(self, batch, batch_idx):
        loss = loss_of(self, batch)
        assert not loss.requires_grad
        self.log("val_loss", loss)

    return module_in(pl, val_dataloader=lambda self: self.val_data, validation_step=validation_step, **hooks)


@pytest.mark.supports("validation in the middle of an epoch")
@pytest.mark.parametrize("inference_mode", [True, False])
def test_validation_in_the_middle_of_an_epoch_changes_nothing(pl, tmp_path, data, inference_mode):
    """Batches of validation, with or without inference mode, are no steps, also between accumulated batches."""

    def make():
        module = with_validation(pl)
        module.val_data = data
        return module

    watch = GradWatch()
    saved, _, _ = watched(
        pl,
        tmp_path,
        data,
        make,
        watch,
        max_steps=-1,
        max_epochs=2,
        val_check_interval=3,
        accumulate_grad_batches=2,
        inference_mode=inference_mode,
    )
    assert_same(watch.history, saved)
    assert watch.history.steps.tolist() == list(range(8))


@pytest.mark.supports("fit followed by validate, test and predict")
def test_validate_test_and_predict_leave_what_was_measured(pl, tmp_path, data, caplog):
    """After ``fit``, other entry points of the same Trainer add no row and tell no closing lines of their own."""

    def step(self, batch, batch_idx):
        self.log("loss", loss_of(self, batch))

    hooks = {"validation_step": step, "test_step": step, "predict_step": step_without_log}
    module, watch = module_in(pl, **hooks), GradWatch()
    trainer = trainer_in(pl, tmp_path, watch, max_steps=-1, max_epochs=1)
    with caplog.at_level(logging.INFO, logger="lightning_gradwatch"):
        trainer.fit(module, data, data)
        norms = watch.history.norms.copy()
        trainer.validate(module, data, verbose=False)
        trainer.test(module, data, verbose=False)
        trainer.predict(module, data)
    assert np.array_equal(watch.history.norms, norms)
    assert caplog.text.count("no fault in 8 readings") == 1
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, data, data)
    assert watch.history.steps.tolist() == list(range(16))
    assert watch.disabled_reason is None


@pytest.mark.supports("fit followed by validate, test and predict")
@pytest.mark.filterwarnings(NOT_EMPTY)
def test_testing_an_older_checkpoint_forgets_nothing(pl, tmp_path, data):
    """``test(ckpt_path=...)`` loads weights, not what was measured; fitting on goes on with all of it."""

    def step(self, batch, batch_idx):
        self.log("loss", loss_of(self, batch))

    module, watch = module_in(pl, test_step=step), GradWatch()
    checkpoint = pl.callbacks.ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    trainer = trainer_in(pl, tmp_path, watch, checkpoint, max_steps=-1, max_epochs=1, enable_checkpointing=True)
    trainer.fit(module, data)
    trainer.test(module, data, ckpt_path=str(tmp_path / "step=4.ckpt"), verbose=False)
    assert watch.history.steps.tolist() == list(range(8))
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, data)
    assert watch.history.steps.tolist() == list(range(16))


@pytest.mark.supports("fitting twice")
def test_fitting_twice_is_fitting_once_for_as_long(pl, tmp_path, data, caplog):
    """Two fits of an epoch leave the rows of one fit of two epochs, each with closing lines and its hooks removed."""

    def make():
        return module_in(pl, optimizer=lambda p: torch.optim.AdamW(p, 0.01))

    torch.manual_seed(1)
    once = GradWatch()
    trainer_in(pl, tmp_path, once, max_steps=-1, max_epochs=2).fit(make(), data)
    torch.manual_seed(1)
    module, twice = make(), GradWatch()
    # Lightning makes new optimizers in a second fit, so the moments begin anew unless they are kept.
    kept = module.configure_optimizers()
    caplog.clear()
    module.configure_optimizers = lambda: kept
    trainer = trainer_in(pl, tmp_path, twice, max_steps=-1, max_epochs=1)
    with caplog.at_level(logging.INFO, logger="lightning_gradwatch"):
        trainer.fit(module, data)
        assert kept._optimizer_step_post_hooks == {}
        trainer.fit_loop.max_epochs = 2
        trainer.fit(module, data)
    assert np.array_equal(twice.history.norms, once.history.norms)
    assert np.array_equal(twice.history.losses, once.history.losses)
    assert twice.history.steps.tolist() == once.history.steps.tolist() == list(range(16))
    assert caplog.text.count("no fault in 8 readings") == 1
    assert caplog.text.count("no fault in 16 readings") == 1
    assert kept._optimizer_step_post_hooks == {}
    assert twice.diagnoses == []


@pytest.mark.supports("fitting twice")
def test_another_trainer_with_the_same_callback_starts_anew(pl, tmp_path, data):
    """A GradWatch that is given to a new Trainer begins a new run with it."""
    watch = GradWatch()
    trainer_in(pl, tmp_path, watch, max_steps=7).fit(module_in(pl), data)
    trainer_in(pl, tmp_path, watch, max_steps=3).fit(module_in(pl), data)
    assert watch.history.steps.tolist() == [0, 1, 2]
    assert watch.disabled_reason is None


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        pytest.param(
            {"overfit_batches": 2, "max_epochs": 3}, 6, marks=pytest.mark.supports("Trainer(overfit_batches=...)")
        ),
        pytest.param(
            {"limit_train_batches": 3, "max_epochs": 3},
            9,
            marks=pytest.mark.supports("Trainer(limit_train_batches=...)"),
        ),
        pytest.param(
            {"limit_train_batches": 0.5, "max_epochs": 2, "accumulate_grad_batches": 3},
            4,
            marks=pytest.mark.supports("Trainer(limit_train_batches=...)"),
        ),
    ],
)
def test_shortened_epochs_are_read_step_by_step(pl, tmp_path, data, settings, steps):
    """Fewer batches an epoch are fewer rows, each of them right."""
    watch = GradWatch()
    saved, _, _ = watched(pl, tmp_path, data, lambda: module_in(pl), watch, max_steps=-1, **settings)
    assert_same(watch.history, saved)
    assert watch.history.steps.tolist() == list(range(steps))


@pytest.mark.supports("Trainer(max_time=...)")
def test_a_run_that_ends_by_its_time_is_closed(pl, tmp_path, data, caplog):
    """What was read until the time was up is there, and the closing lines are told."""
    module, watch = module_in(pl), GradWatch()
    saved = saves_gradients(module)
    trainer = trainer_in(pl, tmp_path, watch, max_steps=-1, max_epochs=1000, max_time={"seconds": 1})
    with caplog.at_level(logging.INFO, logger="lightning_gradwatch"):
        trainer.fit(module, data)
    assert 0 < trainer.global_step < 8000
    count = min(trainer.global_step, 256)
    newest = watch.history.norms[-count:]
    for row, expected in zip(newest, saved.steps[-count:], strict=True):
        assert row == pytest.approx([expected[layer] for layer in watch.history.layers], rel=1e-5)
    assert watch.history.steps[-1] == trainer.global_step - 1
    assert f"no fault in {trainer.global_step:,} readings".replace(",", "") in caplog.text.replace(",", "")


@pytest.mark.supports("a training_step that returns a dictionary")
def test_a_training_step_that_returns_a_dictionary(pl, tmp_path, data):
    """The loss under the key ``loss`` is the one that is told."""
    losses: list[float] = []

    def training_step(self, batch, batch_idx):
        loss = loss_of(self, batch)
        losses.append(float(loss.detach()))
        return {"loss": loss, "more": batch[0].mean()}

    def make():
        losses.clear()
        return module_in(pl, training_step=training_step)

    watch = GradWatch()
    saved, _, _ = watched(pl, tmp_path, data, make, watch)
    assert_same(watch.history, saved)
    assert watch.history.losses == pytest.approx(losses, rel=1e-6)


@pytest.mark.supports("a training_step that returns None")
@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize("every", [1, 2])
def test_batches_without_a_loss_are_absent(pl, tmp_path, data, every):
    """Batches whose training_step returns None add nothing, also within a window of accumulated batches."""

    def training_step(self, batch, batch_idx):
        return None if batch_idx in (2, 3, 6) else loss_of(self, batch)

    watch = GradWatch()
    saved, _, _ = watched(
        pl,
        tmp_path,
        data,
        lambda: module_in(pl, training_step=training_step),
        watch,
        max_steps=-1,
        max_epochs=2,
        accumulate_grad_batches=every,
    )
    seen = [bool(step) for step in saved.steps]
    assert not all(seen)
    assert_same(watch.history, saved)
    assert watch.history.present.any(axis=1).tolist() == seen
    assert np.isfinite(watch.history.losses).tolist() == seen


class Stream(IterableDataset):
    """Batches one by one, without a length."""

    def __init__(self, batches: Any) -> None:
        super().__init__()
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)


@pytest.mark.supports("IterableDataset")
def test_a_data_set_without_a_length(pl, tmp_path, data):
    """Where Lightning does not know how many batches come, the shorter last window is read all the same."""
    stream = DataLoader(Stream(list(data)), batch_size=None)
    watch = GradWatch()
    saved, _, _ = watched(
        pl, tmp_path, stream, lambda: module_in(pl), watch, max_steps=-1, max_epochs=2, accumulate_grad_batches=3
    )
    assert_same(watch.history, saved)
    assert watch.history.steps.tolist() == list(range(6))


# ---- what a module overrides


@pytest.mark.supports("an optimizer_step that leaves out steps")
def test_a_step_that_the_module_leaves_out_is_no_row(pl, tmp_path, data):
    """Where ``optimizer_step`` steps every second batch there is a row for each step that was made, and no other."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        if batch_idx % 2 == 0:
            optimizer.step(closure=optimizer_closure)
        else:
            optimizer_closure()

    watch = GradWatch()
    saved, _, _ = watched(
        pl, tmp_path, data, lambda: module_in(pl, optimizer_step=optimizer_step), watch, max_steps=-1, max_epochs=2
    )
    assert_same(watch.history, saved)
    assert len(watch.history) == 8
    assert np.isfinite(watch.history.losses).all()


@pytest.mark.supports("an optimizer_step that leaves out steps")
def test_the_loss_of_a_step_is_that_of_its_own_batch(pl, tmp_path, data):
    """A batch whose gradients no step used does not add its loss to the next step's."""
    losses: list[float] = []

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        if batch_idx % 2 == 1:
            optimizer.step(closure=optimizer_closure)
        else:
            # Its gradients are set to None before the next batch.
            optimizer_closure()

    module = module_in(pl, optimizer_step=optimizer_step, training_step=keeps_losses(losses))
    watch = GradWatch()
    trainer_in(pl, tmp_path, watch, max_steps=8).fit(module, data)
    assert watch.history.losses == pytest.approx(losses[1::2], rel=1e-6)


@pytest.mark.supports("an optimizer_zero_grad that keeps gradients")
def test_gradients_that_are_kept_are_read_with_all_that_came_before(pl, tmp_path, data):
    """Where ``optimizer_zero_grad`` keeps them, a row is the sum that the optimizer used."""

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        if batch_idx % 4 == 0:
            optimizer.zero_grad()

    def make():
        return module_in(pl, optimizer=lambda p: torch.optim.SGD(p, lr=0.01), optimizer_zero_grad=optimizer_zero_grad)

    watch = GradWatch()
    saved, _, _ = watched(pl, tmp_path, data, make, watch, max_steps=8)
    assert_same(watch.history, saved)


@pytest.mark.refuses("an optimizer inside backward")
@pytest.mark.parametrize("automatic", [True, False])
def test_an_optimizer_inside_backward_is_said_not_to_be_seen(pl, tmp_path, data, automatic, caplog):
    """Where each parameter steps and drops its gradient within backward, nothing is seen: said, and no crash."""

    def on_fit_start(self):
        def step(parameter):
            own[parameter].step()
            parameter.grad = None

        own = {parameter: torch.optim.SGD([parameter], lr=0.1) for parameter in self.parameters()}
        for parameter in self.parameters():
            parameter.register_post_accumulate_grad_hook(step)

    def training_step(self, batch, batch_idx):
        loss = loss_of(self, batch)
        if automatic:
            return loss
        self.manual_backward(loss)
        return None

    hooks = {"on_fit_start": on_fit_start, "training_step": training_step}
    if not automatic:
        hooks["configure_optimizers"] = lambda self: torch.optim.SGD(self.parameters(), lr=0.0)
    module, watch = module_in(pl, **hooks), GradWatch()
    module.automatic_optimization = automatic
    start = copy.deepcopy(module.state_dict())
    with caplog.at_level(logging.INFO, logger="lightning_gradwatch"):
        trainer_in(pl, tmp_path, watch, max_steps=-1, max_epochs=1).fit(module, data)
    assert not torch.equal(start["net.0.weight"], module.state_dict()["net.0.weight"])
    assert not watch.history.present.any()
    assert watch.disabled_reason is None
    assert watch.diagnoses == []
    assert "no gradient was ever seen" in caplog.text
    with pytest.raises(AssertionError, match="saw no gradient"):
        watch.assert_healthy()


@pytest.mark.refuses("self.optimizers(use_pl_optimizer=False)")
def test_steps_past_lightning_are_said_not_to_be_seen(pl, tmp_path, data, caplog):
    """Lightning does not tell of steps made with ``use_pl_optimizer=False``: nothing is read, which is said."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.manual_backward(loss_of(self, batch))
        optimizer.step()

    module, watch = manual(pl, training_step=training_step), GradWatch()
    saved = saves_gradients(module)
    with caplog.at_level(logging.INFO, logger="lightning_gradwatch"):
        trainer_in(pl, tmp_path, watch, max_steps=-1, max_epochs=1).fit(module, data)
    assert len(saved.steps) == 8
    assert len(watch.history) == 0
    assert watch.disabled_reason is None
    assert "use_pl_optimizer=False" in caplog.text


@pytest.mark.refuses("self.optimizers(use_pl_optimizer=False)")
def test_one_optimizer_past_lightning_leaves_the_others_rows_right(pl, tmp_path, data):
    """Where only one of two optimizers steps past Lightning, the other's rows are there and right."""

    def training_step(self, batch, batch_idx):
        for optimizer in (self.optimizers()[0], self.optimizers(use_pl_optimizer=False)[1]):
            optimizer.zero_grad()
            self.manual_backward(loss_of(self, batch))
            optimizer.step()

    watch = GradWatch()
    saved, _, _ = watched(
        pl,
        tmp_path,
        data,
        lambda: manual(pl, training_step=training_step, configure_optimizers=two_optimizers()),
        watch,
        max_steps=-1,
        max_epochs=1,
    )
    saved.steps = [step for step in saved.steps if "net.0" in step]
    assert_same(watch.history, saved)
    assert watch.history.optimizers.tolist() == [0] * 8


# ---- other callbacks


@pytest.mark.supports("stochastic weight averaging")
@pytest.mark.parametrize("batch_norm", [False, True])
def test_stochastic_weight_averaging(pl, tmp_path, data, batch_norm):
    """Every step is read while weights are averaged, also the one that ends the pass for batch normalization."""

    def make():
        if not batch_norm:
            return module_in(pl)
        return module_in(pl, nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES)))

    def others():
        return [pl.callbacks.StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1, annealing_epochs=1)]

    watch = GradWatch()
    saved, _, trainer = watched(pl, tmp_path, data, make, watch, others, max_steps=-1, max_epochs=4)
    assert_same(watch.history, saved)
    # Lightning steps once more at the end of that pass, with the gradients that were left.
    assert trainer.global_step == 32 + batch_norm
    assert watch.history.steps.tolist() == list(range(trainer.global_step))


@pytest.mark.supports("moving averages of weights")
def test_a_moving_average_of_weights(pl, tmp_path, data):
    """Swapping averaged weights in for validation disturbs no reading."""
    if not hasattr(pl.callbacks, "EMAWeightAveraging"):
        pytest.skip("Lightning has it since 2.6; only `make test-oldest` runs with an older one")

    def make():
        module = with_validation(pl)
        module.val_data = data
        return module

    def others():
        return [pl.callbacks.EMAWeightAveraging(decay=0.9)]

    watch = GradWatch()
    saved, _, _ = watched(pl, tmp_path, data, make, watch, others, max_steps=-1, max_epochs=2, val_check_interval=4)
    assert_same(watch.history, saved)
    assert watch.history.steps.tolist() == list(range(16))


@pytest.mark.supports("ModelCheckpoint and EarlyStopping on gradwatch/global_norm")
def test_the_global_norm_stops_a_run_and_chooses_its_checkpoint(pl, tmp_path, data):
    """Both callbacks see the norm of the step that has just been made, wherever they stand in the list."""
    module, watch = module_in(pl), GradWatch()
    saved = saves_gradients(module)
    checkpoint = pl.callbacks.ModelCheckpoint(
        tmp_path, monitor="gradwatch/global_norm", every_n_train_steps=1, save_top_k=1, filename="best"
    )
    stopping = pl.callbacks.EarlyStopping(
        "gradwatch/global_norm", patience=100, stopping_threshold=1e3, check_on_train_epoch_end=True, strict=True
    )
    trainer = trainer_in(
        pl, tmp_path, stopping, checkpoint, watch, max_steps=-1, max_epochs=3, enable_checkpointing=True
    )
    trainer.fit(module, data)
    # A threshold that every norm is below: the run ends after its first epoch.
    assert trainer.current_epoch == 1
    assert stopping.stopped_epoch == 0
    norms = totals(saved)
    assert len(norms) == 8
    assert float(checkpoint.best_model_score) == pytest.approx(min(norms), rel=1e-5)
    best = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert best["global_step"] == int(np.argmin(norms)) + 1


# ---- the tuner


def tunable(pl: Any, data: Any) -> Any:
    class Tunable(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = healthy_net()
            self.learning_rate, self.batch_size = 0.05, 2

        def training_step(self, batch, batch_idx):
            return loss_of(self, batch)

        def train_dataloader(self):
            return DataLoader(data.dataset, batch_size=self.batch_size)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.learning_rate)

    return Tunable()


@pytest.mark.supports("Tuner.lr_find")
@pytest.mark.filterwarnings("ignore:.*weights_only.*")
def test_finding_a_learning_rate_leaves_the_following_fit_right(pl, tmp_path, data):
    """The search is not part of the run: the fit after it is the fit of a new GradWatch, and its rate is the found."""
    module, watch = tunable(pl, data), GradWatch()
    saved = saves_gradients(module)
    trainer = trainer_in(pl, tmp_path, watch, max_steps=6)
    finder = pl.tuner.Tuner(trainer).lr_find(module, num_training=10, early_stop_threshold=None)
    assert len(finder.results["lr"]) == 10
    assert len(watch.history) == 0
    assert watch.disabled_reason is None
    saved.steps.clear()
    trainer.fit(module)
    assert_same(watch.history, saved)
    assert watch.history.steps.tolist() == list(range(6))
    assert watch.history.learning_rates[0].tolist() == [module.learning_rate] * 2
    assert watch.disabled_reason is None


@pytest.mark.supports("Tuner.scale_batch_size")
@pytest.mark.parametrize("mode", ["power", "binsearch"])
def test_finding_a_batch_size_leaves_the_following_fit_right(pl, tmp_path, data, mode):
    """The trials are not part of the run: the fit after it is read from its first step on."""
    module, watch = tunable(pl, data), GradWatch()
    saved = saves_gradients(module)
    trainer = trainer_in(pl, tmp_path, watch, max_steps=6)
    pl.tuner.Tuner(trainer).scale_batch_size(module, mode=mode, steps_per_trial=2, max_trials=2)
    assert module.batch_size > 2
    assert len(watch.history) == 0
    saved.steps.clear()
    trainer.fit(module)
    assert_same(watch.history, saved)
    assert watch.history.steps.tolist() == list(range(6))
    assert watch.disabled_reason is None


@pytest.mark.supports("LearningRateFinder and BatchSizeFinder")
def test_finders_inside_fit_leave_the_run_right(pl, tmp_path, data):
    """The callbacks that tune before the first step of a fit are not part of what is measured."""
    module, watch = tunable(pl, data), GradWatch()
    saved = saves_gradients(module)
    finders = [
        pl.callbacks.BatchSizeFinder(steps_per_trial=2, max_trials=2),
        pl.callbacks.LearningRateFinder(num_training_steps=10, early_stop_threshold=None),
    ]
    trainer_in(pl, tmp_path, watch, *finders, max_steps=6).fit(module)
    saved.steps = saved.steps[-6:]
    assert_same(watch.history, saved)
    assert watch.history.steps.tolist() == list(range(6))
    assert watch.disabled_reason is None


# ---- resuming


def columns(watch: GradWatch) -> dict[str, Any]:
    """Return what the history holds of each step; weights are read seldom, and anew after a resume."""
    names = ("steps", "optimizers", "losses", "norms", "clipped_norms", "bias_norms", "learning_rates", "present")
    return {name: getattr(watch.history, name).copy() for name in names}


def assert_same_rows(one: GradWatch, other: GradWatch) -> None:
    assert one.history.layers == other.history.layers
    for name, rows in columns(one).items():
        assert np.array_equal(rows, columns(other)[name], equal_nan=rows.dtype.kind == "f"), name


@pytest.mark.supports("resuming from a checkpoint")
@pytest.mark.filterwarnings(MIDDLE_OF_EPOCH, NOT_EMPTY)
def test_a_resumed_run_is_the_uninterrupted_one(lightning, tmp_path, data):
    """Rows equal those of a run without a break; weights are those of one without GradWatch, to the last bit."""

    def make():
        torch.manual_seed(1)
        return module_in(lightning, optimizer=adam)

    def fit(module, epochs, *callbacks, path=None):
        settings = {"max_steps": -1, "max_epochs": epochs, "enable_checkpointing": len(callbacks) > 1}
        trainer_in(lightning, tmp_path, *callbacks, **settings).fit(module, data, ckpt_path=path)

    def checkpoint():
        return lightning.callbacks.ModelCheckpoint(tmp_path, save_last=True, save_top_k=0)

    plain, module, whole, resumed = make(), make(), GradWatch(), GradWatch()
    fit(plain, 2)
    fit(make(), 2, whole)
    fit(make(), 1, GradWatch(), checkpoint())
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 8
    saved = saves_gradients(module)
    fit(module, 2, resumed, checkpoint(), path=str(tmp_path / "last.ckpt"))
    assert_same_rows(resumed, whole)
    assert same_weights(module, plain)
    assert len(saved.steps) == 8
    assert resumed.disabled_reason is None
    assert resumed.diagnoses == []


@pytest.mark.supports("resuming from a checkpoint")
@pytest.mark.filterwarnings(MIDDLE_OF_EPOCH, NOT_EMPTY)
def test_a_run_that_is_resumed_in_the_middle_of_an_epoch(pl, tmp_path, data):
    """Rows go on at the step of the checkpoint, and weights end as in the same resume without GradWatch."""

    def make():
        torch.manual_seed(1)
        return module_in(pl, optimizer=adam)

    def fit(module, steps, *callbacks, path=None):
        checkpoint = pl.callbacks.ModelCheckpoint(
            tmp_path, every_n_train_steps=5, filename="{step}", save_top_k=-1, enable_version_counter=False
        )
        settings = {"max_steps": steps, "enable_checkpointing": True}
        trainer_in(pl, tmp_path, *callbacks, checkpoint, **settings).fit(module, data, ckpt_path=path)

    plain, module, first, watch = make(), make(), GradWatch(), GradWatch()
    fit(make(), 7, first)
    path = str(tmp_path / "step=5.ckpt")
    state = torch.load(path, weights_only=True)
    fit(plain, 16, path=path)
    torch.save(state, path)
    saved = saves_gradients(module)
    fit(module, 16, watch, path=path)
    assert same_weights(module, plain)
    assert watch.history.steps.tolist() == list(range(16))
    assert np.array_equal(watch.history.norms[:5], first.history.norms[:5])
    for row, expected in zip(watch.history.norms[5:], saved.steps, strict=True):
        assert row == pytest.approx([expected[layer] for layer in watch.history.layers], rel=1e-5)
    assert watch.disabled_reason is None


@pytest.mark.supports("resuming from a checkpoint")
def test_open_diagnoses_come_back_and_are_not_told_again(pl, tmp_path, data, caplog):
    """A fault that lasted when the checkpoint was saved lasts after the resume, with the step at which it began."""
    first, second = GradWatch(), GradWatch()
    trainer = trainer_in(pl, tmp_path, first, max_steps=-1, max_epochs=1)
    trainer.fit(module_in(pl, deep_net(nn.Sigmoid, 12)), data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert [d.rule for d in first.diagnoses] == ["vanishing.depth"]
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="lightning_gradwatch"):
        trainer_in(pl, tmp_path, second, max_steps=-1, max_epochs=2).fit(
            module_in(pl, deep_net(nn.Sigmoid, 12)), data, ckpt_path=str(tmp_path / "last.ckpt")
        )
    (before,), (after,) = first.diagnoses, second.diagnoses
    assert (after.rule, after.step, after.layers) == (before.rule, before.step, before.layers)
    assert after.recovered_at is None
    assert caplog.text.count("VANISHING: ") == 0
    assert second.history.steps.tolist() == list(range(16))


@pytest.mark.supports("resuming from a checkpoint")
def test_ways_out_of_what_lasts_come_back(pl, tmp_path, data):
    """After a resume ``remedies`` still holds ways out of the faults that last."""
    first, second = GradWatch(), GradWatch()
    trainer = trainer_in(pl, tmp_path, first, max_steps=-1, max_epochs=1)
    trainer.fit(module_in(pl, deep_net(nn.Sigmoid, 12)), data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    trainer_in(pl, tmp_path, second, max_steps=-1, max_epochs=2).fit(
        module_in(pl, deep_net(nn.Sigmoid, 12)), data, ckpt_path=str(tmp_path / "last.ckpt")
    )
    assert len(first.remedies) > 0
    assert [remedy.title for remedy in second.remedies] == [remedy.title for remedy in first.remedies]


@pytest.mark.supports("resuming from a checkpoint")
def test_the_number_of_skipped_steps_comes_back(pl, tmp_path, data):
    """Steps that were dropped before the checkpoint are counted after it as well."""
    module, first = module_in(pl, training_step=poisoned({2, 5})), GradWatch(on_nonfinite="skip")
    trainer = trainer_in(pl, tmp_path, first, max_steps=-1, max_epochs=1)
    trainer.fit(module, data)
    assert first.skipped_steps == 2
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    second = GradWatch(on_nonfinite="skip")
    trainer_in(pl, tmp_path, second, max_steps=-1, max_epochs=2).fit(
        module_in(pl, training_step=poisoned({3})), data, ckpt_path=str(tmp_path / "last.ckpt")
    )
    assert second.skipped_steps == 3
    assert [d.step for d in second.diagnoses] == [2, 11]


class ClipByMovingAverage:
    """A clipper that remembers: twice the moving average of each optimizer's norms is the bound."""

    def __init__(self) -> None:
        self.averages: dict[int, float] = {}
        self.bounds: list[float] = []

    def clip_(self, norms: Any) -> Any:
        total = float(norms.global_norm())
        average = self.averages.get(norms.optimizer, total)
        self.averages[norms.optimizer] = 0.9 * average + 0.1 * total
        self.bounds.append(average / 2)
        return ClipByGlobalNorm(average / 2).clip_(norms)

    def state_dict(self) -> dict[str, Any]:
        return {"averages": [[number, average] for number, average in self.averages.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.averages = dict(state["averages"])


@pytest.mark.supports("resuming from a checkpoint")
def test_what_a_clipper_remembers_comes_back(pl, tmp_path, data):
    """A clipper with a state goes on where it was: the resumed run is the uninterrupted one."""

    def make():
        torch.manual_seed(1)
        return module_in(pl, optimizer=adam)

    clippers = [ClipByMovingAverage() for _ in range(3)]
    watches = [GradWatch(clipper=clipper) for clipper in clippers]
    whole = make()
    trainer_in(pl, tmp_path, watches[0], max_steps=-1, max_epochs=2).fit(whole, data)
    trainer = trainer_in(pl, tmp_path, watches[1], max_steps=-1, max_epochs=1)
    trainer.fit(make(), data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    module = make()
    trainer_in(pl, tmp_path, watches[2], max_steps=-1, max_epochs=2).fit(
        module, data, ckpt_path=str(tmp_path / "last.ckpt")
    )
    assert clippers[1].bounds + clippers[2].bounds == clippers[0].bounds
    assert clippers[2].averages == clippers[0].averages
    assert_same_rows(watches[2], watches[0])
    assert same_weights(module, whole)


@pytest.mark.supports("resuming from a checkpoint")
def test_histories_of_several_optimizers_come_back(pl, tmp_path, data):
    """After a resume each optimizer goes on with its own rows, also where they step irregularly."""

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        self.manual_backward(loss_of(self, batch))
        first.step()
        first.zero_grad()
        if batch_idx % 4 == 3:
            second.step()
            second.zero_grad()

    def make():
        torch.manual_seed(1)
        return manual(pl, training_step=training_step, configure_optimizers=two_optimizers())

    whole, resumed = GradWatch(every_n_steps=3), GradWatch(every_n_steps=3)
    trainer_in(pl, tmp_path, whole, max_steps=-1, max_epochs=2).fit(make(), data)
    trainer = trainer_in(pl, tmp_path, GradWatch(every_n_steps=3), max_steps=-1, max_epochs=1)
    trainer.fit(make(), data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    trainer_in(pl, tmp_path, resumed, max_steps=-1, max_epochs=2).fit(
        make(), data, ckpt_path=str(tmp_path / "last.ckpt")
    )
    assert_same_rows(resumed, whole)
    assert set(resumed.history.optimizers.tolist()) == {0, 1}


def forgets_optimizers(self: Any, checkpoint: dict[str, Any]) -> None:
    """Leave out what torch refuses: the state of an optimizer with fewer parameters."""
    checkpoint["optimizer_states"] = []


class Renamed(nn.Module):
    """The healthy network, its layers under other names."""

    def __init__(self, head: bool) -> None:
        super().__init__()
        self.body, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.head = nn.Linear(CLASSES, CLASSES) if head else nn.Identity()

    def forward(self, inputs: Any) -> Any:
        return self.head(self.out(torch.relu(self.body(inputs))))


@pytest.mark.supports("resuming with other layers")
@pytest.mark.parametrize("head", [False, True], ids=["renamed", "renamed with a new head"])
def test_a_model_with_other_layers_is_resumed(pl, tmp_path, data, head, caplog):
    """Renamed and new layers do not break the resume; what is known is about the layers that there are."""
    trainer = trainer_in(pl, tmp_path, GradWatch(), max_steps=-1, max_epochs=1)
    trainer.fit(module_in(pl), data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")

    hooks = {"on_load_checkpoint": forgets_optimizers} if head else {}
    module, watch = module_in(pl, Renamed(head), strict_loading=False, **hooks), GradWatch()
    saved = saves_gradients(module)
    resumed = trainer_in(pl, tmp_path, watch, max_steps=-1, max_epochs=2)
    resumed.fit(module, data, ckpt_path=str(tmp_path / "last.ckpt"))
    assert resumed.global_step == 16
    assert watch.disabled_reason is None
    assert watch.diagnoses == []
    assert watch.history.layers == ("net.body", "net.out", *(["net.head"] if head else []))
    assert watch.history.steps.tolist()[-8:] == list(range(8, 16))
    for row, expected in zip(watch.history.norms[-8:], saved.steps, strict=True):
        assert row == pytest.approx([expected[layer] for layer in watch.history.layers], rel=1e-5)
    assert not watch.history.present[:-8].any()


@pytest.mark.supports("resuming with other layers")
def test_layers_that_stayed_keep_their_past(pl, tmp_path, data):
    """A new head beside layers of the same names: their rows come back, the head's past is not present."""
    first = GradWatch()
    trainer = trainer_in(pl, tmp_path, first, max_steps=-1, max_epochs=1)
    trainer.fit(module_in(pl), data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    net = nn.Sequential(*healthy_net(), nn.Linear(CLASSES, CLASSES))
    hooks = {"on_load_checkpoint": forgets_optimizers}
    module, watch = module_in(pl, net, strict_loading=False, **hooks), GradWatch()
    saved = saves_gradients(module)
    trainer_in(pl, tmp_path, watch, max_steps=-1, max_epochs=2).fit(module, data, ckpt_path=str(tmp_path / "last.ckpt"))
    assert watch.history.layers == ("net.0", "net.2", "net.3")
    assert watch.history.steps.tolist() == list(range(16))
    assert np.array_equal(watch.history.norms[:8, :2], first.history.norms)
    assert not watch.history.present[:8, 2].any()
    for row, expected in zip(watch.history.norms[8:], saved.steps, strict=True):
        assert row == pytest.approx([expected[layer] for layer in watch.history.layers], rel=1e-5)
    assert watch.disabled_reason is None


@pytest.mark.supports("resuming a checkpoint of a run without GradWatch")
def test_a_checkpoint_saved_without_gradwatch_is_resumed_with_it(pl, tmp_path, data):
    """Watching begins at the step of the resume, and ends in the weights of a run without it."""

    def make():
        torch.manual_seed(1)
        return module_in(pl, optimizer=adam)

    plain = make()
    trainer_in(pl, tmp_path, max_steps=-1, max_epochs=2).fit(plain, data)
    trainer = trainer_in(pl, tmp_path, max_steps=-1, max_epochs=1)
    trainer.fit(make(), data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    module, watch = make(), GradWatch()
    saved = saves_gradients(module)
    trainer_in(pl, tmp_path, watch, max_steps=-1, max_epochs=2).fit(module, data, ckpt_path=str(tmp_path / "last.ckpt"))
    assert_same(watch.history, saved)
    assert watch.history.steps.tolist() == list(range(8, 16))
    assert same_weights(module, plain)
    assert watch.disabled_reason is None


@pytest.mark.supports("resuming without GradWatch a checkpoint of a run with it")
def test_a_checkpoint_saved_with_gradwatch_is_resumed_without_it(pl, tmp_path, data):
    """A checkpoint does not need GradWatch: neither to be resumed, nor to be loaded as a model or for a test."""

    def make():
        torch.manual_seed(1)
        return module_in(pl, optimizer=adam, test_step=step_without_log)

    plain = make()
    trainer_in(pl, tmp_path, max_steps=-1, max_epochs=2).fit(plain, data)
    trainer = trainer_in(pl, tmp_path, GradWatch(), max_steps=-1, max_epochs=1)
    trainer.fit(make(), data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    module = make()
    resumed = trainer_in(pl, tmp_path, max_steps=-1, max_epochs=2)
    resumed.fit(module, data, ckpt_path=str(tmp_path / "last.ckpt"))
    assert same_weights(module, plain)
    resumed.test(make(), data, ckpt_path=str(tmp_path / "last.ckpt"), verbose=False)
    assert type(module).load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True).net is not None


@pytest.mark.supports("resuming from a checkpoint")
def test_a_checkpoint_saved_before_the_first_resumed_step_is_whole(pl, tmp_path, data):
    """What came with a checkpoint stands in one that is saved before training goes on."""
    trainer = trainer_in(pl, tmp_path, GradWatch(), max_steps=-1, max_epochs=1)
    trainer.fit(module_in(pl), data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")

    class SavesEarly(pl.Callback):
        def on_fit_start(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "early.ckpt")

    trainer_in(pl, tmp_path, GradWatch(), SavesEarly(), max_steps=-1, max_epochs=2).fit(
        module_in(pl), data, ckpt_path=str(tmp_path / "last.ckpt")
    )
    states = [
        torch.load(tmp_path / name, weights_only=True)["lightning_gradwatch"] for name in ("last.ckpt", "early.ckpt")
    ]
    steps = [state["record"]["history"]["steps"].tolist() for state in states]
    assert steps == [list(range(8))] * 2


# ---- signals


SCRIPT = """
import os, signal, sys
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import pytorch_lightning as pl
from lightning_gradwatch import GradWatch

# A shell that runs the tests in the background has its processes ignore Ctrl+C.
signal.signal(signal.SIGINT, signal.default_int_handler)

class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        layers = [part for _ in range(12) for part in (nn.Linear(8, 8), nn.Sigmoid())]
        self.net = nn.Sequential(*layers, nn.Linear(8, 3))

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == 6:
            os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

torch.manual_seed(0)
data = DataLoader(TensorDataset(torch.randn(32, 8), torch.randint(3, (32,))), batch_size=4)
trainer = pl.Trainer(
    accelerator="cpu", default_root_dir=sys.argv[2], callbacks=[GradWatch()], max_steps=10_000, logger=False,
    enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
)
trainer.fit(Module(), data)
"""


def assert_told(text: str, directory: Path) -> None:
    """Hold the closing lines and the files of a run of the script against what it must leave."""
    assert text.count("VANISHING: ") == 1
    assert "GradWatch  seen       VANISHING in net.0" in text
    assert "SWITCHED OFF" not in text
    assert (directory / "gradwatch" / "heatmap.png").read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in (directory / "gradwatch" / "diagnoses.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["onset"]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        # Lightning's SIGTERMException is an exit without a code.
        pytest.param("SIGTERM", 0, marks=pytest.mark.supports("a run ended by SIGTERM")),
        pytest.param("SIGINT", 1, marks=pytest.mark.supports("a run ended by Ctrl+C")),
    ],
)
def test_a_signal_loses_nothing(tmp_path, name, code):
    """A real signal ends the run: closing lines, diagnoses and picture are written before the process ends."""
    (tmp_path / "script.py").write_text(SCRIPT)
    run = python(tmp_path / "script.py", name, tmp_path, cwd=tmp_path)
    assert run.returncode == code
    assert ("SIGTERM" if name == "SIGTERM" else "KeyboardInterrupt") in run.stdout + run.stderr
    assert_told(run.stdout + run.stderr, tmp_path)


@pytest.mark.supports("a run ended by Ctrl+C")
def test_a_keyboard_interrupt_in_training_step_is_closed_like_any_end(pl, tmp_path, data, caplog, sink):
    """Readings are settled, sinks closed, hooks removed; Lightning ends the process as it always does."""

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == 6:
            raise KeyboardInterrupt
        return loss_of(self, batch)

    watch = GradWatch(sinks=[sink])
    module = module_in(pl, deep_net(nn.Sigmoid, 12), training_step=training_step)
    trainer = trainer_in(pl, tmp_path, watch, max_steps=20)
    handler = signal.getsignal(signal.SIGINT)
    try:
        with caplog.at_level(logging.INFO, logger="lightning_gradwatch"), pytest.raises(SystemExit):
            trainer.fit(module, data)
    finally:
        # Lightning leaves Ctrl+C switched off for the rest of the process.
        signal.signal(signal.SIGINT, handler)
    assert watch.history.steps.tolist() == list(range(6))
    assert len(sink.reports) == 6
    assert sink.closed == 1
    assert trainer.optimizers[0]._optimizer_step_post_hooks == {}
    assert_told(caplog.text, tmp_path)


# ---- on a GPU


@pytest.mark.gpu
@pytest.mark.supports("skipping and raising on CUDA")
@pytest.mark.parametrize("on_nonfinite", ["skip", "raise"])
def test_a_poisoned_step_is_dropped_in_time_on_a_gpu(pl, tmp_path, data, on_nonfinite):
    """The decision waits for the numbers, so that no weight ever becomes NaN."""

    def training_step(self, batch, batch_idx):
        return loss_of(self, batch) * (float("nan") if batch_idx == 2 else 1.0)

    module, watch = module_in(pl, training_step=training_step), GradWatch(on_nonfinite=on_nonfinite)
    trainer = trainer_in(pl, tmp_path, watch, accelerator="cuda", devices=1)
    with pytest.raises(GradientFault) if on_nonfinite == "raise" else nullcontext():
        trainer.fit(module, data)
    assert [(d.rule, d.step) for d in watch.diagnoses] == [("non_finite", 2)]
    assert all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters())
