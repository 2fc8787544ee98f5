"""Test ``lightning_gradwatch.report.recorded``."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_gradwatch import Report
from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.measure.history import GradientHistory
from lightning_gradwatch.measure.snapshot import (
    GradientSnapshot,
    SignalSnapshot,
    TimeProfile,
)
from lightning_gradwatch.report.recorded import Caption, each_reading, examined_run, recorded_run
from lightning_gradwatch.report.step_report import StepReport
from lightning_gradwatch.report.tables import rows_of
from lightning_gradwatch.viewer.metadata import MAX_RECORDS, QUANTITIES
from lightning_gradwatch.viewer.windows import INF, NAN, PRESENT, Windows, joined, summarize

NAMES = ("first", "second", "third")


def reading(step, norms, *, weights=None, present=None, optimizer=0):
    """Return a reading with one number a layer."""
    norms, blank = np.asarray(norms, dtype=np.float64), np.full(len(norms), np.nan)
    return GradientSnapshot(
        step=step,
        optimizer=optimizer,
        norms=norms,
        clipped_norms=norms,
        bias_norms=blank,
        weight_norms=np.ones(len(norms)) if weights is None else np.asarray(weights, dtype=np.float64),
        present=np.ones(len(norms), dtype=np.bool_) if present is None else np.asarray(present),
        learning_rates=blank,
    )


def probe(step, signal, delta, *, order=(2, 0), time=(), optimizer=0):
    """Return what a probe saw of three layers."""
    blank = np.full(3, np.nan)
    return SignalSnapshot(
        step=step,
        optimizer=optimizer,
        layers=NAMES,
        order=np.array(order),
        sizes=np.ones(3),
        signal=np.asarray(signal, dtype=np.float64),
        delta=np.asarray(delta, dtype=np.float64),
        dead=blank,
        saturated=blank,
        update_ratio=np.array([1e-3, np.nan, np.nan]),
        training=blank,
        fed_by_cut=blank,
        time=tuple(TimeProfile(column, np.asarray(values, dtype=np.float64)) for column, values in time),
    )


def history_of(*readings, order=(2, 0, 1), layers=NAMES):
    """Return a history with these readings, the layers in another order than they were registered."""
    history = GradientHistory(layers)
    history.order = order
    for one in readings:
        history.append(one)
    return history


def same(left: Windows, right: Windows) -> None:
    """Compare windows, a NaN being like another."""
    for name in ("steps", "median", "low", "high", "state"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)


AWKWARD = np.array(
    [[0.0, 1e-30, np.inf], [np.nan, 1e30, -1.0], [1.0, 0.0, np.nan], [5e-324, -np.inf, 1e300]], dtype=np.float64
)


def test_each_reading_is_the_window_that_the_viewer_would_make_of_it() -> None:
    """All at once or one by one, of any numbers and wherever something is missing: the same windows."""
    generator = np.random.default_rng(0)
    for _ in range(50):
        values = generator.permuted(np.tile(AWKWARD, (2, 1)), axis=0)
        present = generator.random(values.shape) < 0.7
        one_by_one = [summarize(step, values[step : step + 1], present[step : step + 1]) for step in range(len(values))]
        same(each_reading(np.arange(len(values)), values, present), joined(one_by_one))


def test_a_run_has_what_a_sink_would_have_been_told() -> None:
    """Every series holds the numbers that the event file's rows are made of, in forward order."""
    readings = [
        reading(0, [1.0, 2.0, np.nan], weights=[1.0, 0.0, 2.0]),
        reading(1, [np.inf, 0.0, 1.0], weights=[4.0, 1.0, np.nan], present=[True, True, False]),
    ]
    probes = [probe(1, [1.0, np.nan, 0.0], [0.5, np.nan, np.inf])]
    history = history_of(*readings)
    run = recorded_run("mine", history, probes, [])
    by_name = {series.about.quantity: series for series in run.series}
    assert [series.about.quantity for series in run.series] == ["norms", "ratios", "signal", "delta", "updates"]
    for one in readings:
        report = StepReport(one, history, signals=next((p for p in probes if p.step == one.step), None))
        for row in rows_of(report):
            series = by_name[row.quantity]
            at = series.windows.steps.tolist().index(one.step)
            order = np.array(history.order)
            told = summarize(one.step, row.values[None, order], row.present[None, order])
            same(series.windows.take(slice(at, at + 1)), told)
            assert series.layers == ("third", "first", "second")


def test_a_broken_gradient_of_a_probe_is_shown_as_such() -> None:
    """NaN in a probe is nothing measured, but where the layer was called and its gradient was NaN."""
    history = history_of(reading(4, [np.nan, 1.0, 1.0]))
    probes = [probe(4, [np.nan, 1.0, 1.0], [np.nan, np.nan, 1.0]), probe(9, [1.0, 1.0, 1.0], [np.nan, 1.0, 1.0])]
    delta = next(s for s in recorded_run("mine", history, probes, []).series if s.about.quantity == "delta")
    column = delta.layers.index("first")
    assert delta.windows.state[:, column].tolist() == [PRESENT | NAN, 0]


