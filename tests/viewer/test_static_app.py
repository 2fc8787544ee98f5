"""Test the pure functions of the page, ``lightning_gradwatch/viewer/static/``, in the browser that runs them.

``numbers.js``, ``state.js``, ``runs.js``, ``choices.js``, ``profile.js``, ``table.js``, ``words.js``, ``source.js``.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from viewer.hosts import Stand
from viewer.planted import planted_run

from lightning_gradwatch.viewer import wire
from lightning_gradwatch.viewer.run import Run

MIXED = planted_run("mixed", kind="mixed")
SIGMOID = planted_run("sigmoid")
SERIES = {(run.name, series.name): series for run in (MIXED, SIGMOID) for series in run.series}
Call = Callable[..., Any]


@pytest.fixture(scope="module")
def js(browser: Any) -> Iterator[Call]:
    """Return a function that calls a JavaScript function with modules and a value: ``js(code, value, *modules)``."""
    with Stand([MIXED, SIGMOID]) as stand:
        page = browser.new_page()
        page.goto(f"{stand.url}data/plugin/gradwatch/static/numbers.js")

        def call(code: str, value: Any = None, *modules: str) -> Any:
            names = "[" + ", ".join(f'import("./{name}.js")' for name in modules) + "]"
            merged = f"Object.assign({{}}, ...await Promise.all({names}))"
            return page.evaluate(f"async (value) => ({code})({merged}, value)", value)

        yield call
        page.close()


def numbers(js: Call, function: str, *arguments: Any) -> Any:
    """Call a function of numbers.js."""
    return js(f"(m, a) => m.{function}(...a)", list(arguments), "numbers")


def diagnosis(**more: Any) -> dict[str, Any]:
    """Return a diagnosis as ``describe`` has it."""
    plain = {"rule": "vanishing.depth", "symptom": "vanishing", "severity": "warning", "optimizer": 0, "step": 3}
    return {**plain, "layers": ["a"], "message": "it fades", "recovered_at": None, "view": "delta/0", **more}


def described(*diagnoses: dict[str, Any]) -> dict[str, Any]:
    """Return a run as ``describe`` has it, with some diagnoses."""
    return {**wire.describe(SIGMOID), "diagnoses": list(diagnoses)}


@pytest.mark.parametrize("seed", range(5))
def test_the_line_along_depth_is_that_of_least_squares(js: Call, seed: int) -> None:
    """Slope, factor and share are numpy's, over what is finite."""
    rng = np.random.default_rng(seed)
    logs = rng.normal(-4, 1, 30) + rng.normal(0, 0.3) * np.arange(30)
    logs[rng.integers(0, 30, 4)] = [np.nan, -np.inf, np.inf, np.nan]
    finite = np.flatnonzero(np.isfinite(logs))
    slope, level = np.polyfit(finite, logs[finite], 1)
    share = np.corrcoef(finite, logs[finite])[0, 1] ** 2
    code = "(m, logs) => { const fit = m.fitAlong(logs); return {...fit, at: fit.at(7)}; }"
    fit = js(code, logs.tolist(), "numbers")
    assert fit["slope"] == pytest.approx(slope)
    assert fit["factor"] == pytest.approx(10**-slope)
    assert fit["r2"] == pytest.approx(share)
    assert fit["at"] == pytest.approx(level + 7 * slope)
    assert [fit["first"][0], fit["last"][0], fit["count"]] == [finite[0], finite[-1], len(finite)]


def test_two_numbers_are_no_trend(js: Call) -> None:
    """Any two numbers lie on a line, so nothing is fitted through them."""
    assert numbers(js, "fitAlong", [1.0, float("nan"), 2.0, float("-inf")]) is None


def test_numbers_are_written_so_that_they_can_be_read_back(js: Call) -> None:
    """What is written is the number to two digits, over all that float32 can hold."""
    logs = np.linspace(-45, 38, 400)
    written = js("(m, logs) => logs.map((log) => m.formatLog(log))", logs.tolist(), "numbers")
    read = np.array([float(text.replace(",", "")) for text in written])
    np.testing.assert_allclose(read, 10**logs, rtol=0.051)
    assert max(map(len, written)) <= 7


