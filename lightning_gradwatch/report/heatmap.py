"""The data of the heatmap: every reading, and what was diagnosed, for TensorBoard's Gradients tab and ``gradwatch``."""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary

from lightning_gradwatch import __version__
from lightning_gradwatch.detect.diagnosis import Diagnosis, plain
from lightning_gradwatch.measure.snapshot import BoolArray, FloatArray
from lightning_gradwatch.report.pyramid import Pyramid, Record
from lightning_gradwatch.report.step_report import StepReport
from lightning_gradwatch.report.summaries import EventFile, OwnTag
from lightning_gradwatch.report.tables import Row, resampled, rows_of, time_steps
from lightning_gradwatch.viewer.metadata import EventsMetadata, SeriesMetadata
from lightning_gradwatch.viewer.windows import MAX_REACH, bundle

# The tab asks for news every 5 to 15 seconds; TensorBoard's writer alone would wait for two minutes.
FLUSH_SECONDS = 10.0
# After a merge everything is written again: so many records with each reading, not a thousand at once. Ours: a record
# of 500 layers takes 0.5 ms.
_AT_ONCE = 4
# Single readings go into one record of the file, at the latest when it is brought to disk. Ours, 20 layers: a reading
# costs 0.1 ms so, and 0.2 ms in a record of its own, much of it for TensorBoard's checksum in Python.
_TOGETHER = 32
# A model that gets new layers over and over would have everything written again each time: those that come later are
# left out. Ours: growing networks and late optimizers need a few.
_MAX_FORMS = 16
# Until the end of the run, which tells the reason.
_SWITCHED_OFF = "the training log says why"
# What a person has to do, beside what `Diagnosis.to_dict` tells of a remedy.
_OF_REMEDIES = ("where", "needs_restart", "optimizer_changes", "trainer_kwargs")


