"""Test ``lightning_gradwatch.report.tables``."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.measure.snapshot import SignalSnapshot, TimeProfile
from lightning_gradwatch.report.tables import MAX_TIME_LAYERS, MAX_TIME_ROWS, resampled, rows_of, time_steps

NAN = float("nan")


def probe(**values) -> SignalSnapshot:
    """Return what a probe saw of three layers, of which it called the first two."""
    blank = np.full(3, NAN)
    per_layer = dict.fromkeys(
        ("sizes", "signal", "delta", "dead", "saturated", "update_ratio", "training", "fed_by_cut"), blank
    )
    order = np.array([1, 0])
    return SignalSnapshot(0, 0, ("a", "b", "c"), order, **{**per_layer, **values})


def shown(row) -> list[float | None]:
    """Return the values of a row, None where there is nothing."""
    return [value if present else None for value, present in zip(row.values.tolist(), row.present, strict=True)]


def test_a_reading_without_a_probe_has_norms_and_ratios(report_of):
    """A ratio is the gradient's norm in parts of the weights'; nothing is divided by weights that are zero."""
    report = report_of([[1.0, 4.0, 6.0, NAN]], present=[[True, True, True, False]])
    snapshot = replace(report.snapshot, weight_norms=np.array([2.0, 0.0, NAN, 1.0]))
    norms, ratios = rows_of(replace(report, snapshot=snapshot))
    assert (norms.quantity, shown(norms)) == ("norms", [1.0, 4.0, 6.0, None])
    assert (ratios.quantity, shown(ratios)) == ("ratios", [0.5, None, None, None])


def test_a_gradient_that_is_not_finite_is_shown_whatever_the_weights(report_of):
    """NaN and infinity are what a person looks for, also where the weights are NaN by now."""
    report = report_of([[NAN, np.inf, NAN]])
    snapshot = replace(report.snapshot, weight_norms=np.array([1.0, 2.0, NAN]))
    _, ratios = rows_of(replace(report, snapshot=snapshot))
    assert str(shown(ratios)) == "[nan, inf, nan]"


def test_a_probe_adds_signal_delta_and_updates(report_of):
    """What was not measured is absent: a layer that was not called, one without a gradient, one that did not move."""
    signals = probe(
        signal=np.array([1.0, NAN, NAN]), delta=np.array([NAN, 1e-9, NAN]), update_ratio=np.array([0.0, NAN, NAN])
    )
    report = replace(report_of([[1.0, 1.0, 1.0]]), signals=signals)
    signal, delta, updates = list(rows_of(report))[2:]
    assert [row.quantity for row in (signal, delta, updates)] == ["signal", "delta", "updates"]
    # The second layer was called, and its output is NaN.
    assert str(shown(signal)) == "[1.0, nan, None]"
    assert shown(delta) == [None, 1e-9, None]
    assert shown(updates) == [0.0, None, None]


def test_where_the_gradient_is_nan_what_a_probe_saw_is_nan_and_not_absent(report_of):
    """A layer whose parameters have a NaN gradient had a NaN delta."""
    report = replace(report_of([[NAN, 1.0, 1.0]]), signals=probe())
    _, delta, updates = list(rows_of(report))[2:]
    assert str(shown(delta)) == str(shown(updates)) == "[nan, None, None]"


def test_profiles_along_time_are_rows_of_their_layers(report_of):
    """One row of numbers for each layer, those of a bounded number of layers; an empty one is none."""
    profiles = (TimeProfile(1, np.array([1.0, 2.0])), TimeProfile(0, np.array([])))
    many = tuple(TimeProfile(2, np.array([3.0])) for _ in range(50))
    rows = list(rows_of(replace(report_of([[1.0] * 3]), signals=probe(time=profiles + many))))[5:]
    assert [(row.quantity, row.module, shown(row)) for row in rows[:2]] == [
        ("time", "b", [1.0, 2.0]),
        ("time", "c", [3.0]),
    ]
    assert len(rows) == MAX_TIME_LAYERS - 1


@pytest.mark.parametrize("num_steps", [1, 2, 64, 65, 1000])
def test_rows_along_time_are_named_by_the_step_they_stand_for(num_steps: int):
    """First step first, last step last, all different, at most 64 of them."""
    names = time_steps(num_steps)
    steps = [int(name.removeprefix("t ")) for name in names]
    assert len(steps) == min(num_steps, MAX_TIME_ROWS)
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (0, num_steps - 1)


@given(st.integers(1, 200), st.integers(2, 64), st.floats(0.1, 0.99))
def test_a_gradient_that_fades_evenly_does_so_in_any_number_of_rows(num_steps: int, num_rows: int, factor: float):
    """A geometric sequence stays one: between first and last there are equal factors."""
    logs = np.log10(resampled(factor ** np.arange(num_steps), num_rows))
    expected = np.linspace(0, (num_steps - 1) * np.log10(factor), len(logs))
    assert len(logs) == num_rows
    assert logs == pytest.approx(expected, abs=1e-9)


def test_what_has_no_logarithm_goes_to_the_nearest_row():
    """Zero, NaN and infinity stay what they are; as many rows as steps change nothing."""
    values = np.array([0.0, 1.0, np.inf, NAN, 1.0])
    assert resampled(values, 5) is values
    assert str(resampled(values, 9).tolist()) == "[0.0, 1.0, 1.0, inf, inf, nan, nan, 1.0, 1.0]"