@pytest.mark.parametrize(
    ("log", "text"),
    [
        (np.log10(1.23e-8), "1.2e-8"), (np.log10(0.21), "0.21"), (-8.0, "1e-8"), (2.0, "100"), (0.0, "1"),
        (np.log10(9.99e-5), "1e-4"), (float("-inf"), "0"), (float("inf"), "+inf"), (float("nan"), "\u2013"),
    ],
)  # fmt: skip
def test_how_numbers_are_written(js: Call, log: float, text: str) -> None:
    """Small ones by a power of ten, usual ones plainly, what is no number in a word."""
    assert numbers(js, "formatLog", float(log)) == text


@pytest.mark.parametrize("text", ["1e-8", " 1E-8 ", "0.00000001", "10^-8", "+1e-8", "1e\u22128", ".00000001"])
def test_an_end_may_be_written_in_many_ways(js: Call, text: str) -> None:
    """All of them mean 1e-8."""
    assert numbers(js, "parseEnd", text)["log"] == pytest.approx(-8)


@pytest.mark.parametrize("text", ["", "tiny", "-1e-8", "0", "1e", "1,5", "1e-8x", "Infinity", "1e999", "NaN", "0x10"])
def test_a_bad_end_is_told_with_the_way_to_write_it(js: Call, text: str) -> None:
    """The message repeats what was written and shows how it is done."""
    told = numbers(js, "parseEnd", text)
    assert "log" not in told
    assert text in told["error"]
    assert "1e" in told["error"]


def test_ends_in_the_wrong_order_are_told(js: Call) -> None:
    """The lower end has to be below the upper one, and not the same."""
    assert numbers(js, "faultOfEnds", -8, 2) is None
    assert "1e-8" in numbers(js, "faultOfEnds", 2, -8)
    assert numbers(js, "faultOfEnds", 2, 2)


@pytest.mark.parametrize(("first", "last", "most"), [(0, 199, 5), (17, 18, 9), (0, 1e6, 4), (5, 5, 3), (990, 1013, 6)])
def test_ticks_of_steps_are_round_and_few(js: Call, first: float, last: float, most: int) -> None:
    """They are whole, ascend by one distance, and lie within the axis."""
    ticks = numbers(js, "stepTicks", first, last, most)
    assert 1 <= len(ticks) <= most + 1
    assert all(first <= tick <= last and tick == round(tick) for tick in ticks)
    assert len(set(np.diff(ticks))) <= 1


@pytest.mark.parametrize(("low", "high", "most"), [(-10.2, 2.4, 6), (-0.4, 1.6, 8), (-45, 38, 5)])
def test_ticks_of_powers_of_ten_are_whole(js: Call, low: float, high: float, most: int) -> None:
    """They are whole exponents within the axis, no more than there is room for."""
    ticks = numbers(js, "decadeTicks", low, high, most)
    assert 1 <= len(ticks) <= most + 1
    assert all(low <= tick <= high and tick == round(tick) for tick in ticks)


def test_a_state_survives_being_written_and_read(js: Call) -> None:
    """What a person has chosen comes back as it was."""
    chosen = {
        "runs": ["a", "b"], "quantity": "delta", "optimizer": 1, "module": "lstm", "relative": True,
        "ends": {"delta": [-9, 1], "delta relative": [-2, 2]}, "query": "<b>", "grouped": True, "open": ["net.0"],
        "table": True, "sort": {"column": "last", "down": True}, "steps": [3, 90.5],
        "selected": {"run": "a", "layer": "fc", "step": 7},
    }  # fmt: skip
    assert js("(m, state) => m.decodeState(m.encodeState(state))", chosen, "state") == chosen
    assert set(chosen) == set(js("(m) => m.freshState()", None, "state"))


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "7", '{"version": 0, "query": "x"}', '{"version": 1}'])
def test_a_state_that_cannot_be_read_is_a_fresh_one(js: Call, text: str) -> None:
    """Nothing kept by an older page or by anyone else does harm."""
    assert js("(m, text) => [m.decodeState(text), m.freshState()]", text, "state")[0] == js(
        "(m) => m.freshState()", None, "state"
    )