class HeatmapSink:
    """Write every reading's norms, what probes saw, and diagnoses, in a form whose size is bounded.

    Nothing of a layer is done in Python: a reading costs some numpy on ``[num_layers]``, and a record of the file for
    each 32 of them.

    Args:
        file: Where it is written.
        vanishing_threshold: The person's own, anchors the colors.
        exploding_threshold: The person's own, anchors the colors.
    """

    def __init__(
        self, file: EventFile, vanishing_threshold: float | None = None, exploding_threshold: float | None = None
    ) -> None:
        self._file = file
        self._thresholds = (vanishing_threshold, exploding_threshold)
        # Not a random number of a kind that training could use.
        self._session, self._started = uuid.uuid4().hex[:8], time.time()
        about = EventsMetadata(self._session, self._started)
        self._events = OwnTag(about.tag, about.content())
        self._num_events = 0
        self._series: dict[tuple[str, int, str], _Series] = {}
        self._step = 0
        self._num_readings = 0
        self._ending: dict[str, str] = {"reason": "completed"}
        # Faults as they stand now, and how many layers each had when it was told last.
        self._faults: Sequence[Diagnosis] = ()
        self._num_layers: dict[tuple[str, int, int], int] = {}
        self._unflushed = False
        self._next_flush = 0.0

    def write(self, report: StepReport) -> None:
        """Take a reading."""
        self._step, self._num_readings = report.snapshot.step, report.num_readings
        if not self._num_events:
            self._tell("start", self._step, version=__version__, num_layers=len(report.history.layers))
            # What lasts since before a checkpoint was told in the session before, and may still grow.
            self._num_layers = {_key(diagnosis): len(diagnosis.layers) for diagnosis in report.diagnoses}
        # What belongs to one step goes into one record of the file: a record costs a message to the thread that writes.
        shared: dict[int, Summary] = {}
        for row in rows_of(report):
            self._of(row, report).add(self._step, row, shared)
        for step, summary in shared.items():
            self._file.add(summary, step)
        self._unflushed = True
        muted = [(diagnosis, {"muted": True}) for diagnosis in report.muted]
        for diagnosis, more in [*((diagnosis, {}) for diagnosis in report.onsets), *muted]:
            self._tell("onset", diagnosis.step, diagnosis={**told(diagnosis), **more})
        self._num_layers |= {_key(diagnosis): len(diagnosis.layers) for diagnosis in report.onsets}
        self._faults = report.diagnoses
        for diagnosis in report.recoveries:
            self._tell("recovery", diagnosis.recovered_at or self._step, diagnosis=told(diagnosis))
        if report.onsets:
            self._close_windows(report.snapshot.optimizer)
            self._to_disk()

    def flush(self) -> None:
        """Have everything on disk, where that was not done lately."""
        if self._unflushed and time.monotonic() >= self._next_flush:
            self._to_disk()

    def deactivate(self, log_step: int) -> None:
        """Tell that nothing more will come, and have everything on disk: the run may go on for days."""
        # Without a reading there is nothing else to tell, and a run of which nothing is told is taken for none.
        self._step = self._step if self._num_events else log_step
        self._close_windows()
        self._tell("off", self._step, num_readings=self._num_readings, disabled=_SWITCHED_OFF)
        self._to_disk()

    def end(self, reason: str, detail: str = "") -> None:
        """Note how the run has ended.

        Args:
            reason: ``"completed"``, ``"error"`` or ``"switched off"``.
            detail: What failed.
        """
        detailed = {"error": "error", "switched off": "disabled"}.get(reason)
        self._ending = {"reason": reason} | ({detailed: detail or reason} if detailed else {})

    def close(self) -> None:
        """Write what is pending and how the run has ended; nothing where nothing was measured and nothing failed."""
        if self._num_events:
            self._close_windows()
            self._tell_growth()
            self._tell_lasting()
            # Readings with a gradient in them: without any nothing is known, and no fault seen is no good news.
            self._tell("end", self._step, num_readings=self._num_readings, **self._ending)
            self._to_disk()
            self._file.close()

    def _tell(self, event: str, step: int, **more: Any) -> None:
        values = {"event": event, "step": step, "time": time.time(), **more}
        # Events are numbered: of two at one step TensorBoard would forget the first.
        self._file.add(self._events.text(values), self._num_events)
        self._num_events += 1

    def _of(self, row: Row, report: StepReport) -> _Series:
        key = row.quantity, report.snapshot.optimizer, row.module
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = _Series(self._file, self._about(row, report))
        elif not row.module:
            series.follow(report)
        return series

    def _about(self, row: Row, report: StepReport) -> SeriesMetadata:
        history = report.history
        names = time_steps(len(row.values)) if row.module else history.layers
        vanishing, exploding = self._thresholds if row.quantity == "norms" else (None, None)
        return SeriesMetadata(
            quantity=row.quantity,
            optimizer=report.snapshot.optimizer,
            session=self._session,
            started=self._started,
            resolution=0,
            layers=tuple(names),
            order=tuple(range(len(names))) if row.module else tuple(history.order),
            kinds=() if row.module else _kinds(report),
            module=row.module,
            optimizer_label=report.optimizer_kind,
            vanishing_threshold=vanishing,
            exploding_threshold=exploding,
        )

    def _close_windows(self, optimizer: int | None = None) -> None:
        for (_, number, _), series in self._series.items():
            if optimizer in (None, number):
                series.close_window()

    def _tell_growth(self) -> None:
        """Tell of layers that have joined a fault since it was told."""
        for fault in self._faults:
            if self._num_layers.get(_key(fault), len(fault.layers)) < len(fault.layers):
                self._num_layers[_key(fault)] = len(fault.layers)
                self._tell("update", fault.step, diagnosis=told(fault))

    def _tell_lasting(self) -> None:
        """Tell, before the end, of a fault that came back unheard after many onsets: it is not over."""
        for fault in self._faults:
            unheard = fault.count > 1 and fault.recovered_at is None and _key(fault) not in self._num_layers
            if unheard and fault.severity == "warning":
                self._num_layers[_key(fault)] = len(fault.layers)
                self._tell("onset", fault.step, diagnosis=told(fault))

    def _to_disk(self) -> None:
        self._tell_growth()
        for series in self._series.values():
            series.send()
        self._file.flush()
        self._unflushed, self._next_flush = False, time.monotonic() + FLUSH_SECONDS


