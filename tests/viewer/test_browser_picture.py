"""Test ``lightning_gradwatch/viewer/static``: the picture, its colors and what the page says of a cell."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from viewer.browser import Witness, tab_of, visiting
from viewer.hosts import Stand
from viewer.looking import Heatmap
from viewer.planted import INF_CELL, NAN_CELL, SPIKE_COLUMN, VANISHING_BLOCK, ZERO_CELLS, planted_run

from lightning_gradwatch.report.palette import Anchors, color_codes, paint
from lightning_gradwatch.viewer.run import Run

# The codes on the wire are 1/256 of a decade apart, the colors 1/20; so a value may fall onto the neighboring color.
NEIGHBOR = 4
RUN = planted_run("mixed", kind="mixed")
NORMS = RUN.series[0]
CELLS = {
    "usual": (0, 20),
    "vanishing": (VANISHING_BLOCK[0].start, VANISHING_BLOCK[1].start + 20),
    "spike": (3, SPIKE_COLUMN),
    "infinite": INF_CELL,
    "zero": (ZERO_CELLS[0], ZERO_CELLS[1].start + 10),
}


@pytest.fixture(scope="module")
def heatmap(browser) -> Iterator[Heatmap]:
    """Return the picture of the mixed run's gradient norms, in the light theme; tests only point at it."""
    with Stand([RUN]) as served, visiting(browser, Witness()) as visit:
        yield picture_of_norms(visit(served.url, height=900))


def picture_of_norms(page) -> Heatmap:
    frame = tab_of(page)
    frame.get_by_role("radio", name="gradient norm").check(force=True)
    frame.get_by_text("L2 norm of each layer's gradient").wait_for()
    return Heatmap(frame, "mixed", NORMS.layers)


def as_report_paints(row: int, step: int) -> list[int]:
    """Return the color that the picture in the logger has for a cell: another program, in Python."""
    log = NORMS.windows.median[step, row].astype(float)
    state = NORMS.windows.state[step, row]
    norm = np.inf if state & 8 else np.float64(10.0) ** log
    anchors = Anchors(-7.0, 5.0)
    color: list[int] = paint(color_codes(np.array([[norm]]), np.array([[True]]), anchors))[0, 0].tolist()
    return color


def test_each_cell_has_the_color_of_its_value(heatmap: Heatmap) -> None:
    """Usual, vanishing, spiking, infinite and zero cells have the colors that the logger's picture gives them."""
    for what, (row, step) in CELLS.items():
        assert heatmap.color(row, step) == pytest.approx(as_report_paints(row, step), abs=NEIGHBOR), what


def test_nan_and_absent_cells_are_hatched(heatmap: Heatmap) -> None:
    """NaN is black with yellow stripes, a layer without any value is paper with faint stripes: both are patterns."""
    nan = heatmap.colors_at(*heatmap.find(*NAN_CELL), reach=2)
    assert {(0, 0, 0), (255, 214, 0)} <= {tuple(color) for color in nan.tolist()}
    absent = heatmap.colors_at(*heatmap.find(17, 100), reach=5)
    assert {(255, 255, 255), (190, 190, 190)} == {tuple(color) for color in absent.tolist()} - {(201, 204, 210)}


def test_on_a_dark_page_the_colors_keep_their_order(visit, stand) -> None:
    """Dark: the usual is dark, a vanishing cell blue, a spike redder, infinity yellow, zero a grey."""
    heatmap = picture_of_norms(visit(stand([RUN], dark=True).url, height=900))
    colors = {what: heatmap.color(*cell) for what, cell in CELLS.items()}
    assert max(colors["usual"]) < 140
    red, _, blue = colors["vanishing"]
    assert blue > red + 60
    red, _, blue = colors["spike"]
    assert red > blue + 60
    assert colors["infinite"] == (255, 222, 40)
    assert len(set(colors["zero"])) == 1
    page = heatmap.colors_at(3, 300)[0]
    assert page.max() < 60


def test_the_page_tells_layer_steps_and_number_where_one_points(heatmap: Heatmap) -> None:
    """Pointing at a cell shows the layer's name and class, its step and its number; the page beside it says nothing."""
    row, step = CELLS["vanishing"]
    said = heatmap.point(*heatmap.find(row, step))
    told = re.search(r"([\d.e-]+) gradient norm", said)
    assert NORMS.layers[row] in said
    assert "Linear" in said
    assert f"step {step}" in said
    assert float(told[1]) == pytest.approx(10.0 ** float(NORMS.windows.median[step, row]), rel=0.06)
    assert heatmap.point(2, 2) == ""


def test_what_is_no_number_is_told_in_words(heatmap: Heatmap) -> None:
    """NaN, infinity, zero and a layer without any value are named where one points at them."""
    assert "NaN" in heatmap.point(*heatmap.find(*NAN_CELL))
    assert "+inf" in heatmap.point(*heatmap.find(*INF_CELL))
    assert "exactly zero" in heatmap.point(*heatmap.find(*CELLS["zero"]))
    assert "frozen" in heatmap.point(*heatmap.find(17, 100))


