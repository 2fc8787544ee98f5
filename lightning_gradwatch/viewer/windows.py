"""What is kept of the readings that share a column of the picture: the median, both ends, and what was not finite.

The largest value alone would grow with the window and hide a single step of vanishing; so all three are kept, and the
median is what is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.uint8]

# What was seen of a layer in a window, as bits.
PRESENT, ZERO, NAN, INF = 1, 2, 4, 8
# Stands for no value in a record of one reading: the largest float16, which the log10 of no float64 comes near.
_ABSENT = 65504.0
# Steps that fit into one bundle are no further apart, either way.
MAX_REACH = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of readings, oldest first.

    Attributes:
        steps: First step of each, ``[n]``.
        median: Median log10 of each layer, ``[n, num_layers]``; ``-inf`` for zero, NaN where no value is finite.
        low: The least, likewise.
        high: The largest, likewise.
        state: Bits ``PRESENT``, ``ZERO``, ``NAN``, ``INF``: what there was at least once, ``[n, num_layers]``; 0 for a
            layer without a value, such as a frozen one.

    Example:
        >>> len(Windows.empty(3)), Windows.empty(3).median.shape
        (0, (0, 3))
    """

    steps: Integers
    median: Floats
    low: Floats
    high: Floats
    state: Flags

    def __len__(self) -> int:
        """Return how many windows there are."""
        return len(self.steps)

    @staticmethod
    def empty(num_layers: int) -> Windows:
        """Return no windows at all."""
        nothing = np.empty((0, num_layers), dtype=np.float32)
        return Windows(np.empty(0, dtype=np.int64), nothing, nothing, nothing, nothing.astype(np.uint8))

    def take(self, rows: slice | Integers | npt.NDArray[np.bool_]) -> Windows:
        """Return some of the windows."""
        return Windows(self.steps[rows], self.median[rows], self.low[rows], self.high[rows], self.state[rows])

    def columns(self, order: Integers) -> Windows:
        """Return the layers in another order, or some of them."""
        return Windows(self.steps, self.median[:, order], self.low[:, order], self.high[:, order], self.state[:, order])