def test_one_bad_part_of_a_state_spoils_no_other(js: Call) -> None:
    """Ends in the wrong order and a step that is no number are dropped; the search is kept."""
    kept = {"version": 1, "query": "fc", "ends": {"norms": [2, -3]}, "steps": ["a", 3], "selected": {"run": 1}}
    state = js("(m, text) => m.decodeState(text)", json.dumps(kept), "state")
    assert (state["query"], state["ends"], state["steps"], state["selected"]) == ("fc", {}, None, None)


def test_runs_that_are_gone_are_not_chosen_any_more(js: Call) -> None:
    """With the last of them go the selection and the zoom."""
    code = "(m, [part, runs]) => m.fittedState({...m.freshState(), ...part}, runs)"
    chosen = {"runs": ["a", "b"], "steps": [1, 2], "selected": {"run": "a", "layer": "x", "step": 1}}
    some = js(code, [chosen, [{"name": "b"}]], "state")
    none = js(code, [chosen, [{"name": "c"}]], "state")
    assert (some["runs"], some["selected"], some["steps"]) == (["b"], None, [1, 2])
    assert (none["runs"], none["selected"], none["steps"]) == ([], None, None)


def test_a_diagnosis_is_brought_into_sight(js: Call) -> None:
    """A search or a zoom that would hide it goes; those that do not stay, and so does everything else."""
    code = "(m, [part, about, found]) => m.stateForDiagnosis({...m.freshState(), ...part}, about, found)"
    about = {"quantity": "delta", "optimizer": 1, "module": None}
    near = js(code, [{"query": "FC", "steps": [1, 9]}, about, diagnosis(layers=["net.fc1"])], "state")
    far = js(code, [{"query": "fc", "steps": [5, 9], "table": True}, about, diagnosis(layers=["conv"])], "state")
    view = {"quantity": "delta", "optimizer": 1, "module": "", "table": False}
    assert near == {**view, "query": "FC", "steps": [1, 9]}
    assert far == {**view, "query": "", "steps": None}


@pytest.mark.parametrize(
    ("diagnoses", "kind", "words"),
    [
        ([], "well", "No faults seen"),
        ([diagnosis()], "warning", "It fades."),
        ([diagnosis(), diagnosis(step=9, message="second")], "warning", "1 more open warning"),
        ([diagnosis(recovered_at=9)], "notice", "No fault now"),
        ([diagnosis(muted=True)], "well", "No faults seen"),
        ([diagnosis(severity="notice")], "notice", "1 notice"),
        ([diagnosis(severity="notice", message="n"), diagnosis(step=8)], "warning", "It fades."),
    ],
)
def test_the_verdict_is_that_of_the_worst_open_warning(js: Call, diagnoses: Any, kind: str, words: str) -> None:
    """What is over, muted or a notice is no fault now, and is not passed over either."""
    verdict = js("(m, run) => m.verdictOn(run)", described(*diagnoses), "runs")
    assert verdict["kind"] == kind
    assert words in f"{verdict['head']} {verdict['text']}"


def test_a_run_without_a_reading_is_not_called_well(js: Call) -> None:
    """Whoever forgot to train with it, or to enter the `with` block of `attach`, is told so, and not in green."""
    verdict = js("(m, run) => m.verdictOn(run)", {**described(), "last_step": None, "series": []}, "runs")
    assert (verdict["kind"], verdict["head"]) == ("notice", "Nothing was measured so far")