def test_two_thousand_layers_fit_into_one_window(visit, stand) -> None:
    """2,000 layers are drawn into a picture that is no higher than the window, and each can be found by name."""
    run = planted_run("deep", kind="sigmoid", num_layers=2000, num_columns=400)
    page = visit(stand([run]).url)
    heatmap = Heatmap(tab_of(page), "deep", run.series[3].layers)
    _, _, _, height = heatmap.box
    assert 200 < height < 800
    tab_of(page).get_by_role("searchbox", name="Find layers by name").fill("layers.123.")
    tab_of(page).get_by_text("2 layers", exact=True).wait_for()
    left, top, right, bottom = heatmap.plot
    rows = {heatmap.row_at((left + right) / 2, y) for y in np.linspace(top + 2, bottom - 2, 5)}
    assert {run.series[3].layers[row] for row in rows} == {"encoder.layers.123.linear1", "encoder.layers.123.linear2"}


def test_neither_picture_nor_curve_names_a_step_that_was_not_trained(visit, stand) -> None:
    """A run of windows of eight steps that ended in the middle of its last window."""
    run = planted_run("coarse", kind="relu", resolution=3, num_columns=50)
    end = {**run.events[-1], "step": 395, "num_readings": 396}
    page = visit(stand([replace(run, events=(*run.events[:-1], end))]).url)
    frame = tab_of(page)
    heatmap = Heatmap(frame, "coarse", run.series[0].layers, 400, 8)
    _, top, right, _ = heatmap.plot
    assert "steps 392 to 395" in heatmap.point(right - 2, top + 5)
    assert "steps 0 to 395" in frame.get_by_role("region", name="Run coarse").inner_text()
    assert "steps 0 to 395" in heatmap.canvas.get_attribute("aria-label")
    page.mouse.click(right - 2, top + 5)
    drawer = frame.get_by_role("region", name="Layer and step")
    assert "steps 392 to 395" in drawer.inner_text()
    written = drawer.get_by_role("img").nth(0).locator("text").all_text_contents()
    assert "300" in written
    assert "400" not in written


def test_a_run_without_a_picture_says_why_and_offers_nothing_to_draw(visit, stand) -> None:
    """GradWatch was switched off before its first reading, or only the findings were kept."""
    off = {"event": "off", "step": 0, "time": 1.0, "num_readings": 0, "disabled": "ValueError: x"}
    frame = tab_of(visit(stand([Run("off", (), (off,))]).url))
    heading = frame.get_by_role("heading", level=1)
    heading.wait_for()
    assert "GradWatch was switched off. Before its first reading: ValueError: x." in heading.inner_text()
    frame.get_by_text("There is no picture: GradWatch was switched off before its first reading.").wait_for()
    assert not frame.get_by_label("Find layers by name").is_visible()
    told = [event for event in planted_run().events if event["event"] == "onset"]
    frame = tab_of(visit(stand([Run("only findings", (), tuple(told))]).url))
    frame.get_by_text("of this run only the findings are known").wait_for()
    assert "Vanishing gradient" in frame.get_by_role("heading", level=1).inner_text()
    assert not frame.get_by_role("button", name="Show it in the picture").is_visible()


def test_the_drawer_lies_at_the_lower_edge_of_the_window(visit, stand) -> None:
    """Also below a page that is shorter than the window, as that of a single layer; its only dot is in the middle."""
    run = planted_run("one", kind="relu", num_layers=1)
    page = visit(stand([run]).url, height=1000)
    frame = tab_of(page)
    page.mouse.click(*Heatmap(frame, "one", run.series[0].layers).find(0, 100))
    drawer = frame.get_by_role("region", name="Layer and step")
    drawer.evaluate("drawer => Promise.all(drawer.getAnimations().map((one) => one.finished))")
    box = drawer.bounding_box()
    assert box["y"] + box["height"] == pytest.approx(1000, abs=1)
    profile = drawer.get_by_role("img").nth(1)
    dot, chart = profile.locator("circle").first.bounding_box(), profile.bounding_box()
    assert dot["x"] + dot["width"] / 2 == pytest.approx(chart["x"] + chart["width"] / 2, abs=20)


def test_a_single_reading_is_a_dot_in_its_curve(visit, stand) -> None:
    """A line through one point has no length."""
    run = planted_run("one", kind="relu", num_columns=1)
    page = visit(stand([run]).url)
    frame = tab_of(page)
    frame.get_by_text("There is only one reading").wait_for()
    page.mouse.click(*Heatmap(frame, "one", run.series[0].layers, 1).find(3, 0))
    curve = frame.get_by_role("region", name="Layer and step").get_by_role("img").nth(0)
    assert curve.locator("circle").count() == 1
