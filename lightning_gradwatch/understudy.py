"""A LightningModule's copy that plays a training step before an empty house: it may read the Trainer, and logs nothing.

Duck-typed: both Lightning packages have these names, and neither is imported here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from enum import Enum
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradwatch.remedy.clipping import ClipByGlobalNorm, ClipByValue, Clipper
from lightning_gradwatch.remedy.trial import NotRehearsedError, Stage
from lightning_gradwatch.report.loggers import is_a

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

_PLAIN = (type(None), bool, int, float, str, Enum, torch.device, torch.dtype)
_METRICS = ("callback_metrics", "logged_metrics", "progress_bar_metrics")
_OF_A_LOGGER = ("name", "version", "save_dir", "log_dir", "root_dir")
_SILENCED = ("log", "log_dict", "print")


def stage_of(
    trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, clipper: Clipper | None = None
) -> Stage:
    """Make the place where remedies are tried: copies of the module that run ``training_step`` on a batch.

    Args:
        trainer: The Trainer; it is only read.
        pl_module: The module.
        batch: The batch of the moment, on its device; every step gets a copy of it.
        batch_idx: Its number.
        clipper: What clips the steps; the Trainer's own clipping where it is None.

    Returns:
        The stage.

    Raises:
        NotRehearsedError: Under manual optimization, with a loss scaler, or where ``training_step`` takes the loader.
    """
    if not pl_module.automatic_optimization:
        raise NotRehearsedError("under manual optimization training_step makes the steps itself")
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    # One that is switched off (enabled=False) scales nothing.
    if scaler is not None and getattr(scaler, "is_enabled", lambda: True)():
        raise NotRehearsedError("a loss scaler is at work (16-mixed)")
    arguments = _arguments(pl_module.training_step, batch, batch_idx)
    return Stage(
        model=pl_module,
        loss_closure=partial(_play, trainer, arguments),
        optimizer=trainer.optimizers[0],
        clipper=clipper if clipper is not None else _clipping_of(trainer),
        prepare=partial(_silence_, trainer),
    )


def _arguments(step: Callable[..., Any], batch: Any, batch_idx: int) -> tuple[Any, ...]:
    parameters = inspect.signature(step).parameters
    if "dataloader_iter" in parameters:
        raise NotRehearsedError("training_step takes the loader itself (dataloader_iter), not a batch")
    several = len(parameters) > 1 or any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    return (batch, batch_idx) if several else (batch,)


def _clipping_of(trainer: Trainer) -> Clipper | None:
    bound = trainer.gradient_clip_val
    if not bound:
        return None
    return ClipByValue(float(bound)) if trainer.gradient_clip_algorithm == "value" else ClipByGlobalNorm(float(bound))


def _play(trainer: Trainer, arguments: tuple[Any, ...], copied: nn.Module) -> Tensor:
    try:
        # A training step may write to its batch.
        own = deepcopy(arguments)
    except Exception as error:
        raise NotRehearsedError(f"the batch cannot be copied: {type(error).__name__}: {error}") from error
    with trainer.precision_plugin.train_step_context():
        output = copied.training_step(*own)  # type: ignore[operator]
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if loss is None:
        raise NotRehearsedError("training_step returned no loss for this batch")
    return loss  # type: ignore[no-any-return]


def _silence_(trainer: Trainer, copied: nn.Module) -> None:
    for module in copied.modules():
        if is_a(module, "LightningModule"):
            # Past __setattr__: `trainer` is a property that hands its value on, and these are methods.
            vars(module).update(dict.fromkeys(_SILENCED, _nothing))
            vars(module)["_trainer"] = ReadOnlyTrainer(trainer)
            vars(module)["optimizers"] = partial(_optimizers, trainer)


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Take everything and do nothing."""


def _optimizers(trainer: Trainer, use_pl_optimizer: bool = True) -> Any:
    """Give the settings of the optimizers to whoever wants to read a learning rate, and no parameter."""
    return _Settings(trainer.optimizers[0])


class _Settings:
    """What can be read of an optimizer: its groups without their parameters."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.param_groups = deepcopy([{**group, "params": []} for group in optimizer.param_groups])


class _Schedule:
    """What can be read of a learning rate schedule."""

    def __init__(self, scheduler: Any) -> None:
        self._rates = [float(rate) for rate in getattr(scheduler, "get_last_lr", list)()]
        self.last_epoch: int = getattr(scheduler, "last_epoch", 0)

    def get_last_lr(self) -> list[float]:
        return list(self._rates)

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Stay where it is."""


class ReadOnlyTrainer:
    """A Trainer whose plain values can be read; what is written to it stays here, and its loggers are mute.

    Args:
        trainer: The real one.
    """

    def __init__(self, trainer: Trainer) -> None:
        vars(self)["_real"] = trainer
        loggers = [MuteLogger(logger) for logger in trainer.loggers]
        vars(self)["loggers"] = loggers
        vars(self)["logger"] = loggers[0] if loggers else None

    def __getattr__(self, name: str) -> Any:
        """Give a plain value, a copy of metrics, or learning rates to read; anything else could change the run."""
        value = getattr(vars(self)["_real"], name)
        if name == "optimizers":
            return [_Settings(optimizer) for optimizer in value]
        if name == "lr_scheduler_configs":
            # The module's own lr_schedulers() reads these.
            return [SimpleNamespace(scheduler=_Schedule(config.scheduler)) for config in value]
        if isinstance(value, _PLAIN):
            return value
        if name in _METRICS or (isinstance(value, (tuple, list)) and all(isinstance(item, _PLAIN) for item in value)):
            return deepcopy(value)
        raise NotRehearsedError(f"training_step uses trainer.{name}, which a copy must not touch")


class MuteLogger:
    """A logger that takes everything and writes nothing.

    Args:
        logger: The real one, for its name and its directory.

    Example:
        >>> MuteLogger(object()).experiment.add_scalar("loss", 1.0) is None
        False
    """

    def __init__(self, logger: object) -> None:
        vars(self)["_real"] = logger

    def __getattr__(self, name: str) -> Any:
        """Give a name or a place as it is, and itself for everything else."""
        if name.startswith("__"):
            raise AttributeError(name)
        value = getattr(vars(self)["_real"], name, None) if name in _OF_A_LOGGER else None
        return value if isinstance(value, (str, int)) else self

    def __setattr__(self, name: str, value: Any) -> None:
        """Take a value and forget it."""

    def __call__(self, *args: Any, **kwargs: Any) -> MuteLogger:
        """Take a call and do nothing."""
        return self

    def __getitem__(self, key: object) -> MuteLogger:
        """Hold nothing under any name."""
        return self

    def __setitem__(self, key: object, value: object) -> None:
        """Take a value under a name and forget it."""

    def __iter__(self) -> Iterator[Any]:
        """Hold nothing."""
        return iter(())

    def __enter__(self) -> Any:
        """Begin nothing."""
        return self

    def __exit__(self, *args: object) -> None:
        """End nothing."""
