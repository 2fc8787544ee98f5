"""From the tags that sessions of a run have written to one whole picture of each series."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lightning_gradwatch.viewer.metadata import QUANTITIES, SeriesMetadata
from lightning_gradwatch.viewer.natural import natural
from lightning_gradwatch.viewer.run import Series
from lightning_gradwatch.viewer.windows import Integers, Windows, joined, unbundle, unpack

# Rows of a record: one reading, or median, low, high and state of several.
_HEIGHTS = (1, 4)
# Step, time and table of a record.
_Row: TypeAlias = tuple[int, float, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Tag:
    """What was written under a tag.

    Attributes:
        about: What stands in its metadata.
        times: When each window was written, seconds since 1970, ``[n]``.
        written: The windows as they stand in the file, in registration order.
    """

    about: SeriesMetadata
    times: npt.NDArray[np.float64]
    written: Windows

    @classmethod
    def of(cls, about: SeriesMetadata, rows: Iterable[_Row]) -> Tag:
        """Collect records; those of another shape or type than the metadata tells are dropped.

        Args:
            about: What stands in the tag's metadata.
            rows: Step, time and record of each window, or of several readings, in the order of the file.

        Example:
            >>> about = SeriesMetadata("norms", 0, "a1", 0.0, 0, ("fc1",), (0,))
            >>> rows = [(0, 1.0, np.zeros((4, 1), np.float16)), (1, 2.0, np.zeros((4, 9), np.float16))]
            >>> Tag.of(about, rows).written.steps.tolist()
            [0]
        """
        shapes = [(height, len(about.layers)) for height in _HEIGHTS]
        fitting = [row for row in _single(rows, len(about.layers)) if row[2].shape in shapes]
        # Those of one height are unpacked at once; then all take their places again.
        groups = [[place for place, row in enumerate(fitting) if row[2].shape == shape] for shape in shapes]
        windows = [_unpacked([fitting[place] for place in group], len(about.layers)) for group in groups]
        places = np.argsort(np.array([place for group in groups for place in group], dtype=np.int64))
        times = np.array([time for _, time, _ in fitting], dtype=np.float64)
        return cls(about, times, joined(windows).take(places))

    @property
    def steps(self) -> Integers:
        """First step of each of ``windows``."""
        return self.written.steps[self._holding]

    @property
    def windows(self) -> Windows:
        """What was measured, oldest first.

        Where steps are repeated, as when a loop begins anew, what was written later holds.
        """
        return self.written.take(self._holding)

    @property
    def _holding(self) -> Integers:
        order = np.argsort(self.times, kind="stable")
        steps = self.written.steps[order]
        # A window holds if none was written after it that begins with its step or before.
        lowest_after = np.minimum.accumulate(steps[::-1])[::-1]
        holds = np.append(steps[:-1] < lowest_after[1:], np.ones(min(len(steps), 1), dtype=np.bool_))
        kept: Integers = order[holds]
        return kept


def _single(rows: Iterable[_Row], num_layers: int) -> Iterator[_Row]:
    """Take bundles apart, and leave out what holds no floats."""
    for step, time, table in rows:
        if table.ndim == 3 and table.shape[1:] == (1, 2 + num_layers) and table.dtype == np.float16:
            steps, readings = unbundle(step, table)
            yield from ((each, time, reading) for each, reading in zip(steps.tolist(), readings, strict=True))
        elif table.dtype.kind == "f":
            yield step, time, table


def _unpacked(rows: Sequence[_Row], num_layers: int) -> Windows:
    if not rows:
        return Windows.empty(num_layers)
    steps = np.array([step for step, _, _ in rows], dtype=np.int64)
    # A state that is no number is another program's, and means nothing.
    with np.errstate(invalid="ignore"):
        return unpack(steps, np.stack([record for _, _, record in rows]))


def stitch(tags: Iterable[Tag]) -> tuple[Series, ...]:
    """Make one series of all tags of each quantity, optimizer and module.

    Of a session the newest tag counts, and of older ones what lies beyond it: the writer has not caught up yet, or the
    file was cut off. Where sessions overlap, the one that began later holds from its first step on. Layers are those
    of the newest tag of all; others' are matched by name.

    Args:
        tags: Of one run, in any order.

    Returns:
        The series, in the order of ``in_order``.
    """
    found: dict[str, list[Tag]] = defaultdict(list)
    for tag in tags:
        if len(tag.times):
            found[tag.about.name].append(tag)
    made = {name: _stitched(group) for name, group in found.items()}
    return tuple(made[about.name] for about in in_order(series.about for series in made.values()))


def in_order(abouts: Iterable[SeriesMetadata]) -> list[SeriesMetadata]:
    """Return series in the order in which they are shown: as in ``QUANTITIES``, then by optimizer and module.

    Modules come in forward order, the input first; those that no series has as a layer come last, by name.

    Args:
        abouts: The newest metadata of each series of a run.

    Example:
        >>> norms = SeriesMetadata("norms", 0, "a1", 0.0, 0, ("decoder", "encoder"), (1, 0))
        >>> time = [SeriesMetadata("time", 0, "a1", 0.0, 0, (), (), module=name) for name in norms.layers]
        >>> [about.module for about in in_order([*time, norms])]
        ['', 'encoder', 'decoder']
    """
    known = list(abouts)
    rows: dict[str, int] = {}
    for about in known:
        if not about.module:
            rows = {about.layers[row]: place for place, row in enumerate(about.order)} | rows
    quantities = {name: place for place, name in enumerate(QUANTITIES)}
    return sorted(
        known,
        key=lambda about: (
            quantities[about.quantity],
            about.optimizer,
            rows.get(about.module, len(rows)),
            natural(about.module),
        ),
    )


def _stitched(tags: Sequence[Tag]) -> Series:
    parts = _parts(tags)
    newest = parts[-1][-1].about
    windows = joined(_one_behind_the_other([_whole(part, newest) for part in parts]))
    kinds = tuple(newest.kinds[row] for row in newest.order) if len(newest.kinds) == len(newest.layers) else ()
    return Series(newest, tuple(newest.layers[row] for row in newest.order), kinds, windows)


def _parts(tags: Sequence[Tag]) -> list[list[Tag]]:
    """Put those together that are one picture, ever coarser or with other rows; the newest part and tag last."""
    parts: list[list[Tag]] = []
    for tag in sorted(tags, key=lambda tag: (tag.about.started, tag.times.max(), tag.about.resolution)):
        before = parts[-1][-1].about if parts else None
        # What is written after a coarser one has begun anew.
        goes_on = before and before.session == tag.about.session and before.resolution <= tag.about.resolution
        if not goes_on:
            parts.append([])
        parts[-1].append(tag)
    return parts


def _whole(part: Sequence[Tag], newest: SeriesMetadata) -> Windows:
    """Return the last tag's windows, and of those before it what they know beyond."""
    windows, resolution = [_arranged(part[-1], newest)], part[-1].about.resolution
    for tag in part[-2::-1]:
        steps, last = tag.steps, windows[-1].steps[-1]
        # The last window was merged from so many of these.
        num_merged = 2 ** min(resolution - tag.about.resolution, 30)
        beyond = int(np.searchsorted(steps, last)) + num_merged
        if beyond < len(steps):
            windows.append(_arranged(tag, newest).take(slice(beyond, None)))
            resolution = tag.about.resolution
    return joined(windows)


