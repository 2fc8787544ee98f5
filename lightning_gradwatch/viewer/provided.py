"""Runs and series as TensorBoard's data provider has them: listed cheaply, read one tag at a time, and only once."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from tensorboard.data import provider

from lightning_gradwatch.viewer.metadata import PLUGIN_NAME, EventsMetadata, SeriesMetadata
from lightning_gradwatch.viewer.natural import natural
from lightning_gradwatch.viewer.payloads import read_event
from lightning_gradwatch.viewer.run import Run, Series
from lightning_gradwatch.viewer.shelf import Shelf
from lightning_gradwatch.viewer.stitch import Outline, Tag, in_order, needed, stitch
from lightning_gradwatch.viewer.timeline import Told, stitch_events
from lightning_gradwatch.viewer.windows import Windows
from lightning_gradwatch.viewer.wire import brief, describe

# gRPC refuses answers above 256 MiB; a record is an envelope around four rows of float16.
_MOST_BYTES = 192 * 2**20
_ENVELOPE = 128
_MOST_EVENTS = 100_000
# Ours: a series of 500 layers and 2,048 columns has 13 MB in memory.
_KEPT_BYTES = 256 * 2**20
# Ours: the content of 2,000 layers has 0.1 MB and takes 0.8 ms to read; with what is read from it, it is five times as
# large in memory, eight times where names are short. So the six series of 60 runs of 2,000 layers fit; beyond, a look
# at the runs takes longer.
_KEPT_CONTENT_BYTES = 256 * 2**20
_READ_BYTES = 8

# The content of a tag's metadata and what stands in it.
Content: TypeAlias = tuple[bytes, SeriesMetadata | EventsMetadata | None]


@dataclass(frozen=True)
class FoundSeries:
    """A series that has been found but not read.

    Attributes:
        about: What stands in the metadata of its newest tag.
        last_step: Step of its last window.
        version: Changes when it has grown.
        read: Reads it.
    """

    about: SeriesMetadata
    last_step: int
    version: str
    read: Callable[[], Series]


class Provided:
    """What is ours of all that TensorBoard serves.

    Args:
        data_provider: TensorBoard's, of either loader.
    """

    def __init__(self, data_provider: provider.DataProvider) -> None:
        self._provider = data_provider
        self._tags: Shelf[Tag] = Shelf(_KEPT_BYTES, _bytes_of_tag)
        self._told: Shelf[Told] = Shelf(_KEPT_BYTES // 8, _bytes_of_told)
        # The same contents are listed each time the page asks for news.
        self._contents: Shelf[Content] = Shelf(_KEPT_CONTENT_BYTES, _bytes_of_content)

    def describe_runs(self, context: Any, experiment: str) -> list[dict[str, Any]]:
        """Return what ``wire.describe`` tells of each run; no series is read for that.

        Args:
            context: Of the request.
            experiment: Of the request.
        """
        described = []
        listed = self._list(context, experiment, None)
        for run in sorted(listed, key=natural):
            tags = listed[run]
            told = [
                self._read_events(context, experiment, run, tag, about, one)
                for tag, one in tags.items()
                if isinstance(about := self._about(one.plugin_content), EventsMetadata)
            ]
            found = self._series_of(context, experiment, run, tags)
            series = [brief(one.about, one.last_step, one.version) for one in found.values()]
            if series or told:
                described.append(describe(Run(run, (), stitch_events(told)), series))
        return described

    def find(self, context: Any, experiment: str, run: str, name: str) -> FoundSeries | None:
        """Find a series, None where there is none of this name or no such run.

        Args:
            context: Of the request.
            experiment: Of the request.
            run: Name of the run.
            name: Name of the series, such as ``"norms/0"``.
        """
        tags = self._list(context, experiment, run).get(run, {})
        return self._series_of(context, experiment, run, tags).get(name)

    def _about(self, content: bytes) -> SeriesMetadata | EventsMetadata | None:
        return self._contents.get(content, None, lambda: _read_content(content))[1]

    def _list(self, context: Any, experiment: str, run: str | None) -> Mapping[str, Mapping[str, Any]]:
        only = None if run is None else provider.RunTagFilter(runs=[run])
        found: Mapping[str, Mapping[str, Any]] | None = self._provider.list_tensors(
            context, experiment_id=experiment, plugin_name=PLUGIN_NAME, run_tag_filter=only
        )
        return found or {}

    def _series_of(self, context: Any, experiment: str, run: str, tags: Mapping[str, Any]) -> dict[str, FoundSeries]:
        """Find the series of a run, in the order in which they are shown."""
        groups: dict[str, dict[str, Outline]] = defaultdict(dict)
        for tag, listed in tags.items():
            about = self._about(listed.plugin_content)
            if isinstance(about, SeriesMetadata) and listed.max_step is not None:
                groups[about.name][tag] = Outline(about, listed.max_step, listed.max_wall_time)
        found = {name: self._found(context, experiment, run, group) for name, group in groups.items()}
        return {about.name: found[about.name] for about in in_order(one.about for one in found.values())}

    def _found(self, context: Any, experiment: str, run: str, group: Mapping[str, Outline]) -> FoundSeries:
        wanted = set(needed(group.values()))
        parts = {tag: outline for tag, outline in group.items() if outline in wanted}

        def read() -> Series:
            tags = [self._read_tag(context, experiment, run, tag, outline) for tag, outline in parts.items()]
            # Where no record fits what its metadata tells, there is nothing to see.
            return next(iter(stitch(tags)), Series(newest.about, (), (), Windows.empty(0)))

        newest = max(parts.values(), key=lambda one: (one.about.started, one.last_time, one.about.resolution))
        seen = sorted((tag, one.last_step, one.last_time) for tag, one in parts.items())
        version = hashlib.sha256(repr(seen).encode()).hexdigest()[:16]
        return FoundSeries(newest.about, max(one.last_step for one in parts.values()), version, read)

    def _read_tag(self, context: Any, experiment: str, run: str, tag: str, outline: Outline) -> Tag:
        def make() -> Tag:
            most = _MOST_BYTES // (_ENVELOPE + 8 * len(outline.about.layers))
            data = self._read(context, experiment, run, tag, max(most, 1))
            return Tag.of(outline.about, [(int(each.step), float(each.wall_time), each.numpy) for each in data])

        return self._tags.get((experiment, run, tag), (outline.last_step, outline.last_time), make)

    def _read_events(
        self, context: Any, experiment: str, run: str, tag: str, about: EventsMetadata, listed: Any
    ) -> Told:
        def make() -> Told:
            data = self._read(context, experiment, run, tag, _MOST_EVENTS)
            lines = [read_event(text) for each in data for text in each.numpy.ravel().tolist()]
            return Told(about, [line for line in lines if line is not None])

        return self._told.get((experiment, run, tag), (listed.max_step, listed.max_wall_time), make)

    def _read(self, context: Any, experiment: str, run: str, tag: str, most: int) -> Iterable[Any]:
        """Read one tag of one run: answers with more are refused where they become too long."""
        only = provider.RunTagFilter(runs=[run], tags=[tag])
        found = self._provider.read_tensors(
            context, experiment_id=experiment, plugin_name=PLUGIN_NAME, run_tag_filter=only, downsample=most
        )
        data: Iterable[Any] = (found or {}).get(run, {}).get(tag, [])
        return data


def _read_content(content: bytes) -> Content:
    return content, SeriesMetadata.from_content(content) or EventsMetadata.from_content(content)


def _bytes_of_content(content: Content) -> int:
    return _READ_BYTES * len(content[0]) + _ENVELOPE


def _bytes_of_tag(tag: Tag) -> int:
    windows = tag.written
    return sum(table.nbytes for table in (windows.median, windows.low, windows.high, windows.state, windows.steps))


def _bytes_of_told(told: Told) -> int:
    # Ours: about what a diagnosis with its remedies has as text.
    return 4096 * len(told.events)
