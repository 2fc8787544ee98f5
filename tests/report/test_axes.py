"""Test ``lightning_gradwatch.report.axes``."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from lightning_gradwatch.report.axes import LABEL_SPACING, _power, draw_layers
from lightning_gradwatch.report.layout import plan_layout
from lightning_gradwatch.report.pen import LABEL_SIZE, MARGIN, WIDTH, Pen


@pytest.mark.parametrize(("log", "text"), [(-7.0, "1e-7"), (0.0, "1e0"), (np.log10(3e-5), "3e-5")])
def test_powers_are_written_short(log: float, text: str) -> None:
    """Tick labels have no padding zeros."""
    assert _power(log) == text


@pytest.mark.parametrize("count", [1, 2, 19, 20, 33, 60, 431, 2000])
def test_labels_never_touch_and_keep_both_ends(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels stay 13 pixels apart and inside the left margin, the first and the last among them."""
    written: list[tuple[int, str]] = []
    write = Pen.text

    def record(pen: Pen, x: int, y: int, text: str, *rest: object, **more: object) -> int:
        if text.startswith("fc"):
            written.append((y, text))
            assert x - pen.width(text, LABEL_SIZE) >= MARGIN
        return write(pen, x, y, text, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Pen, "text", record)
    layout = plan_layout(tuple(f"fc{i}" for i in range(count)), np.zeros(1, dtype=np.int64))
    draw_layers(Pen(Image.new("RGB", (WIDTH, 800))), layout)
    assert (written[0][1], written[-1][1]) == ("fc0", f"fc{count - 1}")
    assert all(low[0] - high[0] >= LABEL_SPACING for high, low in pairwise(written))
    assert len(written) == count or count > 30
