"""Which settings clash with the Trainer's: refused before training, each with the ways out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_gradwatch.settings import Settings
from lightning_gradwatch.trainer_facts import scaler_of, unscales_itself, why_unsupported

if TYPE_CHECKING:
    from pytorch_lightning import Trainer


def refuse_clashes(settings: Settings, trainer: Trainer, kind: type[Any]) -> None:
    """Refuse what can be known when a fit is set up.

    Args:
        settings: What the person has set.
        trainer: The Trainer.
        kind: The class of our callback; it need not be the person's own.

    Raises:
        ValueError: If something clashes.
    """
    _refuse_two_of_us(trainer, kind)
    _refuse_two_clippers(settings, trainer)
    _refuse_rehearsing_together(settings, trainer)
    _refuse_actions_without_gradients(settings, trainer)


def refuse_late_clashes(settings: Settings, trainer: Trainer) -> None:
    """Refuse what is only known when training starts, or may have been set until then.

    Args:
        settings: What the person has set.
        trainer: The Trainer.

    Raises:
        ValueError: If something clashes.
    """
    _refuse_scaled_actions(settings, trainer)
    _refuse_two_clippers(settings, trainer)


def _refuse_two_of_us(trainer: Trainer, kind: type[Any]) -> None:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    if sum(isinstance(callback, kind) for callback in callbacks) > 1:
        raise ValueError(
            "Two GradWatch callbacks in one Trainer would read every gradient twice and tell everything twice. "
            "Keep one of them; several rules, sinks and thresholds fit into one GradWatch."
        )


def _refuse_two_clippers(settings: Settings, trainer: Trainer) -> None:
    if settings.clipper is not None and trainer.gradient_clip_val:
        raise ValueError(
            f"`GradWatch(clipper={settings.clipper!r})` and `Trainer(gradient_clip_val="
            f"{trainer.gradient_clip_val!r})` would clip the same gradients one after the other. Remove `clipper` "
            "to keep the Trainer's clipping (GradWatch shows the norms before and after), or remove "
            "`gradient_clip_val` to keep the clipper."
        )


def _refuse_rehearsing_together(settings: Settings, trainer: Trainer) -> None:
    if settings.rehearse and trainer.world_size > 1:
        raise ValueError(
            f"`rehearse=True` works in one process, and this Trainer has {trainer.world_size}: a copy that is run "
            "in one of them would wait for the others. Remove `rehearse`, or try the remedies before training in "
            "one process: lightning_gradwatch.examine(model, loss_closure)"
        )


def _refuse_actions_without_gradients(settings: Settings, trainer: Trainer) -> None:
    unsupported = why_unsupported(trainer)
    if unsupported and settings.acts:
        raise ValueError(
            f"`clipper` and `on_nonfinite={settings.on_nonfinite!r}` cannot work here: {unsupported}. Use the "
            "strategy's own clipping."
        )


def _refuse_scaled_actions(settings: Settings, trainer: Trainer) -> None:
    if scaler_of(trainer) is None or not settings.acts or not any(map(unscales_itself, trainer.optimizers)):
        return
    raise ValueError(
        "`clipper` and `on_nonfinite` cannot act on an optimizer with fused=True under precision='16-mixed': it "
        "unscales the gradients inside step(), after every hook. Use fused=False, or precision='bf16-mixed', or "
        "remove `clipper` and `on_nonfinite`."
    )
