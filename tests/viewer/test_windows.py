"""Test ``lightning_gradwatch.viewer.windows``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lightning_gradwatch.viewer.windows import (
    INF,
    NAN,
    PRESENT,
    ZERO,
    Windows,
    bundle,
    joined,
    merge_pairs,
    pack,
    pack_reading,
    summarize,
    unbundle,
    unpack,
)

# What a gradient norm can be: float32's range, zero, and what is not finite.
NORMS = st.sampled_from([0.0, np.nan, np.inf, 1.0, 1e-45, 3e38]) | st.floats(1e-30, 1e30)


@st.composite
def readings(draw: Any, most: int = 9) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Draw values and where there was something to measure, both ``[num_readings, num_layers]``."""
    shape = draw(st.integers(1, most)), draw(st.integers(1, 4))
    return draw(arrays(np.float64, shape, elements=NORMS)), draw(arrays(np.bool_, shape))


def window_by_window(values: npt.NDArray[Any], present: npt.NDArray[Any]) -> Windows:
    """Return each reading as a window of its own."""
    return joined([summarize(i, values[i : i + 1], present[i : i + 1]) for i in range(len(values))])


class TestSummarize:
    """One window of a few readings."""

    @given(readings())
    def test_it_agrees_with_counting_one_layer_at_a_time(self, drawn: tuple[Any, Any]) -> None:
        """Median, ends and bits are what plain Python finds in a sorted list of the finite logarithms."""
        values, present = drawn
        window = summarize(3, values, present)
        for layer, (column, there) in enumerate(zip(values.T.tolist(), present.T.tolist(), strict=True)):
            seen = [v for v, is_there in zip(column, there, strict=True) if is_there]
            logs = sorted(float(np.log10(v)) if v else -np.inf for v in seen if np.isfinite(v))
            state = (
                PRESENT * bool(seen) | ZERO * (0.0 in seen) | INF * (np.inf in seen) | NAN * any(map(math.isnan, seen))
            )
            assert window.state[0, layer] == state
            if not logs:
                assert np.isnan([window.median[0, layer], window.low[0, layer], window.high[0, layer]]).all()
                continue
            lower, upper = logs[(len(logs) - 1) // 2], logs[len(logs) // 2]
            middle = upper if lower == -np.inf else (lower + upper) / 2
            assert (window.low[0, layer], window.high[0, layer]) == (np.float32(logs[0]), np.float32(logs[-1]))
            assert window.median[0, layer] == np.float32(middle)

    def test_a_negative_norm_is_no_number(self) -> None:
        """A norm below zero can only be a mistake, and is shown as NaN."""
        assert summarize(0, np.array([[-1.0]]), np.ones((1, 1), dtype=bool)).state.tolist() == [[PRESENT | NAN]]


class TestMergePairs:
    """Neighbors become one."""

    @given(readings())
    def test_no_extreme_and_no_bit_is_ever_lost(self, drawn: tuple[Any, Any]) -> None:
        """However often windows are merged, ends and bits are those of all readings."""
        values, present = drawn
        merged = window_by_window(values, present)
        while len(merged) > 1:
            merged = merge_pairs(merged)
        once = summarize(0, values, present)
        np.testing.assert_array_equal(merged.low, once.low)
        np.testing.assert_array_equal(merged.high, once.high)
        np.testing.assert_array_equal(merged.state, once.state)
        assert merged.steps.tolist() == [0]

    @given(readings())
    def test_the_median_stays_between_the_ends(self, drawn: tuple[Any, Any]) -> None:
        """The median of merged windows is no less than the least value and no more than the largest."""
        merged = merge_pairs(merge_pairs(window_by_window(*drawn)))
        known = ~np.isnan(merged.median)
        assert (merged.low[known] <= merged.median[known]).all()
        assert (merged.median[known] <= merged.high[known]).all()

    @pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
    def test_the_last_of_an_odd_number_stays(self, count: int) -> None:
        """There are half as many, rounded up, each with the step of its first."""
        windows = window_by_window(np.ones((max(count, 1), 2)), np.ones((max(count, 1), 2), dtype=bool))
        merged = merge_pairs(windows.take(slice(0, count)))
        assert merged.steps.tolist() == list(range(0, count, 2))


class TestPack:
    """Windows as records, and back."""

    @given(readings())
    def test_what_is_packed_is_unpacked(self, drawn: tuple[Any, Any]) -> None:
        """Bits, zeros and NaN are exact, numbers within half a unit of ``float16``."""
        windows = window_by_window(*drawn)
        again = unpack(windows.steps, pack(windows))
        np.testing.assert_array_equal(again.state, windows.state)
        for name in ("median", "low", "high"):
            np.testing.assert_allclose(getattr(again, name), getattr(windows, name), rtol=2**-11, atol=1e-7)

    @given(
        readings(),
        st.lists(st.integers(-(2**30), 2**30), min_size=12, max_size=12),
        st.integers(0, 2**40),
    )
    def test_readings_in_one_record_are_what_they_were(
        self, drawn: tuple[Any, Any], gaps: list[int], last: int
    ) -> None:
        """Numbers to the last bit, and steps in any order, whatever the bits of a distance look like as a float."""
        rows = [pack_reading(v, p) for v, p in zip(*drawn, strict=True)]
        steps = [last + gap for gap in gaps[: len(rows) - 1]] + [last]
        record = bundle(steps, rows)
        assert record.dtype == np.float16
        again, records = unbundle(last, np.frombuffer(record.tobytes(), "<f2").reshape(record.shape))
        assert again.tolist() == steps
        assert records.tobytes() == np.stack(rows).tobytes()

    @given(readings())
    def test_a_single_reading_in_one_row_says_the_same_as_in_four(self, drawn: tuple[Any, Any]) -> None:
        """The short form of a reading is read as the long one."""
        values, present = drawn
        steps = np.arange(len(values))
        short = unpack(steps, np.stack([pack_reading(v, p) for v, p in zip(values, present, strict=True)]))
        long = unpack(steps, pack(window_by_window(values, present)))
        for name in ("median", "low", "high", "state"):
            np.testing.assert_array_equal(getattr(short, name), getattr(long, name))
