"""Test ``lightning_gradwatch.understudy``; in real Trainers in ``support/test_rehearse.py``."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import WIDTH, healthy_net, module_in, trainer_in
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import ClipByGlobalNorm, ClipByValue
from lightning_gradwatch.remedy.copying import copy_of
from lightning_gradwatch.remedy.trial import NotRehearsedError
from lightning_gradwatch.understudy import MuteLogger, ReadOnlyTrainer, stage_of

BATCH = [torch.randn(4, WIDTH), torch.tensor([0, 1, 2, 0])]


class Loud:
    """A logger that must not be heard."""

    name, save_dir, version = "loud", "runs", 3

    @property
    def experiment(self) -> Any:
        raise AssertionError("the experiment was opened")

    def log_metrics(self, *args: Any) -> None:
        raise AssertionError("the logger was called")


def fitted(pl: Any, directory: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Return a Trainer that has run one step, and its module."""
    module = module_in(pl, healthy_net(), **kwargs.pop("hooks", {}))
    trainer = trainer_in(pl, directory, max_steps=1, **kwargs)
    trainer.fit(module, DataLoader(TensorDataset(*BATCH), batch_size=4))
    return trainer, module


@pytest.mark.parametrize(
    ("settings", "clipper"),
    [
        ({}, None),
        ({"gradient_clip_val": 0.5}, ClipByGlobalNorm(0.5)),
        ({"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"}, ClipByValue(0.5)),
    ],
)
def test_the_trainers_own_clipping_is_part_of_the_stage(pl, tmp_path, settings, clipper):
    """A clipper of GradWatch comes in its place."""
    trainer, module = fitted(pl, tmp_path, **settings)
    assert stage_of(trainer, module, BATCH, 0).clipper == clipper
    assert stage_of(trainer, module, BATCH, 0, ClipByValue(2.0)).clipper == ClipByValue(2.0)


def test_the_copy_gets_a_batch_of_its_own(pl, tmp_path):
    """A training step that writes to its batch leaves the run's as it is, at every call."""

    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        batch[0] *= 0
        batch.append(batch_idx)
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    trainer, module = fitted(pl, tmp_path, hooks={"training_step": step})
    batch = [torch.ones(4, WIDTH), BATCH[1]]
    stage = stage_of(trainer, module, batch, 7)
    copied = copy_of(module)
    stage.prepare(copied)
    assert float(stage.loss_closure(copied).detach()) == float(stage.loss_closure(copied).detach())
    assert len(batch) == 2
    assert bool((batch[0] == 1).all())


@pytest.mark.parametrize(
    ("returned", "says"),
    [(None, "returned no loss for this batch"), ({"other": 1}, "returned no loss for this batch")],
)
def test_a_batch_without_a_loss_is_told(pl, tmp_path, returned, says):
    """``training_step`` may return None to skip a batch."""
    trainer, module = fitted(pl, tmp_path)
    stage, copied = stage_of(trainer, module, BATCH, 0), copy_of(module)
    copied.training_step = lambda *_: returned
    with pytest.raises(NotRehearsedError, match=says):
        stage.loss_closure(copied)


def test_what_cannot_be_played_again_is_refused(pl, tmp_path):
    """A loss scaler, a loader in place of a batch, and steps that are made by hand."""
    trainer, module = fitted(pl, tmp_path)
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    scaled = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler))
    with pytest.raises(NotRehearsedError, match="16-mixed"):
        stage_of(scaled, module, BATCH, 0)
    taker = SimpleNamespace(automatic_optimization=True, training_step=lambda dataloader_iter: dataloader_iter)
    with pytest.raises(NotRehearsedError, match="dataloader_iter"):
        stage_of(trainer, taker, BATCH, 0)
    with pytest.raises(NotRehearsedError, match="manual optimization"):
        stage_of(trainer, SimpleNamespace(automatic_optimization=False), BATCH, 0)


def test_the_trainer_is_only_read():
    """Plain values are given, metrics are copied, writing stays with the copy, and parts of the run are refused."""
    metrics = {"loss": torch.zeros(1)}
    real = SimpleNamespace(
        global_step=3, should_stop=False, callback_metrics=metrics, callbacks=[object()], loggers=[Loud()], sizes=(1, 2)
    )
    stand_in = ReadOnlyTrainer(real)
    assert (stand_in.global_step, stand_in.sizes) == (3, (1, 2))
    stand_in.should_stop = True
    stand_in.callback_metrics["loss"] += 1
    assert stand_in.should_stop
    assert not real.should_stop
    assert float(metrics["loss"]) == 0
    assert not hasattr(stand_in, "nothing_of_the_kind")
    with pytest.raises(NotRehearsedError, match=r"trainer\.callbacks, which a copy must not touch"):
        stand_in.callbacks  # noqa: B018


def test_loggers_are_mute():
    """Any call and any attribute is taken; names and places can be read; the real one hears nothing."""
    real = Loud()
    logger = MuteLogger(real)
    logger.log_metrics({"a": 1.0}, step=1)
    logger.experiment.add_scalar("a", 1.0)
    logger.experiment["charts/a"] = 1.0
    with logger.experiment.summary() as summary:
        summary.step = 1
    assert list(logger.history) == []
    assert (logger.name, logger.save_dir, logger.version) == ("loud", "runs", 3)
    assert ReadOnlyTrainer(SimpleNamespace(loggers=[])).logger is None


def test_a_loss_scaler_that_is_switched_off_is_no_obstacle(pl, tmp_path):
    """With ``enabled=False`` it scales nothing."""
    trainer, module = fitted(pl, tmp_path)
    trainer.precision_plugin.scaler = torch.amp.GradScaler("cpu", enabled=False)
    assert stage_of(trainer, module, BATCH, 0).optimizer is trainer.optimizers[0]


def test_learning_rates_can_be_read_wherever_people_read_them(pl, tmp_path):
    """By the Trainer's optimizers, its schedules, and the module's own two methods; writing does not reach the run."""
    rates: list[float] = []

    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        rates.append(self.optimizers().param_groups[0]["lr"])
        rates.extend(self.lr_schedulers().get_last_lr())
        rates.append(self.trainer.lr_scheduler_configs[0].scheduler.get_last_lr()[0])
        self.trainer.optimizers[0].param_groups[0]["lr"] = 7.0
        self.lr_schedulers().step()
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure(self: Any) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.5)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 100)]

    trainer, module = fitted(pl, tmp_path, hooks={"configure_optimizers": configure})
    stage, copied = stage_of(trainer, module, BATCH, 0), copy_of(module)
    copied.training_step = partial(step, copied)
    stage.prepare(copied)
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    before = scheduler.last_epoch
    stage.loss_closure(copied)
    assert rates == [0.5] * 4
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.5
    assert scheduler.last_epoch == before


def test_without_a_schedule_there_is_none_to_read(pl, tmp_path):
    """``lr_schedulers()`` is None then, as in the run."""
    trainer, module = fitted(pl, tmp_path)
    copied = copy_of(module)
    stage_of(trainer, module, BATCH, 0).prepare(copied)
    assert copied.lr_schedulers() is None
