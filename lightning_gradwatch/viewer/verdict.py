"""What can be said of a run in a line or two: the verdict, and the norms it ended with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lightning_gradwatch.viewer.finding import Finding, counted, findings, named
from lightning_gradwatch.viewer.run import Run, Series
from lightning_gradwatch.viewer.windows import INF, NAN, PRESENT

Logs = npt.NDArray[np.floating]


def why_not_measured(run: Run) -> str:
    """Say why a run must not count as healthy.

    Args:
        run: The run.

    Returns:
        A sentence; empty where the run was measured to its end or to where it stands.

    Example:
        >>> why_not_measured(Run("version_0"))
        'version_0: nothing was measured'
    """
    if (disabled := _disabled(run)) and _has_begun(run):
        return f"{run.name}: GradWatch switched itself off during the run: {disabled}"
    nothing = _nothing(run)
    return f"{run.name}: {nothing}" if nothing else ""


def _disabled(run: Run) -> str:
    """Say why GradWatch switched itself off; empty where it did not."""
    return next((str(event["disabled"]) for event in reversed(run.events) if event.get("disabled")), "")


def _has_begun(run: Run) -> bool:
    """Tell whether there ever was a reading: the first one begins the run."""
    events = any(event.get("event") in {"start", "onset"} for event in run.events)
    return events or any(len(series.windows) for series in run.series)


def _nothing(run: Run) -> str:
    """Say that there is nothing to judge a run by: no reading, or readings of steps that never had a gradient."""
    if (disabled := _disabled(run)) and not _has_begun(run):
        return f"GradWatch was switched off before its first reading: {disabled}"
    if run.diagnoses:
        return ""
    if not any(len(series.windows) for series in run.series):
        return "nothing was measured"
    # The forward signal is there without a backward pass.
    gradients = [series for series in run.series if series.about.quantity != "signal"]
    if any((series.windows.state & PRESENT).any() for series in gradients):
        return ""
    return "no gradient was ever seen"


def failing(run: Run, symptoms: Sequence[str]) -> list[Finding]:
    """Return the warnings of some symptoms, those that are over as well; never a notice, never what was muted.

    Args:
        run: The run.
        symptoms: Some of ``lightning_gradwatch.viewer.symptoms.SYMPTOMS``.
    """
    return [finding for finding in findings(run) if finding.is_warning and finding.symptom in symptoms]


def verdict(run: Run) -> str:
    """Say in a line how a run fared.

    Args:
        run: The run.

    Returns:
        Such as ``"VANISHING since step 3; 1 warning in 20 layers, steps 0 to 199"``.
    """
    extent = _extent(run)
    if nothing := _nothing(run):
        return nothing + (f" ({extent})" if extent else "")
    found = findings(run)
    warnings = [finding for finding in found if finding.is_warning]
    muted = sum(finding.is_muted for finding in found)
    notices = len(found) - len(warnings) - muted
    parts = [_of_warnings(warnings), *(counted(n, word) for n, word in ((notices, "notice"),) if n)]
    parts += [f"{muted} muted"] if muted else []
    return ", ".join(parts) + (f" ({extent})" if extent else "")


def _of_warnings(warnings: Sequence[Finding]) -> str:
    if not warnings:
        return "no warning"
    lasting = [finding for finding in warnings if finding.recovered_at is None]
    told = [f"{finding.word} since step {finding.step}" for finding in lasting[:3]]
    told += [f"{len(lasting) - 3} more that last"] if len(lasting) > 3 else []
    over = len(warnings) - len(lasting)
    recovered = "recovered" if lasting else f"recovered: {named(sorted({finding.word for finding in warnings}))}"
    return ", ".join([*told, *([f"{counted(over, 'warning')} {recovered}"] if over else [])])


def _extent(run: Run) -> str:
    """Say how much was seen."""
    measured = [series for series in run.series if len(series.windows)]
    layers = [series for series in measured if series.about.quantity != "time"]
    if not measured:
        return ""
    first = min(int(series.windows.steps[0]) for series in measured)
    last = run.last_step
    number = max((len(series.layers) for series in layers), default=0)
    steps = f"step {first}" if first == last else f"steps {first} to {last}"
    return ", ".join(filter(None, [counted(number, "layer") if number else "", steps, _ending(run)]))


def _ending(run: Run) -> str:
    """Say how the run ended where it did not end well; nothing is known where there is no event at all."""
    if _disabled(run):
        return "GradWatch switched itself off"
    ends = [event for event in run.events if event.get("event") in {"start", "end"}]
    if not ends:
        return ""
    if ends[-1].get("event") == "start":
        return "not ended: it goes on, or was killed"
    return f"ended by an error: {ends[-1]['error']}" if ends[-1].get("error") else ""


@dataclass(frozen=True, eq=False)
class Newest:
    """The newest gradient norms of one optimizer.

    Attributes:
        series: Where they come from.
        logs: log10 of the median of each layer's last window with a value; ``-inf`` for zero, NaN where no value was
            finite or there was none, ``[num_layers]``.
        state: What was seen in that window, 0 for a layer that never had a gradient, ``[num_layers]``.
    """

    series: Series
    logs: Logs
    state: npt.NDArray[np.uint8]


def newest_norms(run: Run) -> list[Newest]:
    """Return the newest gradient norms, for each optimizer.

    Args:
        run: The run.
    """
    norms = [series for series in run.series if series.about.quantity == "norms" and len(series.windows)]
    return [_newest(series) for series in norms]


def _newest(series: Series) -> Newest:
    present = (series.windows.state & PRESENT) != 0
    rows = len(present) - 1 - np.argmax(present[::-1], axis=0)
    columns = np.arange(len(series.layers))
    return Newest(series, series.windows.median[rows, columns], series.windows.state[rows, columns])


def optimizer_in_words(newest: Newest) -> str:
    """Name the optimizer as the log does, where a run has several: their classes may be the same."""
    about = newest.series.about
    return f"optimizer_{about.optimizer}" + (f" ({about.optimizer_label})" if about.optimizer_label else "")


def norms_in_words(newest: Newest) -> str:
    """Say between which layers the norms lie, and what is not a number.

    Args:
        newest: The norms.

    Returns:
        Such as ``"1e-12 (net.0) to 0.04 (net.38), median 2e-07; 1 layer exactly zero"``.
    """
    measured = np.flatnonzero(np.isfinite(newest.logs))
    names = newest.series.layers
    parts = []
    if len(measured):
        least, most = (measured[pick(newest.logs[measured])] for pick in (np.argmin, np.argmax))
        ends = f"{number(newest.logs[least])} ({names[least]}) to {number(newest.logs[most])} ({names[most]})"
        parts.append(f"{ends}, median {number(float(np.median(newest.logs[measured])))}")
    odd = (
        ("exactly zero", np.isneginf(newest.logs)),
        ("not finite", (newest.state & (NAN | INF)) != 0),
        ("without a gradient", newest.state == 0),
    )
    return "; ".join([*parts, *(f"{counted(int(of.sum()), 'layer')} {what}" for what, of in odd if of.any())])


def number(log: float) -> str:
    """Write a number that is given by its log10.

    Example:
        >>> number(-7.7), number(0.0), number(float("-inf")), number(float("nan"))
        ('2e-08', '1', '0', '-')
    """
    if np.isnan(log):
        return "-"
    return "0" if np.isneginf(log) else f"{10.0 ** float(log):.2g}"


def power(log: float) -> float | None:
    """Return the number that is given by its log10; None where there is none.

    Example:
        >>> power(2.0), power(float("-inf")), power(float("nan"))
        (100.0, 0.0, None)
    """
    # Norms end at 1e38; a factor may be infinite.
    return None if np.isnan(log) else 10.0**log if log < 300 else float("inf")
