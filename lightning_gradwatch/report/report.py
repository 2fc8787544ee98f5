"""What ``examine`` found, for a person to read and for a test suite to assert."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lightning_gradwatch.detect.diagnosis import Diagnosis
from lightning_gradwatch.measure.snapshot import FloatArray
from lightning_gradwatch.remedy.remedy import Remedy
from lightning_gradwatch.report.health import assert_healthy
from lightning_gradwatch.report.log import block, named, plural
from lightning_gradwatch.report.optional import drawing
from lightning_gradwatch.report.recorded import examined_run
from lightning_gradwatch.report.show import show_run
from lightning_gradwatch.report.ways_out import HOW, SHOWN, did_in_words, ways_out

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_ROWS = 40


@dataclass(frozen=True, eq=False)
class Report:
    """What was found when a model was examined.

    Attributes:
        layers: Names of the layers in the order in which the forward pass called them; those that it did not call come
            last, ``[num_layers]``.
        signal: Root mean square of each layer's output, ``[num_layers]``; NaN where it was not measured.
        delta: Root mean square of the gradient with respect to each layer's output, ``[num_layers]``.
        factor: What the gradient is multiplied by when it goes one layer back; NaN with fewer than four layers.
        r2: Share of the variance of the logarithm of the gradient along depth that a straight line explains.
        loss: The loss.
        diagnoses: What is wrong, warnings first.
        remedies: Ways out, best first; those that were rehearsed have their ``effect``.
        notes: What could not be done, in words.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_gradwatch import examine
        >>> model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)), torch.ones(8, 4)
        >>> report = examine(model, lambda model: model(x).square().mean())
        >>> report.layers, report.delta.shape, report.healthy
        (('0', '2'), (2,), True)
    """

    layers: tuple[str, ...]
    signal: FloatArray
    delta: FloatArray
    factor: float = math.nan
    r2: float = math.nan
    loss: float = math.nan
    diagnoses: tuple[Diagnosis, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def healthy(self) -> bool:
        """Whether nothing is a warning; False where nothing was measured, as ``assert_healthy`` fails there."""
        return self._measured > 0 and all(diagnosis.severity != "warning" for diagnosis in self.diagnoses)

    def assert_healthy(self, symptoms: Sequence[str] | None = None) -> None:
        """Fail where there is a warning, or where nothing was measured; for a test suite.

        Args:
            symptoms: Only these, such as ``["vanishing"]``; all by default.

        Raises:
            AssertionError: With what was found.
            ValueError: If a symptom does not exist.
        """
        try:
            assert_healthy(self.diagnoses, self._measured, len(self.layers), symptoms)
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *self._notes()])) from None

    @property
    def _measured(self) -> int:
        return int(np.isfinite(self.delta).sum()) or len(self.diagnoses)

    def to_markdown(self) -> str:
        """Return everything as Markdown: what is wrong, ways out with lines to paste, and a row for each layer."""
        parts = [f"**{self._headline()}**", *(_diagnosis_in_markdown(diagnosis) for diagnosis in self.diagnoses)]
        if self.remedies:
            if any(remedy.effect is not None for remedy in self.remedies):
                parts.append(f"Ways out, {HOW}:")
            parts.append("\n".join(_remedy_in_markdown(place, way) for place, way in enumerate(self.remedies, 1)))
        parts += [f"*{note}*" for note in self.notes]
        return "\n\n".join([*parts, self._table()]) + "\n"

    def plot(self, ax: Axes | None = None) -> Figure:
        """Draw the signal and the gradient that reaches each layer along depth; needs ``lightning-gradwatch[plot]``.

        Args:
            ax: Where to draw; the axes of a new figure of its own by default.

        Returns:
            The matplotlib figure; a notebook shows it.

        Raises:
            ImportError: If matplotlib is missing.
        """
        figure: Figure = drawing("depth_plot").plot_report(self, self._headline(), ax)
        return figure

    def show(self) -> Path | None:
        """Show signal and gradient as the interactive page: in a notebook right there, else as a file.

        Returns:
            The file, in the system's temporary directory; None in a notebook.
        """
        return show_run(examined_run(self))

    def __str__(self) -> str:
        """Return it as plain lines: what is wrong with its ways out, and what could not be done."""
        blocks = (self._block(diagnosis) for diagnosis in self.diagnoses)
        return "\n".join([self._headline(), *blocks, *self._notes()])

    def _repr_html_(self) -> str:
        """Return it as notebooks show it."""
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{signal:.2g}</td><td>{delta:.2g}</td></tr>"
            for name, signal, delta in self._rows()
        )
        head = "<tr><th>layer</th><th>signal</th><th>gradient reaching it</th></tr>"
        # Notebooks choose a font of their own, and columns of words need one letter width.
        text = f'<pre style="font-family:monospace;white-space:pre-wrap">{html.escape(str(self))}</pre>'
        return f"{text}<table>{head}{rows}</table>{html.escape(self._left_out())}"

    def _block(self, diagnosis: Diagnosis) -> str:
        number = len(self.layers)
        where = f"{len(diagnosis.layers)} of {number} {plural('layer', number)}: {named(diagnosis.layers)}"
        head = f"{_word(diagnosis)}: {diagnosis.message} ({where})"
        ways = ways_out(diagnosis.remedies, alternatives=True)
        rows = [("measured", diagnosis.measured), ("why", diagnosis.cause), *ways]
        return block(head, [*rows, ("more", _more(diagnosis.remedies))])

    def _notes(self) -> list[str]:
        return [f"note: {note}" for note in self.notes]

    def _headline(self) -> str:
        warnings = sum(diagnosis.severity == "warning" for diagnosis in self.diagnoses)
        notices, number = len(self.diagnoses) - warnings, len(self.layers)
        # Where nothing was seen along depth, as in a compiled model, no warning is no health.
        well = "healthy" if np.isfinite(self.delta).any() else "not judged along depth"
        found = [
            f"{warnings} {plural('warning', warnings)}" if warnings else f"{well}: no warning",
            f"{notices} {plural('notice', notices)}" if notices else "",
        ]
        steady = "" if math.isnan(self.factor) else f"; the gradient is multiplied by {self.factor:.2g} a layer back"
        return f"{' and '.join(filter(None, found))} in {number} {plural('layer', number)}{steady}"

    def _rows(self) -> list[tuple[str, float, float]]:
        rows = zip(self.layers, self.signal.tolist(), self.delta.tolist(), strict=True)
        return list(rows)[:_MAX_ROWS]

    def _left_out(self) -> str:
        rest = len(self.layers) - _MAX_ROWS
        return f"and {rest} more {plural('layer', rest)}" if rest > 0 else ""

    def _table(self) -> str:
        rows = [f"| {_cell(name)} | {signal:.2g} | {delta:.2g} |" for name, signal, delta in self._rows()]
        table = "\n".join(["| layer | signal | gradient reaching it |", "|---|---|---|", *rows])
        return f"{table}\n\n{self._left_out()}" if self._left_out() else table


def _cell(name: str) -> str:
    return name.replace("|", "\\|").replace("\n", " ")


def _word(diagnosis: Diagnosis) -> str:
    word = diagnosis.symptom.value.upper().replace("_", "-")
    return word if diagnosis.severity == "warning" else f"notice, {word.lower()}"


def _diagnosis_in_markdown(diagnosis: Diagnosis) -> str:
    rows = {"measured": diagnosis.measured, "why": diagnosis.cause, "rule": diagnosis.rule}
    lines = [f"**{_word(diagnosis)}**: {diagnosis.message} ({named(diagnosis.layers)})"]
    return "\n".join([*lines, *(f"- {name}: {text}" for name, text in rows.items() if text)])


def _more(remedies: Sequence[Remedy]) -> str:
    rest = len(remedies) - SHOWN
    lines = "lines to paste" if any(remedy.code for remedy in remedies) else ""
    others = f"{rest} more {'way' if rest == 1 else 'ways'} out" if rest > 0 else ""
    found = " and ".join(filter(None, [lines, others]))
    return f"{found}: print(report.to_markdown())" if found else ""


def _remedy_in_markdown(number: int, remedy: Remedy) -> str:
    rows = {"rehearsed": did_in_words(remedy), "why": remedy.reason}
    head = "\n".join([f"{number}. **{remedy.title}**", *(f"   - {key}: {text}" for key, text in rows.items() if text)])
    if not remedy.code:
        return head
    code = "\n".join(f"   {line}" for line in remedy.code.splitlines())
    return f"{head}\n\n   ```python\n{code}\n   ```\n"
