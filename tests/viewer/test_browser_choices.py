"""Test ``lightning_gradwatch/viewer/static``: what a person chooses, with pointer and keys, and what is kept of it."""

from __future__ import annotations

import re

import numpy as np
import pytest
from viewer.browser import tab_of
from viewer.looking import Heatmap
from viewer.planted import planted_run

SIGMOID, RELU = planted_run("sigmoid"), planted_run("relu", kind="relu")
DELTA = {run.name: {series.about.quantity: series for series in run.series}["delta"] for run in (SIGMOID, RELU)}
# The probe's series have a quarter of the columns.
PROBE = {"num_steps": 200, "column_steps": 4}


def delta_of(frame, run: str = "sigmoid") -> Heatmap:
    return Heatmap(frame, run, DELTA[run].layers, **PROBE)


def edge_steps(heatmap: Heatmap) -> tuple[int | None, int | None]:
    """Return the steps that are shown at the left and at the right edge."""
    left, top, right, _ = heatmap.plot
    return heatmap.step_at(left + 2, top + 10), heatmap.step_at(right - 3, top + 10)


def choose_quantity(frame, title: str) -> None:
    frame.get_by_role("radio", name=title).check(force=True)


def test_it_opens_on_the_view_that_the_worst_diagnosis_rests_on(visit, stand) -> None:
    """A vanishing gradient along depth opens on delta, says why, and shows the verdict first."""
    frame = tab_of(visit(stand([SIGMOID]).url))
    assert "Vanishing gradient" in frame.get_by_role("heading", level=1).inner_text()
    assert frame.get_by_role("radio", name="gradient reaching the layer").is_checked()
    frame.get_by_text("because that is where the warning rests").wait_for()