def test_optimizers_are_apart_and_quantities_in_their_order() -> None:
    """Each optimizer has its own series; a layer that the other one holds is absent, not zero."""
    rows = [
        reading(step, [1.0, 2.0, 3.0], optimizer=step % 2, present=[step % 2 == 0, step % 2 == 1, False])
        for step in range(6)
    ]
    run = recorded_run("mine", history_of(*rows), [], [], Caption({0: "SGD", 1: "Adam"}, {"first": "Linear"}))
    assert [series.name for series in run.series] == ["norms/0", "norms/1", "ratios/0", "ratios/1"]
    assert [series.about.optimizer_label for series in run.series] == ["SGD", "Adam"] * 2
    first = run.series[0]
    assert first.windows.steps.tolist() == [0, 2, 4]
    assert dict(zip(first.layers, first.windows.state.any(axis=0), strict=True)) == {
        "third": False,
        "first": True,
        "second": False,
    }
    assert first.kinds == ("", "Linear", "")
    assert {series.about.quantity for series in run.series} <= set(QUANTITIES)


def test_a_long_history_keeps_its_spike_in_a_bounded_picture() -> None:
    """Ten thousand readings become at most 2,048 columns, and a single high and a single NaN are still there."""
    norms = np.full((10_000, 1), 0.1)
    norms[7001], norms[9003] = 1e9, np.nan
    history = history_of(*(reading(step, row) for step, row in enumerate(norms)), order=(0,), layers=("only",))
    series = recorded_run("mine", history, [], []).series[0]
    windows = series.windows
    assert MAX_RECORDS / 2 <= len(windows) <= MAX_RECORDS
    assert windows.high.max() == 9.0
    assert windows.steps[np.argmax(windows.high)] <= 7001 < windows.steps[np.argmax(windows.high) + 1]
    assert (windows.state & NAN > 0).sum() == 1
    # What shares a column is no single reading, and the last column goes as far as the history.
    assert (series.about.resolution > 0, series.last_step) == (len(history.steps) > MAX_RECORDS, 9999)


def test_thresholds_go_with_the_gradient_norms_alone() -> None:
    """The person's thresholds are in the gradient's unit; a ratio has another."""
    caption = Caption(vanishing_threshold=1e-4, exploding_threshold=10.0)
    norms, ratios = recorded_run("mine", history_of(reading(0, [1.0, 1.0, 1.0])), [], [], caption).series
    assert (norms.about.vanishing_threshold, norms.about.exploding_threshold) == (1e-4, 10.0)
    assert (ratios.about.vanishing_threshold, ratios.about.exploding_threshold) == (None, None)


def test_time_steps_are_rows_and_sequences_of_another_length_are_fitted() -> None:
    """The first sequence names the rows; a longer one is brought to them, its ends kept."""
    short, long = [1e-4, 1e-2, 1.0], [1e-8, 1e-6, 1e-4, 1e-2, 1.0]
    probes = [probe(step, [1.0] * 3, [1.0] * 3, time=[(1, values)]) for step, values in ((0, short), (5, long))]
    run = recorded_run("mine", history_of(reading(0, [1.0] * 3)), probes, [])
    time = next(series for series in run.series if series.about.quantity == "time")
    assert time.name == "time/0/second"
    assert time.layers == ("t 0", "t 1", "t 2")
    np.testing.assert_allclose(time.windows.median, [[-4, -2, 0], [-8, -4, 0]], atol=1e-5)


def test_onsets_and_recoveries_come_back_as_diagnoses() -> None:
    """The page's diagnoses are the watch's own, with when they were over and what to do."""
    diagnoses = [
        Diagnosis("dead", Symptom.DEAD, layers=("first",), step=7, message="zero", recovered_at=30),
        Diagnosis("spike", Symptom.SPIKE, severity="notice", layers=("third",), step=9, message="jump"),
    ]
    run = recorded_run("mine", GradientHistory(NAMES), [], diagnoses)
    assert [event["event"] for event in run.events] == ["onset", "onset", "recovery"]
    assert [(d["rule"], d["step"], d["recovered_at"]) for d in run.diagnoses] == [("dead", 7, 30), ("spike", 9, None)]


def test_a_watch_that_died_does_not_look_healthy() -> None:
    """Why it was switched off stands at the end of the events."""
    run = recorded_run("mine", GradientHistory(NAMES), [], [], Caption(disabled="ZeroDivisionError: ours"))
    assert run.events[-1]["disabled"] == "ZeroDivisionError: ours"
    assert recorded_run("mine", GradientHistory(NAMES), [], []).events == ()


def test_an_examination_is_one_column_of_signal_and_delta() -> None:
    """What was not measured is absent, a zero is a zero, and every diagnosis stands in that column."""
    report = Report(
        NAMES,
        signal=np.array([1.0, np.nan, 0.01]),
        delta=np.array([0.0, np.inf, 1e-4]),
        diagnoses=(Diagnosis("dead", Symptom.DEAD, layers=("first",), step=2),),
    )
    signal, delta = examined_run(report).series
    assert signal.windows.steps.tolist() == delta.windows.steps.tolist() == [0]
    assert signal.windows.state[0].tolist() == [PRESENT, 0, PRESENT]
    assert delta.windows.median[0].tolist() == [-np.inf, pytest.approx(np.nan, nan_ok=True), pytest.approx(-4)]
    assert delta.windows.state[0, 1] == PRESENT | INF
    assert [d["step"] for d in examined_run(report).diagnoses] == [0]


def test_an_examination_without_a_probe_has_no_series() -> None:
    """A compiled model that showed nothing has an empty page, not a page of holes."""
    nothing = np.full(3, np.nan)
    assert examined_run(Report(NAMES, nothing, nothing)).series == ()
