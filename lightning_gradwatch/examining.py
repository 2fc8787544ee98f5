"""A model examined once, outside of any training: a few passes, what is wrong, and ways out that were tried."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from lightning_gradwatch.detect.diagnosis import Diagnosis, Observations
from lightning_gradwatch.detect.profile import depth_profile
from lightning_gradwatch.detect.progress import RESCALING_OPTIMIZERS
from lightning_gradwatch.detect.start import NUM_READINGS, start_rules
from lightning_gradwatch.detect.update import UpdateRule
from lightning_gradwatch.judging import Judge
from lightning_gradwatch.measure.history import GradientHistory
from lightning_gradwatch.measure.one_pass import LossClosure, OnePass, Passes
from lightning_gradwatch.measure.reader import Reader, describe_optimizer
from lightning_gradwatch.measure.signal_history import SignalHistory
from lightning_gradwatch.measure.snapshot import OptimizerDescription, SignalSnapshot
from lightning_gradwatch.remedy.copying import NotCopiedError, copy_of
from lightning_gradwatch.remedy.rebuilding import NotRebuiltError, rebuild, twins_of
from lightning_gradwatch.remedy.rehearsal import rehearse as rehearse_remedies
from lightning_gradwatch.remedy.traceless import traceless
from lightning_gradwatch.remedy.trial import Stage
from lightning_gradwatch.report.report import Report
from lightning_gradwatch.settings import Settings

# What the rehearsal may take: the answer shall come in five seconds.
_SECONDS = 3.0
# Between two passes, where no optimizer is known: a usual step, so that what starts at zero (LoRA, ReZero) leaves it.
_USUAL_RATE = 1e-3


def examine(
    model: nn.Module, loss_closure: LossClosure, *, optimizer: Optimizer | None = None, rehearse: bool = True
) -> Report:
    """Tell whether gradients vanish or explode in a model, why, and what cures it, from a few passes.

    Runs on a copy: ``loss_closure(copy)`` forward and backward three times, with a small step in between, and judges
    what it sees by the rules that need no training run. Then each remedy is tried on a copy of its own, in ten steps
    where three seconds are enough for them. Where the model cannot be copied it is run itself, without steps, and
    nothing is rehearsed. The model, its gradients, buffers and modes, the optimizer and every random state are
    afterwards what they were, bit for bit, also when the closure raises. Of a model that cannot be copied one thing is
    not put back: what its forward pass writes deeper than into its attributes, and the lists, dictionaries, sets and
    tensors that they name.

    No loss history is known, so a poor depth profile is a warning by itself, unless ``optimizer`` rescales each step
    and may cope.

    Args:
        model: A model with parameters to train, in the mode in which it is to be examined.
        loss_closure: Takes a model and returns its loss on some batch, a tensor of one number.
        optimizer: The optimizer that will train it. With it, learning rates are judged and remedies are tried with
            its class and settings; without it, how far a step goes is not judged, and remedies are tried with
            ``Adam(lr=1e-3)``.
        rehearse: Whether remedies are tried.

    Returns:
        What was found.

    Raises:
        TypeError: If the model is no module, the optimizer none, the closure cannot be called or returns no tensor.
        ValueError: If nothing can be trained, or the closure returns no scalar or one that does not depend on the
            model.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> layers = [part for _ in range(12) for part in (nn.Linear(16, 16), nn.Sigmoid())]
        >>> model = nn.Sequential(*layers, nn.Linear(16, 1))
        >>> x, y = torch.randn(32, 16), torch.randn(32, 1)
        >>> report = examine(model, lambda model: nn.functional.mse_loss(model(x), y))
        >>> report.healthy, [diagnosis.rule for diagnosis in report.diagnoses], report.factor < 0.25
        (False, ['vanishing.depth'], True)
        >>> report.remedies[0].effect["first_over_last_after"] > 0.01
        True
    """
    _check(model, loss_closure, optimizer)
    with _untouched(model), torch.inference_mode(False), torch.enable_grad():
        try:
            subject, note = copy_of(model), ""
        except NotCopiedError as reason:
            subject, note = model, f"examined without a copy and without steps: {reason}"
        found = _Examination(model, subject, loss_closure, optimizer).run(notes=(note,) if note else ())
        if not rehearse or not found.remedies:
            return found
        if note:
            return replace(found, notes=(*found.notes, "remedies are computed from the model, and not rehearsed"))
        return _rehearsed(found, Stage(model, loss_closure, optimizer, seconds=_SECONDS))


class _Examination:
    """The passes over one model and what is judged of them."""

    def __init__(
        self, model: nn.Module, subject: nn.Module, loss_closure: LossClosure, optimizer: Optimizer | None
    ) -> None:
        self._steps = subject is not model
        self._notes: list[str] = []
        self._reader = Reader(subject)
        self._description = OptimizerDescription("") if optimizer is None else describe_optimizer(optimizer)
        self._known = optimizer is not None
        self._passes = Passes(
            self._reader,
            loss_closure,
            self._optimizer(model, subject, optimizer),
            original=frozenset(map(id, model.parameters())) if self._steps else frozenset(),
        )

    def _optimizer(self, model: nn.Module, subject: nn.Module, optimizer: Optimizer | None) -> Optimizer:
        trained = [parameter for parameter in subject.parameters() if parameter.requires_grad]
        if optimizer is not None:
            if not self._steps:
                return optimizer
            try:
                return rebuild(optimizer, twins_of(model, subject), subject)
            except NotRebuiltError as reason:
                self._notes.append(f"judged without the optimizer: {reason}")
                self._known = False
                self._description = OptimizerDescription("")
        return torch.optim.Adam(trained, lr=_USUAL_RATE)

    def run(self, notes: Sequence[str]) -> Report:
        history, probes = GradientHistory([layer.name for layer in self._reader.layers]), SignalHistory()
        began = time.perf_counter()
        seen = first = self._passes.measured(0, moves=self._steps)
        # The rules want to see everything twice or more; of a large model they see the same pass again, and of one
        # that its first step has overwritten.
        again = self._steps and time.perf_counter() - began < _SECONDS / NUM_READINGS and not self._overwritten(first)
        rescaled = self._description.kind in RESCALING_OPTIMIZERS
        rules = start_rules(rescaled=rescaled, steps=again)
        judge = Judge(Settings(rules=rules, patience=1), self._notes.append)
        for step in range(NUM_READINGS if first.gradients.finite else 1):
            if step:
                seen = self._passes.measured(step, moves=self._known or step == 1) if again else _repeated(seen, step)
            self._remember(seen, history, probes)
            judge.judge(seen.gradients, history, probes.of(0), self._reader, self._description)
            again = again and not any(_overwrites(diagnosis) for diagnosis in judge.tracker.diagnoses)
        # Such a step is over at once, and what it has done is not.
        found = [replace(d, recovered_at=None) for d in judge.tracker.diagnoses if _overwrites(d)]
        return self._report(
            [*found, *(d for d in judge.tracker.open() if not _overwrites(d))], history, probes, first.loss, notes
        )

    def _remember(self, seen: OnePass, history: GradientHistory, probes: SignalHistory) -> None:
        history.order = self._reader.order
        history.append(seen.gradients)
        if seen.signals is not None:
            probes.append(seen.signals if self._known and self._steps else _unmoved(seen.signals))

    def _overwritten(self, first: OnePass) -> bool:
        """Tell whether the first step has gone so far that nothing later says anything of the model."""
        history, probes = GradientHistory([layer.name for layer in self._reader.layers]), SignalHistory()
        self._remember(first, history, probes)
        with np.errstate(all="ignore"):
            return any(UpdateRule()(self._observations(history, probes)))

    def _report(
        self,
        found: Sequence[Diagnosis],
        history: GradientHistory,
        probes: SignalHistory,
        loss: float,
        notes: Sequence[str],
    ) -> Report:
        diagnoses = sorted(found, key=lambda diagnosis: diagnosis.severity == "notice")
        told = Report(
            layers=history.layers,
            signal=np.full(len(history.layers), np.nan),
            delta=np.full(len(history.layers), np.nan),
            loss=loss,
            diagnoses=tuple(diagnoses),
            remedies=tuple(remedy for diagnosis in diagnoses for remedy in diagnosis.remedies),
            notes=(*notes, *self._notes),
        )
        if not len(probes):
            note = "the signal probe saw no gradient: parameter gradients only"
            if not history.present.any():
                note = "no gradient reached any layer: does `loss_closure` use the model that it is given?"
            return replace(told, notes=(*told.notes, note))
        first = probes[0]
        profile = depth_profile(self._observations(history, probes), first)
        called = first.order.tolist()
        order = [*called, *(column for column in range(len(history.layers)) if column not in set(called))]
        return replace(
            told,
            layers=tuple(history.layers[column] for column in order),
            signal=first.signal[order],
            delta=first.delta[order],
            factor=profile.factor if profile else math.nan,
            r2=profile.r2 if profile else math.nan,
        )

    def _observations(self, history: GradientHistory, probes: SignalHistory) -> Observations:
        return Observations(
            step=0,
            optimizer=0,
            optimizer_description=self._description,
            layers=self._reader.descriptions,
            order=np.array(history.order, dtype=np.int64),
            gradients=history.readings(0),
            loss=history.losses_of(0),
            signals=probes.of(0),
        )


def _overwrites(diagnosis: Diagnosis) -> bool:
    return diagnosis.rule == "exploding.update"


def _repeated(seen: OnePass, step: int) -> OnePass:
    signals = None if seen.signals is None else replace(seen.signals, step=step)
    return OnePass(seen.loss, replace(seen.gradients, step=step), signals)


def _unmoved(signals: SignalSnapshot) -> SignalSnapshot:
    """Leave out how far a step went that nobody will make."""
    return replace(signals, update_ratio=np.full_like(signals.update_ratio, np.nan))


def _rehearsed(found: Report, stage: Stage) -> Report:
    rehearsal = rehearse_remedies(found.remedies, stage)
    ranked = dict(zip(rehearsal.order, rehearsal.remedies, strict=True))
    start, diagnoses = 0, []
    for diagnosis in found.diagnoses:
        end = start + len(diagnosis.remedies)
        own = tuple(remedy for place, remedy in ranked.items() if start <= place < end)
        diagnoses.append(replace(diagnosis, remedies=own))
        start = end
    return replace(
        found, diagnoses=tuple(diagnoses), remedies=rehearsal.remedies, notes=(*found.notes, *rehearsal.notes)
    )


def _check(model: nn.Module, loss_closure: LossClosure, optimizer: Optimizer | None) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module. Got {type(model).__name__}")
    if not callable(loss_closure):
        raise TypeError(
            f"`loss_closure` must be callable: it takes the model and returns the loss, as `lambda model: "
            f"loss(model(inputs), targets)`. Got {type(loss_closure).__name__}"
        )
    if not (optimizer is None or isinstance(optimizer, Optimizer)):
        came = f"the class {optimizer.__name__}" if isinstance(optimizer, type) else type(optimizer).__name__
        raise TypeError(
            "`optimizer` must be a torch.optim.Optimizer that holds the model's parameters, as "
            f"`torch.optim.SGD(model.parameters(), lr=0.1)`. Got {came}"
        )
    parameters = dict(model.named_parameters())
    meta = next((name for name, parameter in parameters.items() if parameter.device.type == "meta"), "")
    if meta:
        raise ValueError(
            f"`model` must have numbers: {meta} is on the device meta. Use model.to_empty(device=...) and initialize "
            "it first"
        )
    if not any(parameter.requires_grad for parameter in parameters.values()):
        what = "is frozen: set requires_grad_(True)" if parameters else "has no parameters: there is nothing to train"
        raise ValueError(f"`model` must have a parameter to train. This one {what}")
    if optimizer is not None:
        own = set(map(id, parameters.values()))
        if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
            raise ValueError("`optimizer` must hold parameters of `model`. It holds none of them")


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Give a model back what it was, with its gradients and flags, whatever the block has done."""
    kept = [(parameter, parameter.grad, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with traceless(model):
            yield
    finally:
        for parameter, gradient, requires in kept:
            parameter.requires_grad_(requires)
            parameter.grad = gradient