def test_the_page_opens_where_the_worst_diagnosis_rests_and_says_so(js: Call) -> None:
    """A warning of the second run outweighs a notice of the first, and what a person chose outweighs both."""
    code = "(m, [runs, part]) => { const v = m.viewToShow(runs, part); return [v.quantity, m.reasonInWords(v)]; }"
    mild = described(diagnosis(severity="notice", view="norms/0"))
    runs = [mild, described(diagnosis())]
    quantity, reason = js(code, [runs, {"quantity": ""}], "runs")
    assert quantity == "delta"
    assert "where the warning rests; the gradient norm alone may not show it" in reason
    assert js(code, [[mild], {"quantity": ""}], "runs")[0] == "norms"
    chosen = {"quantity": "signal", "optimizer": 0, "module": ""}
    assert js(code, [runs, chosen], "runs") == ["signal", ""]
    assert js(code, [[{**described(), "opens_on": "norms/0"}], {"quantity": ""}], "runs") == ["norms", ""]


def test_of_many_runs_the_one_that_began_last_is_shown(js: Call) -> None:
    """By name ``version_9`` would come last; all of up to three are shown, and what a person chose goes first."""

    def began(name: str, started: float) -> dict[str, Any]:
        run = {**described(), "name": name}
        return {**run, "began": started, "series": [{**series, "started": started} for series in run["series"]]}

    runs = [began("version_1", 1.0), began("version_10", 10.0), began("version_2", 2.0), began("version_9", 9.0)]
    runs.append({**described(), "name": "without a reading", "series": [], "began": 99.0})
    code = "(m, [runs, chosen]) => m.runsToShow(runs, chosen).map((run) => run.name)"
    assert js(code, [runs, []], "runs") == ["version_10"]
    assert js(code, [runs, ["version_1"]], "runs") == ["version_1"]
    assert js(code, [runs[:3], []], "runs") == ["version_1", "version_10", "version_2"]


def test_a_run_that_was_switched_off_before_its_first_reading_is_shown_and_says_why(js: Call) -> None:
    """Alone, beside another, and as the last that began; nothing else is known of it."""
    event = {"event": "off", "step": 0, "time": 99.0, "num_readings": 0, "disabled": "ValueError: x"}
    off = json.loads(json.dumps(wire.describe(Run("off", (), [event]))))
    told = js("(m, run) => m.verdictOn(run)", off, "runs")
    assert (told["kind"], told["head"]) == ("warning", "GradWatch was switched off")
    assert told["text"] == "Before its first reading: ValueError: x."
    code = "(m, runs) => m.runsToShow(runs, []).map((run) => run.name)"
    well = [{**described(), "name": name, "series": [{"started": 1.0}], "began": 1.0} for name in "ab"]
    for runs, shown in (([off], ["off"]), ([well[0], off], ["a", "off"]), ([off, *well, well[0]], ["off"])):
        assert js(code, runs, "runs") == shown
    silent = {**described(), "name": "silent", "series": []}
    assert js(code, [silent], "runs") == ["silent"]
    during = js("(m, run) => m.verdictOn(run)", {**described(), "disabled": "x"}, "runs")
    assert during["head"] == "GradWatch switched itself off"


LAST_STEPS = """async (m, [steps, single, last, newest]) => {
    const series = { steps: Float64Array.from(steps), single, lastStep: last, version: "v" };
    const known = new m.Library(null);
    known.kept.set(JSON.stringify(["r", "norms/0"]), { version: "v", series });
    const about = { name: "norms/0", quantity: "norms", optimizer: 0, module: "", version: "v" };
    const view = { quantity: "norms", optimizer: 0, module: "" };
    const loaded = await known.load({ name: "r", series: [about], last_step: newest }, view);
    return [steps.map((_, column) => m.lastStepOf(loaded.series, column)), loaded.series === series];
}"""


