"""Answer what the gradient norms of every layer looked like over training, as one picture."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from lightning_gradwatch.report import palette
from lightning_gradwatch.report.palette import Color

Integers = npt.NDArray[np.int64]

WIDTH = 960
MAX_PLOT_HEIGHT = 430  # with everything around it, the picture stays below 760 pixels
MAX_ROW_HEIGHT = 22
MIN_COLUMN_WIDTH = 3  # narrower columns vanish in TensorBoard's thumbnails
MAX_LABEL_WIDTH = 230
LABEL_SPACING = 13
MARGIN = 14
PLOT_TOP = 78
MAX_LISTED_MARKS = 4

# Sizes survive a thumbnail of 340 pixels where the text has to (title and legend words), in pixels.
TITLE_SIZE, WORD_SIZE, TEXT_SIZE, LABEL_SIZE = 22, 20, 15, 12

INK: Color = (34, 34, 34)
FAINT: Color = (110, 110, 110)  # side notes; still 5:1 on white
SMALL_WORD: Color = (33, 80, 170)  # the words wear the colors of the ends of the ramp
LARGE_WORD: Color = (196, 36, 32)
# Red, and an amber dark enough to read.
MARK_COLORS: dict[str, Color] = {"warning": (200, 16, 24), "notice": (176, 104, 0)}


@dataclass(frozen=True)
class Mark:
    """Name an onset to point at.

    Example:
        >>> Mark(37, "VANISHING 18 layers").severity
        'warning'
    """

    step: int
    text: str
    severity: Literal["warning", "notice"] = "warning"


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
        title: Headline of the picture.

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

    def __post_init__(self) -> None:
        """Refuse arrays whose shapes disagree.

        Raises:
            ValueError: If norms or present is not [n, layers].
        """
        shape = (len(self.steps), len(self.layers))
        if len(self.steps) and not (self.norms.shape == self.present.shape == shape):
            raise ValueError(f"norms {self.norms.shape}, present {self.present.shape}: both must be {shape}")


@dataclass(frozen=True)
class Layout:
    """Say where each reading and each layer lies in the picture, in pixels.

    Example:
        >>> norms = np.full((2, 1), 0.1)
        >>> layout = plan_layout(Heatmap(("fc",), np.array([0, 10]), norms, np.isfinite(norms)))
        >>> layout.column_of_reading.tolist(), layout.layers_per_row
        ([0, 1], 1)
    """

    labels: tuple[str, ...]  # names without their common prefix, not yet elided
    prefix: str
    order: Integers  # readings by ascending step, [n]
    column_of_reading: Integers  # of the ordered readings, [n]
    column_edges: Integers  # [columns + 1]
    row_edges: Integers  # [rows + 1]
    layers_per_row: int
    first_step: float  # at column_edges[0]
    last_step: float  # at column_edges[-1]

    def x_of(self, step: float) -> int:
        """Return the pixel column of a training step."""
        part = (step - self.first_step) / (self.last_step - self.first_step)
        left, right = int(self.column_edges[0]), int(self.column_edges[-1])
        return round(left + part * (right - left))

    def cell(self, reading: int, layer: int) -> tuple[slice, slice]:
        """Return the pixels (rows, columns) that show one reading, in step order, of one layer."""
        row, column = layer // self.layers_per_row, self.column_of_reading[reading]
        return slice(*self.row_edges[row : row + 2]), slice(*self.column_edges[column : column + 2])


def plan_layout(heatmap: Heatmap) -> Layout:
    """Decide where each reading and each layer goes.

    Args:
        heatmap: The numbers to show.

    Returns:
        The layout, which depends on names and steps only, not on norms.

    Example:
        >>> norms = np.full((1, 1000), 0.1)
        >>> names = tuple(f"net.{i}" for i in range(1000))
        >>> layout = plan_layout(Heatmap(names, np.zeros(1, dtype=np.int64), norms, np.isfinite(norms)))
        >>> layout.layers_per_row, layout.prefix, layout.labels[0]
        (3, 'net.', '0')
    """
    prefix, labels = _split_prefix(tuple(_ascii(name) for name in heatmap.layers))
    layers_per_row = max(1, math.ceil(len(labels) / MAX_PLOT_HEIGHT))
    rows = max(1, math.ceil(len(labels) / layers_per_row))
    height = min(MAX_PLOT_HEIGHT, rows * MAX_ROW_HEIGHT)
    row_edges = PLOT_TOP + np.rint(np.linspace(0, height, rows + 1)).astype(np.int64)
    measure = _Pen(Image.new("RGB", (1, 1)))
    longest = sorted(labels, key=len)[-40:]  # measuring thousands of names costs more than drawing
    widest = max((measure.width(label, LABEL_SIZE) for label in longest), default=0)
    left = MARGIN + 24 + max(60, min(widest, MAX_LABEL_WIDTH)) + 10
    order = np.argsort(heatmap.steps, kind="stable").astype(np.int64)
    steps = np.asarray(heatmap.steps, dtype=np.float64)[order]
    gap = float(np.median(np.diff(np.unique(steps)))) if len(np.unique(steps)) > 1 else 1.0
    first, last = (float(steps[0]) - gap / 2, float(steps[-1]) + gap / 2) if len(steps) else (0.0, 1.0)
    column_of_reading, edges = _columns(steps, first, last, WIDTH - MARGIN - left)
    columns = (column_of_reading, left + edges)
    return Layout(labels, prefix, order, *columns, row_edges, layers_per_row, first, last)


def _columns(steps: palette.Norms, first: float, last: float, width: int) -> tuple[Integers, Integers]:
    """Return the column of each ordered reading and the pixel edges of the columns."""
    most = width // MIN_COLUMN_WIDTH
    n = len(steps)
    if n == 0:
        return np.zeros(0, dtype=np.int64), np.array([0, width])
    slots = most if n <= most else math.ceil(n / math.ceil(n / most))
    slot = np.minimum((steps - first) / (last - first) * slots, slots - 1).astype(np.int64)
    occupied, column = np.unique(slot, return_inverse=True)
    # Few readings sit at their true steps, many share slots of equal width; gaps go to the nearest reading.
    centers = first + (occupied + 0.5) * (last - first) / slots
    if n <= most:
        centers = np.bincount(column, weights=steps) / np.bincount(column)
    middles = (centers[1:] + centers[:-1]) / 2
    edges = np.rint((np.concatenate([[first], middles, [last]]) - first) / (last - first) * width)
    return column.astype(np.int64), edges.astype(np.int64)


def _ascii(text: str) -> str:
    """Replace what the font cannot draw on one line."""
    return re.sub(r"[^\x20-\x7e]", "?", text)


def _split_prefix(names: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Split off the dotted prefix that all names share."""
    if len(names) < 2:
        return "", names
    low, high = min(names).split("."), max(names).split(".")
    shared = 0
    while shared < min(len(low), len(high)) - 1 and low[shared] == high[shared]:
        shared += 1
    prefix = "".join(f"{part}." for part in low[:shared])
    return prefix, tuple(name[len(prefix) :] for name in names)


