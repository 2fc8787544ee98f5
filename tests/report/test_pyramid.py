"""Test ``lightning_gradwatch.report.pyramid``."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.report import pyramid as module
from lightning_gradwatch.report.pyramid import MAX_BYTES, Pyramid, most_records
from lightning_gradwatch.viewer.windows import INF, NAN, PRESENT, ZERO, Windows, unpack

ALL = np.ones(3, dtype=np.bool_)
SPIKE, VANISHING, BROKEN, INFINITE, DEAD = 123_456, 500_001, 777_777, 31_415, 999_998


def picture(pyramid: Pyramid) -> Windows:
    """Return what the newest resolution shows."""
    steps = np.array([record.step for record in pyramid.records], dtype=np.int64)
    return unpack(steps, np.stack([record.table for record in pyramid.records]))


def column_of(windows: Windows, step: int) -> int:
    """Return the column that a step is in."""
    return int(np.searchsorted(windows.steps, step, side="right")) - 1


def fed(values: Any, most: int | None = None) -> tuple[Pyramid, Counter[int]]:
    """Feed readings of one row, and count what is written of each resolution."""
    pyramid, written = Pyramid(1), Counter()
    for step, value in enumerate(values):
        records = pyramid.add(step, np.array([value]), ALL[:1])
        written[pyramid.resolution] += len(records)
    return pyramid, written


@pytest.mark.no_cover
def test_a_million_readings_are_ten_tags_and_keep_every_one_step_event():
    """2,048 records a tag; the newest has 1,953 equal columns, in which each planted step is still to be seen."""
    table = 10.0 ** np.random.default_rng(0).uniform(-4, -2, (4096, 3))
    planted = {
        SPIKE: (0, 1e3),
        VANISHING: (1, 1e-12),
        BROKEN: (2, np.nan),
        INFINITE: (0, np.inf),
        DEAD: (1, 0.0),
    }
    pyramid, written = Pyramid(3), Counter()
    for step in range(1_000_000):
        values = table[step & 4095]
        if step in planted:
            row, value = planted[step]
            values = values.copy()
            values[row] = value
        records = pyramid.add(step, values, ALL)
        if records:
            written[pyramid.resolution] += len(records)
    assert written == {**dict.fromkeys(range(9), 2048), 9: 1953}
    assert sum(written.values()) == 20_385
    assert [record.step for record in pyramid.records] == list(range(0, 1953 * 512, 512))
    # What is left is not a whole window.
    assert [record.step for record in pyramid.close_window()] == [1953 * 512]
    windows = picture(pyramid)
    assert len(windows) == 1954
    at = {step: column_of(windows, step) for step in planted}
    assert windows.high[at[SPIKE], 0] == 3
    assert windows.low[at[VANISHING], 1] == -12
    assert windows.state[at[BROKEN], 2] == PRESENT | NAN
    assert windows.state[at[INFINITE], 0] == PRESENT | INF
    assert windows.state[at[DEAD], 1] == PRESENT | ZERO
    assert windows.low[at[DEAD], 1] == -np.inf
    # Everywhere else there is nothing to be seen of them.
    usual = np.ones(windows.median.shape, dtype=np.bool_)
    for step, (row, _) in planted.items():
        usual[at[step], row] = False
    assert (windows.state[usual] == PRESENT).all()
    assert windows.low[usual].min() >= -4.01
    assert windows.high[usual].max() <= -1.99
    # A single step moves no median.
    assert windows.median.min() >= -3.6
    assert windows.median.max() <= -2.4


def test_twenty_readings_are_twenty_columns():
    """A short run loses nothing, and each reading is written when it comes."""
    values = 10.0 ** np.arange(-10, 10)
    pyramid, written = fed(values)
    assert written == {0: 20}
    windows = picture(pyramid)
    assert windows.steps.tolist() == list(range(20))
    assert windows.median[:, 0].tolist() == list(range(-10, 10))
    assert (windows.low == windows.high).all()
    assert pyramid.close_window() == []


@given(st.lists(st.sampled_from([1e-8, 1e-3, 1e-2, 0.1, 1.0, 1e6]), min_size=1, max_size=120))
def test_ends_and_medians_are_those_of_the_readings_of_a_window(values):
    """Against numpy on the readings themselves: ends always, medians of windows that were never merged."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_RECORDS", 8)
        pyramid, _ = fed(values)
        first = next((r.step for r in pyramid.records if r.step >= 8 * 2 ** max(pyramid.resolution - 1, 0)), None)
        pyramid.close_window()
    logs, windows, width = np.log10(values), picture(pyramid), 2**pyramid.resolution
    assert windows.steps.tolist() == list(range(0, len(values), width))
    for column, step in enumerate(windows.steps):
        inside = logs[step : step + width]
        assert windows.low[column, 0] == inside.min()
        assert windows.high[column, 0] == inside.max()
        if first is not None and step >= first:
            assert windows.median[column, 0] == pytest.approx(np.median(inside), abs=0.01)


