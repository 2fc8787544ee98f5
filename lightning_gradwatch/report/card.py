"""The diagnoses as a Markdown card, for TensorBoard's Text tab."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lightning_gradwatch.detect.diagnosis import Diagnosis
from lightning_gradwatch.report.headline import headline_of, word_of
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
    """Write the diagnoses as Markdown: the verdict, a table, then what to do about each.

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
    rows = ["| when | what | layers | rule |", "|---|---|---|---|"]
    for d in diagnoses:
        # Words: TensorBoard breaks a lone number in a narrow column between its digits.
        when = f"since step {d.step}" if d.recovered_at is None else f"steps {d.step} to {d.recovered_at}"
        rows.append(f"| {when} | {_cell(f'{_what(d)}: {d.message}')} | {_cell(_layers(d))} | {d.rule} |")
    parts = [f"**{', '.join(headline_of(diagnoses))}**", "\n".join(rows), *(_section(d) for d in diagnoses)]
    return "\n\n".join(parts)


def _what(diagnosis: Diagnosis) -> str:
    word = word_of(diagnosis)
    return f"**{word}**" if diagnosis.severity == "warning" else f"notice, {word.lower()}"


def _section(diagnosis: Diagnosis) -> str:
    lines = [f"#### step {diagnosis.step}: {word_of(diagnosis).lower()}"]
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
