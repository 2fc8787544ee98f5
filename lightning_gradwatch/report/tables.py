"""What a reading puts into the heatmap: one row of numbers for each quantity."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lightning_gradwatch.measure.snapshot import BoolArray, FloatArray, GradientSnapshot, SignalSnapshot
from lightning_gradwatch.report.step_report import StepReport

# Rows of a picture along time. Ours: as many as can be told apart at the height of a notebook's cell; a gradient that
# fades does so over many of them.
MAX_TIME_ROWS = 64
# Layers with a picture along time, the first that ran. Ours: 32 times 64 rows are as many as a model of 2,000 layers.
MAX_TIME_LAYERS = 32


class Row(NamedTuple):
    """Numbers of one quantity in one reading.

    Attributes:
        quantity: One of ``viewer.metadata.QUANTITIES``.
        values: ``[num_rows]``; for ``time`` as many as there are time steps.
        present: Where there was something to measure, likewise.
        module: For ``time`` the layer.
    """

    quantity: str
    values: FloatArray
    present: BoolArray
    module: str = ""


def rows_of(report: StepReport) -> Iterator[Row]:
    """Take from a report what is drawn: each layer's norm and ratio, and what a probe saw.

    Args:
        report: A reading.

    Returns:
        ``norms`` and ``ratios``, in a step with a probe also ``signal``, ``delta``, ``updates``, and ``time`` for each
        layer that is used step after step.
    """
    snapshot, signals = report.snapshot, report.signals
    yield Row("norms", snapshot.norms, snapshot.present)
    yield ratios(snapshot)
    if signals is not None:
        yield from _signal_rows(signals, broken=snapshot.present & np.isnan(snapshot.norms))


def ratios(snapshot: GradientSnapshot) -> Row:
    """Divide each layer's gradient norm by the norm of its weights.

    There is nothing to divide by where weights are all zero, as in a layer that is initialized so, or were never
    measured; a gradient that is not finite is shown all the same.

    Args:
        snapshot: A reading.

    Example:
        >>> norms, weights, rest = np.array([1.0, 3.0, np.nan]), np.array([2.0, 0.0, 0.0]), np.zeros(3)
        >>> row = ratios(GradientSnapshot(0, 0, norms, norms, rest, weights, rest == 0, rest))
        >>> row.values.tolist(), row.present.tolist()
        ([0.5, inf, nan], [True, False, True])
    """
    weights = snapshot.weight_norms
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        values = snapshot.norms / weights
        measurable = ((weights > 0) & np.isfinite(weights)) | ~np.isfinite(snapshot.norms)
    return Row("ratios", values, snapshot.present & measurable)


def _signal_rows(signals: SignalSnapshot, broken: BoolArray) -> Iterator[Row]:
    """Return a probe's rows; NaN is what was not measured, but for a called layer's output and a broken gradient."""
    called = np.zeros(len(signals.layers), dtype=np.bool_)
    called[signals.order] = True
    yield Row("signal", signals.signal, called)
    yield Row("delta", signals.delta, ~np.isnan(signals.delta) | (called & broken))
    yield Row("updates", signals.update_ratio, ~np.isnan(signals.update_ratio) | broken)
    for profile in signals.time[:MAX_TIME_LAYERS]:
        if not len(profile.delta):
            continue
        present = np.ones(len(profile.delta), dtype=np.bool_)
        yield Row("time", profile.delta, present, module=signals.layers[profile.column])


def time_steps(num_steps: int) -> list[str]:
    """Name the rows of a picture along time: every step, or evenly chosen ones.

    Args:
        num_steps: How many time steps the sequence has.

    Example:
        >>> time_steps(3), time_steps(1000)[:2], time_steps(1000)[-1]
        (['t 0', 't 1', 't 2'], ['t 0', 't 16'], 't 999')
    """
    places = np.linspace(0, num_steps - 1, min(num_steps, MAX_TIME_ROWS))
    return [f"t {place}" for place in np.rint(places).astype(int).tolist()]


def resampled(values: FloatArray, num_rows: int) -> FloatArray:
    """Bring a profile along time to another number of rows, first on first and last on last.

    Between two steps it is the middle in log space, weighted by the distance; where either of them has no logarithm,
    the nearer one.

    Args:
        values: One number for each time step, ``[num_steps]``.
        num_rows: How many rows there are.

    Returns:
        ``[num_rows]``.

    Example:
        >>> resampled(np.array([1.0, 10.0, 100.0]), 5).round(2).tolist()
        [1.0, 3.16, 10.0, 31.62, 100.0]
    """
    if len(values) == num_rows or not len(values):
        return values
    places = np.linspace(0, len(values) - 1, num_rows)
    below = np.floor(places).astype(np.int64)
    above, share = np.minimum(below + 1, len(values) - 1), places - below
    lower, upper = values[below], values[above]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        between = np.exp((1 - share) * np.log(lower) + share * np.log(upper))
    smooth = np.isfinite(lower) & np.isfinite(upper) & (lower > 0) & (upper > 0)
    resampled_values: FloatArray = np.where(smooth, between, np.where(share < 0.5, lower, upper))
    return resampled_values
