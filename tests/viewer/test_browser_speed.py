"""Test ``lightning_gradwatch/viewer/static``: how often large pictures are painted; how long it takes is printed."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from viewer.browser import tab_of
from viewer.looking import Heatmap
from viewer.planted import planted_run

# Notes when cells are painted and how long the page works for a frame.
_STOPWATCH = """
window.paints = []; window.busy = 0;
const put = CanvasRenderingContext2D.prototype.putImageData;
CanvasRenderingContext2D.prototype.putImageData = function (image, ...rest) {
  put.call(this, image, ...rest);
  if (image.width > 300) window.paints.push(performance.now());
};
const ask = window.requestAnimationFrame;
window.requestAnimationFrame = (call) => ask((time) => {
  const begin = performance.now(); call(time); window.busy += performance.now() - begin;
});
"""
# Moves the pointer to many places, a frame each, and returns how long the page worked for each of them.
_WALK = """async (canvas) => {
  const box = canvas.getBoundingClientRect(), times = [];
  for (let move = 0; move < 50; move += 1) {
    const [x, y] = [box.left + box.width * (0.3 + 0.012 * move), box.top + box.height * (0.1 + 0.0154 * move)];
    window.busy = 0;
    const begin = performance.now();
    canvas.dispatchEvent(new PointerEvent("pointermove", { clientX: x, clientY: y, bubbles: true }));
    document.body.getBoundingClientRect();
    const handled = performance.now() - begin;
    await new Promise((done) => setTimeout(done, 30));
    times.push(handled + window.busy);
  }
  return times;
}"""


@pytest.mark.parametrize(("num_layers", "num_columns"), [(500, 5000), (2000, 500)])
def test_a_large_picture_is_asked_for_and_painted_once_and_not_while_one_points(
    browser: Any, stand: Any, num_layers: int, num_columns: int
) -> None:
    """One series is asked for; after the first paint the cells stay, however the pointer moves over them."""
    run = planted_run("large", kind="relu", num_layers=num_layers, num_columns=num_columns)
    served = stand([run])
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.add_init_script(_STOPWATCH)
    page.goto(served.url)
    frame = tab_of(page)
    heatmap = Heatmap(frame, "large", run.series[0].layers, num_steps=num_columns)
    frame.wait_for_function("window.paints.length > 0")
    page.wait_for_timeout(300)
    assert len([path for path in served.asked if "/series?" in path]) == 1
    page.mouse.move(*heatmap.box[:2])
    before = frame.evaluate("window.paints.length")
    times = heatmap.canvas.evaluate(_WALK)
    assert frame.evaluate("window.paints.length") == before
    assert heatmap.tip.is_visible()
    first, came = frame.evaluate(
        """() => {
          const asked = performance.getEntriesByType("resource").find((one) => one.name.includes("/series"));
          return [window.paints[0], asked.responseEnd];
        }"""
    )
    sys.stderr.write(
        f"\n{num_layers} layers x {num_columns} columns: first paint {first:.0f} ms after navigation, of them"
        f" {first - came:.0f} ms after the numbers came;"
        f" a move of the pointer {np.median(times):.1f} ms (95%: {np.quantile(times, 0.95):.1f})\n"
    )
    page.close()
