"""Figures of matplotlib that leave the person's own alone, and what all of ours share. Needs matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lightning_gradwatch.report.image import MARK_COLORS
from lightning_gradwatch.report.palette import Color

# Inches and dots an inch: 900 x 500 pixels, as wide as a cell of a notebook.
SIZE, DPI = (9.0, 5.0), 100
MAX_LABELS = 22
_MAX_LABEL_LETTERS = 28


class _NotebookFigure(Figure):
    """A figure that a notebook shows although pyplot was never asked for it."""

    def _repr_png_(self) -> bytes:
        picture = io.BytesIO()
        self.savefig(picture, format="png")
        return picture.getvalue()


def new_axes() -> Axes:
    """Return the axes of a new figure, of which pyplot, and so the person's open plots, knows nothing.

    Returns:
        The axes.
    """
    figure = _NotebookFigure(figsize=SIZE, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure.add_subplot()


def short(name: str) -> str:
    """Keep both ends of a long name."""
    half = (_MAX_LABEL_LETTERS - 3) // 2
    return name if len(name) <= _MAX_LABEL_LETTERS else f"{name[:half]}...{name[-half:]}"


def severity_color(diagnosis: Mapping[str, Any]) -> tuple[float, float, float]:
    """Return the color of a diagnosis, as ``Diagnosis.to_dict`` has it."""
    return rgb_of(MARK_COLORS["warning" if diagnosis.get("severity") == "warning" else "notice"])


def mark_text(diagnosis: Mapping[str, Any]) -> str:
    """Name a diagnosis in a few words.

    Args:
        diagnosis: As ``Diagnosis.to_dict`` has it.

    Returns:
        Such as ``"step 3: VANISHING, 16 layers"``.

    Example:
        >>> mark_text({"step": 3, "symptom": "dead", "layers": ["fc"], "severity": "notice", "recovered_at": 9})
        'step 3: notice, dead, 1 layer, until step 9'
    """
    number = len(diagnosis.get("layers", ()))
    word = str(diagnosis.get("symptom", "")).replace("_", "-")
    word = word.upper() if diagnosis.get("severity") == "warning" else f"notice, {word}"
    over = diagnosis.get("recovered_at")
    until = "" if over is None else f", until step {over}"
    return f"step {diagnosis.get('step')}: {word}, {number} layer{'' if number == 1 else 's'}{until}"


def rgb_of(color: Color) -> tuple[float, float, float]:
    """Return a color as matplotlib takes it."""
    red, green, blue = (channel / 255 for channel in color)
    return red, green, blue


def plain(text: str) -> str:
    """Keep matplotlib from reading a name as mathematics."""
    return text.replace("$", r"\$")
