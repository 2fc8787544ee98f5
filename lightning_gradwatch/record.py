"""What is known of a run: each settled step is remembered, judged and reported here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lightning_gradwatch.agreement import Agreement
from lightning_gradwatch.detect.diagnosis import Diagnosis
from lightning_gradwatch.detect.onset import Changes
from lightning_gradwatch.detect.precedence import by_cause
from lightning_gradwatch.judging import Judge
from lightning_gradwatch.measure.history import GradientHistory
from lightning_gradwatch.measure.reader import Reader
from lightning_gradwatch.measure.signal_history import SignalHistory, widened_signals
from lightning_gradwatch.measure.snapshot import GradientSnapshot, SignalSnapshot, widened
from lightning_gradwatch.rehearsing import MakeStage, rehearsed
from lightning_gradwatch.remedy.remedy import Remedy
from lightning_gradwatch.report.heatmap import HeatmapSink
from lightning_gradwatch.report.log import healthy_text
from lightning_gradwatch.report.picture import PictureSink
from lightning_gradwatch.report.sink import Sink, SinkRow
from lightning_gradwatch.report.step_report import StepReport
from lightning_gradwatch.report.teller import Teller
from lightning_gradwatch.settings import Settings
from lightning_gradwatch.steps import PendingStep


class Record:
    """Remembers, judges and reports.

    Args:
        settings: What the person has set.
        teller: Writes the training log.
    """

    def __init__(self, settings: Settings, teller: Teller) -> None:
        self.history = GradientHistory()
        self.probes = SignalHistory()
        # Readings with a gradient in them; thinning takes rows from the history, not from this number.
        self.num_readings = 0
        self.norms: dict[int, float] = {}
        self.sinks = SinkRow((), teller.logger)
        self._settings = settings
        self._teller = teller
        self._judge = Judge(settings, teller.warn)
        self.several = False
        # For each optimizer how often the logging interval had asked when it was last answered, and where that stands.
        self._answered: dict[int, tuple[int, int]] = {}
        # Class of each optimizer by its number, also of those of a fit before.
        self.optimizer_kinds: dict[int, str] = {}
        self._onsets: list[Diagnosis] = []
        # Whether gradients are clipped by someone else, so that no clipper is advised.
        self.clipped = False
        # While a batch ends, makes the place where remedies are tried with it.
        self.make_stage: MakeStage | None = None

    @property
    def diagnoses(self) -> list[Diagnosis]:
        """All faults so far, oldest first."""
        return self._judge.tracker.diagnoses

    @property
    def unheard(self) -> list[str]:
        """What was not judged or not told."""
        return self._judge.unheard

    @property
    def remedies(self) -> list[Remedy]:
        """Ways out of all faults, those first of the fault that is to be cured first."""
        remedies = [remedy for diagnosis in by_cause(self.diagnoses) for remedy in diagnosis.remedies]
        # Two faults of one cause have one cure.
        found: dict[tuple[str, str], Remedy] = {}
        for remedy in remedies:
            found.setdefault((remedy.title, remedy.code), remedy)
        return list(found.values())

    def open(self, sinks: Sequence[Sink]) -> None:
        """Take the places where reports go from now on."""
        self.sinks = SinkRow(sinks, self._teller.logger)

    def begin(self, names: Sequence[str], *, several: bool) -> bool:
        """Begin, or go on with the same model.

        Args:
            names: Names of the layers.
            several: Whether several optimizers train the model.

        Returns:
            Whether nothing that was known is about this model.
        """
        self.several = several
        known = self.history.layers
        anew = not known or tuple(names[: len(known)]) != known
        if anew:
            self._forget(names)
        return anew

    def _forget(self, names: Sequence[str]) -> None:
        self.history, self._judge = GradientHistory(names), Judge(self._settings, self._teller.warn)
        self.probes = SignalHistory()
        self.num_readings = 0

    def expects(self, number: int, kind: str, due_before: int) -> None:
        """Note an optimizer's step; what was asked for before its first one was not asked of it.

        Args:
            number: Number of the optimizer.
            kind: Its class.
            due_before: How often the logging interval had asked for values before this batch.
        """
        self._answered.setdefault(number, (due_before, -1))
        self.optimizer_kinds[number] = kind

    def settle(
        self, pending: PendingStep, reader: Reader, *, overflow: bool, agreement: Agreement | None, skipped_steps: int
    ) -> None:
        """Remember, judge and report a step.

        Args:
            pending: The step; it has a reading.
            reader: Knows the layers.
            overflow: Whether a loss scaler dropped it.
            agreement: Where other processes train, what is exchanged with them.
            skipped_steps: How many poisoned steps were dropped so far.
        """
        assert pending.reading is not None, "only a step that was read is settled here"
        snapshot = widened(pending.reading.snapshot(), len(reader.layers))
        if snapshot.present.any() and not overflow:
            self.norms[snapshot.optimizer] = snapshot.global_norm
        # A poisoned step on which something is done has to be told, whatever `every_n_steps` says.
        if not pending.wanted and snapshot.finite:
            return
        self._remember(snapshot, reader, agreement)
        signals = None
        if pending.probe is not None and not overflow:
            signals = widened_signals(pending.probe.snapshot(), self.history.layers)
            self.probes.append(signals)
        self.num_readings += bool(snapshot.present.any()) and not overflow
        probes = self.probes.of(snapshot.optimizer)
        self._judge.clipped = self.clipped
        changes = (
            Changes() if overflow else self._judge.judge(snapshot, self.history, probes, reader, pending.optimizer)
        )
        changes = self._rehearsed(changes)
        self._onsets += changes.onsets
        report = self._report(snapshot, changes, pending, reader, skipped_steps, signals)
        self.sinks.write(report)
        self._answered[snapshot.optimizer] = (pending.due, pending.log_step if report.due else -1)
        if overflow:
            return
        verdict = self._judge.healthy(snapshot, self.history, probes, reader, pending.optimizer)
        if verdict is not None:
            names = [about.name for about in reader.descriptions if about.trainable]
            self._teller.say(healthy_text(report, names, verdict.factor, verdict.update_ratio))

    def _rehearsed(self, changes: Changes) -> Changes:
        if self.make_stage is None or not changes.onsets:
            return changes
        onsets = tuple(rehearsed(diagnosis, self.make_stage) for diagnosis in changes.onsets)
        for old, new in zip(changes.onsets, onsets, strict=True):
            if new is not old:
                self._judge.tracker.exchange(old, new)
        return replace(changes, onsets=onsets)

    def take_onsets(self) -> tuple[Diagnosis, ...]:
        """Return the faults that began and were told since the last call."""
        onsets, self._onsets = tuple(self._onsets), []
        return onsets

    def _remember(self, snapshot: GradientSnapshot, reader: Reader, agreement: Agreement | None) -> None:
        if len(reader.layers) > len(self.history.layers):
            self.history.add_layers([layer.name for layer in reader.layers[len(self.history.layers) :]])
            self.probes.widen(self.history.layers)
        self.history.order = reader.order
        if agreement is not None:
            # Every process judges by the mean of all losses, once it is known.
            agreement.note(snapshot.optimizer, snapshot.step, snapshot.loss)
            snapshot = replace(snapshot, loss=float("nan"))
        self.history.append(snapshot)

    def _report(
        self,
        snapshot: GradientSnapshot,
        changes: Changes,
        pending: PendingStep,
        reader: Reader,
        skipped_steps: int,
        signals: SignalSnapshot | None,
    ) -> StepReport:
        due_before, logged_at = self._answered[snapshot.optimizer]
        return StepReport(
            snapshot=snapshot,
            history=self.history,
            onsets=changes.onsets,
            recoveries=changes.recoveries,
            diagnoses=tuple(self.diagnoses),
            num_readings=self.num_readings,
            optimizer_label=f"optimizer_{snapshot.optimizer}" if self.several else "",
            log_step=pending.log_step,
            # Of several steps in one batch the last one counts.
            due=pending.due > due_before or pending.log_step == logged_at,
            skipped_steps=skipped_steps,
            clips=self._settings.clipper is not None,
            signals=signals,
            muted=changes.muted,
            descriptions=reader.descriptions,
            optimizer_kind=pending.optimizer.kind,
        )

    def close(self, state: str, reason: str, picture: str) -> str:
        """Close the sinks.

        Args:
            state: How the run ended.
            reason: Why it ended like this, empty where there is nothing to say.
            picture: Where the picture is.

        Returns:
            Where it is, and whether all of it could be written.
        """
        self.sinks.end(state, reason)
        self.sinks.close()
        failed = sum(any(isinstance(sink, kind) for sink in self.sinks.failed) for kind in (PictureSink, HeatmapSink))
        self.sinks = SinkRow((), self._teller.logger)
        return (picture, f"{picture} (not all of it, see above)", "could not be written, see above")[failed]

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered as plain values and tensors, as a weights-only checkpoint admits them."""
        history = {
            name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            for name, value in self.history.state_dict().items()
        }
        return {
            "history": history,
            "probes": self.probes.state_dict(),
            "judge": self._judge.state_dict(),
            "num_readings": self.num_readings,
        }

    def load_state_dict(self, state: Mapping[str, Any], names: Sequence[str]) -> None:
        """Take back what was remembered, or nothing of it where an error is raised.

        Args:
            state: What ``state_dict`` returned, perhaps of a model with other layers.
            names: Names of the layers now.
        """
        self._forget(names)
        try:
            self.history.load_state_dict(state["history"])
            self.probes.load_state_dict(state["probes"], names)
            self._judge.load_state_dict(state["judge"], state["history"]["layers"], names)
            self.num_readings = state["num_readings"]
        except BaseException:
            self._forget(names)
            raise
