"""Where a page is written: whole or not at all, and never over somebody else's file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from lightning_gradwatch.viewer.markdown import printable
from lightning_gradwatch.viewer.page import MARK

# The mark stands in a file's first lines.
_HEAD_BYTES = 4096


class RefusedError(Exception):
    """A file cannot be written; says why, and the way out."""


def write_page(path: Path, page: str) -> Path:
    """Write a page, making the directories above it.

    Args:
        path: The file. One of ours is written anew; a pipe or a device is written to.
        page: The HTML.

    Returns:
        Where it is.

    Raises:
        RefusedError: If there is a file that is none of ours, a directory, or the disk refuses.
    """
    shown = printable(str(path))
    try:
        path = path.resolve()
        if path.is_dir():
            raise RefusedError(f"{shown} is a directory. Name a file: --out {shown}/report.html")
        if path.exists() and not path.is_file():
            path.write_text(page, encoding="utf-8")
            return path
        if path.exists() and not is_ours(path, MARK):
            raise RefusedError(
                f"{shown} was not written by gradwatch and is left as it is. Name another file with --out"
            )
        put(path, page)
    except OSError as error:
        raise RefusedError(
            f"{shown} cannot be written ({error.strerror or error}). Name another file with --out"
        ) from None
    return path


def is_ours(path: Path, mark: str) -> bool:
    """Tell whether a file is one of ours, or empty.

    Args:
        path: The file.
        mark: What stands near the beginning of each of ours.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return not head or mark.encode() in head


def put(path: Path, text: str) -> None:
    """Write beside the file and then take its place, so that nobody finds half of it; directories are made.

    Args:
        path: The file; of a link what it leads to.
        text: All of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    draft = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        # A temporary file is its owner's alone; a page has the rights that any new file would get.
        mask = os.umask(0)
        os.umask(mask)
        draft.chmod(0o666 & ~mask)
        draft.replace(path)
    except BaseException:
        draft.unlink()
        raise
