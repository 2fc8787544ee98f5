"""What is asked of Lightning's Trainer, its module and its optimizers: each question in one place, for the callback."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, tensor, uint8
from torch.optim import Optimizer

from lightning_gradwatch.checkpoints import Checkpoints
from lightning_gradwatch.report.loggers import is_a
from lightning_gradwatch.surroundings import Surroundings

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

# Their gradients are shards in a form that only the engine can put together.
_UNSUPPORTED_STRATEGIES = {
    "DeepSpeedStrategy": "DeepSpeed keeps the gradients in its engine; gradwatch/global_norm is the engine's own, "
    "without layers and diagnoses; ModelParallelStrategy (FSDP2) can be watched layer by layer",
    "FSDPStrategy": "FSDP1 keeps flat shards of the gradients; use ModelParallelStrategy (FSDP2) to watch them",
}
# Told where a person would look for the history in a process that has none.
FORKED = (
    "training runs in processes of its own (ddp_spawn, ddp_fork, ddp_notebook): the `watch` of the process that called "
    "fit() stays empty; this log, the logger and the log directory have everything"
)


def why_unsupported(trainer: Trainer) -> str:
    """Say why gradients cannot be read under the Trainer's strategy, empty where they can."""
    return next((why for name, why in _UNSUPPORTED_STRATEGIES.items() if is_a(trainer.strategy, name)), "")


def when_it_stops(trainer: Trainer) -> str:
    """Say when training ends that ``stop_on`` has ended: the Trainer first does what it was told to do at least."""
    missing = []
    if trainer.min_steps and trainer.global_step < trainer.min_steps:
        missing.append(f"min_steps={trainer.min_steps}")
    if trainer.min_epochs and trainer.current_epoch < trainer.min_epochs:
        missing.append(f"min_epochs={trainer.min_epochs}")
    until = " and ".join(missing)
    when = f"training goes on until {until}, and ends then" if missing else "training ends here"
    return f"{when}; the exit status stays 0 (watch.assert_healthy() after fit() raises)"


def mean_over_processes(trainer: Trainer, values: Sequence[float]) -> list[float]:
    """Return the mean of each number over all processes; all have to call it."""
    mine = tensor(values, device=trainer.strategy.root_device)
    mean: list[float] = trainer.strategy.reduce(mine, reduce_op="mean").tolist()
    return mean


def surroundings_of(trainer: Trainer, directory: Path | None, checkpoints: Checkpoints) -> Surroundings:
    """Return where this process stands, for what it tells of a poisoned step."""

    def gather(line: bytes) -> list[bytes]:
        mine = tensor(list(line), dtype=uint8, device=trainer.strategy.root_device)
        together: Tensor = trainer.strategy.all_gather(mine)
        return [row.tobytes() for row in together.reshape(trainer.world_size, -1).cpu().numpy()]

    return Surroundings(
        rank=trainer.global_rank,
        num_processes=trainer.world_size,
        device=str(trainer.strategy.root_device),
        directory=directory,
        gather=gather,
        last_clean=checkpoints.last_clean,
    )


def in_step(pl_module: LightningModule) -> bool:
    """Tell whether it is Lightning that decides when an optimizer steps, so that all processes come there together.

    A person who steps by hand may do so in one process only, and nobody can be waited for then.
    """
    own = type(pl_module).optimizer_step.__qualname__.partition(".")[0] != "LightningModule"
    return pl_module.automatic_optimization and not own


def checkpoint_paths(trainer: Trainer) -> list[str]:
    """Return the files that the Trainer's checkpoint callbacks name."""
    paths: list[str] = []
    for callback in trainer.checkpoint_callbacks:
        paths += getattr(callback, "best_k_models", {})
        paths += [getattr(callback, name, "") for name in ("best_model_path", "last_model_path")]
    return paths


def log_directory(trainer: Trainer) -> Path | None:
    """Return where the run keeps its files, None where it writes none; all processes have to call it."""
    # Outside of everything that may be switched off: Lightning agrees on the directory with all processes.
    directory = trainer.log_dir
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    # A logger that keeps its files elsewhere has no directory.
    return Path(trainer.default_root_dir if directory is None else directory)


def logging_of(trainer: Trainer) -> tuple[int, bool]:
    """Return where ``self.log`` puts the next value on the x axis, and whether Lightning logs at this batch.

    The one place that reads a private attribute of the Trainer: Lightning counts batches that stepped, and has no
    public name for the number. ``global_step`` counts every optimizer's step.
    """
    step = getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", trainer.global_step)
    # Set by the Trainer's constructor; 0 where nothing is to be logged.
    interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return step, interval > 0 and (step + 1) % interval == 0


def scaler_of(trainer: Trainer) -> Any:
    """Return the loss scaler at work, None where there is none."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    # One that is switched off (enabled=False) scales nothing and drops nothing.
    return scaler if scaler is not None and getattr(scaler, "is_enabled", lambda: True)() else None


def unscales_itself(optimizer: Optimizer) -> bool:
    """Tell whether an optimizer unscales its gradients inside ``step``, as fused ones do."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def clips(trainer: Trainer, pl_module: LightningModule) -> bool:
    """Tell whether the gradients may be changed after our hook: by the Trainer, or by the module's own hooks."""
    hooks = (type(pl_module).configure_gradient_clipping, type(pl_module).on_before_optimizer_step)
    own = any(hook.__qualname__.partition(".")[0] not in ("LightningModule", "ModelHooks") for hook in hooks)
    return bool(trainer.gradient_clip_val) or own
