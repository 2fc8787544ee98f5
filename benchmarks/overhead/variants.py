"""What is put into the Trainer: nothing, the floor, what people use, and GradWatch in several settings."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import grad_norm
from torch import nn

from lightning_gradwatch import ClipByGlobalNorm, GradWatch

MAX_NORM = 1.0


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        name: What it is.
        callbacks: Makes the callbacks.
        trainer: Arguments of the Trainer.
        logs_norms: Whether the module logs ``grad_norm`` as Lightning's documentation shows.
        rare: What a step costs more is paid once in so many steps, since it is done in every one here.
        dear: Whether a step takes seconds where there are thousands of layers; there it is left out.
    """

    name: str
    callbacks: Callable[[nn.Module], list[Any]] = lambda _: []
    trainer: dict[str, Any] = field(default_factory=dict)
    logs_norms: bool = False
    rare: int = 1
    dear: bool = False


class _TotalNorm(pl.Callback):
    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        nn.utils.get_total_norm(gradients)


class _Clip(pl.Callback):
    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], MAX_NORM)


class _WandbWatch(pl.Callback):
    """``wandb.watch`` at every step, offline."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        wandb = importlib.import_module("wandb")
        self._run = wandb.init(mode="offline", dir=trainer.default_root_dir, settings={"silent": True})
        self._run.watch(pl_module, log="gradients", log_freq=1)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self._run.log({})

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        self._run.unwatch(pl_module)
        self._run.finish()


def log_norms(module: Any, optimizer: Any) -> None:
    """Log the norm of every parameter, as Lightning's documentation shows."""
    module.log_dict(grad_norm(module, norm_type=2))


def _peers() -> list[Variant]:
    """Return those callbacks of others, of which pip has a package that works, that are installed here."""
    found = []
    with suppress(ImportError):
        zclip = importlib.import_module("zclip")
        if hasattr(zclip, "ZClipLightningCallback"):
            found.append(Variant("zclip", lambda _: [zclip.ZClipLightningCallback()]))
    with suppress(ImportError):
        snitch = importlib.import_module("gradsnitch.integrations")
        found.append(Variant("gradsnitch", lambda _: [snitch.lightning()], dear=True))
    return found


# At the defaults: a probe in every 50th step, values to the loggers in every 50th.
_PROBE_EVERY = _LOG_EVERY = 50
_BARE: dict[str, Any] = {"probe_every_n_steps": None, "heatmap": False}

VARIANTS = (
    Variant("nothing"),
    Variant("the floor: get_total_norm", lambda _: [_TotalNorm()]),
    Variant("clip_grad_norm_", lambda _: [_Clip()]),
    Variant("Trainer(gradient_clip_val=1.0)", trainer={"gradient_clip_val": MAX_NORM}),
    Variant("GradWatch, no probe, no picture", lambda _: [GradWatch(**_BARE)]),
    Variant("GradWatch() between probes", lambda _: [GradWatch(probe_every_n_steps=10**6)], {"logger": True}),
    Variant("GradWatch(clipper=ClipByGlobalNorm(1.0))", lambda _: [GradWatch(clipper=ClipByGlobalNorm(1.0), **_BARE)]),
    Variant(
        "a probe (in one of 50 steps)",
        lambda _: [GradWatch(probe_every_n_steps=1, heatmap=False)],
        rare=_PROBE_EVERY,
    ),
    Variant(
        "scalars to TensorBoard (in one of 50 steps)",
        lambda _: [GradWatch(**_BARE)],
        {"logger": True, "log_every_n_steps": 1},
        rare=_LOG_EVERY,
    ),
    Variant(
        "each layer's norm to TensorBoard (in one of 50 steps)",
        lambda _: [GradWatch(per_layer_scalars=True, **_BARE)],
        {"logger": True, "log_every_n_steps": 1},
        rare=_LOG_EVERY,
    ),
    Variant("Lightning's grad_norm + log_dict", trainer={"logger": True}, logs_norms=True, dear=True),
    Variant("wandb.watch(log_freq=1), offline", lambda _: [_WandbWatch()], dear=True),
    *_peers(),
    Variant("nothing again"),
)


def module_of(model: nn.Module, loss: Callable[..., torch.Tensor], *, logs_norms: bool) -> pl.LightningModule:
    """Return a LightningModule around a model.

    Args:
        model: The model.
        loss: Takes its output and the targets.
        logs_norms: Whether it logs the norm of every parameter before each step.
    """

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            inputs, targets = batch
            return loss(self.model(inputs), targets)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1e-4)

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            if logs_norms:
                log_norms(self, optimizer)

    return Module()
