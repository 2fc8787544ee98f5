"""Which checkpoints were saved, and which of them is the last one that is known to be clean."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR

# A run that keeps every checkpoint is asked for its newest ones only.
_MAX_KNOWN = 200


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint on disk.

    Attributes:
        path: Where it is.
        step: The ``global_step`` at which it was saved: so many optimizer steps are in its weights.
    """

    path: str
    step: int


class Checkpoints:
    """Keeps the step of each checkpoint that the Trainer's callbacks name.

    Nobody says publicly which file a save wrote, so each save is noted when it begins, and afterwards the files are
    looked at: those that are new or have changed are what it wrote.

    Example:
        >>> saves = Checkpoints()
        >>> saves.saved(400)
        >>> saves.look(["s3://bucket/last.ckpt"])
        >>> saves.last_clean(until=412)
        SavedCheckpoint(path='s3://bucket/last.ckpt', step=400)
        >>> saves.last_clean(until=399) is None
        True
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, tuple[int, ...]]] = {}
        self._unseen: int | None = None

    def saved(self, step: int) -> None:
        """Note that a checkpoint is being saved.

        Args:
            step: The ``global_step`` now.
        """
        self._unseen = step

    def look(self, paths: Iterable[str]) -> None:
        """Find out which files a save has written; to be called when it is over.

        Args:
            paths: The files that the callbacks name now.
        """
        step, self._unseen = self._unseen, None
        if step is None:
            return
        for path in list(dict.fromkeys(str(path) for path in paths if path))[-_MAX_KNOWN:]:
            self._note(path, step)
        self._known = {path: about for path, about in self._known.items() if _exists(path)}

    def resumed(self, path: str, step: int) -> None:
        """Note the checkpoint that training began from.

        Args:
            path: Where it is.
            step: The ``global_step`` that was in it.
        """
        if _exists(path):
            self._note(path, step)

    def _note(self, path: str, step: int) -> None:
        state = _state(path)
        known = self._known.get(path)
        # What cannot be looked at counts as written by the newest save: better called too new than clean.
        if known is None or not state or state != known[1]:
            self._known[path] = (step, state)

    def last_clean(self, until: int) -> SavedCheckpoint | None:
        """Return the newest checkpoint whose weights were finite.

        Args:
            until: The last ``global_step`` at which all weights are known to have been finite.

        Returns:
            The checkpoint; None where none is known.
        """
        known = sorted(self._known.items(), key=lambda each: each[1][0], reverse=True)
        clean = (SavedCheckpoint(path, step) for path, (step, state) in known if step <= until and _same(path, state))
        return next(clean, None)


def _remote(path: str) -> bool:
    return "://" in path


def _exists(path: str) -> bool:
    return _remote(path) or bool(_state(path))


def _same(path: str, state: tuple[int, ...]) -> bool:
    """Tell whether a file is still the one that was noted: another save may have landed since (AsyncCheckpointIO)."""
    return _remote(path) or (bool(state) and _state(path) == state)


def _state(path: str) -> tuple[int, ...]:
    """Return what differs when a file was written anew; empty for one that is elsewhere or cannot be looked at.

    A distributed checkpoint is a directory, whose own time stays when the files in it are written over.
    """
    if _remote(path):
        return ()
    try:
        about = Path(path).stat()
        inside = [each.stat() for each in Path(path).iterdir()] if S_ISDIR(about.st_mode) else []
    except OSError:
        return ()
    newest = max(each.st_mtime_ns for each in (about, *inside))
    return newest, about.st_ino, sum(each.st_size for each in (about, *inside))