def _elide(name: str, fits: Callable[[str], bool]) -> str:
    """Shorten a name from the middle, keeping its numbered parts and its end as long as possible."""
    parts = name.split(".")
    numbered = [i for i, part in enumerate(parts[:-1]) if re.search(r"\d", part)]
    center = numbered[-1] if numbered else 0
    optional = [i for i in [*range(center + 1, len(parts) - 1), *range(center)] if i not in numbered]
    text, dropped = name, set[int]()
    for index in optional:
        if fits(text):
            return text
        dropped.add(index)
        kept = "".join("\0" if i in dropped else f"{part}." for i, part in enumerate(parts))[:-1]
        text = re.sub(r"\.?\0+", "...", kept)
    return _elide_letters(text, fits)


def _elide_letters(text: str, fits: Callable[[str], bool]) -> str:
    """Shorten any text from the middle."""
    if fits(text):
        return text
    low, high = 0, len(text) - 1  # letters that surely fit, letters that may
    while low < high:
        keep = (low + high + 1) // 2
        low, high = (keep, high) if fits(_without_middle(text, keep)) else (low, keep - 1)
    return _without_middle(text, low)


def _without_middle(text: str, keep: int) -> str:
    """Keep so many letters, half of them from either end."""
    return f"{text[: (keep + 1) // 2]}...{text[len(text) - keep // 2 :]}"


