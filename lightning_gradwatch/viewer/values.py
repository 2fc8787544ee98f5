"""A run as plain values, for a program: what ``gradwatch report --json`` prints and ``watch.save`` writes."""

from __future__ import annotations

from typing import Any

from lightning_gradwatch.viewer.run import Run
from lightning_gradwatch.viewer.verdict import newest_norms, power, verdict, why_not_measured


def run_values(run: Run) -> dict[str, Any]:
    """Return a run as plain values; some of them may be no number that JSON has a word for.

    Args:
        run: The run.

    Returns:
        ``name``, ``measured`` (whether it may count as healthy), ``verdict``, ``diagnoses``, and ``norms``: of each
        optimizer the newest gradient norm of each layer.

    Example:
        >>> run_values(Run("version_0"))["verdict"]
        'version_0: nothing was measured'
    """
    missing = why_not_measured(run)
    return {
        "name": run.name,
        "measured": not missing,
        "verdict": missing or verdict(run),
        "diagnoses": run.diagnoses,
        "norms": [
            {
                "optimizer": newest.series.about.optimizer,
                "step": int(newest.series.windows.steps[-1]),
                "layers": dict(zip(newest.series.layers, map(power, newest.logs.tolist()), strict=True)),
            }
            for newest in newest_norms(run)
        ],
    }
