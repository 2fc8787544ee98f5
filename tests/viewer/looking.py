"""How the tests in a browser look at a picture: where a cell is, what is said of it, and which color it has.

The tests know nothing of the picture's geometry. They point, read what the page says of the place, and so find a cell
as a person would; then they take a photograph and look at the pixel there.
"""

from __future__ import annotations

import io
import re
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image


class Heatmap:
    """The picture of a run.

    Args:
        frame: What the tab is in: a frame, or the page itself.
        run: Name of the run.
        layers: Names of its rows, from top to bottom.
        num_steps: Steps that are shown, the first of them 0.
        column_steps: Steps that share a column.
    """

    def __init__(
        self, frame: Any, run: str, layers: tuple[str, ...], num_steps: int = 200, column_steps: int = 1
    ) -> None:
        self.page = getattr(frame, "page", frame)
        self.canvas = frame.get_by_role("region", name=f"Run {run}", exact=True).get_by_role("application")
        self.tip = frame.locator(".gw-tip")
        self.layers, self.num_steps, self.column_steps = layers, num_steps, column_steps
        self.canvas.wait_for()

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, width and height in the window."""
        box = self.canvas.bounding_box()
        return box["x"], box["y"], box["width"], box["height"]

    def point(self, x: float, y: float) -> str:
        """Point at a place of the window and return what the page says of it; empty where it says nothing."""
        self.page.mouse.move(x, y)
        # One question to the browser; there are many of these.
        said: str = self.tip.evaluate("tip => (tip.checkVisibility() ? tip.innerText : '')")
        return said

    def row_at(self, x: float, y: float) -> int | None:
        """Return the row of the layer that the page names at a place."""
        said = self.point(x, y)
        name = said.split("\n")[0]
        found = [row for row, layer in enumerate(self.layers) if name == layer or name.startswith(f"{layer}\t")]
        found = found or [row for row, layer in enumerate(self.layers) if said and name.startswith(layer)]
        return max(found, key=lambda row: len(self.layers[row])) if found else None

    def step_at(self, x: float, y: float) -> int | None:
        """Return the step, or the first of those that share a column, that the page names at a place."""
        found = re.search(r"steps? ([\d,]+)", self.point(x, y))
        return int(found[1].replace(",", "")) if found else None

    def _edge(self, low: float, high: float, is_before: Any) -> float:
        """Return where a statement that holds at ``low`` ceases to, to half a pixel."""
        while high - low > 0.5:
            middle = (low + high) / 2
            low, high = (middle, high) if is_before(middle) else (low, middle)
        return high

    @cached_property
    def plot(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the cells in the window: where the page has something to say."""
        left, top, width, height = self.box
        x, y = left + 0.7 * width, top + 0.5 * height
        assert self.point(x, y), "the page says nothing in the middle of the picture"
        return (
            self._edge(left, x, lambda at: not self.point(at, y)),
            self._edge(top, y, lambda at: self.row_at(x, at) is None),
            self._edge(x, left + width, lambda at: bool(self.point(at, y))),
            self._edge(y, top + height, lambda at: self.row_at(x, at) is not None),
        )

    def find(self, row: int, step: int) -> tuple[float, float]:
        """Return the middle of a cell in the window, and make sure that the page says it is that cell.

        Args:
            row: Of the layer, from the top; all rows are shown, and are equally high.
            step: First of its column; from the first to the last column a step has the same width everywhere.
        """
        left, top, right, bottom = self.plot
        width, height = (right - left) / self.num_steps, (bottom - top) / len(self.layers)
        found = left + (step + self.column_steps / 2) * width, top + (row + 0.5) * height
        assert (self.row_at(*found), self.step_at(*found)) == (row, step)
        return found

    def colors_at(self, x: float, y: float, reach: int = 0) -> np.ndarray:
        """Return the colors of a place and ``reach`` pixels around it, ``[n, 3]``, with the pointer elsewhere."""
        self.page.mouse.move(1, 1)
        self.tip.wait_for(state="hidden")
        clip = {"x": int(x) - reach, "y": int(y) - reach, "width": 2 * reach + 1, "height": 2 * reach + 1}
        photograph = Image.open(io.BytesIO(self.page.screenshot(clip=clip))).convert("RGB")
        return np.asarray(photograph).reshape(-1, 3).astype(int)

    def color(self, row: int, step: int) -> tuple[int, int, int]:
        """Return the color in the middle of a cell."""
        red, green, blue = self.colors_at(*self.find(row, step))[0].tolist()
        return red, green, blue