@pytest.mark.parametrize(
    ("steps", "single", "last", "newest", "expected", "same"),
    [
        # Windows of four steps: the last one has as many as the run is known to have trained, never more than a window.
        ([0, 4, 8], False, 8, 8, [3, 7, 8], True),
        ([0, 4, 8], False, 8, 10, [3, 7, 10], False),
        ([0, 4, 8], False, 9, 9, [3, 7, 9], True),
        ([0, 4, 8], False, 8, 500, [3, 7, 11], False),
        ([0, 4, 8], False, 8, None, [3, 7, 8], True),
        # Single readings, as a probe every fifty steps: each speaks of its own step, however far training has come.
        ([0, 50, 100], True, 100, 149, [0, 50, 100], True),
        ([7], True, 7, 7, [7], True),
        ([7], False, 7, 9, [7], False),
    ],
)
def test_no_column_speaks_of_a_step_that_was_not_trained(
    js: Call, steps: list[int], single: bool, last: int, newest: int | None, expected: list[int], same: bool
) -> None:
    """A column ends where the next begins, the last one with the run; what is not new stays the same object."""
    assert js(LAST_STEPS, [steps, single, last, newest], "library", "view") == [expected, same]


def test_an_axis_names_no_step_behind_the_newest(js: Call) -> None:
    """The picture ends where a next column would begin, which is a round number where training stopped at 199."""
    assert numbers(js, "stepTicks", 0, 200, 5) == [0, 50, 100, 150, 200]
    assert numbers(js, "stepTicks", 0, 200, 5, 199) == [0, 50, 100, 150]
    assert numbers(js, "stepTicks", 0, 1, 5, 0) == [0]


def test_news_are_new_runs_and_new_findings_of_old_ones(js: Call) -> None:
    """What was there before is not announced again."""
    before = [described(diagnosis())]
    now = [described(diagnosis(), diagnosis(step=8, message="again")), {**described(diagnosis()), "name": "other"}]
    news = js("(m, [a, b]) => m.newsBetween(a, b)", [before, now], "runs")
    assert news == {"runs": ["other"], "findings": ["sigmoid, step 8: again"]}


def test_the_colors_are_anchored_on_a_persons_thresholds(js: Call) -> None:
    """Of the norms they are the ends; another quantity has its own, and ends that were written come first."""
    series = {"quantity": "norms", "low": -7, "high": 5, "vanishing_threshold": 1e-4, "exploding_threshold": None}
    code = "(m, [series, state]) => m.scaleOf(series, state)"
    absolute, written = {"relative": False, "ends": {}}, {"relative": False, "ends": {"norms": [-2, 2]}}
    ends = [js(code, [series, state], "choices") for state in (absolute, written, {**written, "relative": True})]
    assert [(end["low"], end["high"], end["own"]) for end in ends] == [(-4, 5, False), (-2, 2, True), (-3, 3, False)]
    assert js(code, [{**series, "quantity": "signal"}, absolute], "choices")["low"] == -7


def decoded(js: Call, code: str, run: str, name: str, *modules: str) -> Any:
    """Call a function with modules and a series as the page reads it."""
    fetched = "m.decodeSeries(await (await fetch(`../series?run=${run}&name=${name}`)).arrayBuffer())"
    return js(f"async (m, [run, name]) => ({code})(m, {fetched})", [run, name], "blob", *modules)


def test_the_depth_profile_says_what_a_layer_multiplies_by(js: Call) -> None:
    """The planted net loses a factor of 0.2 a layer back; its signal is steady; updates have no direction."""
    code = "(m, series) => m.slopeInWords(series, m.profileOf(series, 10))"
    fading = decoded(js, code, "sigmoid", "delta/0", "profile")
    assert fading.startswith("Every layer back multiplies by 0.2: ")
    assert "from last to first (a line explains 100%)" in fading
    assert "Steady along depth: every layer on multiplies by 0.99" in decoded(
        js, code, "sigmoid", "signal/0", "profile"
    )
    assert decoded(js, code, "sigmoid", "updates/0", "profile") == ""


