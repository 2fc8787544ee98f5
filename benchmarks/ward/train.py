"""Trains a lesson with a real Trainer."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.ward.case import Batch, Lesson

# The network is an attribute of the LightningModule; layers are reported without this.
PREFIX = "net."
_LOGGERS = ("pytorch_lightning", "lightning.pytorch", "lightning_gradwatch")


class _Batches(Dataset[Batch]):
    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, place: int) -> Batch:
        return self._batches[place]


class Pupil(pl.LightningModule):
    """A lesson's network as Lightning wants it."""

    def __init__(self, lesson: Lesson) -> None:
        super().__init__()
        self.net: nn.Module = lesson.model
        self._lesson = [lesson]
        self.automatic_optimization = lesson.play is None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Return the loss of a batch, or do the whole step."""
        lesson = self._lesson[0]
        if lesson.play is None:
            return lesson.loss(self.net, batch)
        optimizers = self.optimizers()
        lesson.play(self, optimizers if isinstance(optimizers, list) else [optimizers], batch)
        return None

    def configure_optimizers(self) -> Any:
        """Return the lesson's own."""
        lesson = self._lesson[0]
        if lesson.schedule is not None:
            return [lesson.optimizer], [{"scheduler": lesson.schedule, "interval": "step"}]
        return [lesson.optimizer, *lesson.others]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep warnings and log lines back, and leave the loggers as they were: tests run in the same process."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def train(lesson: Lesson, callbacks: Sequence[pl.Callback] = ()) -> float:
    """Train a lesson and return its score; 0 where its arithmetic has ended training.

    Any other error is passed on: a mistake in a recipe or in a callback, scored 0, would make a healthy run sick.

    Args:
        lesson: A fresh lesson.
        callbacks: What watches.

    Returns:
        What ``lesson.score`` says of the trained network.
    """
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_epochs=1,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            accumulate_grad_batches=lesson.accumulate,
            default_root_dir=folder,
            callbacks=list(callbacks),
            **lesson.trainer,
        )
        loader = DataLoader(_Batches(lesson.batches), batch_size=None)
        try:
            trainer.fit(Pupil(lesson), loader)
        except FloatingPointError:
            return 0.0
    lesson.model.eval()
    with torch.no_grad():
        return lesson.score(lesson.model)
