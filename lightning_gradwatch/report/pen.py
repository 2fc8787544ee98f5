"""Write and measure text on the picture, in its few sizes and colors."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, lru_cache

from PIL import Image, ImageDraw, ImageFont

from lightning_gradwatch.report import palette
from lightning_gradwatch.report.palette import Color

WIDTH = 960  # of the picture
MARGIN = 14  # around it

# In pixels. TensorBoard shows the picture 340 pixels wide and drops the pixels between: the first three survive that
# (looked at), the other two are for the picture at its own size.
TITLE_SIZE, WORD_SIZE, TICK_SIZE, TEXT_SIZE, LABEL_SIZE = 32, 30, 26, 18, 13

INK: Color = (34, 34, 34)
FAINT: Color = (110, 110, 110)  # side notes; still 5:1 on white


# Ours: a picture measures 80 to 250 texts, most of them anew with each picture of a run.
_KEPT_BOXES = 2048


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Load the font that Pillow ships; an old Pillow or one without FreeType has a single small size."""
    try:
        return ImageFont.load_default(size=size)
    except (TypeError, ImportError):
        return ImageFont.load_default()


@lru_cache(_KEPT_BOXES)
def _box(text: str, size: int) -> tuple[float, float, float, float]:
    """Measure where the letters of a text lie."""
    return _font(size).getbbox(text)


class Pen:
    """Write and measure text on an image."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self.draw = ImageDraw.Draw(image)

    def width(self, text: str, size: int) -> int:
        """Measure a line of text."""
        return math.ceil(_box(text, size)[2]) + (size == TICK_SIZE) if text else 0

    def fits(self, size: int, width: int) -> Callable[[str], bool]:
        """Return the question whether a text fits into a width."""
        return lambda text: self.width(text, size) <= width

    def text(self, x: int, y: int, text: str, size: int, color: Color = INK, align: float = 0.0) -> int:
        """Write text centered on the line y, from x (align 0) or up to x (1), and return where it ends."""
        _, top, _, bottom = _box("Ag", size)
        start = round(x - align * self.width(text, size))
        # For thumbnails: a stroke as wide as the pixels that are dropped does not break. Larger letters have it.
        for shift in (0, 1) if size == TICK_SIZE else (0,):
            place = (start + shift, round(y - (top + bottom) / 2))
            self.draw.text(place, text, fill=color, font=_font(size))
        return start + self.width(text, size)

    def triangle(self, x: int, y: int, size: int, color: Color) -> None:
        """Draw a triangle that points down to (x, y)."""
        self.draw.polygon([(x - size // 2, y - size + 2), (x + size // 2, y - size + 2), (x, y)], fill=color)

    def paste(self, x: int, y: int, codes: palette.Codes) -> None:
        """Paint color codes with their upper left corner at (x, y)."""
        self.image.paste(Image.fromarray(palette.paint(codes)), (x, y))