def _arranged(tag: Tag, newest: SeriesMetadata) -> Windows:
    """Return the layers of the newest tag in forward order; one that was not there then has nothing."""
    windows, layers = tag.windows, tag.about.layers
    if layers == newest.layers:
        return windows.columns(np.array(newest.order, dtype=np.int64))
    columns = {name: column for column, name in enumerate(layers)}
    found = np.array([columns.get(newest.layers[row], -1) for row in newest.order], dtype=np.int64)
    missing = found < 0
    if missing.all():
        return _nothing(windows.steps, len(found))
    arranged = windows.columns(np.where(missing, 0, found))
    for table in (arranged.median, arranged.low, arranged.high):
        table[:, missing] = np.nan
    arranged.state[:, missing] = 0
    return arranged


def _nothing(steps: Integers, num_layers: int) -> Windows:
    nothing = np.full((len(steps), num_layers), np.nan, dtype=np.float32)
    return Windows(steps, nothing, nothing, nothing, np.zeros(nothing.shape, dtype=np.uint8))


def _one_behind_the_other(parts: Sequence[Windows]) -> list[Windows]:
    """Cut each part off where a later one begins."""
    kept: list[Windows] = []
    end = np.iinfo(np.int64).max
    for windows in reversed(parts):
        kept.append(windows.take(windows.steps < end))
        end = min(end, int(windows.steps[0]))
    return kept[::-1]


@dataclass(frozen=True)
class Outline:
    """What is known of a tag without reading it.

    Attributes:
        about: What stands in its metadata.
        last_step: Step of its last window.
        last_time: When that was written.
    """

    about: SeriesMetadata
    last_step: int
    last_time: float


def needed(outlines: Iterable[Outline]) -> list[Outline]:
    """Leave out what a newer tag of the same series and session covers.

    Args:
        outlines: Of the tags of a run.

    Returns:
        Those that have to be read for ``stitch``.

    Example:
        >>> fine, coarse = (SeriesMetadata("norms", 0, "a1", 0.0, resolution, (), ()) for resolution in (0, 1))
        >>> [each.about.resolution for each in needed([Outline(fine, 7, 1.0), Outline(coarse, 8, 2.0)])]
        [1]
        >>> len(needed([Outline(fine, 7, 1.0), Outline(coarse, 4, 2.0)]))  # still being written
        2
    """
    groups: dict[tuple[str, str], list[Outline]] = defaultdict(list)
    for one in outlines:
        groups[one.about.name, one.about.session].append(one)
    return [one for group in groups.values() for one in group if not any(_covers(other, one) for other in group)]


def _covers(other: Outline, one: Outline) -> bool:
    is_newer = (other.last_time, other.about.resolution) > (one.last_time, one.about.resolution)
    return is_newer and other.about.resolution >= one.about.resolution and other.last_step >= one.last_step
