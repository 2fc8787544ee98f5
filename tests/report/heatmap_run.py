"""A small run for the tests of the heatmap: every series and event, by formulas that a test can repeat.

``python tests/report/heatmap_run.py DIRECTORY`` writes it as an event file. So the golden files were made, each by the
version of its ``FORMAT_VERSION``; what is here is not changed, because they are held against it for ever.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.measure.history import GradientHistory
from lightning_gradwatch.measure.snapshot import GradientSnapshot, LayerDescription, SignalSnapshot, TimeProfile
from lightning_gradwatch.remedy.remedy import Remedy
from lightning_gradwatch.report import pyramid
from lightning_gradwatch.report.heatmap import HeatmapSink
from lightning_gradwatch.report.step_report import StepReport
from lightning_gradwatch.report.summaries import OwnFile

# In registration order; the head is the last to run.
LAYERS = ("head", "rnn", "frozen")
KINDS = ("Linear", "LSTM", "Linear")
ORDER = (1, 2, 0)
NUM_READINGS = 40
MOST_RECORDS = 16
# Readings with something special in them, whose gradient norm of "head" is not the usual one.
SPIKE, BROKEN, INFINITE, DEAD = 7, 21, 25, 38
SPECIAL = {SPIKE: 1e6, BROKEN: float("nan"), INFINITE: float("inf"), DEAD: 0.0}
ONSET, MUTED, RECOVERY = 5, 9, 30
PROBES = (0, 10, 20, 30)
# As long as its first sequence, which is shorter than the others.
TIME_STEPS = 6


def norms(step: int) -> np.ndarray:
    """Return the gradient norms of a reading; the frozen layer has none."""
    return np.array([SPECIAL.get(step, 10.0 ** (-1 - 0.05 * step)), 1e-4, np.nan])


WEIGHTS = np.array([2.0, 10.0, 5.0])
SICK = Diagnosis(
    "vanishing.depth",
    Symptom.VANISHING,
    layers=("rnn",),
    step=ONSET,
    message="the first layers get almost no gradient",
    measured="every layer back multiplies the gradient by 0.001",
    cause="a test",
    evidence={"factor": 1e-3, "r2": float("nan")},
)
SICK = replace(
    SICK,
    remedies=(
        Remedy(
            "ReLU in place of sigmoid",
            "its slope is 1",
            SICK,
            code="nn.ReLU()",
            where="model.py:31",
            needs_restart=True,
            optimizer_changes={"lr": 1e-3},
            effect={"loss_before": 1.0, "loss_after": 0.5},
        ),
    ),
)
UNHEARD = Diagnosis("spike", Symptom.SPIKE, "notice", layers=("head",), step=MUTED, message="a jump")


def probe(step: int) -> SignalSnapshot:
    """Return what the probe saw: the frozen layer has an output, and no gradient reaches it."""
    blank = np.full(len(LAYERS), np.nan)
    per_layer = dict.fromkeys(("sizes", "dead", "saturated", "training", "fed_by_cut"), blank)
    delta = np.array([1e-2, 1e-6, np.nan])
    updates = np.array([1e-3, 1e-7, np.nan])
    length = TIME_STEPS if step == 0 else 2 * TIME_STEPS - 1
    time = (TimeProfile(1, 10.0 ** np.linspace(-8, -3, length)),)
    return SignalSnapshot(
        step,
        0,
        LAYERS,
        np.array(ORDER),
        signal=np.array([1.0, 0.1, 0.01]),
        delta=delta,
        update_ratio=updates,
        time=time,
        **per_layer,
    )


def reports() -> Iterator[StepReport]:
    """Yield the reports of the run, one a step."""
    history = GradientHistory(LAYERS)
    history.order = ORDER
    blank = np.full(len(LAYERS), np.nan)
    for step in range(NUM_READINGS):
        row, present = norms(step), np.array([True, True, False])
        yield StepReport(
            GradientSnapshot(step, 0, row, row, blank, WEIGHTS, present, blank),
            history,
            onsets=(SICK,) if step == ONSET else (),
            recoveries=(replace(SICK, recovered_at=RECOVERY),) if step == RECOVERY else (),
            muted=(UNHEARD,) if step == MUTED else (),
            signals=probe(step) if step in PROBES else None,
            descriptions=tuple(map(LayerDescription, LAYERS, KINDS)),
            optimizer_kind="Adam",
        )


def write(directory: Path) -> None:
    """Write the run through the sink, with so few columns that it has three resolutions."""
    most, pyramid.MAX_RECORDS = pyramid.MAX_RECORDS, MOST_RECORDS
    try:
        sink = HeatmapSink(OwnFile(directory), vanishing_threshold=1e-8)
        for report in reports():
            sink.write(report)
            sink.flush()
        sink.end("error", "KeyboardInterrupt")
        sink.close()
    finally:
        pyramid.MAX_RECORDS = most


if __name__ == "__main__":
    write(Path(sys.argv[1]))
