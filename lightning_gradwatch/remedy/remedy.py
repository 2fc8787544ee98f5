"""One way out of a diagnosis: what to change, why, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import nn

from lightning_gradwatch.detect.diagnosis import Diagnosis
from lightning_gradwatch.remedy.clipping import Clipper


@runtime_checkable
class HasStandIn(Protocol):
    """A change that asks for an edit of the source, and can be tried without one."""

    def tried(self, model: nn.Module) -> AbstractContextManager[None]:
        """Change a copy, and let other functions answer for those that the source calls, while the block lasts."""
        ...


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
        optimizer_changes: What changes in the optimizer, such as ``{"lr": 1e-3}``; ``{"params": "all"}`` where it has
            to be given all parameters of the model.
        trainer_kwargs: What changes in the Trainer's arguments.
        effect: What it did when it was rehearsed, None where it was not.
        change: What ``apply_`` does to a model, None where nothing of the model changes.

    Example:
        >>> from lightning_gradwatch.detect.diagnosis import Symptom
        >>> sick = Diagnosis("exploding.update", Symptom.EXPLODING)
        >>> Remedy("clip by global norm", "keeps the direction", sick, trainer_kwargs={"gradient_clip_val": 1.0}).code
        ''
    """

    title: str
    reason: str
    diagnosis: Diagnosis = field(repr=False)
    code: str = ""
    where: str | None = None
    needs_restart: bool = False
    clipper: Clipper | None = None
    optimizer_changes: Mapping[str, Any] = field(default_factory=dict)
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

    @contextmanager
    def tried(self, model: nn.Module) -> Iterator[nn.Module]:
        """Do to a copy what ``code`` says, also where ``apply_`` has to refuse because the source has to be edited.

        What only an edit can do, another activation that is called as a function, holds as long as the block lasts.

        Args:
            model: A copy that is thrown away, as ``copy.deepcopy(model)``: it stays changed. The block gets it.

        Raises:
            ValueError: If it cannot be tried either; nothing has been done then.

        Example:
            >>> import copy
            >>> from lightning_gradwatch.detect.diagnosis import Symptom
            >>> sick = Diagnosis("vanishing.depth", Symptom.VANISHING)
            >>> zero, model = Remedy("zero", "", sick, change=lambda m: nn.init.zeros_(m.bias)), nn.Linear(1, 1)
            >>> with zero.tried(copy.deepcopy(model)) as candidate:
            ...     float(candidate.bias.detach())
            0.0
        """
        if isinstance(self.change, HasStandIn):
            with self.change.tried(model):
                yield model
        else:
            self.apply_(model)
            yield model
