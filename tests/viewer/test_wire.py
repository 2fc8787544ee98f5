"""Test ``lightning_gradwatch.viewer.wire``."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from viewer.planted import INF_CELL, NAN_CELL, SPIKE_COLUMN, planted_diagnosis, planted_run

from lightning_gradwatch.viewer.metadata import SeriesMetadata
from lightning_gradwatch.viewer.run import Run, Series
from lightning_gradwatch.viewer.windows import Windows
from lightning_gradwatch.viewer.wire import brief, describe, encode


def decode(block: bytes) -> tuple[dict[str, Any], tuple[float, ...], dict[str, list[list[float]]]]:
    """Read a block number by number, as its description tells: head, steps, and tables ``[layer][column]``."""
    (length,) = struct.unpack_from("<I", block)
    head = json.loads(block[4 : 4 + length], parse_constant=pytest.fail)
    at, n, rows = 4 + length, head["num_columns"], len(head["layers"])
    assert at % 8 == 0
    steps = struct.unpack_from(f"<{n}d", block, at)
    at += 8 * n
    tables = {}
    for name, letter, size in (("median", "h", 2), ("low", "h", 2), ("high", "h", 2), ("state", "B", 1)):
        flat = struct.unpack_from(f"<{n * rows}{letter}", block, at)
        tables[name] = [list(flat[row * n : row * n + n]) for row in range(rows)]
        at += size * n * rows
    assert at == len(block)
    for name in ("median", "low", "high"):
        tables[name] = [[_log(code) for code in row] for row in tables[name]]
    return head, steps, tables


def _log(code: int) -> float:
    return {-32768: math.nan, -32767: -math.inf}.get(code, code / 256)


class TestEncode:
    """A series as a block of bytes."""

    @pytest.mark.parametrize("kind", ["sigmoid", "mixed", "recurrent"])
    def test_a_reader_that_knows_the_layout_gets_back_every_number(self, kind: str) -> None:
        """Steps and states are exact, logarithms within half a step of the scale; zero and nothing stay apart."""
        for series in planted_run(kind=kind, num_columns=160).series:
            head, steps, tables = decode(encode(series))
            windows = series.windows
            assert (head["name"], tuple(head["layers"])) == (series.name, series.layers)
            assert list(steps) == windows.steps.tolist()
            assert tables["state"] == windows.state.T.tolist()
            for name in ("median", "low", "high"):
                np.testing.assert_allclose(tables[name], getattr(windows, name).T, atol=0.5 / 256 + 1e-6)

    def test_in_few_columns_no_planted_cell_is_lost(self) -> None:
        """Spike, NaN and infinity are still there when 200 columns share 13."""
        series = planted_run(kind="mixed").series[0]
        head, steps, tables = decode(encode(series, most=20))
        assert (head["num_columns"], steps[0], steps[1]) == (13, 0, 16)
        assert tables["high"][0][SPIKE_COLUMN // 16] == pytest.approx(series.windows.high[SPIKE_COLUMN, 0], abs=0.01)
        assert tables["state"][NAN_CELL[0]][NAN_CELL[1] // 16] & 4
        assert tables["state"][INF_CELL[0]][INF_CELL[1] // 16] & 8

    @pytest.mark.parametrize(("most", "columns"), [(1, 1), (199, 100), (200, 200), (10**9, 200), (None, 200)])
    def test_it_has_no_more_columns_than_asked_for(self, most: int | None, columns: int) -> None:
        """Neighbors are merged until there are few enough."""
        assert decode(encode(planted_run(num_layers=2).series[0], most))[0]["num_columns"] == columns

    @pytest.mark.parametrize("most", [None, 50, 1])
    def test_it_tells_the_newest_step_that_its_last_column_has(self, most: int | None) -> None:
        """Of merged columns the last one begins earlier."""
        series = planted_run(num_layers=2).series[0]
        assert decode(encode(series, most))[0]["last_step"] == 199
        assert decode(encode(replace(series, known_step=205), most))[0]["last_step"] == 205

    def test_a_logarithm_beyond_the_scale_is_cut_off_there(self) -> None:
        """The largest number that can be written stands for what is larger, and never for zero or nothing."""
        logs = np.array([[300.0, -300.0]], dtype=np.float32)
        about = SeriesMetadata("norms", 0, "a1", 0.0, 0, ("a", "b"), (0, 1))
        windows = Windows(np.array([0]), logs, logs, logs, np.ones((1, 2), dtype=np.uint8))
        _, _, tables = decode(encode(Series(about, about.layers, (), windows)))
        assert tables["median"] == [[pytest.approx(128, abs=0.1)], [pytest.approx(-128, abs=0.1)]]

    def test_names_of_any_letters_keep_the_numbers_in_place(self) -> None:
        """The head is padded in bytes, not in letters."""
        head, steps, _ = decode(encode(planted_run(hostile=True, num_columns=3).series[0]))
        assert head["layers"][2] == "<img src=x onerror=alert(1)>"
        assert steps == (0, 1, 2)


def told(*diagnoses: dict[str, Any], series: bool = True, kind: str = "recurrent") -> dict[str, Any]:
    """Describe a run in which these have begun."""
    run = planted_run(kind=kind, num_columns=8)
    events = [{"event": "onset", "step": 0, "diagnosis": diagnosis} for diagnosis in diagnoses]
    return describe(replace(run, events=events, series=run.series if series else ()))


class TestDescribe:
    """What the page knows before it asks for a series."""

    def test_it_is_plain_json(self) -> None:
        """Nothing in it needs more than a browser's JSON."""
        for kind in ("sigmoid", "mixed", "recurrent", "relu"):
            text = json.dumps(describe(planted_run(kind=kind, hostile=True)), allow_nan=False)
            assert json.loads(text)["name"] == "sigmoid"

    @pytest.mark.parametrize(
        ("rule", "layer", "view"),
        [
            ("vanishing.depth", "x", "delta/0"),
            ("exploding.depth", "x", "delta/0"),
            ("vanishing.time", "encoder.lstm.2", "time/0/encoder.lstm.2"),
            ("vanishing.time", "x", "time/0/encoder.lstm.0"),
            ("vanishing.update", "x", "updates/0"),
            ("exploding.saturation", "x", "signal/0"),
            ("spike", "x", "norms/0"),
            ("my.own", "x", "norms/0"),
        ],
    )
    def test_each_diagnosis_has_the_view_that_it_rests_on(self, rule: str, layer: str, view: str) -> None:
        """A profile over depth is seen in delta, one over time in the layer's own series, all else in the norms."""
        diagnosis = {**planted_diagnosis("spike", step=0, layers=[layer]), "rule": rule}
        described = told(diagnosis)
        assert (described["diagnoses"][0]["view"], described["opens_on"]) == (view, view)

    def test_without_the_series_it_is_the_norms_and_without_any_nothing(self) -> None:
        """A run without probes has only norms; one without series has no view."""
        diagnosis = planted_diagnosis("vanishing.time", step=0, layers=["x"])
        assert told(diagnosis, kind="sigmoid")["opens_on"] == "norms/0"
        assert told(diagnosis, series=False)["opens_on"] == ""

    def test_the_optimizer_counts_more_than_the_quantity(self) -> None:
        """The view of another optimizer's delta would show layers that the diagnosis does not speak of."""
        about = SeriesMetadata("delta", 0, "a1", 0.0, 0, ("a",), (0,))
        series = [brief(about, 0), brief(replace(about, quantity="norms", optimizer=1), 0)]
        diagnosis = planted_diagnosis("vanishing.depth", step=0, layers=["a"], optimizer=1)
        run = Run("r", (), [{"event": "onset", "diagnosis": diagnosis}])
        assert describe(run, series)["opens_on"] == "norms/1"

    def test_it_opens_on_the_worst_that_a_person_has_to_do_something_about(self) -> None:
        """An open warning goes before one that is over, that before a notice, and a muted one comes last."""
        kinds = {
            "delta/0": planted_diagnosis("vanishing.depth", step=1, layers=["a"], muted=True),
            "norms/0": planted_diagnosis("spike", step=2, layers=["b"]),
            "updates/0": {
                **planted_diagnosis("vanishing.depth", step=3, layers=["c"], recovered_at=9),
                "rule": "vanishing.update",
            },
            "time/0/encoder.lstm.0": planted_diagnosis("vanishing.time", step=4, layers=["d"]),
        }
        views = list(kinds)
        while views:
            assert told(*(kinds[view] for view in views))["opens_on"] == views.pop()

    def test_a_healthy_run_opens_on_its_first_series(self) -> None:
        """Without a diagnosis the gradient norms are shown."""
        assert told()["opens_on"] == "norms/0"

    def test_it_tells_how_far_the_run_has_come_and_when_it_began(self) -> None:
        """The page names no later step, and opens on the run that began last, also where that has no reading."""
        run = planted_run(kind="relu", resolution=3, num_columns=10, started=5.0)
        end = {"event": "end", "step": 77, "time": 99.0}
        described = describe(replace(run, events=[{"event": "start", "step": 0, "time": 5.0}, end]))
        assert (described["last_step"], described["began"]) == (77, 5.0)
        off = describe(Run("r", (), [{"event": "off", "step": 3, "time": 9.0, "num_readings": 0, "disabled": "x"}]))
        assert (off["last_step"], off["began"], off["disabled"]) == (None, 9.0, "x")
        assert describe(Run("r", (), [{"event": "start", "time": "noon"}]))["began"] is None

    def test_a_run_that_went_on_after_its_end_has_not_ended(self) -> None:
        """The end of a session is the end of the run only if no other has begun since."""
        end = {"event": "end", "step": 9, "reason": "completed"}
        start = {"event": "start", "step": 9}
        assert describe(Run("r", (), [start, end]))["ended"] == end
        assert describe(Run("r", (), [start, end, start]))["ended"] is None
        assert describe(Run("r", (), []))["ended"] is None


class TestBrief:
    """A series in a few words."""

    def test_its_version_changes_when_it_grows(self) -> None:
        """A page that knows the version need not ask again."""
        about = SeriesMetadata("norms", 0, "a1", 0.0, 0, ("a",), (0,))
        versions = [brief(about, np.arange(n))["version"] for n in range(4)]
        versions.append(brief(replace(about, session="b"), np.arange(3))["version"])
        assert len(set(versions)) == 5

    def test_it_tells_when_its_newest_session_began(self) -> None:
        """The page opens on the run that began last."""
        assert brief(SeriesMetadata("norms", 0, "a1", 12.5, 0, ("a",), (0,)), 70)["started"] == 12.5

    def test_without_a_look_at_the_columns_their_number_is_unknown(self) -> None:
        """The last step alone is known then."""
        short = brief(SeriesMetadata("norms", 0, "a1", 0.0, 0, ("a",), (0,)), 70, "v")
        assert (short["num_columns"], short["last_step"], short["version"]) == (None, 70, "v")
