"""The diagnoses as a Markdown card, for TensorBoard's Text tab."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lightning_gradwatch.detect.diagnosis import Diagnosis
from lightning_gradwatch.report.step_report import StepReport


class CardSink:
    """Show all diagnoses as one card, renewed at each onset and recovery and at the end.

    Args:
        show: Takes the Markdown and the step, such as a TensorBoard writer's ``add_text`` with a tag.
    """

    def __init__(self, show: Callable[[str, int], None]) -> None:
        self._show = show
        self._latest: StepReport | None = None

    def write(self, report: StepReport) -> None:
        """Renew the card where something changed."""
        self._latest = report
        if report.onsets or report.recoveries:
            self._show(card(report.diagnoses, report.num_readings), report.log_step)

    def close(self) -> None:
        """Show the card as it stands at the end, that of a healthy run too."""
        if self._latest is not None:
            self._show(card(self._latest.diagnoses, self._latest.num_readings), self._latest.log_step)


def card(diagnoses: Sequence[Diagnosis], num_readings: int) -> str:
    """Write the diagnoses as Markdown: a table, then what to do about each.

    Args:
        diagnoses: All faults so far.
        num_readings: How many readings there are.

    Returns:
        Markdown.

    Example:
        >>> card([], 40)
        'No fault in 40 readings.'
    """
    if not diagnoses:
        return f"No fault in {num_readings} readings."
    rows = ["| step | what | layers | rule | until |", "|---|---|---|---|---|"]
    for d in diagnoses:
        until = "lasts" if d.recovered_at is None else f"step {d.recovered_at}"
        what = (
            f"**{d.symptom.value}**: {d.message}"
            if d.severity == "warning"
            else f"notice, {d.symptom.value}: {d.message}"
        )
        rows.append(f"| {d.step} | {_cell(what)} | {_cell(_layers(d))} | {d.rule} | {until} |")
    return "\n".join(rows) + "\n\n" + "\n\n".join(_section(d) for d in diagnoses)


def _section(diagnosis: Diagnosis) -> str:
    lines = [f"#### step {diagnosis.step}: {diagnosis.symptom.value}"]
    lines += [
        f"- {label}: {text}" for label, text in (("measured", diagnosis.measured), ("why", diagnosis.cause)) if text
    ]
    for remedy in diagnosis.remedies:
        lines.append(f"- do: **{remedy.title}** ({remedy.reason})")
        if remedy.code:
            lines.append("\n```python\n" + remedy.code + "\n```")
    return "\n".join(lines)


def _layers(diagnosis: Diagnosis) -> str:
    shown = ", ".join(f"`{name}`" for name in diagnosis.layers[:5])
    rest = len(diagnosis.layers) - 5
    return f"{shown} and {rest} more" if rest > 0 else shown


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
