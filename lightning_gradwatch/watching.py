"""The core: what happens before a step, after it and at the end, asking each floor in turn.

It knows nothing of Lightning. Whoever drives it calls, for each batch, ``begin_batch``, then ``before_backward`` with
the loss, ``before_step`` when an optimizer is about to use its gradients and ``after_step`` when it has, and
``end_batch``; at the end, or after an error, ``finish``.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.detect.onset import Changes
from lightning_gradwatch.fault import GradientFault
from lightning_gradwatch.judging import Judge
from lightning_gradwatch.measure.history import GradientHistory
from lightning_gradwatch.measure.norms import GradientNorms
from lightning_gradwatch.measure.reading import Reader, describe_optimizer
from lightning_gradwatch.measure.snapshot import GradientSnapshot, OptimizerDescription, widened
from lightning_gradwatch.remedy.remedy import Remedy
from lightning_gradwatch.report.log import closing_text, healthy_text, onset_text, start_text, training_logger
from lightning_gradwatch.report.report import Report
from lightning_gradwatch.report.sink import Sink, SinkRow
from lightning_gradwatch.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class _Pending:
    """A step whose gradients were read and which is not yet settled."""

    snapshot: GradientSnapshot
    optimizer: OptimizerDescription
    gradient_scale: float
    scaled: bool
    measured: GradientNorms | None
    stepped: bool = False


class _Watching(Protocol):
    """What ``harmless`` guards: the core itself, or whoever drives it."""

    @property
    def core(self) -> Watch: ...


S = TypeVar("S", bound=_Watching)


def harmless(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R | None]:
    """Keep an error inside GradWatch from ending training: it is told once and GradWatch switches itself off.

    What is raised on purpose (``GradientFault``) goes through. The time spent is added up for the closing line.
    """

    @functools.wraps(method)
    def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R | None:
        core = self.core
        if core.disabled_reason is not None:
            return None
        with core.timed():
            try:
                return method(self, *args, **kwargs)
            except GradientFault:
                raise
            except Exception as error:
                core.disable(f"{type(error).__name__}: {error}", error)
                return None

    return guarded


class Watch:
    """Watches the training of one model.

    Args:
        settings: What the person has set.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.history = GradientHistory()
        self.disabled_reason: str | None = None
        self.seconds = 0.0
        self._timing = False
        self.skipped_steps = 0
        self.overflowed_steps = 0
        self._logger = training_logger()
        self._judge = Judge(settings, self._logger)
        self._sinks = SinkRow((), self._logger)
        self._reader: Reader | None = None
        self._saved: Mapping[str, Any] | None = None
        self._tells = True
        self._clips_elsewhere = False
        self._several = False
        self._picture = ""
        self._began = time.perf_counter()
        self._log_step = 0
        self._due = 0
        self._logged: dict[int, int] = {}
        self._loss: Tensor | None = None
        self._pending: dict[int, _Pending] = {}
        self._counts: dict[int, int] = {}
        self._counted: dict[int, int] = {}
        self._norms: dict[int, float] = {}
        self._consecutive_skips = 0
        # Readings with a gradient in them; thinning takes rows from the history, not from this number.
        self._num_readings = 0
        self._onsets: list[Diagnosis] = []

    @property
    def core(self) -> Watch:
        """Itself; what drives it has it under the same name."""
        return self

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add up the time spent, the outermost call only."""
        if self._timing:
            yield
            return
        self._timing, start = True, time.perf_counter()
        try:
            yield
        finally:
            self._timing = False
            self.seconds += time.perf_counter() - start

    @property
    def diagnoses(self) -> list[Diagnosis]:
        """All faults so far, oldest first."""
        return self._judge.tracker.diagnoses

    @harmless
    def start(
        self,
        model: nn.Module,
        num_optimizers: int,
        make_sinks: Callable[[], Sequence[Sink]] = tuple,
        picture: str = "",
        tells: bool = True,
        clips_elsewhere: bool = False,
    ) -> None:
        """Begin to watch.

        Args:
            model: The model.
            num_optimizers: How many optimizers train it.
            make_sinks: Makes the places where reports go; not called where nothing is told.
            picture: Where the person finds the picture, for the first and the last lines.
            tells: Whether this process tells anything: rank zero only.
            clips_elsewhere: Whether someone else clips between ``before_step`` and ``after_step``.
        """
        self._reader = Reader(model)
        self._tells, self._clips_elsewhere, self._several = tells, clips_elsewhere, num_optimizers > 1
        self._sinks = SinkRow(make_sinks() if tells else (), self._logger)
        self._picture, self._began, self.seconds = picture, time.perf_counter(), 0.0
        self._pending.clear()
        self._loss = None
        names = [layer.name for layer in self._reader.layers]
        if not self.history.layers:
            self.history = GradientHistory(names)
        if self._saved is not None:
            self._restore(self._saved, names)
            self._saved = None
        self._say(start_text(self._reader.descriptions, picture))

    @harmless
    def begin_batch(self, log_step: int, due: bool) -> None:
        """Note where the next readings belong on the loggers' axis, and whether they ask for scalars."""
        self._log_step = log_step
        self._due += due

    @harmless
    def before_backward(self, loss: Tensor) -> None:
        """Take the loss before its gradients are computed: its value, and once its graph."""
        if self._reader is not None and loss.numel() == 1:
            self._reader.read_graph(loss)
            value = loss.detach().reshape(())
            self._loss = value if self._loss is None else self._loss + value

    @harmless
    def before_step(
        self,
        number: int,
        optimizer: Optimizer,
        step: int,
        gradient_scale: float = 1.0,
        loss_scale: float = 1.0,
        scaled: bool = False,
    ) -> None:
        """Read the gradients that an optimizer is about to use, clip them, and drop the step where that is asked.

        Args:
            number: Number of the optimizer.
            optimizer: The optimizer.
            step: ``global_step`` before the step.
            gradient_scale: What a loss scaler has multiplied the gradients by.
            loss_scale: What it has multiplied the loss by.
            scaled: Whether a loss scaler watches for overflow and drops such steps itself.

        Raises:
            GradientFault: If ``on_nonfinite`` says so.
        """
        loss, self._loss = self._loss, None
        if self._counted.get(number) != step:
            # Not again for each evaluation of a closure: LBFGS comes here several times in one step.
            self._counted[number] = step
            self._counts[number] = self._counts.get(number, 0) + 1
            if number in self._pending:
                self._settle(number)
        if self._reader is None or not (self._wanted(number) or self.settings.acts):
            return
        clip = self.settings.clipper.clip_ if self.settings.clipper is not None else None
        snapshot, measured = self._reader.read(number, optimizer, step, clip, loss, gradient_scale, loss_scale)
        again = measured if self._clips_elsewhere else None
        self._pending[number] = _Pending(snapshot, describe_optimizer(optimizer), gradient_scale, scaled, again)
        if snapshot.finite or scaled:
            self._consecutive_skips = 0
        else:
            self._act_on_nonfinite(number, optimizer)

    @harmless
    def after_step(self, number: int) -> None:
        """Note that an optimizer has really stepped, and what its gradients were after clipping."""
        pending = self._pending.get(number)
        if pending is None or self._reader is None:
            return
        pending.stepped = True
        if pending.measured is not None:
            clipped = self._reader.read_again(pending.measured, pending.gradient_scale)
            pending.snapshot = replace(pending.snapshot, clipped_norms=clipped)
            # Nothing may hold on to the gradients: the person may free them before the batch ends.
            pending.measured = None

    @harmless
    def end_batch(self) -> tuple[Diagnosis, ...]:
        """Settle the steps of the batch.

        Returns:
            The faults that began in it and were told.
        """
        self._loss = None if self._pending else self._loss
        for number in list(self._pending):
            self._settle(number)
        onsets, self._onsets = tuple(self._onsets), []
        return onsets

    def finish(self) -> None:
        """Settle what is pending, close the sinks and say how it went; also after an error, ours or another's."""
        self.end_batch()
        with self.timed():
            self._sinks.close()
        self._sinks = SinkRow((), self._logger)
        share = self.seconds / max(time.perf_counter() - self._began, 1e-9)
        self._say(
            closing_text(self._num_readings, self.diagnoses, self._picture, self.seconds, share, self.disabled_reason)
        )
        self._reader = None

    def disable(self, reason: str, error: BaseException | None = None) -> None:
        """Switch off after a failure of our own: said once here, and again in the closing lines."""
        self.disabled_reason = reason
        if self._tells:
            self._logger.warning(
                "GradWatch  failed and is switched off, training goes on unwatched: %s. Please report it", reason
            )
            self._logger.debug("GradWatch  where it failed", exc_info=error)
        self._sinks.deactivate(self._log_step)

    @property
    def global_norms(self) -> dict[int, float]:
        """The newest finite global norm of each optimizer, of those whose step is not yet settled."""
        return dict(self._norms)

    @property
    def remedies(self) -> list[Remedy]:
        """Ways out of the faults that last, those of warnings first."""
        lasting = sorted(self._judge.tracker.open(), key=lambda diagnosis: diagnosis.severity == "notice")
        return [remedy for diagnosis in lasting for remedy in diagnosis.remedies]

    def each_diagnosis(self, diagnoses: Sequence[Diagnosis], call: Callable[[Diagnosis], None]) -> None:
        """Call the person's own code for each diagnosis; an error in it is told and does no harm."""
        for diagnosis in diagnoses:
            try:
                call(diagnosis)
            except Exception as error:
                self._logger.warning("GradWatch  on_diagnosis failed: %s: %s", type(error).__name__, error)

    def assert_healthy(self, symptoms: Sequence[str] | None = None, after_step: int = 0) -> None:
        """Raise AssertionError where a warning was given, or nothing was measured; see ``GradWatch``."""
        if self.disabled_reason is not None:
            raise AssertionError(f"GradWatch was switched off, so nothing is known: {self.disabled_reason}")
        if not self._num_readings:
            raise AssertionError("GradWatch saw no gradient, so nothing is known: was the model trained with it?")
        wanted = [symptom.value for symptom in Symptom] if symptoms is None else list(symptoms)
        sick = [d for d in self.diagnoses if d.severity == "warning" and d.symptom.value in wanted]
        sick = [d for d in sick if d.recovered_at is None or d.recovered_at > after_step or d.step >= after_step]
        if sick:
            num_layers = len(self.history.layers)
            raise AssertionError("\n".join(onset_text(diagnosis, num_layers) for diagnosis in sick))

    def stops(self, onsets: Sequence[Diagnosis]) -> bool:
        """Tell whether training should end because of what began in the batch."""
        wanted = set(self.settings.stop_on)
        return any(d.symptom.value in wanted and d.severity == "warning" for d in onsets)

    def _wanted(self, number: int) -> bool:
        return (self._counts[number] - 1) % self.settings.every_n_steps == 0

    def _act_on_nonfinite(self, number: int, optimizer: Optimizer) -> None:
        if self.settings.on_nonfinite == "warn":
            return
        if self.settings.on_nonfinite == "skip":
            # None, not zero: with zeros momentum and weight decay would still move the weights.
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
            self.skipped_steps += 1
            self._consecutive_skips += 1
            if self._consecutive_skips <= self.settings.max_consecutive_skips:
                return
        snapshot = self._pending[number].snapshot
        self._settle(number)
        faults = [d for d in self.diagnoses if d.symptom is Symptom.NON_FINITE and d.recovered_at is None]
        raise GradientFault(self._fault_text(snapshot), faults)

    def _fault_text(self, snapshot: GradientSnapshot) -> str:
        sick = np.flatnonzero(snapshot.present & ~np.isfinite(snapshot.norms))
        names = ", ".join(self.history.layers[column] for column in sick[:3])
        more = f" and {len(sick) - 3} more" if len(sick) > 3 else ""
        if self.settings.on_nonfinite == "raise":
            return f'step {snapshot.step}: gradients are not finite in {names}{more} (on_nonfinite="raise")'
        first = snapshot.step - self._consecutive_skips + 1
        return (
            f"{self._consecutive_skips} steps in a row had gradients that are not finite, since about step {first}, "
            f"now in {names}{more}; more than `max_consecutive_skips`={self.settings.max_consecutive_skips}"
        )

    def _settle(self, number: int) -> None:
        """Judge one pending step and tell of it."""
        pending = self._pending.pop(number)
        reader = self._reader
        assert reader is not None, "a step is pending only while watching"
        snapshot = widened(pending.snapshot, len(reader.layers))
        if np.isfinite(snapshot.global_norm):
            self._norms[number] = snapshot.global_norm
        if not self._wanted(number):
            return
        if len(reader.layers) > len(self.history.layers):
            self.history.add_layers([layer.name for layer in reader.layers[len(self.history.layers) :]])
        self.history.order = reader.order
        self.history.append(snapshot)
        self._num_readings += bool(snapshot.present.any())
        overflow = pending.scaled and not pending.stepped
        self.overflowed_steps += overflow
        changes = Changes() if overflow else self._judge.judge(snapshot, self.history, reader, pending.optimizer)
        self._onsets += changes.onsets
        report = self._report(snapshot, changes)
        self._sinks.write(report)
        self._logged[number] = self._due
        healthy, factor = (
            (False, None) if overflow else self._judge.healthy(snapshot, self.history, reader, pending.optimizer)
        )
        if healthy:
            self._say(healthy_text(report, factor))

    def _report(self, snapshot: GradientSnapshot, changes: Changes) -> Report:
        return Report(
            snapshot=snapshot,
            history=self.history,
            onsets=changes.onsets,
            recoveries=changes.recoveries,
            diagnoses=tuple(self.diagnoses),
            optimizer_label=f"optimizer_{snapshot.optimizer}" if self._several else "",
            log_step=self._log_step,
            due=self._due > self._logged.get(snapshot.optimizer, 0),
            skipped_steps=self.skipped_steps,
        )

    def _say(self, text: str) -> None:
        if self._tells:
            self._logger.info(text)

    @harmless
    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered as plain values and tensors, as a weights-only checkpoint admits them."""
        history = {
            name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            for name, value in self.history.state_dict().items()
        }
        clipper = getattr(self.settings.clipper, "state_dict", None)
        return {
            "history": history,
            "judge": self._judge.state_dict(),
            "counts": [[number, count] for number, count in self._counts.items()],
            "num_readings": self._num_readings,
            "skipped_steps": self.skipped_steps,
            "clipper": clipper() if clipper else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep what ``state_dict`` returned until the layers are known."""
        self._saved = state

    @harmless
    def _restore(self, state: Mapping[str, Any], names: Sequence[str]) -> None:
        self.history.load_state_dict(state["history"])
        self._judge.load_state_dict(state["judge"], state["history"]["layers"], names)
        self._counts = dict(state["counts"])
        self._num_readings, self.skipped_steps = state["num_readings"], state["skipped_steps"]
        load = getattr(self.settings.clipper, "load_state_dict", None)
        if load and state["clipper"] is not None:
            load(state["clipper"])
