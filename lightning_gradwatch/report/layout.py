"""Answer where in the picture each reading and each layer lies, and how a layer's name is shortened to its room."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from lightning_gradwatch.report.pen import LABEL_SIZE, MARGIN, WIDTH, Pen

Integers = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]

MAX_PLOT_HEIGHT = 400  # with everything around it, the picture stays below 850 pixels
MAX_ROW_HEIGHT = 22
MIN_COLUMN_WIDTH = 3  # narrower columns vanish in TensorBoard's thumbnails
MAX_LABEL_WIDTH = 230
PLOT_TOP = 122


@dataclass(frozen=True)
class Layout:
    """Say where each reading and each layer lies in the picture, in pixels.

    Example:
        >>> layout = plan_layout(("fc",), np.array([0, 10]))
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


def plan_layout(layers: Sequence[str], readings: Integers) -> Layout:
    """Decide where each reading and each layer goes.

    Args:
        layers: Names of the layers in forward order.
        readings: Training step of each reading, in any order, [n].

    Returns:
        The layout.

    Example:
        >>> layout = plan_layout([f"net.{i}" for i in range(1000)], np.zeros(1, dtype=np.int64))
        >>> layout.layers_per_row, layout.prefix, layout.labels[0]
        (3, 'net.', '0')
    """
    prefix, labels = split_prefix(tuple(ascii_of(name) for name in layers))
    layers_per_row = max(1, math.ceil(len(labels) / MAX_PLOT_HEIGHT))
    rows = max(1, math.ceil(len(labels) / layers_per_row))
    height = min(MAX_PLOT_HEIGHT, rows * MAX_ROW_HEIGHT)
    row_edges = PLOT_TOP + np.rint(np.linspace(0, height, rows + 1)).astype(np.int64)
    measure = Pen(Image.new("RGB", (1, 1)))
    longest = sorted(labels, key=len)[-40:]  # measuring thousands of names costs more than drawing
    widest = max((measure.width(label, LABEL_SIZE) for label in longest), default=0)
    left = MARGIN + 24 + max(70, min(widest, MAX_LABEL_WIDTH)) + 10
    order = np.argsort(readings, kind="stable").astype(np.int64)
    steps = np.asarray(readings, dtype=np.float64)[order]
    gap = float(np.median(np.diff(np.unique(steps)))) if len(np.unique(steps)) > 1 else 1.0
    first, last = (float(steps[0]) - gap / 2, float(steps[-1]) + gap / 2) if len(steps) else (0.0, 1.0)
    column_of_reading, edges = _columns(steps, first, last, WIDTH - MARGIN - left)
    columns = (column_of_reading, left + edges)
    return Layout(labels, prefix, order, *columns, row_edges, layers_per_row, first, last)


def _columns(steps: Numbers, first: float, last: float, width: int) -> tuple[Integers, Integers]:
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


def ascii_of(text: str) -> str:
    """Replace what the font cannot draw on one line."""
    return re.sub(r"[^\x20-\x7e]", "?", text)


def split_prefix(names: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Split off the dotted prefix that all names share."""
    if len(names) < 2:
        return "", names
    low, high = min(names).split("."), max(names).split(".")
    shared = 0
    while shared < min(len(low), len(high)) - 1 and low[shared] == high[shared]:
        shared += 1
    prefix = "".join(f"{part}." for part in low[:shared])
    return prefix, tuple(name[len(prefix) :] for name in names)


def elide(name: str, fits: Callable[[str], bool]) -> str:
    """Shorten a name from the middle, keeping its numbered parts and its end as long as possible.

    Args:
        name: A dotted name.
        fits: Whether a text fits.

    Returns:
        The name, words in the middle and in front being left out first.

    Example:
        >>> elide("encoder.blocks.3.attention.self.query", lambda text: len(text) <= 20)
        '...blocks.3...query'
    """
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
    return elide_letters(text, fits)


def elide_letters(text: str, fits: Callable[[str], bool]) -> str:
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
