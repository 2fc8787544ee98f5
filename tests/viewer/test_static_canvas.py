"""Test ``lightning_gradwatch/viewer/static``: what the picture is made of, without looking at one.

The modules ``blob``, ``palette``, ``rows``, ``labels``, ``view``, ``raster``, ``extremes`` and ``axes`` are pure; they
run in the browser that they are written for, and Python says what must come out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from viewer.hosts import Stand
from viewer.planted import planted_run

from lightning_gradwatch.report import palette

RUN = planted_run("mixed", kind="mixed", resolution=2)
WINDOWS = RUN.series[0].windows
HOME = "data/plugin/gradwatch/"
LABEL_GAP = 12

Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def ask(browser) -> Iterator[Ask]:
    """Return a function that evaluates an expression over the modules, ``ask("rows.layerRows(given)", given)``."""
    names = ("blob", "palette", "rows", "labels", "view", "raster", "extremes", "axes", "marks")
    with Stand([RUN]) as stand:
        page = browser.new_page()
        page.goto(f"{stand.url}{HOME}static/style.css")
        page.evaluate(
            f"async () => {{ for (const name of {list(names)}) window[name] = await import('./' + name + '.js');"
            " const answer = await fetch('../series?run=mixed&name=norms/0');"
            " window.series = blob.decodeSeries(await answer.arrayBuffer()); }"
        )
        yield lambda expression, given=None: page.evaluate(f"(given) => {expression}", given)
        page.close()


def test_a_series_is_read_as_it_was_written(ask: Ask) -> None:
    """Steps, medians, ends and states are those of the windows, to half a step of the codes."""
    told = ask(
        "({ steps: [...series.steps], state: [...series.state], layers: series.layers,"
        " tables: [series.median, series.low16, series.high16]"
        ".map((table) => Array.from(table, blob.logOf).map(String)) })"
    )
    assert told["steps"] == WINDOWS.steps.tolist()
    assert told["state"] == WINDOWS.state.T.ravel().tolist()
    assert told["layers"] == list(RUN.series[0].layers)
    for got, expected in zip(told["tables"], (WINDOWS.median, WINDOWS.low, WINDOWS.high), strict=True):
        numbers = [float(text.replace("Infinity", "inf")) for text in got]
        np.testing.assert_allclose(numbers, expected.T.ravel(), atol=1 / 512 + 1e-6)


@pytest.mark.parametrize("kept", [0, 3, 40, 2000])
def test_a_series_that_is_cut_off_is_refused(ask: Ask, kept: int) -> None:
    """Bytes that are missing at the end are told, not read as zeros."""
    said = ask(
        "{ try { blob.decodeSeries(series.steps.buffer.slice(0, given)) } catch (e) { return e.message } }", kept
    )
    assert "cut off" in said


def test_the_median_of_a_layer_leaves_out_what_is_not_finite(ask: Ask) -> None:
    """It is the upper median of the finite medians, and nothing for a layer without any."""
    told = ask("series.layers.map((_, layer) => String(blob.logOf(blob.typicalOfLayer(series, layer))))")
    for text, column in zip(told, WINDOWS.median.T, strict=True):
        finite = np.sort(column[np.isfinite(column)])
        assert float(text) == pytest.approx(
            finite[len(finite) // 2] if len(finite) else math.nan, abs=0.01, nan_ok=True
        )


def test_the_colors_on_paper_are_those_of_the_picture_in_the_logger(ask: Ask) -> None:
    """All 256 colors agree with ``report.palette``, in order."""
    ours = np.array(ask("palette.scaleColors('light').rgb"))
    # A pixel that no hatch covers.
    painted = [palette.paint(np.full((2, 4), code, dtype=np.uint8))[1, 3] for code in range(256)]
    np.testing.assert_allclose(ours, painted, atol=1)


@pytest.mark.parametrize("code", [palette.NAN, palette.ABSENT])
def test_the_hatches_are_those_of_the_picture_in_the_logger(ask: Ask, code: int) -> None:
    """The same pixels of a special cell have the color of its hatch."""
    painted = palette.paint(np.full((24, 24), code, dtype=np.uint8))
    hatch = palette.NAN_HATCH if code == palette.NAN else palette.ABSENT_HATCH
    grid = "Array.from({ length: 24 }, (_, y) => Array.from({ length: 24 }, (_, x) => palette.isHatched(given, x, y)))"
    np.testing.assert_array_equal(ask(grid, code), (painted == hatch).all(axis=2))


def test_a_number_has_the_code_that_the_picture_in_the_logger_gives_it(ask: Ask) -> None:
    """The scale is linear in log10 between its ends, and has one color beyond each."""
    logs = np.linspace(-12, 12, 193)
    expected = palette.color_codes(10.0**logs, np.ones(len(logs), dtype=bool), palette.Anchors(-7.0, 5.0))
    got = np.array(ask("given.map((log) => palette.colorCode(log, -7, 5))", logs.tolist()))
    assert np.abs(got - expected.astype(int)).max() <= 1
    assert (got[logs < -7.1] == palette.BELOW).all()
    assert (got[logs > 5.1] == palette.ABOVE).all()


def test_the_dark_colors_keep_apart_what_must_be_told_apart(ask: Ask) -> None:
    """The middle is dark, both ends are lighter, what is beyond them lighter still; no special color is on the ramp."""
    rgb = np.array(ask("palette.scaleColors('dark').rgb"), dtype=float)
    light = rgb @ [0.2126, 0.7152, 0.0722]
    assert light[125] < 80
    assert light[palette.BELOW] > light[0] + 30
    assert light[palette.ABOVE] > light[249] + 30
    assert min(light[0], light[249]) > light[125] + 50
    for code in (palette.BELOW, palette.ABOVE, palette.ZERO, palette.INF, palette.ABSENT):
        assert np.linalg.norm(rgb[:250] - rgb[code], axis=1).min() > 30, code


NAMES = ["embed", *[f"encoder.block.{i}.{part}" for i in range(3) for part in ("attn.qkv", "mlp")], "head"]


def test_without_groups_each_layer_has_a_row(ask: Ask) -> None:
    """Rows are in forward order; a search keeps those that have all its words, in any case."""
    rows = ask("rows.layerRows(given)", NAMES)
    assert [(row["label"], row["layers"], row["group"]) for row in rows] == [
        (n, [i], None) for i, n in enumerate(NAMES)
    ]
    assert [row["layers"] for row in ask("rows.layerRows(given, { query: 'BLOCK.1 mlp' })", NAMES)] == [[4]]
    assert [row["label"] for row in ask("rows.layerRows(given, { query: '^e' })", NAMES)] == NAMES[:-1]
    assert ask("rows.layerRows(given, { query: '.*' })", NAMES) == []


def test_groups_are_blocks_and_open_below_their_heading(ask: Ask) -> None:
    """A block is a row that holds its layers; an open one is followed by them; what stands alone stays alone."""
    rows = ask("rows.layerRows(given, { grouped: true, open: new Set(['encoder.block.1']) })", NAMES)
    block = "encoder.block."
    assert [(row["label"], row["layers"], row["group"], row["isOpen"]) for row in rows] == [
        ("embed", [0], None, False),
        (f"{block}0", [1, 2], f"{block}0", False),
        (f"{block}1", [3, 4], f"{block}1", True),
        (f"{block}1.attn.qkv", [3], None, False),
        (f"{block}1.mlp", [4], None, False),
        (f"{block}2", [5, 6], f"{block}2", False),
        ("head", [7], None, False),
    ]
    assert ask("labels.rowNames(given).names", rows)[3] == "attn.qkv"


def test_a_number_that_all_names_share_makes_no_block(ask: Ask) -> None:
    """A model within ``net.0`` is still cut into its blocks; a plain Sequential has none."""
    assert ask("rows.blocksOf(['net.0.b.0.x', 'net.0.b.0.y', 'net.0.b.1.x', 'net.0.b.1.y'])")[::2] == [
        "net.0.b.0",
        "net.0.b.1",
    ]
    assert ask("rows.blocksOf(['0', '2', '4'])") == ["", "", ""]
    assert ask("rows.layerRows([], { grouped: true })") == []


def test_what_all_names_begin_with_is_left_out_but_never_a_number(ask: Ask) -> None:
    """The number tells which block a layer is in."""
    assert ask("labels.commonPrefix(['net.enc.0.a', 'net.enc.1.b'])") == "net.enc."
    assert ask("labels.commonPrefix(['net.enc.3.a', 'net.enc.3.b'])") == "net.enc."
    assert ask("labels.commonPrefix(['encoder', 'encoder.fc'])") == ""
    assert ask("labels.commonPrefix(['only.one'])") == ""


def test_a_long_name_loses_its_words_before_its_numbers(ask: Ask) -> None:
    """Words between the last number and the end go first, then those in front, then letters."""
    name = "encoder.blocks.3.attention.self.query"
    short = {
        length: ask("labels.elideName(given[0], (text) => text.length <= given[1])", [name, length])
        for length in range(3, 40)
    }
    assert short[39] == name
    assert short[31] == "encoder.blocks.3\u2026self.query"
    assert short[26] == "encoder.blocks.3\u2026query"
    assert short[17] == "\u2026blocks.3\u2026query"
    assert short[9] == "\u20263\u2026query"
    assert all(len(text) <= length for length, text in short.items())


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("num_layers", [5, 60, 500, 2000])
def test_no_two_labels_touch(ask: Ask, num_layers: int, grouped: bool) -> None:
    """At any height of the rows neighboring labels are at least 12 pixels apart, and there is at least one."""
    names = ["embed", *[f"layers.{i // 6}.part{i % 6}" for i in range(num_layers - 2)], "head"]
    for height in (0.27, 1.1, 2.5, 7.0, 13.0):
        labels = ask(
            "{ const all = rows.layerRows(given[0], { grouped: given[1], open: ['layers.2'] });"
            " return labels.chooseLabels(all, labels.rowNames(all), given[2]); }",
            [names, grouped, height],
        )
        centers = [(label["index"] + label["last"] + 1) / 2 * height for label in labels]
        assert labels
        assert all(b - a >= LABEL_GAP - 1e-6 for a, b in itertools.pairwise(centers))


@pytest.mark.parametrize("seed", range(6))
def test_every_column_in_sight_has_a_pixel(ask: Ask, seed: int) -> None:
    """However narrow a column is, its pixel knows of it; stretches neither overlap nor leave the picture."""
    rng = np.random.default_rng(seed)
    steps = np.cumsum(rng.choice([1, 2, 50, 400], 700)).astype(float)
    first, last = sorted(rng.choice(steps, 2, replace=False).tolist())
    told = ask(
        "{ const edges = view.columnEdges(Float64Array.from(given[0])); const range = new view.AxisRange(1);"
        " range.setLimits(edges[0], edges[edges.length - 1]); range.set(given[1], given[2]);"
        " const found = view.segmentsOf(edges, range, 313);"
        " return ['start', 'end', 'first', 'last'].map((name) => [...found[name].subarray(0, found.count)]); }",
        [steps.tolist(), first, last],
    )
    start, end, low, high = (np.array(part) for part in told)
    assert start[0] == 0
    assert end[-1] == 313
    assert (start[1:] == end[:-1]).all()
    drawn = {column for a, b in zip(low, high, strict=True) for column in range(a, b + 1)}
    assert set(np.flatnonzero((steps >= first) & (steps < last))) <= drawn
    assert len(drawn - set(np.flatnonzero((steps >= first) & (steps < last)))) <= 1


SHARE = "raster.reduceColumns(Int16Array.from(given), 1, given.length - 2) / 256"


def test_columns_that_share_a_pixel_keep_what_is_out_of_line(ask: Ask) -> None:
    """Close numbers are averaged; a spike or a drop of more than two decades is kept, even one of two columns."""
    assert ask(SHARE, [256 * log for log in (0, 0, 1, 0)]) == 0.5
    assert ask(SHARE, [256 * log for log in (0, 0, 3, 0, 0)]) == 3
    assert ask(SHARE, [256 * log for log in (0, 0, -3, 0, 0)]) == -3
    assert ask(SHARE, [256 * log for log in (-8, -8, -5, -8)]) == -5
    assert ask(SHARE, [256 * log for log in (2, -1, 2, 2)]) == -1
    nan, inf, zero, nothing = 32767, 32766, -32767, -32768
    assert ask(SHARE, [0, inf, nan, 0, zero, 0]) * 256 == nan
    assert ask(SHARE, [0, inf, 0, zero, 0]) * 256 == inf
    assert ask(SHARE, [0, 512, zero, nothing, 0]) * 256 == zero
    assert ask(SHARE, [0, 512, nothing, 0]) == 2
    assert ask(SHARE, [0, nothing, nothing, 0]) * 256 == nothing


@pytest.mark.parametrize("relative", [False, True])
def test_the_most_abnormal_layer_wins_a_shared_row(ask: Ask, relative: bool) -> None:
    """Codes agree with ``report.palette.reduce_layers`` on layers that share a band, column by column."""
    width = 4
    told = ask(
        "{ const cells = raster.cellValues(series); const n = series.numColumns;"
        " const typical = given[1] ? series.layers.map((_, layer) => blob.typicalOfLayer(series, layer)) : null;"
        " const scale = new raster.ColorScale(given[1] ? -3 : -7, given[1] ? 3 : 5, typical);"
        " const columns = { count: n, first: [...Array(n).keys()], last: [...Array(n).keys()] };"
        " const bands = Array.from({ length: series.numLayers / given[0] }, (_, b) => Array.from({ length: given[0] },"
        " (_, i) => b * given[0] + i)); return [...raster.reduceCells(cells, n, bands, columns, scale)]; }",
        [width, relative],
    )
    logs = WINDOWS.median.astype(float)
    if relative:
        middle = [
            np.sort(c[np.isfinite(c)])[np.isfinite(c).sum() // 2] if np.isfinite(c).any() else 0.0 for c in logs.T
        ]
        logs = logs - np.array(middle)
    norms = np.select([WINDOWS.state & 4 > 0, WINDOWS.state & 8 > 0], [np.nan, np.inf], 10.0**logs)
    anchors = palette.Anchors(-3.0, 3.0) if relative else palette.Anchors(-7.0, 5.0)
    reduced, present = palette.reduce_layers(norms, WINDOWS.state > 0, width, anchors)
    expected = palette.color_codes(reduced, present, anchors).T.ravel().astype(int)
    got = np.array(told)
    special = (expected >= 250) | (got >= 250)
    assert (got[special] == expected[special]).mean() > 0.995  # codes may fall on either side of an end
    # Two layers equally far from the middle, on either side of it, differ by more; codes are 1/256 of a decade.
    assert (np.abs(got - expected)[~special] <= 1).mean() > 0.99


def test_extremes_are_found_where_a_window_hides_them(ask: Ask) -> None:
    """Of the planted run only the window with the spike hides one: in all layers that have a number."""
    assert np.flatnonzero(ask("[...extremes.extremeColumns(series, series.layers.keys())]")).tolist() == [150]
    bits = ask("series.layers.map((_, layer) => extremes.extremesAt(series, layer * series.numColumns + 150))")
    assert bits == [int(present) for present in WINDOWS.state[150] > 0]


def test_steps_are_written_in_short(ask: Ask) -> None:
    """Thousands and millions have their letter; ticks that would read alike are written in full."""
    assert ask("[0, 950, 1000, 12500, 2e6, 1e10].map(axes.shortStep)") == ["0", "950", "1k", "12.5k", "2M", "10G"]
    assert ask("axes.stepLabels([123456789, 123456790])") == ["123456789", "123456790"]


def test_marks_that_would_cover_each_other_are_put_together(ask: Ask) -> None:
    """A warning among them shows; what is out of sight is left out."""
    clusters = ask(
        "{ const range = new view.AxisRange(1); range.setLimits(0, 100); range.set(0, 50);"
        " return marks.clusterMarks(given, range, 500); }",
        [
            {"step": 10, "severity": "notice"},
            {"step": 40, "severity": "notice"},
            {"step": 10.5, "severity": "warning"},
            {"step": 90, "severity": "warning"},
        ],
    )
    assert [(len(cluster["marks"]), cluster["severity"]) for cluster in clusters] == [(2, "warning"), (1, "notice")]
