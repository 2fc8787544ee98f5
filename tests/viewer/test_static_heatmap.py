"""Test ``lightning_gradwatch/viewer/static/heatmap.js``: pixels of known cells, and what pointer, wheel and keys do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from viewer.hosts import Stand
from viewer.planted import ABSENT_ROW, INF_CELL, NAN_CELL, SPIKE_COLUMN, VANISHING_BLOCK, ZERO_CELLS, planted_run

from lightning_gradwatch.report import palette

RUN = planted_run("mixed", kind="mixed")
WINDOWED = planted_run("windowed", kind="mixed", resolution=3)
DEEP = planted_run("deep", kind="mixed", num_layers=2000, num_columns=400)
MIXED = "run=mixed&name=norms/0"
SETUP = """async ([query, rows]) => {
  const [{ Heatmap }, { decodeSeries }, { layerRows }] = await Promise.all(
    ["heatmap", "blob", "rows"].map((name) => import(`./${name}.js`)));
  document.body.innerHTML = "<div id='host' style='width:900px;margin:20px'></div>";
  const calls = [];
  const names = ["onHover", "onPick", "onView", "onRow", "onMark"];
  const callbacks = Object.fromEntries(names.map((name) => [name, (value) => calls.push([name, value])]));
  const series = decodeSeries(await (await fetch(`../series?${query}`)).arrayBuffer());
  const heat = new Heatmap(document.getElementById("host"), callbacks);
  heat.setHeight(500);
  heat.setScale({ low: -7, high: 5, relative: false });
  heat.show(series, layerRows(series.layers, rows));
  heat.draw();
  // Through a copy: a canvas that is read often is drawn in another way.
  const pixels = (left, top, wide, high) => {
    heat.draw();
    const copy = document.createElement("canvas");
    [copy.width, copy.height] = [heat.picture.width, heat.picture.height];
    const context = copy.getContext("2d", { willReadFrequently: true });
    context.drawImage(heat.picture, 0, 0);
    const box = heat.picture.getBoundingClientRect();
    const { data } = context.getImageData(Math.round(left - box.left), Math.round(top - box.top), wide, high);
    return Array.from({ length: data.length / 4 }, (_, at) => [...data.subarray(4 * at, 4 * at + 4)]);
  };
  Object.assign(window, { heat, calls, series, layerRows, pixels });
}"""

Show = Callable[..., "Picture"]


class Picture:
    """A heatmap on a page of its own, and where its cells are."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def at(self, row: float, column: float) -> tuple[float, float]:
        """Return where a row and a column begin, in the window; add 0.5 for the middle."""
        x, y = self.page.evaluate(
            """([row, column]) => { const { plot, stepRange, rowRange, edges, overlay } = heat;
            const box = overlay.getBoundingClientRect(); const index = Math.floor(column);
            const step = edges[index] + (column - index) * (edges[index + 1] - edges[index]);
            return [box.left + plot.left + stepRange.place(step, plot.width),
                    box.top + plot.top + rowRange.place(row, plot.height)]; }""",
            [row, column],
        )
        return x, y

    def colors(self, row: int, column: int) -> set[tuple[int, ...]]:
        """Return all colors inside a cell, without its edge."""
        (left, top), (right, bottom) = self.at(row, column), self.at(row + 1, column + 1)
        wide, high = max(round(right - left) - 2, 1), max(round(bottom - top) - 4, 1)
        return {color[:3] for color in self.pixels(left + 1, top + 2, wide, high)}

    def pixels(self, left: float, top: float, wide: int = 1, high: int = 1) -> list[tuple[int, ...]]:
        """Return red, green, blue and opacity of pixels at a place in the window."""
        found = self.page.evaluate("(box) => pixels(...box)", [left, top, wide, high])
        return [tuple(color) for color in found]

    def calls(self, name: str) -> list[Any]:
        """Return what a callback got, oldest first."""
        told: list[Any] = self.page.evaluate(
            "(name) => calls.filter((call) => call[0] === name).map((call) => call[1])", name
        )
        return told

    @property
    def view(self) -> dict[str, Any]:
        """What is shown."""
        shown: dict[str, Any] = self.page.evaluate("(heat.draw(), heat.view)")
        return shown

    def wheel(self, row: float, column: float, notches: int, *, key: str | None = "Control") -> None:
        """Turn the wheel over a cell."""
        self.page.mouse.move(*self.at(row, column))
        if key:
            self.page.keyboard.down(key)
        self.page.mouse.wheel(0, -100 * notches)
        self.page.wait_for_function("() => new Promise((done) => requestAnimationFrame(() => done(true)))")
        if key:
            self.page.keyboard.up(key)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Drag from one cell to another."""
        self.page.mouse.move(*self.at(*start))
        self.page.mouse.down()
        self.page.mouse.move(*self.at(*end), steps=3)
        self.page.mouse.up()


@pytest.fixture(scope="module")
def served() -> Iterator[Stand]:
    """Serve the modules and the runs."""
    with Stand([RUN, WINDOWED, DEEP]) as stand:
        yield stand


@pytest.fixture
def show(served: Stand, visit) -> Show:
    """Return a function that draws a series, ``show("run=mixed&name=norms/0")``."""

    def shown(wanted: str = MIXED, **rows: Any) -> Picture:
        page = visit(f"{served.url}data/plugin/gradwatch/static/style.css", height=700)
        page.evaluate(SETUP, [wanted, rows])
        return Picture(page)

    return shown


def test_special_cells_have_their_colors(show: Show) -> None:
    """Vanishing, zero and infinite cells have one color each; NaN and absent have two, which make the hatch."""
    picture = show()
    assert picture.colors(VANISHING_BLOCK[0].start, 80) == {palette.BELOW_COLOR}
    assert picture.colors(ZERO_CELLS[0], 60) == {palette.ZERO_COLOR}
    assert picture.colors(*INF_CELL) == {palette.INF_COLOR}
    assert picture.colors(*NAN_CELL) == {palette.NAN_COLOR, palette.NAN_HATCH}
    assert picture.colors(ABSENT_ROW, 10) | picture.colors(ABSENT_ROW, 12) == {
        palette.ABSENT_COLOR,
        palette.ABSENT_HATCH,
    }


def test_the_dark_theme_has_colors_of_its_own(show: Show) -> None:
    """A usual cell is dark there, and light again afterwards."""
    picture = show()
    (light,) = picture.colors(0, 100)
    picture.page.evaluate("heat.setTheme('dark')")
    (dark,) = picture.colors(0, 100)
    assert max(dark) < 100 < min(light)
    picture.page.evaluate("heat.setTheme('light')")
    assert picture.colors(0, 100) == {light}


def test_relative_mode_compares_a_layer_with_its_own_median(show: Show) -> None:
    """What is usual for a layer has the middle color, wherever the layer lies; its drop and its spike stand out."""
    picture = show()
    picture.page.evaluate("heat.setScale({ low: 3, high: 9, relative: false })")
    assert picture.colors(0, SPIKE_COLUMN - 1) == {palette.BELOW_COLOR}
    picture.page.evaluate("heat.setScale({ low: -3, high: 3, relative: true })")
    (usual,) = picture.colors(0, SPIKE_COLUMN - 1)
    assert usual == pytest.approx((226, 218, 200), abs=16)
    assert picture.colors(VANISHING_BLOCK[0].start, 80) == {palette.BELOW_COLOR}
    assert picture.colors(0, SPIKE_COLUMN) == {palette.ABOVE_COLOR}


def test_a_spike_that_its_window_hides_has_a_notch_and_a_tick_below(show: Show) -> None:
    """Zoomed in, the upper edge of the cell has another color than the cell; the strip below has a tick at any zoom."""
    picture = show("run=windowed&name=norms/0")
    x, y = picture.at(20, SPIKE_COLUMN)
    assert picture.pixels(x + 1, y + 4) == [(*palette.ABOVE_COLOR, 255)]
    x, y = picture.at(20, 100)
    assert picture.pixels(x + 1, y + 4)[0][3] == 0
    x, y = picture.at(0, SPIKE_COLUMN)
    notch, inside, beside = (picture.pixels(x + right, y + down)[0] for right, down in ((1, 1), (1, 12), (-2, 12)))
    assert notch != inside
    assert inside == pytest.approx(beside, abs=6)


def test_pointing_tells_the_cell(show: Show) -> None:
    """The cell below the pointer is told with its numbers, and null where there is none."""
    picture = show()
    for row, column in ((5, 80), NAN_CELL, (2, SPIKE_COLUMN)):
        picture.page.mouse.move(*picture.at(row + 0.5, column + 0.5))
        cell = picture.calls("onHover")[-1]
        assert (cell["rowIndex"], cell["layer"], cell["column"], cell["step"], cell["lastStep"]) == (
            row,
            row,
            column,
            column,
            column,
        )
        assert cell["state"] == RUN.series[0].windows.state[column, row]
        assert cell["row"]["label"] == RUN.series[0].layers[row]
    assert cell["value"] == pytest.approx(float(RUN.series[0].windows.median[SPIKE_COLUMN, 2]), abs=0.01)
    picture.page.mouse.move(2, 2)
    assert picture.calls("onHover")[-1] is None


def test_a_single_cell_of_two_thousand_layers_is_drawn_and_found(show: Show) -> None:
    """Eight layers share a row of pixels; the one with NaN gives it its color, and is told when pointed at."""
    picture = show("run=deep&name=norms/0")
    row, column = NAN_CELL
    x, y = picture.at(row + 0.5, column + 0.5)
    picture.page.mouse.move(x, y)
    cell = picture.calls("onHover")[-1]
    assert (cell["layer"], cell["column"]) == NAN_CELL
    assert cell["numLayers"] > 1
    picture.page.evaluate("heat.rowRange.set(0, 40); heat.viewed()")
    assert palette.NAN_COLOR in picture.colors(row, column)


def test_the_wheel_zooms_around_the_pointer_with_ctrl_only(show: Show) -> None:
    """Without ctrl the page may scroll; with it the step below the pointer stays where it is."""
    picture = show()
    picture.wheel(3, 150.5, 3, key=None)
    assert picture.view["isWhole"]
    before = picture.at(3, 150.5)
    picture.wheel(3, 150.5, 3)
    view = picture.view
    assert view["last"] - view["first"] < 100
    assert picture.at(3, 150.5)[0] == pytest.approx(before[0], abs=1)
    assert (view["rowFirst"], view["rowLast"]) == (0, 20)
    assert picture.calls("onView")[-1] == view


def test_the_wheel_over_the_names_zooms_the_rows(show: Show) -> None:
    """So 2,000 layers can be read without losing a step of the run."""
    picture = show("run=deep&name=norms/0")
    x, y = picture.at(1000, 0)
    picture.page.mouse.move(x - 30, y)
    picture.page.keyboard.down("Control")
    picture.page.mouse.wheel(0, -600)
    picture.page.keyboard.up("Control")
    picture.page.wait_for_function("() => !heat.rowRange.isWhole")
    view = picture.view
    assert view["rowFirst"] < 1000 < view["rowLast"]
    assert view["rowLast"] - view["rowFirst"] < 200
    assert (view["first"], view["last"]) == (0, 400)


def test_a_drag_selects_what_to_zoom_into_then_pans_and_a_double_click_resets(show: Show) -> None:
    """A flat box keeps all rows; once zoomed a drag moves the picture with the pointer."""
    picture = show()
    picture.drag((3, 50), (3.5, 100))
    view = picture.view
    assert (view["first"], view["last"]) == pytest.approx((50, 100), abs=0.5)
    assert (view["rowFirst"], view["rowLast"]) == (0, 20)
    picture.drag((3, 70), (3, 80))
    assert picture.view["first"] == pytest.approx(40, abs=0.7)
    picture.page.keyboard.down("Shift")
    picture.drag((4, 60), (8.5, 70))
    picture.page.keyboard.up("Shift")
    view = picture.view
    assert (view["first"], view["last"]) == pytest.approx((60, 70), abs=0.7)
    assert (view["rowFirst"], view["rowLast"]) == (4, 9)
    assert picture.calls("onPick") == []
    picture.page.mouse.dblclick(*picture.at(5.5, 65.5))
    assert picture.view["isWhole"]


def test_a_click_picks_a_cell_a_name_or_a_mark(show: Show) -> None:
    """Each is told to its own callback; a selected cell survives a search that keeps its layer."""
    picture = show()
    picture.page.evaluate(
        "heat.setMarks([{ step: 60, severity: 'warning', label: 'vanishing', index: 7 }]); heat.draw()"
    )
    picture.page.mouse.click(*picture.at(4.5, 70.5))
    x, y = picture.at(6.5, 0)
    picture.page.mouse.click(x - 40, y)
    x, y = picture.at(0, 60)
    picture.page.mouse.click(x, y - 6)
    (cell,), (row,), (mark,) = (picture.calls(name) for name in ("onPick", "onRow", "onMark"))
    assert (cell["layer"], cell["column"]) == (4, 70)
    assert row["layers"] == [6]
    assert mark["index"] == 7
    picture.page.evaluate(
        "(cell) => { heat.select(cell); heat.show(series, layerRows(series.layers, { query: '1.' })) }", cell
    )
    assert picture.page.evaluate("heat.selected.rowIndex") == 0


def test_keys_walk_zoom_and_pick_and_the_cell_is_read_out(show: Show) -> None:
    """Arrows move a cell, End goes to the last step, plus zooms around it, Enter picks it, Escape takes it away."""
    picture = show()
    picture.page.locator("canvas[role=application]").focus()
    press = picture.page.keyboard.press
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "Shift+ArrowRight"):
        press(key)
    cell = picture.calls("onHover")[-1]
    assert (cell["rowIndex"], cell["column"]) == (1, 11)
    press("End")
    live = picture.page.locator("[aria-live=polite]").text_content()
    assert live.startswith(f"{RUN.series[0].layers[1]}, step 199: 0.")
    for _ in range(3):
        press("+")
    assert picture.view["first"] > 100
    assert picture.view["last"] > 199.5
    press("Home")
    assert picture.view["first"] == 0
    press("Enter")
    assert [(cell["rowIndex"], cell["column"]) for cell in picture.calls("onPick")] == [(1, 0)]
    press("0")
    press("Escape")
    assert picture.view["isWhole"]
    assert picture.calls("onHover")[-1] is None


def test_special_cells_are_read_out_in_words(show: Show) -> None:
    """NaN, infinity, zero and absence are said, not left out."""
    picture = show()
    say = """async ([row, column]) => { const { cellInRow, cellText } = await import("./cells.js");
      return cellText(series, cellInRow(heat, row, column)).split(": ")[1]; }"""
    cells = {NAN_CELL: "NaN", INF_CELL: "infinite", (ZERO_CELLS[0], 50): "exactly zero", (ABSENT_ROW, 3): "no value"}
    assert {cell: picture.page.evaluate(say, list(cell)) for cell in cells} == cells


def test_several_runs_are_kept_in_step(show: Show) -> None:
    """``setSteps`` shows also what is beyond the run, and calls nobody; reset shows all of the widest."""
    picture = show()
    picture.page.evaluate("heat.setSteps([0, 400]); heat.setSteps([100, 300])")
    assert (picture.view["first"], picture.view["last"]) == (100, 300)
    assert picture.calls("onView") == []
    picture.page.evaluate("heat.reset()")
    assert (picture.view["first"], picture.view["last"]) == (0, 400)
    assert len(picture.calls("onView")) == 1
    picture.page.evaluate("heat.setSteps(null)")
    assert (picture.view["first"], picture.view["last"]) == (0, 200)


def test_a_run_that_grows_is_shown_whole_and_a_zoom_stays(show: Show) -> None:
    """New columns appear where all was shown; where a part was, that part stays."""
    picture = show()
    grow = """(count) => { const cut = (table) => Int16Array.from({ length: 20 * count }, (_, at) =>
        table[Math.floor(at / count) * 200 + (at % count)]);
      heat.show({ ...series, numColumns: count, steps: series.steps.slice(0, count), median: cut(series.median),
        low16: cut(series.low16), high16: cut(series.high16), state: Uint8Array.from(cut(series.state)) },
        heat.rows); }"""
    picture.page.evaluate(grow, 100)
    assert (picture.view["first"], picture.view["last"]) == (0, 100)
    picture.page.evaluate("heat.stepRange.set(20, 40); heat.viewed()")
    picture.page.evaluate(grow, 200)
    assert (picture.view["first"], picture.view["last"]) == (20, 40)
    assert picture.colors(VANISHING_BLOCK[0].start, 30) != {palette.BELOW_COLOR}


def test_a_picture_without_rows_or_readings_says_so(show: Show) -> None:
    """A search without a match and a run without readings draw a sentence, and pointing at it is harmless."""
    picture = show(query="nothing of that name")
    picture.page.mouse.move(500, 100)
    picture.page.mouse.click(500, 100)
    picture.page.keyboard.press("ArrowDown")
    assert [picture.calls(name) for name in ("onHover", "onPick", "onRow")] == [[], [], []]
    picture.page.evaluate(
        "heat.show({ ...series, numColumns: 0, steps: new Float64Array(0), median: new Int16Array(0),"
        " low16: new Int16Array(0), high16: new Int16Array(0), state: new Uint8Array(0) }, layerRows(series.layers));"
        " heat.draw()"
    )
    picture.page.mouse.move(520, 120)
    assert picture.calls("onHover") == []


def test_it_leaves_nothing_behind(show: Show) -> None:
    """After ``destroy`` the host is as it was, and no frame is drawn."""
    picture = show()
    picture.page.evaluate("heat.redraw(); heat.destroy()")
    assert picture.page.evaluate("document.getElementById('host').childElementCount") == 0
    picture.page.mouse.move(500, 200)
    assert picture.calls("onHover") == []
