"""Answer what the gradient norms of every layer looked like over training, as one picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from lightning_gradwatch.report import palette
from lightning_gradwatch.report.axes import draw_layers, draw_scale, draw_steps
from lightning_gradwatch.report.layout import Integers, Layout, ascii_of, elide, elide_letters, plan_layout
from lightning_gradwatch.report.palette import Color
from lightning_gradwatch.report.pen import (
    FAINT,
    INK,
    LABEL_SIZE,
    MARGIN,
    TEXT_SIZE,
    TICK_SIZE,
    TITLE_SIZE,
    WIDTH,
    WORD_SIZE,
    Pen,
)

MAX_LISTED_MARKS = 4
# Red, and an amber dark enough to read.
MARK_COLORS: dict[str, Color] = {"warning": (200, 16, 24), "notice": (176, 104, 0)}


@dataclass(frozen=True)
class Mark:
    """Name an onset to point at.

    Attributes:
        step: Where.
        text: What, in a few words.
        severity: Its color.
        lasts: Whether it is not over; what lasts is listed first.

    Example:
        >>> Mark(37, "VANISHING 18 layers").severity
        'warning'
    """

    step: int
    text: str
    severity: Literal["warning", "notice"] = "warning"
    lasts: bool = True


@dataclass(frozen=True)
class Heatmap:
    """Hold everything that the picture shows, as plain numbers.

    Attributes:
        layers: Names in forward order; the first is nearest the input and drawn on top.
        steps: Training step of each reading, [n].
        norms: Gradient norms, [n, layers]; NaN and infinity are welcome.
        present: False where the layer had no gradient in that reading, [n, layers].
        vanishing_threshold: The user's own; anchors the colors where given.
        exploding_threshold: The user's own; anchors the colors where given.
        marks: Onsets to point at.
        title: What is drawn.
        verdict: How the run fares, in parts: as many as fit stand large below the title.
        alarm: Whether the verdict is a warning.

    Example:
        >>> norms = np.full((3, 2), 0.1)
        >>> Heatmap(("fc1", "fc2"), np.arange(3), norms, np.isfinite(norms)).layers
        ('fc1', 'fc2')
    """

    layers: tuple[str, ...]
    steps: Integers
    norms: npt.NDArray[np.float64]
    present: npt.NDArray[np.bool_]
    vanishing_threshold: float | None = None
    exploding_threshold: float | None = None
    marks: tuple[Mark, ...] = ()
    title: str = "gradient norm per layer (log10)"
    verdict: tuple[str, ...] = ()
    alarm: bool = False

    def __post_init__(self) -> None:
        """Refuse arrays whose shapes disagree.

        Raises:
            ValueError: If norms or present is not [n, layers].
        """
        shape = (len(self.steps), len(self.layers))
        if len(self.steps) and not (self.norms.shape == self.present.shape == shape):
            raise ValueError(f"norms {self.norms.shape}, present {self.present.shape}: both must be {shape}")


def draw_heatmap(heatmap: Heatmap) -> npt.NDArray[np.uint8]:
    """Draw gradient norms as layers (rows, input on top) by training steps (columns).

    Args:
        heatmap: The numbers to show.

    Returns:
        An RGB picture, [height, width, 3], for TensorBoard, wandb or a file.

    Example:
        >>> norms = np.array([[1e-9, 0.1], [1e-9, np.nan]])
        >>> picture = draw_heatmap(Heatmap(("fc1", "fc2"), np.array([0, 10]), norms, norms != 0))
        >>> picture.shape[1:], picture.dtype
        ((960, 3), dtype('uint8'))
    """
    layout = plan_layout(heatmap.layers, heatmap.steps)
    anchors = palette.anchors_for(heatmap.vanishing_threshold, heatmap.exploding_threshold)
    cells = _cells(heatmap, layout, anchors)
    bottom = int(layout.row_edges[-1])
    listed = min(len(heatmap.marks), MAX_LISTED_MARKS) + (len(heatmap.marks) > MAX_LISTED_MARKS)
    height = bottom + 214 + 22 * listed
    pen = Pen(Image.new("RGB", (WIDTH, height), (255, 255, 255)))
    _draw_head(pen, heatmap)
    draw_steps(pen, layout, heatmap.steps)
    _draw_cells(pen, heatmap, layout, cells)
    draw_layers(pen, layout)
    draw_scale(pen, anchors, bottom + 82)
    _draw_symbols(pen, heatmap, cells, bottom + 160)
    _draw_marks(pen, heatmap, layout, bottom + 192)
    _draw_notes(pen, heatmap, layout, height - 12)
    return np.array(pen.image, dtype=np.uint8)


def _draw_head(pen: Pen, heatmap: Heatmap) -> None:
    """Draw what is shown and how the run fares, large enough for a thumbnail."""
    fits = pen.fits(TITLE_SIZE, WIDTH - 2 * MARGIN)
    pen.text(MARGIN, 24, elide_letters(ascii_of(heatmap.title), fits), TITLE_SIZE)
    parts = [ascii_of(part) for part in heatmap.verdict]
    number = next((n for n in range(len(parts), 0, -1) if fits(_verdict(parts, n))), 1)
    if parts:
        color = MARK_COLORS["warning"] if heatmap.alarm else INK
        pen.text(MARGIN, 64, elide_letters(_verdict(parts, number), fits), TITLE_SIZE, color)


def _verdict(parts: list[str], number: int) -> str:
    rest = len(parts) - number
    return ", ".join(parts[:number]) + (f", {rest} more" if rest else "")


def _draw_notes(pen: Pen, heatmap: Heatmap, layout: Layout, y: int) -> None:
    """Draw one line on what was left out or put together."""
    notes = [elide(f"names begin with {layout.prefix}", pen.fits(LABEL_SIZE, WIDTH // 3))] if layout.prefix else []
    if layout.layers_per_row > 1:
        notes.append(f"{layout.layers_per_row} layers a row (most abnormal)")
    readings = int(np.bincount(layout.column_of_reading).max()) if len(heatmap.steps) else 0
    if readings > 1:
        notes.append(f"up to {readings} readings a column (median)")
    pen.text(MARGIN, y, ", ".join(notes), LABEL_SIZE, FAINT)


@dataclass(frozen=True)
class _Cells:
    """Hold the color code of each cell, [rows, columns], and the columns with an extreme reading."""

    codes: palette.Codes
    extreme: npt.NDArray[np.bool_]


def _cells(heatmap: Heatmap, layout: Layout, anchors: palette.Anchors) -> _Cells:
    """Reduce the readings to what fits and look up the colors."""
    columns, rows = len(layout.column_edges) - 1, len(layout.row_edges) - 1
    if not len(heatmap.steps) or not heatmap.layers:
        return _Cells(np.full((rows, columns), palette.ABSENT, np.uint8), np.zeros(columns, np.bool_))
    norms = np.asarray(heatmap.norms, dtype=np.float64)[layout.order]
    norms, present, extreme = palette.reduce_readings(
        norms, heatmap.present[layout.order], layout.column_of_reading, columns
    )
    norms, present = palette.reduce_layers(norms, present, layout.layers_per_row, anchors)
    return _Cells(palette.color_codes(norms, present, anchors).T, extreme)


def _draw_cells(pen: Pen, heatmap: Heatmap, layout: Layout, cells: _Cells) -> None:
    """Draw the plot, its frame and, below it, a red tick for each column with an extreme reading."""
    x, y, codes = layout.column_edges, layout.row_edges, cells.codes
    pen.paste(int(x[0]), int(y[0]), codes.repeat(np.diff(y), axis=0).repeat(np.diff(x), axis=1))
    pen.draw.rectangle((int(x[0]) - 1, int(y[0]) - 1, int(x[-1]), int(y[-1])), outline=FAINT)
    if not len(heatmap.steps) or not heatmap.layers:
        words = "no layer to show" if len(heatmap.steps) else "no reading yet"
        pen.draw.rectangle((int(x[0]), int(y[0]), int(x[-1]) - 1, int(y[-1]) - 1), fill=palette.ABSENT_COLOR)
        pen.text(int(x[0] + x[-1]) // 2, int(y[0] + y[-1]) // 2, words, WORD_SIZE, align=0.5)
    for column in np.flatnonzero(cells.extreme):
        box = (int(x[column]), int(y[-1]) + 2, int(x[column + 1]) - 1, int(y[-1]) + 8)
        pen.draw.rectangle(box, fill=MARK_COLORS["warning"])


def _draw_symbols(pen: Pen, heatmap: Heatmap, cells: _Cells, y: int) -> None:
    """Name the special states that occur, and say so where none does."""
    states = {
        palette.NAN: "NaN",
        palette.INF: "infinite",
        palette.ZERO: "exactly zero",
        palette.ABSENT: "no gradient",
    }
    if not len(heatmap.steps) or not heatmap.layers:
        return
    found = [code for code in states if (cells.codes == code).any()]
    x = MARGIN
    for code in found:
        pen.paste(x, y - 12, np.full((24, 36), code, dtype=np.uint8))
        pen.draw.rectangle((x - 1, y - 13, x + 36, y + 12), outline=FAINT)
        x = pen.text(x + 44, y, states[code], TICK_SIZE) + 22
    if cells.extreme.any():
        pen.draw.rectangle((x + 4, y - 8, x + 9, y + 8), fill=MARK_COLORS["warning"])
        pen.text(x + 16, y, "peak > 100x", TICK_SIZE)
    elif not found:
        pen.text(x, y, "no NaN, no infinity, no exact zero, every layer has a gradient", TICK_SIZE, FAINT)


def _draw_marks(pen: Pen, heatmap: Heatmap, layout: Layout, y: int) -> None:
    """Point at each onset from above the plot and list the most severe below."""
    severe = sorted(heatmap.marks, key=lambda mark: (mark.severity != "warning", not mark.lasts, mark.step))
    listed = sorted(severe[:MAX_LISTED_MARKS], key=lambda mark: mark.step)
    top, bottom = int(layout.row_edges[0]), int(layout.row_edges[-1])
    for mark in reversed(severe):
        if len(heatmap.steps) and layout.first_step <= mark.step <= layout.last_step:
            x, color = layout.x_of(mark.step), MARK_COLORS[mark.severity]
            pen.triangle(x, top - 2, 24, color)
            pen.draw.line((x, top, x, bottom - 1), fill=(255, 255, 255))
            for start in range(top, bottom, 8):
                pen.draw.line((x, start, x, min(start + 4, bottom - 1)), fill=color)
    for mark in listed:
        pen.triangle(MARGIN + 8, y + 5, 14, MARK_COLORS[mark.severity])
        text = ascii_of(f"step {mark.step}  {mark.text}")
        text = elide_letters(text, pen.fits(TEXT_SIZE, WIDTH - 2 * MARGIN - 24))
        pen.text(MARGIN + 24, y, text, TEXT_SIZE, MARK_COLORS[mark.severity])
        y += 22
    if len(severe) > len(listed):
        pen.text(MARGIN + 24, y, f"+ {len(severe) - len(listed)} more", TEXT_SIZE, FAINT)