class _Series:
    """One series: what is remembered of it, and what is still to be written.

    Args:
        file: Where it is written.
        about: What it is, at resolution 0.
    """

    def __init__(self, file: EventFile, about: SeriesMetadata) -> None:
        self._file = file
        self._about = about
        self._rows = about.layers, about.order
        self._pyramid = Pyramid(len(about.layers))
        self._pending: deque[Record] = deque()
        self._forms = 1
        self._tags: dict[str, OwnTag] = {}
        self._tag = self._tagged()

    def add(self, step: int, row: Row, shared: dict[int, Summary]) -> None:
        """Take a reading.

        Args:
            step: Its step.
            row: What was measured.
            shared: By their step, summaries that the caller writes. This series puts its record there where it has one
                to write, no more: those of a tag have to stay in order.
        """
        self._take(self._pyramid.add(step, *self._fitted(row.values, row.present)))
        single = bool(self._pending) and len(self._pending[-1].table) == 1
        if len(self._pending) == (_TOGETHER if single else 1):
            record = self._next()
            self._tag.table(record.table, shared.setdefault(record.step, Summary()))
        elif not single or len(self._pending) > _TOGETHER:
            self.send(_AT_ONCE)

    def follow(self, report: StepReport) -> None:
        """Begin another tag with all that is known where layers have appeared or are run in another order."""
        layers, order = report.history.layers, report.history.order
        # Identity first: these are the same objects nearly always, and there may be thousands of them.
        if (layers is self._rows[0] and order is self._rows[1]) or self._forms >= _MAX_FORMS:
            return
        changed = (layers, order) != self._rows
        wider, self._rows = len(layers) > len(self._rows[0]), (layers, order)
        if changed:
            self._forms += 1
            self._about = replace(self._about, layers=layers, order=order, kinds=_kinds(report))
            records = self._pyramid.widen(len(layers)) if wider else self._pyramid.records
            self._take(records, anew=True)

    def close_window(self) -> None:
        """Close the open window early."""
        self._take(self._pyramid.close_window())

    def send(self, most: int | None = None) -> None:
        """Write what is pending, or so many records of it."""
        while self._pending and most != 0:
            record = self._next()
            self._file.add(self._tag.table(record.table), record.step)
            most = None if most is None else most - 1

    def _next(self) -> Record:
        """Take what is written next: a window, or as many single readings as are pending, up to a number."""
        rows: list[Record] = []
        while self._pending and len(rows) < _TOGETHER and len(self._pending[0].table) == 1:
            if rows and abs(self._pending[0].step - rows[0].step) > MAX_REACH // 2:
                break
            rows.append(self._pending.popleft())
        if not rows:
            return self._pending.popleft()
        steps = [record.step for record in rows]
        return rows[0] if len(rows) == 1 else Record(steps[-1], bundle(steps, [record.table for record in rows]))

    def _fitted(self, values: FloatArray, present: BoolArray) -> tuple[FloatArray, BoolArray]:
        """Bring a reading to the rows that there are: sequences differ in length, and layers may come too late."""
        rows = len(self._about.layers)
        if self._about.module:
            return resampled(values, rows), present[:1].repeat(rows)
        return values[:rows], present[:rows]

    def _take(self, records: Iterable[Record], *, anew: bool = False) -> None:
        if anew or self._pyramid.resolution != self._about.resolution:
            # Everything comes again under the new tag, over many readings; until then the old one has to be whole.
            if self._pending and len(self._pending[0].table) == 1:
                self.send(1)
            self._pending.clear()
            self._about = replace(self._about, resolution=self._pyramid.resolution)
            self._tag = self._tagged()
        self._pending.extend(records)

    def _tagged(self) -> OwnTag:
        name = self._about.tag
        return self._tags.setdefault(name, OwnTag(name, self._about.content()))


def _kinds(report: StepReport) -> tuple[str, ...]:
    return tuple(about.kind for about in report.descriptions)


def _key(diagnosis: Diagnosis) -> tuple[str, int, int]:
    return diagnosis.rule, diagnosis.optimizer, diagnosis.step


def told(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return a diagnosis as plain values, with all that a person needs to follow its remedies.

    Args:
        diagnosis: The diagnosis.

    Example:
        >>> from lightning_gradwatch import Symptom
        >>> told(Diagnosis("spike", Symptom.SPIKE, layers=("0",)))["remedies"]
        []
    """
    values = diagnosis.to_dict()
    remedies: Sequence[Mapping[str, Any]] = values["remedies"]
    more = [{name: getattr(remedy, name) for name in _OF_REMEDIES} for remedy in diagnosis.remedies]
    return {**values, "remedies": [{**shown, **plain(rest)} for shown, rest in zip(remedies, more, strict=True)]}
