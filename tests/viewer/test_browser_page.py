"""Test ``lightning_gradwatch.viewer.page`` and ``static/``: one page, from a server or from disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from viewer.browser import Visit, tab_of
from viewer.hosts import Stand
from viewer.looking import Heatmap
from viewer.planted import HOSTILE_NAME, HOSTILE_ROWS, planted_run

from lightning_gradwatch.report.palette import BELOW_COLOR
from lightning_gradwatch.viewer.page import html_page
from lightning_gradwatch.viewer.run import Run

PLACES = ["tab", "file"]
DARK = 60


@pytest.fixture(params=PLACES)
def show(request: pytest.FixtureRequest, visit: Visit, stand: Any, tmp_path: Path) -> Any:
    """Return a function that shows runs, in the tab and as a file, and returns the page and where the picture is."""

    def shown(runs: list[Run], **settings: Any) -> tuple[Any, Any]:
        if request.param == "tab":
            page = visit(stand(runs).url, **settings)
            return page, tab_of(page)
        file = tmp_path / "report.html"
        file.write_text(html_page(runs, "My run"), encoding="utf-8")
        page = visit(file.as_uri(), **settings)
        return page, page.main_frame

    return shown


def test_the_picture_is_the_same_in_the_tab_and_in_a_file(show: Any) -> None:
    """A vanishing cell is deep blue, a click opens its curve, and its finding can be read."""
    run = planted_run("sigmoid")
    page, frame = show([run])
    layers = run.series[3].layers
    heatmap = Heatmap(frame, "sigmoid", layers, num_steps=200, column_steps=4)
    assert heatmap.color(0, 100) == BELOW_COLOR
    page.mouse.click(*heatmap.find(0, 100))
    drawer = frame.get_by_role("region", name="Layer and step")
    assert layers[0] in drawer.get_by_role("heading").inner_text()
    assert drawer.get_by_role("img").count() == 2
    frame.get_by_text("The first layers get almost no gradient").first.wait_for()


def test_names_and_messages_are_text_never_html(show: Any) -> None:
    """Layers and messages that look like HTML are shown letter by letter; nothing runs, opens or is loaded."""
    run = planted_run("<script>document.title = 'run'</script>", kind="mixed", hostile=True)
    page, frame = show([run])
    title = page.title()
    series = run.series[0]
    heatmap = Heatmap(frame, run.name, series.layers)
    row = next(row for row, name in HOSTILE_ROWS.items() if name == HOSTILE_NAME)
    assert heatmap.point(*heatmap.find(row, 100)).startswith(HOSTILE_NAME)
    page.mouse.click(*heatmap.find(row, 100))
    findings = frame.get_by_role("complementary").get_by_role("button", expanded=False)
    assert findings.count() == 4
    while findings.count():
        findings.first.click()
    frame.get_by_role("radio", name="table").check(force=True)
    names = frame.get_by_role("rowheader").all_inner_texts()
    assert names == [" ".join(name.split()) for name in series.layers]
    assert page.title() == title
    assert frame.locator("img[src], svg[onload], b:text-is('bold')").count() == 0


def test_it_is_light_or_dark_as_the_person_wants(show: Any) -> None:
    """In the tab and in a file, a browser that prefers dark gets a dark page where TensorBoard says nothing else."""
    page, frame = show([planted_run("relu", kind="relu")], dark=True)
    frame.get_by_role("application").wait_for()
    heatmap = Heatmap(frame, "relu", planted_run("relu", kind="relu").series[0].layers)
    if page.url.startswith("file:"):
        assert heatmap.colors_at(3, 300).max() < DARK
    else:
        assert heatmap.colors_at(3, 300).min() > 255 - DARK


def test_where_there_is_no_run_the_page_says_how_to_begin(show: Any) -> None:
    """No run at all: a heading and the lines to add."""
    _, frame = show([])
    frame.get_by_role("heading", name="No data yet").wait_for()
    assert "GradWatch()" in frame.locator("code").inner_text()


def test_dark_mode_of_tensorboard_is_followed_while_the_page_is_open(visit: Visit, stand: Any) -> None:
    """When a person switches TensorBoard to dark, page and picture follow at once, and back."""
    page = visit(stand([planted_run("relu", kind="relu")]).url)
    heatmap = Heatmap(tab_of(page), "relu", planted_run("relu", kind="relu").series[0].layers)
    assert heatmap.colors_at(3, 300).min() > 255 - DARK
    place = heatmap.find(10, 100)
    light = heatmap.colors_at(*place)[0]
    page.evaluate("document.body.classList.add('dark-mode')")
    page.wait_for_timeout(200)
    assert heatmap.colors_at(3, 300).max() < DARK
    assert heatmap.colors_at(*place)[0].sum() < light.sum() - 150
    page.evaluate("document.body.classList.remove('dark-mode')")
    page.wait_for_timeout(200)
    assert heatmap.colors_at(*place)[0].tolist() == light.tolist()


def test_a_server_that_fails_is_told_and_the_picture_stays(visit: Visit, stand: Any, witness: Any) -> None:
    """A server that answers nonsense leaves the picture, says what is wrong, and is asked again."""
    served: Stand = stand([planted_run("relu", kind="relu", ended=False)])
    page = visit(served.url)
    frame = tab_of(page)
    frame.get_by_role("application").wait_for()
    answer = served.answer
    served.answer = lambda path: (500, "text/plain", b"out of order") if path.endswith("/runs") else answer(path)
    look_again = "document.dispatchEvent(new Event('visibilitychange'))"
    frame.evaluate(look_again)
    frame.get_by_text("out of order").wait_for()
    assert frame.get_by_role("application").is_visible()
    served.answer = answer
    served.runs = [planted_run("relu", kind="relu", num_columns=300)]
    frame.evaluate(look_again)
    frame.get_by_text("out of order").wait_for(state="hidden")
    frame.get_by_text("steps 0 to 299").wait_for()
    assert all("500" in said for said in witness.complaints)
    witness.complaints.clear()
