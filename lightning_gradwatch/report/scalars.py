"""The few numbers that every logger gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from lightning_gradwatch.report.step_report import StepReport

# The whole list, constant from the first row on: a CSV logger writes its file anew for each new key.
SCALARS = (
    "gradwatch/global_norm",
    "gradwatch/clipped_global_norm",
    "gradwatch/log10_norm_p05",
    "gradwatch/log10_norm_median",
    "gradwatch/log10_norm_p95",
    "gradwatch/open_warnings",
    "gradwatch/skipped_steps",
    "gradwatch/active",
)
# Beside them where GradWatch clips, and there in every row.
CLIP_SCALARS = ("gradwatch/clip_coefficient", "gradwatch/clipping_rate")
# Rounding alone changes a norm by less.
_UNCHANGED = 1 - 1e-6


class ScalarSink:
    """Give a logger the scalars at its interval, those of all optimizers at once.

    Args:
        log: Takes the numbers by name and the step, such as ``logger.log_metrics``.
        per_layer: Whether each layer's norm goes along, as ``gradwatch/norm/LAYER``.
    """

    def __init__(self, log: Callable[[Mapping[str, float], int], None], per_layer: bool = False) -> None:
        self._log = log
        self._per_layer = per_layer
        self._suffixes: list[str] = []
        self._values: dict[str, float] = {}
        self._log_step = 0
        # By suffix how many steps were clipped, and how many there were, since the last row.
        self._clipped: dict[str, tuple[int, int]] = {}

    def write(self, report: StepReport) -> None:
        """Keep what the logging interval asks for until the batch is over."""
        if report.clips and report.snapshot.finite:
            clipped, steps = self._clipped.get(_suffix(report), (0, 0))
            self._clipped[_suffix(report)] = clipped + (clip_coefficient(report) < _UNCHANGED), steps + 1
        if report.due:
            if report.log_step != self._log_step:
                self.flush()
            self._values |= self._named(report)
            self._log_step = report.log_step

    def flush(self) -> None:
        """Log what was kept: one call a batch, so that a table gets one row."""
        values, self._values = self._values, {}
        if values:
            self._log(values, self._log_step)
            for suffix in [each for each in self._clipped if f"{SCALARS[0]}{each}" in values]:
                del self._clipped[suffix]

    def _named(self, report: StepReport) -> dict[str, float]:
        values = scalars(report)
        if self._per_layer:
            names, norms = report.history.layers, report.snapshot.norms
            values |= {f"gradwatch/norm/{name}": float(norm) for name, norm in zip(names, norms, strict=True)}
        suffix = _suffix(report)
        if report.clips:
            clipped, steps = self._clipped.get(suffix, (0, 0))
            rate = clipped / steps if steps else float("nan")
            values |= dict(zip(CLIP_SCALARS, (clip_coefficient(report), rate), strict=True))
        if suffix not in self._suffixes:
            self._suffixes.append(suffix)
        return {f"{name}{suffix}": value for name, value in values.items()}

    def deactivate(self, log_step: int) -> None:
        """Log that nobody is watching any more, under the names in use."""
        self.flush()
        self._log({f"gradwatch/active{suffix}": 0.0 for suffix in self._suffixes or [""]}, log_step)

    def close(self) -> None:
        """Log what is left; the logger is not ours to close."""
        self.flush()


def _suffix(report: StepReport) -> str:
    return f"/{report.optimizer_label}" if report.optimizer_label else ""


def clip_coefficient(report: StepReport) -> float:
    """Compute what the most clipped layer has left of its gradient's norm.

    ``min over layers of clipped_norms / norms``; the same for all layers where they are scaled by one number.

    Args:
        report: A reading.

    Returns:
        1 where nothing was clipped; NaN where a norm is not finite.
    """
    snapshot = report.snapshot
    if not snapshot.finite:
        return float("nan")
    shown = snapshot.present & (snapshot.norms > 0)
    return float(np.min(snapshot.clipped_norms[shown] / snapshot.norms[shown], initial=1.0))


def scalars(report: StepReport) -> dict[str, float]:
    """Compute the scalars of a report, in the order of ``SCALARS``.

    Args:
        report: A reading.

    Returns:
        Their values; a percentile over the layers whose norm is positive and finite is NaN where there is none.
    """
    snapshot = report.snapshot
    norms = snapshot.norms[snapshot.present]
    logs = np.log10(norms[np.isfinite(norms) & (norms > 0)])
    low, middle, high = np.percentile(logs, [5, 50, 95]) if logs.size else (np.nan, np.nan, np.nan)
    lasting = sum(
        d.recovered_at is None and d.severity == "warning" and d.optimizer == snapshot.optimizer
        for d in report.diagnoses
    )
    values = (
        snapshot.global_norm,
        snapshot.clipped_global_norm,
        float(low),
        float(middle),
        float(high),
        float(lasting),
        float(report.skipped_steps),
        1.0,
    )
    return dict(zip(SCALARS, values, strict=True))
