"""What the Trainer's own metrics get: the global norm, for progress bars, EarlyStopping and ModelCheckpoint."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from torch import Tensor, float64, tensor

from lightning_gradwatch.trainer_facts import logging_of

if TYPE_CHECKING:
    from pytorch_lightning import Trainer


def publish_norms(trainer: Trainer, norms: Mapping[int, float]) -> None:
    """Put the newest global norms into ``trainer.callback_metrics``.

    Args:
        trainer: The Trainer.
        norms: The norm of each optimizer by its number.
    """
    for number, norm in norms.items():
        suffix = f"/optimizer_{number}" if len(trainer.optimizers) > 1 else ""
        # In float64: a finite norm above 3e38 is not infinite, and EarlyStopping(check_finite=True) would stop.
        trainer.callback_metrics[f"gradwatch/global_norm{suffix}"] = tensor(norm, dtype=float64)


def publish_engine_norm(trainer: Trainer) -> None:
    """Give the global norm where only the strategy's engine knows it; it is computed for each step anyway."""
    engine = getattr(trainer.strategy, "deepspeed_engine", None)
    with suppress(Exception):
        _publish(trainer, None if engine is None else engine.get_global_grad_norm())


def _publish(trainer: Trainer, norm: float | Tensor | None) -> None:
    if norm is None:
        return
    trainer.callback_metrics["gradwatch/global_norm"] = tensor(float(norm), dtype=float64)
    step, due = logging_of(trainer)
    for logger in trainer.loggers if due else ():
        logger.log_metrics({"gradwatch/global_norm": float(norm)}, step=step)