def test_a_click_opens_the_curve_of_the_layer_and_the_profile_of_the_step(visit, stand) -> None:
    """The curve is of the layer that was clicked, the profile of that step, with the slope that numpy fits."""
    page = visit(stand([SIGMOID]).url)
    frame, series = tab_of(page), DELTA["sigmoid"]
    row, step = 12, 100
    page.mouse.click(*delta_of(frame).find(row, step))
    drawer = frame.get_by_role("region", name="Layer and step")
    assert series.layers[row] in drawer.get_by_role("heading").inner_text()
    assert f"step {step}" in drawer.get_by_role("heading").inner_text() or f"steps {step}" in drawer.inner_text()
    curve, profile = (drawer.get_by_role("img").nth(place).get_attribute("aria-label") for place in (0, 1))
    assert series.layers[row] in curve
    logs = series.windows.median[:, row]
    told = {word: float(number) for word, number in re.findall(r"(median|least|largest) ([\d.e-]+)", curve)}
    expected = {"median": np.median(logs), "least": logs.min(), "largest": logs.max()}
    assert told == pytest.approx({word: 10.0 ** float(log) for word, log in expected.items()}, rel=0.06)
    slope = np.polyfit(np.arange(20), series.windows.median[step // 4].astype(float), 1)[0]
    assert float(re.search(r"Every layer back multiplies by ([\d.e-]+)", profile)[1]) == pytest.approx(
        10.0**-slope, rel=0.03
    )


def test_the_profile_leads_to_another_layer_and_the_curve_to_another_step(visit, stand) -> None:
    """A click at a chart moves the choice; Escape closes the drawer."""
    page = visit(stand([SIGMOID]).url)
    frame = tab_of(page)
    page.mouse.click(*delta_of(frame).find(12, 100))
    drawer = frame.get_by_role("region", name="Layer and step")
    title = drawer.get_by_role("heading")
    chart = drawer.get_by_role("img").nth(1).bounding_box()
    drawer.get_by_role("img").nth(1).click(position={"x": chart["width"] - 14, "y": chart["height"] / 2})
    assert "head" in title.inner_text()
    chart = drawer.get_by_role("img").nth(0).bounding_box()
    drawer.get_by_role("img").nth(0).click(position={"x": chart["width"] - 14, "y": chart["height"] / 2})
    assert "step 196" in title.inner_text()
    page.keyboard.press("Escape")
    drawer.wait_for(state="hidden")


def test_two_runs_are_beside_each_other_on_one_scale(visit, stand) -> None:
    """Sigmoid and ReLU are both shown, the same number has the same color, and the first layers differ."""
    frame = tab_of(visit(stand([SIGMOID, RELU]).url, height=1300))
    sigmoid, relu = delta_of(frame), delta_of(frame, "relu")
    first = {"sigmoid": sigmoid.color(0, 100), "relu": relu.color(0, 100)}
    assert first["sigmoid"] == (8, 24, 92)
    assert min(first["relu"]) > 150
    levels = {run: DELTA[run].windows.median[25] for run in DELTA}
    row = int(np.abs(levels["sigmoid"] - levels["relu"][10]).argmin())
    # That row and row 10 of the other run are less than half a layer's factor apart.
    assert sigmoid.color(row, 100) == pytest.approx(relu.color(10, 100), abs=25)


def test_a_run_can_be_switched_off_and_chosen_alone(visit, stand) -> None:
    """The list of runs shows one, both or the other."""
    page = visit(stand([SIGMOID, RELU]).url)
    frame = tab_of(page)
    frame.get_by_text("Runs", exact=True).click()
    frame.get_by_role("checkbox", name="relu").uncheck()
    frame.get_by_role("region", name="Run relu").wait_for(state="detached")
    frame.get_by_role("button", name="Show only relu").click()
    frame.get_by_role("region", name="Run sigmoid").wait_for(state="detached")
    frame.get_by_role("region", name="Run relu").wait_for()


def test_another_quantity_is_drawn_with_its_own_scale(visit, stand) -> None:
    """Choosing the forward signal changes the title, the ends and the numbers."""
    frame = tab_of(visit(stand([RELU]).url))
    choose_quantity(frame, "forward signal")
    frame.get_by_text("root mean square of each layer's output").wait_for()
    assert float(frame.get_by_role("textbox", name="Lower end").input_value()) == 1e-6
    said = delta_of(frame, "relu").point(*delta_of(frame, "relu").find(5, 100))
    signal = {series.about.quantity: series for series in RELU.series}["signal"]
    assert float(said.split("\n")[1].split()[0]) == pytest.approx(10.0 ** float(signal.windows.median[25, 5]), rel=0.06)


def test_an_end_of_the_colors_can_be_written(visit, stand) -> None:
    """A cell beyond an end that a person writes as 1e-1 turns deep blue; nonsense is refused in words."""
    frame = tab_of(visit(stand([RELU]).url))
    choose_quantity(frame, "forward signal")
    frame.get_by_text("root mean square of each layer's output").wait_for()
    heatmap = delta_of(frame, "relu")
    assert min(heatmap.color(5, 100)) > 150
    low = frame.get_by_role("textbox", name="Lower end")
    low.fill("1e1")
    low.press("Enter")
    assert heatmap.color(5, 100) == (8, 24, 92)
    low.fill("tiny")
    low.press("Enter")
    assert "tiny" in frame.get_by_role("alert").filter(visible=True).inner_text()
    frame.get_by_role("button", name="Standard ends").click()
    assert min(heatmap.color(5, 100)) > 150


def test_layers_are_found_by_name_and_grouped_by_module(visit, stand) -> None:
    """A search leaves the layers whose names have it; grouping leaves a row a module, which opens on a click."""
    page = visit(stand([SIGMOID]).url)
    frame = tab_of(page)
    frame.get_by_role("searchbox").fill("linear2")
    frame.get_by_text("9 layers", exact=True).wait_for()
    frame.get_by_role("searchbox").fill("")
    frame.get_by_role("checkbox", name="group by module").check()
    heatmap = delta_of(frame)
    frame.locator("[role=application][aria-label*='11 rows']").wait_for()
    left, top, _, _ = heatmap.plot
    page.mouse.click(left - 30, top + 5)
    frame.locator("[role=application][aria-label*='13 rows']").wait_for()


def test_relative_colors_hold_a_layer_against_its_own_median(visit, stand) -> None:
    """Relative to its own median even a layer that vanishes has the neutral color."""
    frame = tab_of(visit(stand([SIGMOID]).url))
    heatmap = delta_of(frame)
    assert heatmap.color(0, 180) == (8, 24, 92)
    frame.get_by_role("radio", name="relative to own median").check(force=True)
    frame.get_by_text("times the layer\u2019s own median").wait_for()
    assert min(heatmap.color(0, 180)) > 150


def test_everything_can_be_done_with_the_keyboard(visit, stand) -> None:
    """Tab reaches the picture, arrows walk and are read out, Enter opens the drawer, Escape ends each in turn."""
    page = visit(stand([SIGMOID]).url)
    frame, series = tab_of(page), DELTA["sigmoid"]
    heatmap = delta_of(frame)
    for _ in range(40):
        page.keyboard.press("Tab")
        if heatmap.canvas.evaluate("canvas => canvas === document.activeElement"):
            break
    assert heatmap.canvas.evaluate("canvas => canvas === document.activeElement")
    for key in ("Home", "ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    spoken = heatmap.canvas.locator("xpath=following-sibling::*[@aria-live]").inner_text()
    assert series.layers[2] in spoken
    assert "step 4" in spoken or "steps 4" in spoken
    page.keyboard.press("Enter")
    drawer = frame.get_by_role("region", name="Layer and step")
    assert series.layers[2] in drawer.get_by_role("heading").inner_text()
    for _ in range(2):
        page.keyboard.press("Escape")
    drawer.wait_for(state="hidden")


def test_zooming_shows_fewer_steps_and_a_button_brings_them_back(visit, stand) -> None:
    """Plus shows fewer steps in all pictures, and the button to reset appears while it is so."""
    page = visit(stand([SIGMOID, RELU]).url, height=1300)
    frame = tab_of(page)
    pictures = [delta_of(frame), delta_of(frame, "relu")]
    pictures[0].canvas.focus()
    for _ in range(3):
        page.keyboard.press("+")
    reset = frame.get_by_role("button", name="Reset zoom")
    reset.wait_for()
    zoomed = [edge_steps(picture) for picture in pictures]
    assert zoomed[0] == zoomed[1]
    assert zoomed[0][1] - zoomed[0][0] < 100
    reset.click()
    reset.wait_for(state="hidden")
    assert [edge_steps(picture) for picture in pictures] == [(0, 196), (0, 196)]


def test_the_table_says_what_the_picture_shows(visit, stand) -> None:
    """The table has roles, a row a layer in forward order, numbers, and can be sorted."""
    frame, series = tab_of(visit(stand([SIGMOID]).url)), DELTA["sigmoid"]
    frame.get_by_role("radio", name="table").check(force=True)
    table = frame.get_by_role("table")
    table.wait_for()
    rows = table.get_by_role("row")
    assert rows.count() == 21
    assert table.get_by_role("rowheader").all_inner_texts() == list(series.layers)
    cells = rows.nth(1).get_by_role("cell").all_inner_texts()
    logs = series.windows.median[:, 0].astype(float)
    assert [float(text) for text in cells[:4]] == pytest.approx(
        [10.0**log for log in (logs[-1], np.median(logs), logs.min(), logs.max())], rel=0.06
    )
    table.get_by_role("button", name="Median").click()
    table.get_by_role("button", name="Median").click()
    assert table.get_by_role("columnheader", name="Median").get_attribute("aria-sort") == "descending"
    assert table.get_by_role("rowheader").first.inner_text() == "head"


def test_what_was_chosen_is_kept_when_the_page_is_loaded_again(visit, stand) -> None:
    """Quantity, search, ends and the open layer are as before after a reload."""
    page = visit(stand([SIGMOID, RELU]).url)
    frame = tab_of(page)
    choose_quantity(frame, "forward signal")
    frame.get_by_text("root mean square of each layer's output").first.wait_for()
    frame.get_by_role("textbox", name="Upper end").fill("1e3")
    frame.get_by_role("textbox", name="Upper end").press("Enter")
    frame.get_by_role("searchbox", name="Find layers").fill("linear1")
    frame.get_by_text("10 layers", exact=True).wait_for()
    page.reload()
    frame = tab_of(page)
    frame.get_by_text("10 layers", exact=True).wait_for()
    assert frame.get_by_role("radio", name="forward signal").is_checked()
    assert float(frame.get_by_role("textbox", name="Upper end").input_value()) == 1e3
    assert frame.get_by_role("searchbox", name="Find layers").input_value() == "linear1"


def test_a_finding_tells_why_and_what_to_do_and_leads_to_its_place(visit, stand) -> None:
    """A finding opens with what was measured, why, and lines to paste, and marks the layer and the step."""
    frame = tab_of(visit(stand([SIGMOID]).url))
    found = frame.get_by_role("complementary", name="Findings")
    found.get_by_role("button", name=re.compile("vanishing gradient")).click()
    text = found.inner_text()
    assert "Every layer back multiplies the gradient by 0.2" in text
    assert "nn.BatchNorm1d" in text
    title = frame.get_by_role("region", name="Layer and step").get_by_role("heading")
    assert "encoder.layers.0.linear1" in title.inner_text()
