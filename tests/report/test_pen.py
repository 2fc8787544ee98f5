"""Test ``lightning_gradwatch.report.pen``."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFont
from scipy.ndimage import label

from lightning_gradwatch.report import pen as module
from lightning_gradwatch.report.pen import MARGIN, TICK_SIZE, TITLE_SIZE, WIDTH, WORD_SIZE, Pen


@pytest.mark.parametrize("align", [0.0, 0.5, 1.0])
def test_text_ends_where_it_says(align: float) -> None:
    """The pen returns the right end of what it wrote, wherever that was aligned."""
    pen = Pen(Image.new("RGB", (300, 40), (255, 255, 255)))
    end = pen.text(150, 20, "gradient", 20, align=align)
    inked = np.flatnonzero((np.asarray(pen.image) < 128).any(axis=(0, 2)))
    assert end - 4 <= inked[-1] <= end
    assert end == round(150 - align * pen.width("gradient", 20)) + pen.width("gradient", 20)


@pytest.mark.parametrize("size", [TITLE_SIZE, WORD_SIZE, TICK_SIZE])
def test_large_letters_stay_whole_on_a_thumbnail(size: int) -> None:
    """Where TensorBoard keeps 340 of 960 pixels, letters neither fall apart nor run into each other."""
    pen = Pen(Image.new("RGB", (WIDTH, 60), (255, 255, 255)))
    pen.text(MARGIN, 30, "NON-FINITE since step 140 vanishing exploding", size)
    small = pen.image.resize((340, 21), Image.Resampling.NEAREST)
    whole, kept = (label(np.asarray(part)[..., 0] < 160, np.ones((3, 3)))[1] for part in (pen.image, small))
    assert whole == 44
    assert kept == pytest.approx(whole, abs=4)


def test_fits_asks_for_the_width_in_pixels() -> None:
    """A text fits into its own width and not into one pixel less."""
    pen = Pen(Image.new("RGB", (1, 1)))
    width = pen.width("gradient", 12)
    assert pen.fits(12, width)("gradient")
    assert not pen.fits(12, width - 1)("gradient")


@pytest.mark.parametrize("error", [TypeError, ImportError])
def test_a_pillow_without_scalable_fonts_falls_back_to_its_only_one(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the font cannot be scaled, text is written with the small one."""
    small = ImageFont.load_default()

    def load_default(size: int | None = None) -> ImageFont.ImageFont:
        if size is not None:
            raise error
        return small

    monkeypatch.setattr(ImageFont, "load_default", load_default)
    # What is known of the fonts that can be scaled would be taken for that of this one, here and in other tests.
    monkeypatch.setattr(module, "_font", module._font.__wrapped__)
    monkeypatch.setattr(module, "_box", module._box.__wrapped__)
    pen = Pen(Image.new("RGB", (300, 40), (255, 255, 255)))
    assert pen.width("gradient", 12) == pen.width("gradient", 22)
    pen.text(0, 20, "gradient", 22)
    assert (np.asarray(pen.image) < 128).any()