def test_the_table_has_the_numbers_of_the_run(js: Call) -> None:
    """Last, median, least and largest are numpy's over the run, and what was not finite is told."""
    windows = SERIES["mixed", "norms/0"].windows
    rows = decoded(js, "(m, s) => m.tableRows(s, s.layers.map((_, i) => i))", "mixed", "norms/0", "table")
    close = {"rel": 0, "abs": 1 / 256, "nan_ok": True}
    for layer, row in enumerate(rows):
        known = windows.median[:, layer][~np.isnan(windows.median[:, layer])]
        middle = np.sort(known)[[(len(known) - 1) // 2, len(known) // 2]].mean() if len(known) else np.nan
        assert row["median"] == pytest.approx(middle, **close)
        assert row["last"] == pytest.approx(known[-1] if len(known) else np.nan, **close)
        low, high = windows.low[:, layer], windows.high[:, layer]
        assert row["least"] == pytest.approx(np.fmin.reduce(low), **close)
        assert row["largest"] == pytest.approx(np.fmax.reduce(high), **close)
    assert [rows[layer]["words"] for layer in (0, 10, 12, 15)] == ["", "NaN", "+infinity", "exactly zero"]
    assert rows[17]["words"] == "no gradient: frozen, unused, or another optimizer\u2019s"


def test_rows_without_a_number_come_last_either_way(js: Call) -> None:
    """A layer without a value is neither the smallest nor the largest; zero is the smallest."""
    code = """(m, series) => [false, true].map((down) => {
        const rows = m.sortedRows(m.tableRows(series, [0, 15, 17, 5]), { column: "least", down });
        return rows.map((row) => row.place);
    })"""
    up, down = decoded(js, code, "mixed", "norms/0", "table")
    assert (up[0], up[-1], down[-1]) == (15, 17, 17)
    assert down[:-1] == up[-2::-1]


def test_every_picture_says_that_depth_is_not_training_time(js: Call) -> None:
    """Whatever the quantity, the caption tells rows from steps."""
    code = "(m, quantities) => quantities.map((quantity) => m.directionInWords({quantity}).join(' '))"
    for words in js(code, ["norms", "ratios", "delta", "signal", "updates", "time"], "words"):
        assert "row" in words
        assert "From left to right training goes on" in words


def test_a_file_gives_back_the_bytes_that_were_put_in(js: Call) -> None:
    """A series inside the page is unpacked to what the server would send; what is missing is told."""
    block = wire.encode(SERIES["sigmoid", "delta/0"])
    packed = base64.b64encode(gzip.compress(block)).decode()
    data = {"runs": [], "series": {"sigmoid": {"delta/0": packed}}, "markdown": {"sigmoid": "# verdict"}}
    code = """async (m, text) => {
        const source = new m.EmbeddedSource({ textContent: text });
        const missing = await source.series("sigmoid", "norms/0").catch((error) => error.message);
        const bytes = Array.from(new Uint8Array(await source.series("sigmoid", "delta/0")));
        return { bytes, missing, live: source.live, markdown: ["sigmoid", "x"].map((run) => source.markdown(run)) };
    }"""
    told = js(code, json.dumps(data), "source")
    assert bytes(told["bytes"]) == block
    assert "does not hold" in told["missing"]
    assert (told["live"], told["markdown"]) == (False, ["# verdict", ""])


def test_a_damaged_file_is_told_in_words(js: Call) -> None:
    """A file that was cut off is no blank page."""
    code = "(m) => new m.EmbeddedSource({ textContent: '{\"runs\": [' }).runs().catch((error) => error.message)"
    assert "damaged" in js(code, None, "source")


def test_a_server_that_refuses_or_is_gone_is_told_in_words(js: Call) -> None:
    """The message has the status and what the server said, or asks whether it still runs."""
    code = """async (m) => {
        const asked = window.fetch;
        const told = [];
        const refused = async () => new Response("no such run", { status: 404 });
        for (const answer of [refused, () => Promise.reject(new TypeError())]) {
            window.fetch = answer;
            told.push(await new m.HttpSource().series("a", "b", 9).catch((error) => error.message));
        }
        window.fetch = asked;
        return told;
    }"""
    refused, gone = js(code, None, "source")
    assert refused == "The server answered 404: no such run."
    assert "still running" in gone
