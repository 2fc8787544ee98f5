"""What is remembered of a run, or was found by ``examine``, in the form in which the page shows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_gradwatch.detect.diagnosis import Diagnosis
from lightning_gradwatch.measure.history import GradientHistory
from lightning_gradwatch.measure.snapshot import BoolArray, FloatArray, IntArray, SignalSnapshot
from lightning_gradwatch.report.heatmap import told
from lightning_gradwatch.report.tables import MAX_TIME_LAYERS, resampled, time_steps
from lightning_gradwatch.viewer.metadata import MAX_RECORDS, QUANTITIES, SeriesMetadata
from lightning_gradwatch.viewer.run import Run, Series
from lightning_gradwatch.viewer.windows import INF, NAN, PRESENT, ZERO, Windows, merge_pairs

if TYPE_CHECKING:
    from lightning_gradwatch.report.report import Report

# What a probe knows of each layer, and under which name a person sees it.
_SIGNALS = {"signal": "signal", "delta": "delta", "updates": "update_ratio"}


@dataclass(frozen=True)
class Caption:
    """What a series says of itself beside its numbers.

    Attributes:
        optimizer_labels: Class of each optimizer by its number, such as ``{0: "Adam"}``.
        kinds: Class of each layer's module by the layer's name.
        vanishing_threshold: The person's own, in the gradient's unit.
        exploding_threshold: The person's own.
        disabled: Why GradWatch switched itself off, None where it did not.
    """

    optimizer_labels: Mapping[int, str] | None = None
    kinds: Mapping[str, str] | None = None
    vanishing_threshold: float | None = None
    exploding_threshold: float | None = None
    disabled: str | None = None

    def about(self, quantity: str, optimizer: int, layers: Sequence[str], order: Sequence[int]) -> SeriesMetadata:
        """Return what stands beside a series; thresholds are held against gradient norms alone."""
        own = quantity == "norms"
        return SeriesMetadata(
            quantity,
            optimizer,
            session="memory",
            started=0.0,
            resolution=0,
            layers=tuple(layers),
            order=tuple(order),
            kinds=tuple((self.kinds or {}).get(layer, "") for layer in layers) if self.kinds else (),
            optimizer_label=(self.optimizer_labels or {}).get(optimizer, ""),
            vanishing_threshold=self.vanishing_threshold if own else None,
            exploding_threshold=self.exploding_threshold if own else None,
        )


def recorded_run(
    name: str,
    history: GradientHistory,
    probes: Sequence[SignalSnapshot],
    diagnoses: Sequence[Diagnosis],
    caption: Caption | None = None,
) -> Run:
    """Put together what is remembered of a run.

    The history is thinned and bounded, so a long run has fewer columns here than in its event files; of those that are
    there every reading is shown, in at most ``MAX_RECORDS`` columns.

    Args:
        name: As the page calls it.
        history: The readings.
        probes: What the signal probe saw.
        diagnoses: All faults, oldest first.
        caption: What else is known.

    Returns:
        The run; without a series where nothing was measured.

    Example:
        >>> recorded_run("mine", GradientHistory(("0", "2")), [], []).series
        ()
    """
    caption = caption or Caption()
    series: list[Series] = []
    for number in dict.fromkeys(history.optimizers.tolist()):
        series += _gradients(number, history, caption)
        own = [snapshot for snapshot in probes if snapshot.optimizer == number]
        series += [*_signals(number, own, history, caption), *_time(number, own, caption)] if own else []
    places = list(QUANTITIES)
    series.sort(key=lambda one: places.index(one.about.quantity))
    # A watch that died must not look like health.
    end = [{"event": "end", "reason": "switched off", "disabled": caption.disabled}] if caption.disabled else []
    return Run(name, tuple(series), (*_events(diagnoses), *end))


def examined_run(report: Report, name: str = "examine") -> Run:
    """Put what ``examine`` found into the same form: signal and delta of one pass.

    Args:
        report: What it found.
        name: As the page calls it.

    Returns:
        A run of one column.

    Example:
        >>> from lightning_gradwatch import Report
        >>> found = Report(("0", "2"), np.array([1.0, 2.0]), np.array([0.1, 0.2]))
        >>> [series.name for series in examined_run(found).series]
        ['signal/0', 'delta/0']
    """
    order, step = range(len(report.layers)), np.zeros(1, dtype=np.int64)
    measured = {"signal": report.signal, "delta": report.delta}
    series = [
        _series(Caption().about(quantity, 0, report.layers, order), step, values[None], ~np.isnan(values[None]))
        for quantity, values in measured.items()
        if not np.isnan(values).all()
    ]
    # It has judged a few readings of one batch; there is one column, where the person looks.
    here = [replace(diagnosis, step=0, recovered_at=None) for diagnosis in report.diagnoses]
    return Run(name, tuple(series), tuple(_events(here)))


def _gradients(number: int, history: GradientHistory, caption: Caption) -> Iterator[Series]:
    rows = np.flatnonzero(history.optimizers == number)
    steps, norms, present = history.steps[rows], history.norms[rows], history.present[rows]
    yield _series(caption.about("norms", number, history.layers, history.order), steps, norms, present)
    weights = history.weight_norms[rows]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratios = norms / weights
        # As `tables.ratios` has it for one reading: by weights of zero nothing can be divided.
        known = present & (((weights > 0) & np.isfinite(weights)) | ~np.isfinite(norms))
    yield _series(caption.about("ratios", number, history.layers, history.order), steps, ratios, known)


def _signals(
    number: int, probes: Sequence[SignalSnapshot], history: GradientHistory, caption: Caption
) -> Iterator[Series]:
    """Make the series of what probes saw; what is NaN and still there is decided as in ``tables.rows_of``."""
    steps = np.array([probe.step for probe in probes], dtype=np.int64)
    called = np.zeros((len(probes), len(history.layers)), dtype=np.bool_)
    for row, probe in enumerate(probes):
        called[row, probe.order] = True
    rows = np.flatnonzero(history.optimizers == number)
    newest = dict(zip(history.steps[rows].tolist(), rows.tolist(), strict=True))
    broken = np.zeros_like(called)
    for place, probe in enumerate(probes):
        # Of an older probe the reading may have been thinned out.
        if probe.step in newest:
            row = newest[probe.step]
            broken[place] = history.present[row] & np.isnan(history.norms[row])
    there = {"signal": called, "delta": called & broken, "updates": broken}
    for quantity, attribute in _SIGNALS.items():
        values = np.stack([getattr(probe, attribute) for probe in probes])
        present = there[quantity] if quantity == "signal" else ~np.isnan(values) | there[quantity]
        yield _series(caption.about(quantity, number, history.layers, history.order), steps, values, present)


def _time(number: int, probes: Sequence[SignalSnapshot], caption: Caption) -> Iterator[Series]:
    """Make a series of each layer that is used step after step; sequences of another length are fitted."""
    columns = dict.fromkeys(profile.column for probe in probes for profile in probe.time if len(profile.delta))
    for column in list(columns)[:MAX_TIME_LAYERS]:
        seen = {
            probe.step: profile.delta
            for probe in probes
            for profile in probe.time
            if profile.column == column and len(profile.delta)
        }
        names = time_steps(len(next(iter(seen.values()))))
        about = replace(
            caption.about("time", number, names, range(len(names))), kinds=(), module=probes[-1].layers[column]
        )
        values = np.stack([resampled(delta, len(names)) for delta in seen.values()])
        yield _series(about, np.array(list(seen), dtype=np.int64), values, np.ones(values.shape, dtype=np.bool_))


def _series(about: SeriesMetadata, steps: IntArray, values: FloatArray, present: BoolArray) -> Series:
    """Make a window of each reading, and merge neighbors where there are too many."""
    order = np.array(about.order, dtype=np.int64)
    windows = each_reading(steps, values, present).columns(order)
    last = int(windows.steps[-1]) if len(windows) else None
    while len(windows) > MAX_RECORDS:
        windows, about = merge_pairs(windows), replace(about, resolution=about.resolution + 1)
    kinds = tuple(about.kinds[row] for row in about.order) if about.kinds else ()
    return Series(about, tuple(about.layers[row] for row in about.order), kinds, windows, last)


def each_reading(steps: IntArray, values: FloatArray, present: BoolArray) -> Windows:
    """Make a window of each reading, all at once; the same as ``viewer.windows.summarize`` of each alone.

    Args:
        steps: ``[n]``, in any order.
        values: What was measured, no logarithm yet, ``[n, num_layers]``.
        present: Where there was something to measure, the same shape.

    Returns:
        ``n`` windows, by ascending step.

    Example:
        >>> windows = each_reading(np.array([3, 1]), np.array([[10.0], [np.inf]]), np.ones((2, 1), dtype=bool))
        >>> windows.steps.tolist(), windows.median.tolist(), windows.state.tolist()
        ([1, 3], [[nan], [1.0]], [[9], [1]])
    """
    place = np.argsort(steps, kind="stable")
    values, present = values[place], present[place]
    finite = present & np.isfinite(values) & (values >= 0)
    with np.errstate(divide="ignore"):
        logs = np.log10(np.where(finite, values, 1.0))
    logs = np.where(finite, logs, np.nan).astype(np.float32)
    state = PRESENT * present + ZERO * (finite & (values == 0)) + INF * (present & np.isposinf(values))
    state = state + NAN * (present & (np.isnan(values) | (values < 0)))
    return Windows(steps[place], logs, logs, logs, state.astype(np.uint8))


def _events(diagnoses: Sequence[Diagnosis]) -> Iterator[dict[str, Any]]:
    """Tell onsets and recoveries in the order in which they came."""
    events = [(d.step, {"event": "onset", "step": d.step, "diagnosis": told(d)}) for d in diagnoses]
    events += [
        (d.recovered_at, {"event": "recovery", "step": d.recovered_at, "diagnosis": told(d)})
        for d in diagnoses
        if d.recovered_at is not None
    ]
    for _, event in sorted(events, key=lambda event: event[0]):
        yield event
