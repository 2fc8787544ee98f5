"""Draw what the picture is read by: the names of the layers, the training steps and the color scale."""

from __future__ import annotations

import math

import numpy as np

from lightning_gradwatch.report import palette
from lightning_gradwatch.report.layout import Integers, Layout, elide
from lightning_gradwatch.report.palette import Color
from lightning_gradwatch.report.pen import FAINT, LABEL_SIZE, MARGIN, TICK_SIZE, WIDTH, WORD_SIZE, Pen

LABEL_SPACING = 14
SMALL_WORD: Color = (33, 80, 170)  # the words wear the colors of the ends of the ramp
LARGE_WORD: Color = (196, 36, 32)


def draw_layers(pen: Pen, layout: Layout) -> None:
    """Draw the layer names, as many as fit, and the arrow from input to output."""
    top, bottom, x = int(layout.row_edges[0]), int(layout.row_edges[-1]), int(layout.column_edges[0])
    pen.text(MARGIN, top - 16, "input", TICK_SIZE)
    pen.text(MARGIN, bottom + 18, "output", TICK_SIZE)
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
        label = elide(layout.labels[layer], pen.fits(LABEL_SIZE, x - 10 - MARGIN - 24))
        # Faint: on a thumbnail, where names cannot be read, they shall not look like something.
        pen.text(x - 8, int(centers[row]), label, LABEL_SIZE, FAINT, align=1.0)
        pen.draw.line((x - 5, int(centers[row]), x - 2, int(centers[row])), fill=FAINT)


def _step_ticks(steps: Integers, layout: Layout, pen: Pen) -> list[int]:
    """Choose round steps that leave room for their labels."""
    low, high = int(steps.min()), int(steps.max())
    pixels = int(layout.column_edges[-1] - layout.column_edges[0]) / (layout.last_step - layout.first_step)
    room = max(pen.width(str(low), TICK_SIZE), pen.width(str(high), TICK_SIZE), 60) + 50
    spacing = next(s for e in range(20) for s in (10**e, 2 * 10**e, 5 * 10**e) if s * pixels >= room)
    return list(range(-(-low // spacing) * spacing, high + 1, spacing)) or [low]


def draw_steps(pen: Pen, layout: Layout, steps: Integers) -> None:
    """Draw the ticks of the training steps."""
    y, left, right = int(layout.row_edges[-1]), int(layout.column_edges[0]), int(layout.column_edges[-1])
    for step in _step_ticks(steps, layout, pen) if len(steps) else []:
        x, half = layout.x_of(step), pen.width(str(step), TICK_SIZE) // 2 + 1
        pen.draw.line((x, y + 1, x, y + 12), fill=FAINT)
        inside = min(max(x, left - 8 + half), right + MARGIN - half)
        pen.text(inside, y + 28, str(step), TICK_SIZE, align=0.5)
    pen.text((left + right) // 2, y + 56, "training step", TICK_SIZE, align=0.5)


def _power(log: float) -> str:
    """Write a norm given as log10 in the style of 1e-7."""
    mantissa, exponent = f"{10.0**log:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def draw_scale(pen: Pen, anchors: palette.Anchors, y: int) -> None:
    """Draw the color bar: the ramp between two caps for norms beyond the anchors."""
    words, cap, height = ("vanishing", "exploding"), 36, 26
    left = MARGIN + max(pen.width(word, WORD_SIZE) for word in words) + 12
    right = WIDTH - left
    pen.text(left - 12, y + height // 2, words[0], WORD_SIZE, SMALL_WORD, align=1.0)
    pen.text(right + 12, y + height // 2, words[1], WORD_SIZE, LARGE_WORD)
    ramp = palette.scale_codes(right - left - 2 * cap)
    below, above = np.full(cap, palette.BELOW, np.uint8), np.full(cap, palette.ABOVE, np.uint8)
    pen.paste(left, y, np.tile(np.concatenate([below, ramp, above]), (height, 1)))
    pen.text(left + cap + len(ramp) // 2, y + height // 2, "usual", TICK_SIZE, align=0.5)
    taken: list[tuple[int, int]] = []
    decades = range(math.ceil(anchors.low), math.floor(anchors.high) + 1)
    for log in [anchors.low, anchors.high, anchors.center, *decades]:
        part = (log - anchors.low) / (anchors.high - anchors.low)
        x, half = left + cap + round(part * len(ramp)), pen.width(_power(log), TICK_SIZE) // 2 + 5
        if all(x + half < start or x - half > end for start, end in taken):
            taken.append((x - half, x + half))
            pen.draw.line((x, y + height, x, y + height + 4), fill=FAINT)
            pen.text(x, y + height + 18, _power(log), TICK_SIZE, align=0.5)