def test_the_next_resolution_begins_with_the_merged_half_only_when_it_is_needed(monkeypatch: pytest.MonkeyPatch):
    """A run that ends with a full tag has no second one; one more reading begins it."""
    monkeypatch.setattr(module, "MAX_RECORDS", 4)
    pyramid, written = fed([1.0, 10.0, 100.0, 1000.0])
    assert written == {0: 4}
    again = pyramid.add(4, np.array([1.0]), ALL[:1])
    assert (pyramid.resolution, [record.step for record in again]) == (1, [0, 2])
    assert again[0].table[:, 0].tolist() == [0.5, 0, 1, PRESENT]
    assert [record.step for record in pyramid.add(5, np.array([1.0]), ALL[:1])] == [4]


def test_a_window_that_is_closed_early_is_followed_by_a_whole_one(monkeypatch: pytest.MonkeyPatch):
    """Nothing is lost or counted twice: an onset cuts the picture at its step."""
    monkeypatch.setattr(module, "MAX_RECORDS", 2)
    pyramid, _ = fed([1.0] * 5)
    assert pyramid.resolution == 2
    assert [record.step for record in pyramid.close_window()] == [4]
    assert pyramid.close_window() == []
    records = [pyramid.add(step, np.array([10.0]), ALL[:1]) for step in range(5, 13)]
    # Two records are full, so their merging comes first; then a window of 2**3 readings.
    assert (pyramid.resolution, [[r.step for r in each] for each in records if each]) == (3, [[0], [5]])
    assert records[7][0].table[:, 0].tolist() == [1, 1, 1, PRESENT]


@pytest.mark.parametrize("resolution", [0, 1])
def test_rows_that_appear_had_nothing_before(resolution: int, monkeypatch: pytest.MonkeyPatch):
    """All records come again, wider, and an open window is among them."""
    monkeypatch.setattr(module, "MAX_RECORDS", 4 if resolution else 8)
    pyramid, _ = fed([1.0, 1.0, 1.0, 1.0, 100.0])
    records = pyramid.widen(3)
    assert pyramid.resolution == resolution
    assert [record.step for record in records] == ([0, 2, 4] if resolution else [0, 1, 2, 3, 4])
    windows = picture(pyramid)
    assert windows.median[-1, 0] == 2
    assert np.isnan(windows.median[:, 1:]).all()
    assert windows.state.tolist() == [[PRESENT, 0, 0]] * len(records)
    pyramid.add(5, np.array([1.0, 10.0, 100.0]), ALL)
    pyramid.close_window()
    assert picture(pyramid).median[-1].tolist() == [0, 1, 2]


def test_a_layer_that_is_absent_in_some_readings_counts_where_it_is_present(monkeypatch: pytest.MonkeyPatch):
    """A median is of the readings in which there was something to measure."""
    monkeypatch.setattr(module, "MAX_RECORDS", 2)
    pyramid, present = Pyramid(2), np.array([True, False])
    for step in range(3):
        pyramid.add(step, np.array([1.0, np.nan]), present)
    pyramid.add(3, np.array([100.0, 1000.0]), np.array([True, True]))
    windows = picture(pyramid)
    assert windows.state.tolist() == [[PRESENT, 0], [PRESENT, PRESENT]]
    assert windows.median[1].tolist() == [1, 3]


@pytest.mark.parametrize("num_rows", [1, 2_048, 2_049, 50_000, 3_000_000])
def test_memory_is_bounded_however_many_layers(num_rows: int):
    """As many records as fit, an even number of them, never fewer than two."""
    most = most_records(num_rows)
    assert most % 2 == 0
    assert most == 2048 if num_rows <= 2_048 else most < 2048
    assert most == 2 or most * 4 * 2 * num_rows <= MAX_BYTES


def test_an_open_window_of_any_length_is_bounded(monkeypatch: pytest.MonkeyPatch):
    """Beyond the bound parts of it are summarized: ends stay exact, and the median lies among the readings."""
    monkeypatch.setattr(module, "MAX_RECORDS", 2)
    monkeypatch.setattr(module, "MAX_OPEN_BYTES", 4 * (8 + 1))
    values = 10.0 ** np.random.default_rng(0).normal(-3, 1, 300)
    values[137] = 1e5
    pyramid, longest = Pyramid(1), 0
    for step, value in enumerate(values):
        pyramid.add(step, np.array([value]), ALL[:1])
        longest = max(longest, len(pyramid._values))
    assert longest < 4
    pyramid.close_window()
    windows = picture(pyramid)
    column = column_of(windows, 137)
    assert windows.high[column, 0] == 5
    assert windows.low.min() == pytest.approx(np.log10(values).min(), rel=1e-3)
    assert -4 < windows.median[column, 0] < -2
