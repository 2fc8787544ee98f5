"""Runs, read from the event files of a log directory: whatever state these are in, and as they grow."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy.typing as npt
from tensorboard.compat.proto import event_pb2

from lightning_gradwatch.viewer.metadata import PLUGIN_NAME, QUANTITIES, EventsMetadata, SeriesMetadata
from lightning_gradwatch.viewer.natural import natural
from lightning_gradwatch.viewer.payloads import floats_of, read_event
from lightning_gradwatch.viewer.records import RecordFile
from lightning_gradwatch.viewer.run import Run
from lightning_gradwatch.viewer.stitch import Outline, Tag, needed, stitch
from lightning_gradwatch.viewer.timeline import Told, stitch_events

# Called with the number of bytes that have been read and of all there are.
Progress: TypeAlias = Callable[[int, int], None]

# As TensorBoard tells event files from others.
_IN_THE_NAME = "tfevents"
# Pictures, cards and scalars of ours have other tags, and nobody reads them here.
_MARKS = tuple(f"{PLUGIN_NAME}/{kind}/".encode() for kind in (*QUANTITIES, "events"))
# How often a long read tells how far it is.
_PROGRESS_EVERY = 4 * 2**20


def read_runs(logdir: str | os.PathLike[str], progress: Progress | None = None) -> list[Run]:
    """Read all runs with data of GradWatch.

    Args:
        logdir: A directory with event files in it or in directories below.
        progress: Called with the number of bytes read and of all there are.

    Returns:
        The runs, by name: the path of their directory from ``logdir``, ``"."`` for itself.

    Example:
        >>> read_runs("no/such/directory")
        []
    """
    return LogDirectory(logdir).read(progress)


class LogDirectory:
    """A log directory that is read again and again, each time what is new.

    Nothing in it is an error: files that are damaged, cut off, unreadable or another program's are read as far as they
    go, and ``problems`` says what was not.

    Args:
        logdir: The directory.

    Example:
        >>> LogDirectory("no/such/directory").problems
        []
    """

    def __init__(self, logdir: str | os.PathLike[str]) -> None:
        self._logdir = Path(logdir)
        self._runs: dict[str, _RunFiles] = {}
        self._unreadable: dict[str, str] = {}

    @property
    def problems(self) -> list[str]:
        """What could not be read, a sentence each."""
        return [*self._unreadable.values(), *(text for run in self._runs.values() for text in run.problems)]

    def read(self, progress: Progress | None = None) -> list[Run]:
        """Read what has been written since the last call.

        Args:
            progress: Called with the number of new bytes read and of all new ones.

        Returns:
            All runs, by name; one that has not grown is the same object as before.
        """
        self._unreadable = {}
        for name, path in self._event_files():
            self._runs.setdefault(name, _RunFiles(name)).files.setdefault(path, RecordFile(path))
        total, done = sum(run.num_new_bytes for run in self._runs.values()), 0
        for run in self._runs.values():
            for read in run.read():
                done += read
                if progress is not None:
                    progress(min(done, total), total)
        runs = [self._runs[name].run for name in sorted(self._runs, key=natural)]
        return [run for run in runs if run.series or run.events]

    def _event_files(self) -> Iterator[tuple[str, Path]]:
        """Yield each event file with the name of its run, the older ones of a run first."""
        seen: set[str] = set()
        for directory, below, files in os.walk(self._logdir, followlinks=True, onerror=self._note):
            real = os.path.realpath(directory)
            # A link may lead back up.
            if real in seen:
                below.clear()
                continue
            seen.add(real)
            below.sort()
            for path in sorted(Path(directory, file) for file in files if _IN_THE_NAME in file):
                # To open a pipe would wait for ever.
                if path.is_file():
                    yield os.path.relpath(directory, self._logdir), path

    def _note(self, error: OSError) -> None:
        # A log directory that does not exist has no runs; whoever asks for it can tell.
        if error.filename != str(self._logdir) or not isinstance(error, FileNotFoundError):
            self._unreadable[str(error.filename)] = f"{error.filename} cannot be read: {error.strerror}"


@dataclass
class _RunFiles:
    """The event files of a run and what has been found in them."""

    name: str
    files: dict[Path, RecordFile] = field(default_factory=dict)
    run: Run = field(init=False)
    _series: dict[str, _Rows] = field(default_factory=dict)
    _told: dict[str, _Lines] = field(default_factory=dict)
    _unreadable: dict[Path, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.run = Run(self.name)

    @property
    def num_new_bytes(self) -> int:
        return sum(max(_size_of(path) - file.offset, 0) for path, file in self.files.items())

    @property
    def problems(self) -> list[str]:
        texts = list(self._unreadable.values())
        for path, file in self.files.items():
            if file.num_damaged:
                texts.append(f"{path} has {file.num_damaged} damaged records, which were left out")
            if file.is_lost:
                texts.append(f"{path} is damaged; what follows byte {file.offset:,} is lost")
        return texts

    def read(self) -> Iterator[int]:
        """Read what is new, and yield again and again how many bytes that was."""
        has_grown = False
        self._unreadable = {}
        for path, file in self.files.items():
            before = file.offset
            try:
                for data in file.read(*_MARKS):
                    has_grown |= self._take(data)
                    if file.offset - before >= _PROGRESS_EVERY:
                        yield file.offset - before
                        before = file.offset
            except OSError as error:
                self._unreadable[path] = f"{path} cannot be read: {error.strerror}"
            yield max(file.offset - before, 0)
        if has_grown:
            # What is covered by a newer tag is not even unpacked.
            read = {rows.outline: rows for rows in self._series.values() if rows.rows}
            tags = [read[outline].tag for outline in needed(read)]
            told = [Told(lines.about, tuple(lines.events)) for lines in self._told.values()]
            self.run = Run(self.name, stitch(tags), stitch_events(told))

    def _take(self, data: bytes) -> bool:
        """Take what a record holds of ours, and tell whether there was any."""
        try:
            event = event_pb2.Event.FromString(data)
        except Exception:
            # Its checksum was right, so it was written so: protobuf's class of errors is no part of its public names.
            return False
        taken = [self._take_value(value, event) for value in event.summary.value]
        return any(taken)

    def _take_value(self, value: Any, event: Any) -> bool:
        self._meet(value)
        if value.tag in self._series:
            table = floats_of(value.tensor)
            if table is not None:
                self._series[value.tag].add(event.step, event.wall_time, table)
            return table is not None
        if value.tag in self._told:
            lines = [read_event(text) for text in value.tensor.string_val]
            self._told[value.tag].events += [line for line in lines if line is not None]
            return True
        return False

    def _meet(self, value: Any) -> None:
        """Note what a tag is, which stands in its first record."""
        plugin = value.metadata.plugin_data
        if plugin.plugin_name != PLUGIN_NAME or not plugin.content:
            return
        series, events = SeriesMetadata.from_content(plugin.content), EventsMetadata.from_content(plugin.content)
        if series is not None:
            self._series.setdefault(value.tag, _Rows(series))
        elif events is not None:
            self._told.setdefault(value.tag, _Lines(events))


@dataclass
class _Rows:
    """The records of a series' tag."""

    about: SeriesMetadata
    rows: list[tuple[int, float, npt.NDArray[Any]]] = field(default_factory=list)
    _tag: Tag | None = None

    def add(self, step: int, time: float, table: npt.NDArray[Any]) -> None:
        self.rows.append((step, time, table))
        self._tag = None

    @property
    def outline(self) -> Outline:
        return Outline(self.about, max(step for step, _, _ in self.rows), max(time for _, time, _ in self.rows))

    @property
    def tag(self) -> Tag:
        self._tag = self._tag or Tag.of(self.about, self.rows)
        return self._tag


@dataclass
class _Lines:
    """The events of a session."""

    about: EventsMetadata
    events: list[dict[str, Any]] = field(default_factory=list)


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
