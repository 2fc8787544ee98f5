"""Reports made from plain arrays, for the tests of the sinks."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_gradwatch.measure.history import GradientHistory
from lightning_gradwatch.measure.snapshot import GradientSnapshot
from lightning_gradwatch.report.step_report import StepReport


@pytest.fixture(scope="session")
def reports_of():
    """Return a function that makes the reports of a run from its norms ``[n, num_layers]``, one a reading."""

    def make(norms, *, optimizers=None, present=None, clipped=None, layers=None, learning_rates=None, **more):
        norms = np.atleast_2d(np.asarray(norms, dtype=np.float64))
        history = GradientHistory(layers or [f"fc{i}" for i in range(norms.shape[1])])
        blank = np.full(norms.shape[1], np.nan)
        for step, row in enumerate(norms):
            snapshot = GradientSnapshot(
                step=step,
                optimizer=0 if optimizers is None else optimizers[step],
                norms=row,
                clipped_norms=row if clipped is None else np.asarray(clipped, dtype=np.float64)[step],
                bias_norms=blank,
                weight_norms=blank,
                present=np.isfinite(blank) | True if present is None else np.asarray(present)[step],
                learning_rates=blank if learning_rates is None else np.asarray(learning_rates),
            )
            history.append(snapshot)
            yield StepReport(snapshot, history, **{"log_step": step, "num_readings": step + 1, **more})

    return make


@pytest.fixture(scope="session")
def report_of(reports_of):
    """Return a function that makes the newest report of a run."""

    def make(norms, **more):
        return list(reports_of(norms, **more))[-1]

    return make
