"""Which runs a person means: a log directory with many, one of them, or a directory that is one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from lightning_gradwatch.viewer.events import LogDirectory
from lightning_gradwatch.viewer.jsonl import with_files
from lightning_gradwatch.viewer.markdown import printable
from lightning_gradwatch.viewer.outfile import RefusedError
from lightning_gradwatch.viewer.run import Run
from lightning_gradwatch.viewer.terminal import warn
from lightning_gradwatch.viewer.verdict import why_not_measured

_LISTED = 10


def runs_in(logdir: Path) -> list[Run]:
    """Read all runs in a log directory, telling in a terminal how far it is.

    Args:
        logdir: The directory.

    Returns:
        The runs, by name; one that the directory itself is has its name.

    Raises:
        RefusedError: If there is no such directory, or nothing of GradWatch in it.
    """
    if not logdir.is_dir():
        what = "is a file: give the directory that it is in" if logdir.exists() else "does not exist"
        raise RefusedError(f"{printable(str(logdir))} {what}")
    directory = LogDirectory(logdir)
    runs = with_files(directory.read(_bar() if sys.stderr.isatty() else None), logdir)
    for problem in directory.problems:
        warn(f"gradwatch: {printable(problem)}")
    if not runs:
        raise RefusedError(
            f"nothing was measured: {printable(str(logdir))} has nothing of GradWatch. Train with "
            "Trainer(callbacks=[GradWatch()]), without fast_dev_run, and give its log directory, such as lightning_logs"
        )
    own = logdir.resolve().name
    free = own not in {run.name for run in runs}
    return [replace(run, name=own) if run.name == "." and free else run for run in runs]


def _bar(after_seconds: float = 0.5) -> Callable[[int, int], None]:
    """Return what tells how much has been read, in one line that is gone at the end; a short read shows none."""
    began, shown = time.monotonic(), -1

    def progress(done: int, total: int) -> None:
        nonlocal shown
        percent = 100 * done // max(total, 1)
        if time.monotonic() - began >= after_seconds and percent > shown:
            shown = percent
            end = "" if done < total else "\r\x1b[K"
            sys.stderr.write(f"\rreading {done / 1e6:,.0f} of {total / 1e6:,.0f} MB ({percent}%)\x1b[K{end}")
            sys.stderr.flush()

    return progress


def selected(runs: Sequence[Run], patterns: Sequence[str] | None, logdir: str) -> list[Run]:
    """Choose runs by their names.

    Args:
        runs: All of them.
        patterns: Each a whole name or the end of a path, with ``*``, ``?`` and ``[...]``; None for all.
        logdir: Where they are, for the message.

    Returns:
        Those that match one of the patterns.

    Raises:
        RefusedError: If a pattern matches none: a gate that looks at nothing must not pass.
    """
    for pattern in patterns or ():
        if not any(_matches(run.name, pattern) for run in runs):
            raise RefusedError(f'"{printable(pattern)}" is none of the runs in {printable(logdir)}: {_listed(runs)}')
    return [run for run in runs if not patterns or any(_matches(run.name, pattern) for pattern in patterns)]


def _matches(name: str, pattern: str) -> bool:
    pattern = pattern.strip("/")
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*/{pattern}")


def _listed(runs: Sequence[Run]) -> str:
    rest = len(runs) - _LISTED
    return ", ".join(printable(run.name) for run in runs[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def two_runs(first: str, second: str, logdir: Path) -> tuple[Run, Run]:
    """Read the two runs that a person names.

    Args:
        first: A log directory that holds one run, or a run's name.
        second: Another one.
        logdir: Where names are looked up; it is read once, and only for a name.

    Returns:
        The runs, named as the person named them.

    Raises:
        RefusedError: If one is not to be found, is one of several, or was not measured, or both are the same.
    """
    known: list[Run] = []
    found = []
    for name in (first, second):
        if Path(name).is_dir():
            found.append(_in_directory(name))
            continue
        if not logdir.is_dir():
            raise RefusedError(f"{printable(name)} is no directory, and there is no {printable(str(logdir))} with runs")
        known = known or runs_in(logdir)
        found.append(_by_name(name, known, str(logdir)))
    for run in found:
        if why_not_measured(run):
            raise RefusedError(printable(why_not_measured(run)))
    if found[0].name == found[1].name:
        raise RefusedError(f"{printable(first)} and {printable(second)} are the same run. Name two")
    return found[0], found[1]


def _in_directory(name: str) -> Run:
    """Read the only run of a directory; it is called by the directory's path, which tells two of them apart."""
    directory = Path(name)
    runs = runs_in(directory)
    measured = [run for run in runs if not why_not_measured(run)] or runs
    if len(measured) > 1:
        such = printable(str(directory / measured[0].name))
        raise RefusedError(f"{printable(name)} holds {len(measured)} runs. Name one of them, such as {such}")
    return replace(measured[0], name=directory.as_posix())


def _by_name(name: str, runs: Sequence[Run], logdir: str) -> Run:
    found = selected(runs, [name], logdir)
    if len(found) > 1:
        raise RefusedError(f'"{printable(name)}" is the name of {len(found)} runs: {_listed(found)}')
    return found[0]
