"""The core: what happens before a step, after it and at the end, asking each floor in turn.

It knows nothing of Lightning. Whoever drives it calls, for each batch, ``begin_batch``, then ``before_backward`` with
the loss, ``before_step`` when an optimizer is about to use its gradients and ``after_step`` when it has, and
``end_batch``; at the end, or after an error, ``finish``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.detect.onset import Changes
from lightning_gradwatch.fault import GradientFault
from lightning_gradwatch.harmless import harmless
from lightning_gradwatch.judging import Judge
from lightning_gradwatch.measure.history import GradientHistory
from lightning_gradwatch.measure.norms import GradientNorms
from lightning_gradwatch.measure.reading import Reader, describe_optimizer
from lightning_gradwatch.measure.snapshot import GradientSnapshot, widened
from lightning_gradwatch.poisoned import PoisonedSteps
from lightning_gradwatch.remedy.remedy import Remedy
from lightning_gradwatch.report.health import assert_healthy
from lightning_gradwatch.report.log import closing_text, healthy_text, start_text, training_logger
from lightning_gradwatch.report.report import Report
from lightning_gradwatch.report.sink import Sink, SinkRow
from lightning_gradwatch.settings import Settings
from lightning_gradwatch.steps import LossScaler, PendingStep, Steps

# Raised when what a checkpoint remembers changes its form.
_STATE_VERSION = 1


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
        self._steps = Steps(settings.every_n_steps)
        self._logger = training_logger()
        self._judge = Judge(settings, self._warn)
        self._poisoned = PoisonedSteps(settings.on_nonfinite, settings.max_consecutive_skips)
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
        self._norms: dict[int, float] = {}
        self._acted = False
        self._helpless = False
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
        self._steps.pending.clear()
        self._loss = None
        names = [layer.name for layer in self._reader.layers]
        if list(self.history.layers[: len(names)]) != names:
            # Another model: nothing that is known is about it.
            self.history, self._judge = GradientHistory(names), Judge(self.settings, self._warn)
            self._steps = Steps(self.settings.every_n_steps)
            self._num_readings = 0
        if self._saved is not None:
            self._restore_or_start_afresh(self._saved, names)
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

    def before_step(
        self, number: int, optimizer: Optimizer, step: int, scaler: LossScaler | None = None, unscales: bool = False
    ) -> None:
        """Read the gradients that an optimizer is about to use, clip them, and drop the step where that is asked.

        Args:
            number: Number of the optimizer.
            optimizer: The optimizer.
            step: ``global_step`` before the step.
            scaler: What scales the loss and drops steps that overflow, None where nothing does.
            unscales: Whether the optimizer unscales its gradients itself, inside ``step``.

        Raises:
            GradientFault: If ``on_nonfinite`` says so.
        """
        loss, self._loss = self._loss, None
        self._acted = False
        self._read_step(number, optimizer, step, loss, scaler, unscales)
        if self.settings.acts and not self._acted:
            self._act_unwatched(number, optimizer, step, scaled=scaler is not None)

    @harmless
    def _read_step(
        self,
        number: int,
        optimizer: Optimizer,
        step: int,
        loss: Tensor | None,
        scaler: LossScaler | None,
        unscales: bool,
    ) -> None:
        if self._steps.is_new(number, step):
            if number in self._steps.pending:
                self._settle(number)
            self._steps.begin(number, step)
        wanted = self._steps.wanted(number)
        if self._reader is None or not (wanted or self.settings.acts):
            return
        scale = float(scaler.get_scale()) if scaler is not None else 1.0
        gradient_scale = scale if unscales else 1.0
        snapshot, measured = self._reader.read(number, optimizer, step, self._clip, loss, gradient_scale, scale)
        self._acted = True
        # A poisoned step on which something is done has to be told, whatever `every_n_steps` says.
        wanted = wanted or not snapshot.finite
        again = measured if self._clips_elsewhere else None
        about = describe_optimizer(optimizer)
        self._steps.pending[number] = PendingStep(
            snapshot, about, gradient_scale, scaler is not None, unscales, wanted, again
        )
        if snapshot.finite or scaler is not None:
            self._poisoned.clean()
        elif self._poisoned.handle_(optimizer):
            reason = self._poisoned.reason(snapshot, [layer.name for layer in self._reader.layers])
            self._settle(number)
            faults = [d for d in self.diagnoses if d.symptom is Symptom.NON_FINITE and d.recovered_at is None]
            raise GradientFault(reason, faults)

    def _act_unwatched(self, number: int, optimizer: Optimizer, step: int, *, scaled: bool) -> None:
        """Go on clipping and dropping after GradWatch had to switch itself off: that was asked for by name."""
        if self._reader is None or self._helpless:
            return
        try:
            snapshot, _ = self._reader.read(number, optimizer, step, self._clip)
        except Exception as error:
            self._helpless = True
            self._warn(f"cannot clip or drop steps any more, training goes on without: {type(error).__name__}: {error}")
            return
        if snapshot.finite or scaled:
            self._poisoned.clean()
        elif self._poisoned.handle_(optimizer):
            raise GradientFault(self._poisoned.reason(snapshot, [layer.name for layer in self._reader.layers]), ())

    @property
    def _clip(self) -> Callable[[GradientNorms], Tensor] | None:
        return None if self.settings.clipper is None else self.settings.clipper.clip_

    @harmless
    def after_step(self, number: int) -> None:
        """Note that an optimizer has really stepped, and what its gradients were after clipping."""
        pending = self._steps.pending.get(number)
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
        self._loss = None if self._steps.pending else self._loss
        for number in list(self._steps.pending):
            self._settle(number)
        onsets, self._onsets = tuple(self._onsets), []
        return onsets

    def finish(self) -> tuple[Diagnosis, ...]:
        """Settle what is pending, close the sinks and say how it went; also after an error, ours or another's.

        Returns:
            The faults that were told and that no ``end_batch`` has returned.
        """
        onsets = self.end_batch() or ()
        with self.timed():
            self._sinks.close()
        self._sinks = SinkRow((), self._logger)
        share = self.seconds / max(time.perf_counter() - self._began, 1e-9)
        self._say(
            closing_text(
                self._num_readings,
                self.overflowed_steps,
                self.diagnoses,
                self._picture,
                f"{self.seconds:.1f} s, {share:.1%} of the run",
                self.disabled_reason,
            )
        )
        self._reader = None
        return onsets

    def disable(self, reason: str, error: BaseException | None = None) -> None:
        """Switch off after a failure of our own: said once here, and again in the closing lines."""
        self.disabled_reason = reason
        # Nothing will settle these any more, and they may refer to gradients.
        self._steps.pending.clear()
        self._loss = None
        still = "; `clipper` and `on_nonfinite` go on" if self.settings.acts and self._reader is not None else ""
        self._warn(f"failed and is switched off, training goes on unwatched{still}: {reason}")
        self._logger.debug("GradWatch  where it failed", exc_info=error)
        self._sinks.deactivate(self._log_step)

    def refuse(self, reason: str) -> None:
        """Say that this run cannot be watched, and leave it alone."""
        self.disabled_reason = reason
        self._warn(f"does not watch this run: {reason}")

    def _warn(self, text: str) -> None:
        if self._tells:
            self._logger.warning("GradWatch  %s", text)

    @property
    def global_norms(self) -> dict[int, float]:
        """The newest global norm of each optimizer; the last finite one where a loss scaler drops the step."""
        return dict(self._norms)

    @property
    def skipped_steps(self) -> int:
        """How many poisoned steps were dropped."""
        return self._poisoned.num_skipped

    @property
    def overflowed_steps(self) -> int:
        """How many steps a loss scaler has dropped."""
        return self._steps.num_overflows

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
                self._warn(f"on_diagnosis failed: {type(error).__name__}: {error}")

    def assert_healthy(self, symptoms: Sequence[str] | None = None, after_step: int = 0) -> None:
        """Raise AssertionError where a warning was given, or nothing was measured; see ``GradWatch``."""
        if self.disabled_reason is not None:
            raise AssertionError(f"GradWatch was switched off, so nothing is known: {self.disabled_reason}")
        assert_healthy(self.diagnoses, self._num_readings, len(self.history.layers), symptoms, after_step)

    def stops(self, onsets: Sequence[Diagnosis]) -> bool:
        """Tell whether training should end because of what began in the batch."""
        wanted = set(self.settings.stop_on)
        return any(d.symptom.value in wanted and d.severity == "warning" for d in onsets)

    def _settle(self, number: int) -> None:
        """Judge one pending step and tell of it."""
        pending = self._steps.pending.pop(number)
        reader = self._reader
        assert reader is not None, "a step is pending only while watching"
        snapshot = widened(pending.snapshot, len(reader.layers))
        overflow = self._steps.overflows(number, pending)
        if snapshot.present.any() and not overflow:
            self._norms[number] = snapshot.global_norm
        if not pending.wanted:
            return
        if len(reader.layers) > len(self.history.layers):
            self.history.add_layers([layer.name for layer in reader.layers[len(self.history.layers) :]])
        self.history.order = reader.order
        self.history.append(snapshot)
        self._num_readings += bool(snapshot.present.any()) and not overflow
        changes = Changes() if overflow else self._judge.judge(snapshot, self.history, reader, pending.optimizer)
        self._onsets += changes.onsets
        report = self._report(snapshot, changes)
        self._sinks.write(report)
        self._logged[number] = self._due
        healthy, factor = (
            (False, None) if overflow else self._judge.healthy(snapshot, self.history, reader, pending.optimizer)
        )
        if healthy:
            self._say(healthy_text(report, [about.name for about in reader.descriptions if about.trainable], factor))

    def _report(self, snapshot: GradientSnapshot, changes: Changes) -> Report:
        return Report(
            snapshot=snapshot,
            history=self.history,
            onsets=changes.onsets,
            recoveries=changes.recoveries,
            diagnoses=tuple(self.diagnoses),
            num_readings=self._num_readings,
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
            "version": _STATE_VERSION,
            "history": history,
            "judge": self._judge.state_dict(),
            "steps": self._steps.state_dict(),
            "num_readings": self._num_readings,
            "skipped_steps": self.skipped_steps,
            "clipper": clipper() if clipper else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep what ``state_dict`` returned until the layers are known."""
        self._saved = state

    def _restore_or_start_afresh(self, state: Mapping[str, Any], names: Sequence[str]) -> None:
        try:
            self._restore(state, names)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            self.history = GradientHistory(names)
            self._judge = Judge(self.settings, self._warn)
            self._warn(f"starts afresh, what this checkpoint remembers is of another kind: {error!r}")

    def _restore(self, state: Mapping[str, Any], names: Sequence[str]) -> None:
        if state["version"] != _STATE_VERSION:
            raise ValueError(f"version {state['version']}, expected {_STATE_VERSION}")
        self.history.load_state_dict(state["history"])
        self._judge.load_state_dict(state["judge"], state["history"]["layers"], names)
        self._steps.load_state_dict(**state["steps"])
        self._num_readings = state["num_readings"]
        self._poisoned.num_skipped = state["skipped_steps"]
        load = getattr(self.settings.clipper, "load_state_dict", None)
        if load and state["clipper"] is not None:
            load(state["clipper"])
