"""The readings of one series in a bounded number of columns: the longer the run, the more readings share a column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_gradwatch.viewer.metadata import MAX_RECORDS
from lightning_gradwatch.viewer.windows import (
    Flags,
    Floats,
    Windows,
    joined,
    merge_pairs,
    pack,
    pack_reading,
    summarize,
    unpack,
)

Present = npt.NDArray[np.bool_]

# What is kept of a series so that it can be merged. Ours: 2,048 layers have all of their 2,048 columns in it; beyond,
# a picture has fewer columns (418 of 10,000 layers).
MAX_BYTES = 32 * 2**20
# Readings of an open window whose median is exact. Ours: at 1,000,000 readings a window of 2,000 layers has 512 of
# them, which fit; of more the median is that of parts.
MAX_OPEN_BYTES = 16 * 2**20
_BYTES_OF_A_VALUE = 8 + 1
# Merged at once, so that a large table is not there twice in float32.
_BLOCK = 64


class Record(NamedTuple):
    """A column as it is written.

    Attributes:
        step: Its first step; of several single readings the last one.
        table: ``[4, num_rows]``, or ``[1, num_rows]`` for a single reading, or what ``bundle`` makes of several
            (``viewer.windows``).
    """

    step: int
    table: npt.NDArray[np.float16]


def most_records(num_rows: int) -> int:
    """Return how many columns a picture may have before neighbors are merged: an even number.

    Example:
        >>> most_records(20), most_records(10_000)
        (2048, 418)
    """
    return max(2, min(MAX_RECORDS, MAX_BYTES // (4 * 2 * max(num_rows, 1))) // 2 * 2)


class Pyramid:
    """What is remembered of a series, and what is to be written of it.

    A window of ``2**resolution`` readings becomes a record. When there are ``most_records(num_rows)`` of them, and one
    more reading comes, neighbors are merged and the next resolution begins with the half that is left. So the newest
    resolution alone is a whole picture of equal columns.

    What a method returns belongs under the ``resolution`` that stands after the call.

    Attributes:
        resolution: A window has ``2**resolution`` readings, or fewer where it was closed early.
        records: The closed windows, oldest first.

    Args:
        num_rows: How many layers, or time steps, a reading has.

    Example:
        >>> pyramid = Pyramid(1)
        >>> written = [pyramid.add(step, np.ones(1), np.ones(1, dtype=bool)) for step in range(2049)]
        >>> len(written[0]), len(written[-1]), pyramid.resolution, len(pyramid.records)
        (1, 1024, 1, 1024)
        >>> [record.step for record in pyramid.close_window()]
        [2048]
    """

    def __init__(self, num_rows: int) -> None:
        self.resolution = 0
        self.records: list[Record] = []
        self._num_rows = num_rows
        # The open window: its first step, how many readings it has, those of them that are not summarized yet, and
        # summaries of as many readings each.
        self._step = 0
        self._count = 0
        self._values: list[Floats] = []
        self._present: list[Present] = []
        self._parts: list[Windows] = []

    def add(self, step: int, values: Floats, present: Present) -> list[Record]:
        """Take one reading.

        Args:
            step: Its step.
            values: What was measured, no logarithm yet, ``[num_rows]``; not changed, and not to be changed.
            present: Where there was something to measure, ``[num_rows]``.

        Returns:
            What is to be written now: nothing while the window is open; after a merge everything.
        """
        fresh = [] if self._count else self._make_room()
        if self.resolution == 0:
            return [self._keep(Record(step, pack_reading(values, present)))]
        self._step = self._step if self._count else step
        self._count += 1
        self._values.append(values)
        self._present.append(present)
        if len(self._values) == self._exact:
            self._summarize()
        return fresh + (self.close_window() if self._count == 2**self.resolution else [])

    def close_window(self) -> list[Record]:
        """Close the open window before it is full: at an onset, and at the end.

        Returns:
            Its record; nothing where no window is open.
        """
        if not self._count:
            return []
        self._summarize()
        window = joined(self._parts)
        while len(window) > 1:
            window = merge_pairs(window)
        self._parts, self._count = [], 0
        return [self._keep(Record(self._step, pack(window)[0]))]

    def widen(self, num_rows: int) -> list[Record]:
        """Give every record the rows that have appeared since; there was nothing to measure in them.

        Args:
            num_rows: How many rows there are now.

        Returns:
            All records: they belong under other names.
        """
        self.close_window()
        missing, self._num_rows = num_rows - self._num_rows, num_rows
        self.records = [Record(record.step, _widened(record.table, missing)) for record in self.records]
        self._make_room()
        return list(self.records)

    @property
    def _exact(self) -> int:
        """How many readings are summarized at once: a power of two, so that the parts of a window are equal."""
        readings = max(MAX_OPEN_BYTES // (_BYTES_OF_A_VALUE * max(self._num_rows, 1)), 1)
        return 1 << (readings.bit_length() - 1)

    def _keep(self, record: Record) -> Record:
        self.records.append(record)
        return record

    def _summarize(self) -> None:
        if self._values:
            self._parts.append(summarize(self._step, np.stack(self._values), np.stack(self._present)))
            self._values, self._present = [], []

    def _make_room(self) -> list[Record]:
        before = self.resolution
        while len(self.records) >= most_records(self._num_rows):
            self.records = _merged(self.records)
            self.resolution += 1
        return list(self.records) if self.resolution > before else []


def _merged(records: Sequence[Record]) -> list[Record]:
    merged: list[Record] = []
    for start in range(0, len(records), _BLOCK):
        block = records[start : start + _BLOCK]
        steps = np.array([record.step for record in block], dtype=np.int64)
        windows = merge_pairs(unpack(steps, np.stack([record.table for record in block])))
        merged += map(Record, windows.steps.tolist(), pack(windows))
    return merged


def _widened(table: npt.NDArray[np.float16], missing: int) -> npt.NDArray[np.float16]:
    nothing, absent = np.full(missing, np.nan), np.zeros(missing, dtype=np.bool_)
    if len(table) == 1:
        return np.concatenate([table, pack_reading(nothing, absent)], axis=1)
    blank: Flags = absent.astype(np.uint8)
    return np.concatenate([table, np.stack([nothing, nothing, nothing, blank]).astype(np.float16)], axis=1)