class _Pen:
    """Write and measure text on an image."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self.draw = ImageDraw.Draw(image)
        self._fonts: dict[int, ImageFont.FreeTypeFont | ImageFont.ImageFont] = {}

    def _font(self, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        """Load the font that Pillow ships; an old Pillow or one without FreeType has a single small size."""
        if size not in self._fonts:
            try:
                self._fonts[size] = ImageFont.load_default(size=size)
            except (TypeError, ImportError):
                self._fonts[size] = ImageFont.load_default()
        return self._fonts[size]

    def width(self, text: str, size: int) -> int:
        """Measure a line of text."""
        return math.ceil(self._font(size).getbbox(text)[2]) if text else 0

    def fits(self, size: int, width: int) -> Callable[[str], bool]:
        """Return the question whether a text fits into a width."""
        return lambda text: self.width(text, size) <= width

    def text(self, x: int, y: int, text: str, size: int, color: Color = INK, align: float = 0.0) -> int:
        """Write text centered on the line y, from x (align 0) or up to x (1), and return where it ends."""
        _, top, _, bottom = self._font(size).getbbox("Ag")
        start = round(x - align * self.width(text, size))
        self.draw.text((start, round(y - (top + bottom) / 2)), text, fill=color, font=self._font(size))
        return start + self.width(text, size)

    def triangle(self, x: int, y: int, size: int, color: Color) -> None:
        """Draw a triangle that points down to (x, y)."""
        self.draw.polygon([(x - size // 2, y - size + 2), (x + size // 2, y - size + 2), (x, y)], fill=color)

    def paste(self, x: int, y: int, codes: palette.Codes) -> None:
        """Paint color codes with their upper left corner at (x, y)."""
        self.image.paste(Image.fromarray(palette.paint(codes)), (x, y))


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
    layout = plan_layout(heatmap)
    anchors = palette.anchors_for(heatmap.vanishing_threshold, heatmap.exploding_threshold)
    cells = _cells(heatmap, layout, anchors)
    bottom = int(layout.row_edges[-1])
    listed = min(len(heatmap.marks), MAX_LISTED_MARKS) + (len(heatmap.marks) > MAX_LISTED_MARKS)
    height = bottom + 150 + 20 * listed
    pen = _Pen(Image.new("RGB", (WIDTH, height), (255, 255, 255)))
    _draw_head(pen, heatmap, layout)
    _draw_steps(pen, heatmap, layout)
    _draw_cells(pen, heatmap, layout, cells)
    _draw_layers(pen, layout)
    _draw_scale(pen, anchors, bottom + 58)
    _draw_symbols(pen, heatmap, cells, bottom + 126)
    _draw_marks(pen, heatmap, layout, bottom + 152)
    return np.array(pen.image, dtype=np.uint8)


def _draw_head(pen: _Pen, heatmap: Heatmap, layout: Layout) -> None:
    """Draw the title and one line on what was left out or put together."""
    room = WIDTH - 2 * MARGIN
    title = _elide_letters(_ascii(heatmap.title), pen.fits(TITLE_SIZE, room))
    pen.text(MARGIN, 20, title, TITLE_SIZE)
    notes = []
    if layout.layers_per_row > 1:
        notes.append(f"{layout.layers_per_row} layers a row (most abnormal)")
    readings = int(np.bincount(layout.column_of_reading).max()) if len(heatmap.steps) else 0
    if readings > 1:
        notes.append(f"up to {readings} readings a column (median)")
    note = ", ".join(notes)
    pen.text(WIDTH - MARGIN, 46, note, LABEL_SIZE + 1, FAINT, align=1.0)
    if layout.prefix:
        left = room - pen.width(note, LABEL_SIZE + 1) - 20
        name = _elide(f"{layout.prefix}*", pen.fits(LABEL_SIZE + 1, left))
        pen.text(MARGIN, 46, name, LABEL_SIZE + 1, FAINT)


def _draw_cells(pen: _Pen, heatmap: Heatmap, layout: Layout, cells: _Cells) -> None:
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


def _draw_layers(pen: _Pen, layout: Layout) -> None:
    """Draw the layer names, as many as fit, and the arrow from input to output."""
    top, bottom, x = int(layout.row_edges[0]), int(layout.row_edges[-1]), int(layout.column_edges[0])
    pen.text(MARGIN, top - 12, "input", TEXT_SIZE)
    pen.text(MARGIN, bottom + 12, "output", TEXT_SIZE)
    pen.draw.line((MARGIN + 6, top, MARGIN + 6, bottom), fill=FAINT, width=2)
    pen.draw.polygon([(MARGIN + 1, bottom - 8), (MARGIN + 12, bottom - 8), (MARGIN + 6, bottom)], fill=FAINT)
    if not layout.labels:
        return
    centers = (layout.row_edges[1:] + layout.row_edges[:-1]) // 2
    stride = math.ceil(LABEL_SPACING * (len(centers) / (bottom - top)))
    last = len(centers) - 1
    chosen = [row for row in range(0, last, stride) if centers[last] - centers[row] >= LABEL_SPACING]
    for row in [*chosen, last]:
        layer = len(layout.labels) - 1 if row == last else row * layout.layers_per_row
        label = _elide(layout.labels[layer], pen.fits(LABEL_SIZE, x - 10 - MARGIN - 24))
        pen.text(x - 8, int(centers[row]), label, LABEL_SIZE, align=1.0)
        pen.draw.line((x - 5, int(centers[row]), x - 2, int(centers[row])), fill=FAINT)


def _step_ticks(heatmap: Heatmap, layout: Layout, pen: _Pen) -> list[int]:
    """Choose round steps that leave room for their labels."""
    low, high = int(heatmap.steps.min()), int(heatmap.steps.max())
    pixels = int(layout.column_edges[-1] - layout.column_edges[0]) / (layout.last_step - layout.first_step)
    room = max(pen.width(str(low), LABEL_SIZE + 1), pen.width(str(high), LABEL_SIZE + 1), 40) + 30
    spacing = next(s for e in range(20) for s in (10**e, 2 * 10**e, 5 * 10**e) if s * pixels >= room)
    return list(range(-(-low // spacing) * spacing, high + 1, spacing)) or [low]


def _draw_steps(pen: _Pen, heatmap: Heatmap, layout: Layout) -> None:
    """Draw the ticks of the training steps."""
    y, left, right = int(layout.row_edges[-1]), int(layout.column_edges[0]), int(layout.column_edges[-1])
    for step in _step_ticks(heatmap, layout, pen) if len(heatmap.steps) else []:
        x, half = layout.x_of(step), pen.width(str(step), LABEL_SIZE + 1) // 2 + 1
        pen.draw.line((x, y + 1, x, y + 12), fill=FAINT)
        inside = min(max(x, left - 8 + half), right + MARGIN - half)
        pen.text(inside, y + 20, str(step), LABEL_SIZE + 1, align=0.5)
    pen.text((left + right) // 2, y + 38, "training step", TEXT_SIZE, align=0.5)


def _power(log: float) -> str:
    """Write a norm given as log10 in the style of 1e-7."""
    mantissa, exponent = f"{10.0**log:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def _draw_scale(pen: _Pen, anchors: palette.Anchors, y: int) -> None:
    """Draw the color bar: the ramp between two caps for norms beyond the anchors."""
    words, cap = ("vanishing", "exploding"), 36
    left = MARGIN + max(pen.width(word, WORD_SIZE) for word in words) + 12
    right = WIDTH - left
    pen.text(left - 12, y + 11, words[0], WORD_SIZE, SMALL_WORD, align=1.0)
    pen.text(right + 12, y + 11, words[1], WORD_SIZE, LARGE_WORD)
    ramp = palette.scale_codes(right - left - 2 * cap)
    below, above = np.full(cap, palette.BELOW, np.uint8), np.full(cap, palette.ABOVE, np.uint8)
    pen.paste(left, y, np.tile(np.concatenate([below, ramp, above]), (22, 1)))
    pen.text(left + cap + len(ramp) // 2, y + 11, "usual", TEXT_SIZE, align=0.5)
    taken: list[tuple[int, int]] = []
    decades = range(math.ceil(anchors.low), math.floor(anchors.high) + 1)
    for log in [anchors.low, anchors.high, anchors.center, *decades]:
        part = (log - anchors.low) / (anchors.high - anchors.low)
        x, half = left + cap + round(part * len(ramp)), pen.width(_power(log), LABEL_SIZE + 1) // 2 + 5
        if all(x + half < start or x - half > end for start, end in taken):
            taken.append((x - half, x + half))
            pen.draw.line((x, y + 22, x, y + 26), fill=FAINT)
            pen.text(x, y + 35, _power(log), LABEL_SIZE + 1, align=0.5)


def _draw_symbols(pen: _Pen, heatmap: Heatmap, cells: _Cells, y: int) -> None:
    """Name the special states that occur, and say so where none does."""
    states = {
        palette.NAN: "NaN",
        palette.INF: "infinite",
        palette.ZERO: "exactly zero",
        palette.ABSENT: "no gradient (not trained at that step)",
    }
    if not len(heatmap.steps) or not heatmap.layers:
        return
    found = [code for code in states if (cells.codes == code).any()]
    x = MARGIN
    for code in found:
        pen.paste(x, y - 8, np.full((16, 30), code, dtype=np.uint8))
        pen.draw.rectangle((x - 1, y - 9, x + 30, y + 8), outline=FAINT)
        x = pen.text(x + 38, y, states[code], TEXT_SIZE) + 24
    if cells.extreme.any():
        pen.draw.rectangle((x + 6, y - 3, x + 9, y + 3), fill=MARK_COLORS["warning"])
        pen.text(x + 16, y, "peak > 100x median", TEXT_SIZE)
    elif not found:
        pen.text(x, y, "no NaN, no infinity, no exact zero, every layer has a gradient", TEXT_SIZE, FAINT)


def _draw_marks(pen: _Pen, heatmap: Heatmap, layout: Layout, y: int) -> None:
    """Point at each onset from above the plot and list the most severe below."""
    severe = sorted(heatmap.marks, key=lambda mark: (mark.severity != "warning", mark.step))
    listed = sorted(severe[:MAX_LISTED_MARKS], key=lambda mark: mark.step)
    top, bottom = int(layout.row_edges[0]), int(layout.row_edges[-1])
    for mark in reversed(severe):
        if len(heatmap.steps) and layout.first_step <= mark.step <= layout.last_step:
            x, color = layout.x_of(mark.step), MARK_COLORS[mark.severity]
            pen.triangle(x, top - 2, 16, color)
            pen.draw.line((x, top, x, bottom - 1), fill=(255, 255, 255))
            for start in range(top, bottom, 8):
                pen.draw.line((x, start, x, min(start + 4, bottom - 1)), fill=color)
    for mark in listed:
        pen.triangle(MARGIN + 8, y + 5, 14, MARK_COLORS[mark.severity])
        text = _ascii(f"step {mark.step}  {mark.text}")
        text = _elide_letters(text, pen.fits(TEXT_SIZE, WIDTH - 2 * MARGIN - 24))
        pen.text(MARGIN + 24, y, text, TEXT_SIZE, MARK_COLORS[mark.severity])
        y += 20
    if len(severe) > len(listed):
        pen.text(MARGIN + 24, y, f"+ {len(severe) - len(listed)} more", TEXT_SIZE, FAINT)
