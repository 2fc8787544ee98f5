"""One way out of a diagnosis: what to change, why, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lightning_gradwatch.detect.diagnosis import Diagnosis
from lightning_gradwatch.remedy.clipping import Clipper


@dataclass(frozen=True)
class Remedy:
    """One way out of a diagnosis.

    Attributes:
        title: What to do, in a line.
        reason: Why it should help, with its source.
        diagnosis: What it is for.
        code: Lines to paste.
        where: ``file:line`` of what has to be edited, None where that is not known.
        needs_restart: Whether training has to begin again (a re-initialization forgets what was learned).
        clipper: A clipper for ``GradWatch(clipper=...)``, None where clipping is no part of it.
        optimizer_changes: What changes in the optimizer, such as ``{"lr": 1e-3}``.
        trainer_kwargs: What changes in the Trainer's arguments.
        effect: What it did when it was rehearsed, None where it was not.

    Example:
        >>> from lightning_gradwatch.detect.diagnosis import Symptom
        >>> sick = Diagnosis("exploding.update", Symptom.EXPLODING)
        >>> Remedy("clip by global norm", "keeps the direction", sick, trainer_kwargs={"gradient_clip_val": 1.0}).code
        ''
    """

    title: str
    reason: str
    diagnosis: Diagnosis
    code: str = ""
    where: str | None = None
    needs_restart: bool = False
    clipper: Clipper | None = None
    optimizer_changes: Mapping[str, float] = field(default_factory=dict)
    trainer_kwargs: Mapping[str, Any] = field(default_factory=dict)
    effect: Mapping[str, float] | None = None
    change: Callable[[nn.Module], None] | None = field(default=None, repr=False)

    def apply_(self, model: nn.Module) -> None:
        """Do to a model, in place, what ``code`` says; nothing where nothing of the model changes.

        Args:
            model: A fresh model of the class that was diagnosed.
        """
        if self.change is not None:
            self.change(model)
