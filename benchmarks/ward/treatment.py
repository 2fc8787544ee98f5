"""Does to a lesson what a remedy says: every field of it, and nothing else."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from benchmarks.ward.case import Lesson
from benchmarks.ward.train import Pupil
from lightning_gradwatch import Remedy
from lightning_gradwatch.remedy.rebuilding import change_, rebuild

# What a remedy tells a person, and does nothing.
_TOLD = frozenset({"title", "reason", "diagnosis", "where", "needs_restart", "effect"})
# What ``treat`` carries out. Of ``code`` that is a setting of GradWatch; all else in it is done by ``apply_``.
_DONE = frozenset({"code", "clipper", "optimizer_changes", "trainer_kwargs", "change"})


class NeedsEditError(Exception):
    """A remedy whose ``apply_`` has refused, since a person has to edit the source, and that cannot be tried either."""


@dataclass(frozen=True)
class Treated:
    """A lesson as it is to be trained.

    Attributes:
        lesson: The lesson, changed.
        watch: Arguments of the GradWatch that has to watch it, such as a clipper; empty where none has to.
        swap: In which it has to be trained and scored.
        by_hand: Whether ``apply_`` has refused, and ``swap`` stands for the edit of the source that it asks for.
    """

    lesson: Lesson
    watch: Mapping[str, Any] = field(default_factory=dict)
    swap: AbstractContextManager[object] = field(default_factory=nullcontext)
    by_hand: bool = False


def treat(lesson: Lesson, remedy: Remedy) -> Treated:
    """Carry out a remedy on a fresh lesson.

    The model is changed by ``apply_``, called with what GradWatch has watched: the LightningModule. The optimizers are
    made anew, of the same class and settings, with the parameters that the model has now: those that are new go to the
    optimizer in which the fault was found. The schedule is made anew as well.

    Where ``apply_`` refuses because the source has to be edited, the remedy's ``change`` is tried as a rehearsal does
    it: in ``Remedy.tried(model)`` other functions answer for those that the source calls.

    Args:
        lesson: A fresh lesson of the case and seed that were diagnosed; it is used up.
        remedy: The remedy.

    Raises:
        NeedsEditError: If ``apply_`` refuses and the change cannot be tried.
        TypeError: If the remedy has a field, or changes a setting, that is not known here: nothing that a remedy says
            is left out in silence.
    """
    _check(remedy)
    before = list(lesson.model.parameters())
    pupil = Pupil(lesson)
    swap = _apply_(remedy, pupil)
    lesson = _with_parameters(replace(lesson, model=pupil.net), before, remedy)
    trainer = {**lesson.trainer, **remedy.trainer_kwargs}
    accumulate = trainer.pop("accumulate_grad_batches", lesson.accumulate)
    lesson = replace(lesson, trainer=trainer, accumulate=accumulate)
    return Treated(lesson, watch_arguments(remedy), swap or nullcontext(), by_hand=swap is not None)


def changes_nothing(remedy: Remedy) -> bool:
    """Tell whether a remedy consists of words alone, such as to look at a batch."""
    done = (remedy.clipper, remedy.optimizer_changes, remedy.trainer_kwargs, remedy.change, watch_arguments(remedy))
    return not any(done)


def watch_arguments(remedy: Remedy) -> dict[str, Any]:
    """Return what a remedy sets in GradWatch: its clipper, and the constants of a ``code`` like ``GradWatch(...)``."""
    try:
        call = ast.parse(remedy.code.strip(), mode="eval").body
    except SyntaxError:
        call = None
    said: dict[str, Any] = {}
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "GradWatch":
        # The clipper of the code is the one in the field.
        said = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg is not None and k.arg != "clipper"}
    return {**said, **({"clipper": remedy.clipper} if remedy.clipper is not None else {})}


def reschedule(schedule: LRScheduler | None, optimizer: Optimizer) -> LRScheduler | None:
    """Make a schedule anew for an optimizer that was made anew."""
    if schedule is None:
        return None
    if not isinstance(schedule, LambdaLR):
        raise TypeError(f"the ward's schedules must be a LambdaLR. Got {type(schedule).__name__}")
    return LambdaLR(optimizer, schedule.lr_lambdas)


def _check(remedy: Remedy) -> None:
    unknown = [each.name for each in fields(remedy) if each.name not in _TOLD | _DONE and getattr(remedy, each.name)]
    if unknown:
        raise TypeError(
            f"the remedy's {unknown} must be carried out or named as words in benchmarks/ward/treatment.py, where "
            f"only {sorted(_TOLD | _DONE)} are known"
        )


def _apply_(remedy: Remedy, pupil: nn.Module) -> ExitStack | None:
    """Change the model, and return what ends the swap of functions where there has to be one."""
    try:
        remedy.apply_(pupil)
        return None
    except ValueError:
        swap = ExitStack()
    try:
        swap.enter_context(remedy.tried(pupil))
    except ValueError as error:
        raise NeedsEditError(str(error)) from error
    return swap


def _with_parameters(lesson: Lesson, before: Sequence[nn.Parameter], remedy: Remedy) -> Lesson:
    optimizers = [lesson.optimizer, *lesson.others]
    changes = dict(remedy.optimizer_changes)
    if changes.pop("params", None) == "all":
        before = [parameter for o in optimizers for group in o.param_groups for parameter in group["params"]]
    sick = min(remedy.diagnosis.optimizer, len(optimizers) - 1)
    made = [
        _anew(optimizer, before, lesson.model, changes)
        if number == sick
        else _anew(optimizer, [*before, *lesson.model.parameters()], lesson.model, {})
        for number, optimizer in enumerate(optimizers)
    ]
    return replace(lesson, optimizer=made[0], others=made[1:], schedule=reschedule(lesson.schedule, made[0]))


def _anew(
    optimizer: Optimizer, known: Sequence[nn.Parameter], model: nn.Module, changes: Mapping[str, float]
) -> Optimizer:
    """Make an optimizer anew, with what it held and whatever of the model is not known yet."""
    unknown = sorted({name for group in optimizer.param_groups for name in set(changes) - set(group)})
    if unknown:
        raise TypeError(f"{type(optimizer).__name__} has no setting {unknown}, which the remedy changes")
    made = rebuild(optimizer, {id(parameter): parameter for parameter in known}, model)
    for group in made.param_groups:
        # A schedule has multiplied the rate already, and kept the one that it began with.
        group["lr"] = group.pop("initial_lr", group["lr"])
    change_(made, changes)
    return made
