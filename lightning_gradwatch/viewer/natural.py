"""The order in which a person counts: ``version_2`` before ``version_10``."""

from __future__ import annotations

import re

# A number, and its decimals where it stands alone: lr=0.01 has some, net.0.10 and 1.2.10 have none.
_NUMBER = re.compile(r"(?<![0-9.])([0-9]+)\.([0-9]+)(?![0-9.])|([0-9]+)")

# A text, how many digits the number behind it has, those digits, and its decimals.
Piece = tuple[str, int, str, str]


def natural(name: str) -> tuple[tuple[tuple[Piece, ...], ...], str]:
    """Return what names are sorted by so that the numbers in them count as numbers.

    Args:
        name: Of a run or a layer, whatever is in it.

    Example:
        >>> sorted(["version_10", "version_2", "lr=0.1", "lr=0.05", "rnn"], key=natural)
        ['lr=0.05', 'lr=0.1', 'rnn', 'version_2', 'version_10']
    """
    # A directory's name ends before those that go on.
    return tuple(_pieces(part) for part in name.split("/")), name


def _pieces(part: str) -> tuple[Piece, ...]:
    pieces, end = [], 0
    for found in _NUMBER.finditer(part):
        # By its digits: no number is too long for that, as it would be for `int`.
        digits = (found[1] or found[3]).lstrip("0")
        pieces.append((part[end : found.start()], len(digits), digits, found[2] or ""))
        end = found.end()
    return (*pieces, (part[end:], -1, "", ""))
