"""``gradwatch/diagnoses.jsonl``: what is known of a run whose event files say nothing of diagnoses."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_gradwatch.viewer.natural import natural
from lightning_gradwatch.viewer.run import Run

# Where a run keeps it, below its log directory.
PLACE = Path("gradwatch") / "diagnoses.jsonl"
# What a line has beside the diagnosis.
_HEAD = ("format_version", "run", "time", "event")


def with_files(runs: Sequence[Run], logdir: Path) -> list[Run]:
    """Add the diagnoses that stand in files only.

    Args:
        runs: What the event files have.
        logdir: The directory that was searched.

    Returns:
        The same runs, with the diagnoses of their file where the events have none, and a run for each other file; by
        name.
    """
    # Without a TensorBoard logger the event file stands beside ours, in a directory that is no run of its own.
    known = {_name_without_place(run.name, runs): run for run in runs}
    for path in sorted(_files(logdir)):
        name = path.parent.parent.relative_to(logdir).as_posix()
        run = known.get(name, Run(name))
        # Events have the diagnoses too, and how the run began: a file beside them may be an older run's.
        events = () if run.events else read_events(path)
        if events:
            known[name] = replace(run, events=events)
    ordered = {name: known[name] for name in sorted(known, key=natural)}
    return [run if run.name == name else replace(run, name=name) for name, run in ordered.items()]


def _name_without_place(name: str, runs: Sequence[Run]) -> str:
    """Name a run by its log directory where its event file is in our own directory there."""
    parent, _, own = name.rpartition("/")
    short = parent or "."
    return short if own == PLACE.parent.name and short not in {run.name for run in runs} else name


def _files(logdir: Path) -> Iterator[Path]:
    """Find the files, following links as TensorBoard does, but none in a circle."""
    seen: set[str] = set()
    for directory, below, _ in os.walk(logdir, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        path = Path(directory) / PLACE
        if path.is_file():
            yield path


def read_events(path: Path) -> tuple[dict[str, Any], ...]:
    """Read a file's newest session: two runs in one directory append to the same file.

    Args:
        path: The file. Lines that are damaged or cut off, or of another program, are passed over.

    Returns:
        Onsets and recoveries, oldest first, as event files have them. A recovery whose onset stands in an earlier
        session, as after a resume, has its onset put before it.
    """
    lines = list(_lines(path))
    newest = [line for line in lines if line.get("run") == lines[-1].get("run")]
    events: list[dict[str, Any]] = []
    begun: set[tuple[Any, ...]] = set()
    for line in newest:
        diagnosis = {key: value for key, value in line.items() if key not in _HEAD}
        key = (str(diagnosis.get("rule")), diagnosis.get("optimizer"), diagnosis.get("step"))
        if line["event"] == "recovery" and key not in begun:
            events.append({"event": "onset", "diagnosis": {**diagnosis, "recovered_at": None}})
        begun.add(key)
        events.append({"event": line["event"], "diagnosis": diagnosis})
    return tuple(events)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if _is_ours(values):
            yield values


def _is_ours(values: Any) -> bool:
    if not isinstance(values, Mapping) or values.get("event") not in {"onset", "recovery"}:
        return False
    return "rule" in values and all(isinstance(values.get(key, 0), int) for key in ("optimizer", "step"))