def summarize(step: int, values: Floats, present: npt.NDArray[np.bool_]) -> Windows:
    """Make one window of a few readings.

    Args:
        step: Step of the first one.
        values: What was measured, no logarithm yet, ``[num_readings, num_layers]``.
        present: Where there was something to measure, the same shape.

    Returns:
        One window.

    Example:
        >>> window = summarize(0, np.array([[1.0, 0.0], [100.0, np.nan]]), np.ones((2, 2), dtype=bool))
        >>> window.median.tolist(), window.high.tolist(), window.state.tolist()
        ([[1.0, -inf]], [[2.0, -inf]], [[1, 7]])
    """
    finite = present & np.isfinite(values) & (values >= 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(finite, np.log10(np.where(finite, values, 1.0)), np.inf)
    ordered, count = np.sort(logs, axis=0), finite.sum(axis=0)
    layers, last = np.arange(values.shape[1]), np.maximum(count - 1, 0)
    none = count == 0
    low, high = ordered[0], ordered[last, layers]
    median = _between(ordered[last // 2, layers], ordered[(last + 1) // 2, layers])
    bits = (
        PRESENT * present.any(axis=0)
        + ZERO * (finite & (values == 0)).any(axis=0)
        + NAN * (present & (np.isnan(values) | (values < 0))).any(axis=0)
        + INF * (present & np.isposinf(values)).any(axis=0)
    )
    median, low, high = (np.where(none, np.nan, row).astype(np.float32)[None] for row in (median, low, high))
    return Windows(np.array([step]), median, low, high, bits.astype(np.uint8)[None])


def _between(lower: Floats, upper: Floats) -> Floats:
    """Return the middle of two on the log scale; half zeros are no majority, so not a zero."""
    with np.errstate(invalid="ignore"):
        middle: Floats = np.where(np.isneginf(lower), upper, (lower + upper) / 2)
    return middle


def merge_pairs(windows: Windows) -> Windows:
    """Merge each two neighbors; of an odd number the last one stays as it is.

    The ends and the bits are exact; the median of two medians is their middle on the log scale.

    Args:
        windows: ``n`` of them.

    Returns:
        ``(n + 1) // 2``.

    Example:
        >>> once = [summarize(step, np.array([[10.0**step]]), np.ones((1, 1), dtype=bool)) for step in range(3)]
        >>> merged = merge_pairs(joined(once))
        >>> merged.steps.tolist(), merged.high.tolist(), merged.median.tolist()
        ([0, 2], [[1.0], [2.0]], [[0.5], [2.0]])
    """
    even = len(windows) // 2 * 2
    first, second = windows.take(slice(0, even, 2)), windows.take(slice(1, even, 2))
    low, high = np.fmin(first.low, second.low), np.fmax(first.high, second.high)
    lower, upper = np.fmin(first.median, second.median), np.fmax(first.median, second.median)
    merged = Windows(first.steps, _between(lower, upper).astype(low.dtype), low, high, first.state | second.state)
    return joined([merged, windows.take(slice(even, None))])


def joined(parts: list[Windows]) -> Windows:
    """Put windows of the same layers one behind the other.

    Args:
        parts: At least one.

    Returns:
        All of them.
    """
    names = ("steps", "median", "low", "high", "state")
    return Windows(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def pack(windows: Windows) -> npt.NDArray[np.float16]:
    """Return windows as a record each: rows median, low, high, state.

    A ``float16`` holds a log10 to 0.2% of the value up to 4 decades from 1, to 0.9% up to 16, and the state exactly.

    Args:
        windows: ``n`` of them.

    Returns:
        ``[n, 4, num_layers]``.

    Example:
        >>> record = pack(summarize(0, np.array([[0.001]]), np.ones((1, 1), dtype=bool)))
        >>> record.tolist()
        [[[-3.0], [-3.0], [-3.0], [1.0]]]
    """
    rows = [windows.median, windows.low, windows.high, windows.state]
    return np.stack([row.astype(np.float16) for row in rows], axis=1)


def pack_reading(values: Floats, present: npt.NDArray[np.bool_]) -> npt.NDArray[np.float16]:
    """Return a single reading as a record of one row: its median is its least and its largest value.

    A quarter of what ``pack`` makes of it, and what a record costs is its bytes: TensorBoard's checksum is computed in
    Python, and takes 0.1 to 0.25 ms a kilobyte (ours: measured).

    Args:
        values: What was measured, no logarithm yet, ``[num_layers]``.
        present: Where there was something to measure, ``[num_layers]``.

    Returns:
        log10, ``[1, num_layers]``: ``-inf`` for zero, ``inf`` for infinite, NaN, and a number beyond all others for no
        value.

    Example:
        >>> pack_reading(np.array([0.01, 0.0, 1.0]), np.array([True, True, False])).tolist()
        [[-2.0, -inf, 65504.0]]
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        row = np.log10(values)
    row[~present] = _ABSENT
    return row.astype(np.float16)[None]


def bundle(steps: Sequence[int], rows: Sequence[npt.NDArray[np.float16]]) -> npt.NDArray[np.float16]:
    """Put single readings into one record, which stands at the step of the last of them.

    What surrounds a record in the file (the tag, the message, two checksums) takes more bytes and time than the numbers
    of a small model. In front of each row stand the 32 bits of ``step - steps[-1]``, in the place of two numbers.

    Args:
        steps: Step of each, ``[n]``, no two more than ``MAX_REACH`` apart.
        rows: What ``pack_reading`` returned, each ``[1, num_layers]``.

    Returns:
        ``[n, 1, 2 + num_layers]``.

    Example:
        >>> rows = [pack_reading(np.array([norm]), np.ones(1, dtype=bool)) for norm in (1.0, 10.0)]
        >>> steps, records = unbundle(7, bundle([5, 7], rows))
        >>> steps.tolist(), records.tolist()
        ([5, 7], [[[0.0]], [[1.0]]])
    """
    before = np.array(steps, dtype=np.int64) - steps[-1]
    return np.concatenate([before.astype("<i4").view("<f2").reshape(-1, 1, 2), np.stack(rows)], axis=2)


def unbundle(step: int, record: npt.NDArray[np.float16]) -> tuple[Integers, npt.NDArray[np.float16]]:
    """Undo ``bundle``.

    Args:
        step: Where the record stands.
        record: ``[n, 1, 2 + num_layers]``.

    Returns:
        The steps ``[n]`` and the records ``[n, 1, num_layers]``.
    """
    before = np.ascontiguousarray(record[:, 0, :2], dtype="<f2").view("<i4")[:, 0]
    return step + before.astype(np.int64), record[:, :, 2:]


def unpack(steps: Integers, records: npt.NDArray[np.float16]) -> Windows:
    """Undo ``pack``, and ``pack_reading`` of several readings.

    Args:
        steps: ``[n]``.
        records: ``[n, 4, num_layers]``, or ``[n, 1, num_layers]``.

    Returns:
        The windows.

    Example:
        >>> windows = summarize(7, np.array([[0.5, np.inf]]), np.ones((1, 2), dtype=bool))
        >>> unpack(windows.steps, pack(windows)).state.tolist()
        [[1, 9]]
        >>> reading = pack_reading(np.array([0.5, np.inf]), np.ones(2, dtype=bool))
        >>> unpack(windows.steps, reading[None]).state.tolist()
        [[1, 9]]
    """
    if records.shape[1] == 1:
        return _unpack_readings(steps, records[:, 0].astype(np.float32))
    median, low, high = (records[:, row].astype(np.float32) for row in range(3))
    return Windows(steps, median, low, high, records[:, 3].astype(np.uint8))


def _unpack_readings(steps: Integers, codes: Floats) -> Windows:
    present = codes != _ABSENT
    logs = np.where(present & ~np.isposinf(codes), codes, np.float32(np.nan))
    state = PRESENT * present + ZERO * np.isneginf(codes) + NAN * np.isnan(codes) + INF * np.isposinf(codes)
    return Windows(steps, logs, logs, logs, state.astype(np.uint8))
