"""A run's diagnoses as a person reads them in a terminal: plain lines, aligned, as wide as the window."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

from lightning_gradwatch.viewer.finding import Finding, WayOut, findings, named
from lightning_gradwatch.viewer.markdown import printable
from lightning_gradwatch.viewer.run import Run
from lightning_gradwatch.viewer.verdict import (
    newest_norms,
    norms_in_words,
    optimizer_in_words,
    verdict,
    why_not_measured,
)

# Below this nothing can be set in columns; a wider text is hard to read.
_LEAST_WIDTH, _MOST_WIDTH = 50, 140
_MAX_ROWS, _MAX_BLOCKS, _MAX_WAYS = 20, 5, 3
_KEY = 10
_CODES = {"bold": "1", "red": "31;1", "green": "32", "yellow": "33", "dim": "2"}


@dataclass(frozen=True)
class Paper:
    """What is written on.

    Attributes:
        width: Columns of a line.
        colored: Whether it shows colors.

    Example:
        >>> Paper(80, colored=False).ink("sick", "red")
        'sick'
    """

    width: int = 80
    colored: bool = False

    @classmethod
    def of(cls, stream: TextIO) -> Paper:
        """Find out what a stream can show: colors in a terminal only, and not with ``NO_COLOR`` (no-color.org)."""
        terminal = stream.isatty()
        plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
        return cls(max(_LEAST_WIDTH, min(_columns(stream), _MOST_WIDTH)), terminal and not plain)

    def ink(self, text: str, color: str) -> str:
        """Color a text that is printable already."""
        return f"\x1b[{_CODES[color]}m{text}\x1b[0m" if self.colored and text else text


def _columns(stream: TextIO) -> int:
    """Return how wide the window is; ``COLUMNS`` goes first, and a file has 100."""
    told = os.environ.get("COLUMNS", "")
    if told.isdigit() and int(told):
        return int(told)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 100
    except (OSError, ValueError):
        return 100


def say(*lines: str) -> None:
    """Write lines to standard output."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def warn(text: str) -> None:
    """Write a line to standard error, below what was said before."""
    sys.stdout.flush()
    sys.stderr.write(f"{text}\n")


def report_lines(run: Run, paper: Paper) -> list[str]:
    """Write a run: the verdict, its diagnoses as a table, then numbers, cause and ways out of each, then the norms.

    Args:
        run: The run.
        paper: What it is written on.

    Returns:
        Lines.

    Example:
        >>> report_lines(Run("version_0"), Paper())
        ['version_0: nothing was measured']
    """
    found = findings(run)
    lines = verdict_lines(run, found, paper)
    if found:
        lines += ["", *_diagnoses(found, paper)]
    for finding in _to_explain(found):
        lines += ["", *_block(finding, paper)]
    norms = newest_norms(run)
    if norms:
        lines.append("")
    for newest in norms:
        key = optimizer_in_words(newest) if len(norms) > 1 else ""
        step = int(newest.series.windows.steps[-1])
        head = " ".join(filter(None, ["gradient norms", f"of {key}" if key else "", f"at step {step}: "]))
        lines += wrapped(head + norms_in_words(newest), paper.width, indent="  ")
    return lines


def verdict_lines(run: Run, found: Sequence[Finding], paper: Paper) -> list[str]:
    """Write the name of a run and how it fared."""
    sick = any(finding.is_warning for finding in found)
    color = "red" if sick else "yellow" if why_not_measured(run) else "green"
    lines = wrapped(f"{run.name}: {verdict(run)}", paper.width)
    return [paper.ink(line, color) for line in lines]


def _diagnoses(found: Sequence[Finding], paper: Paper) -> list[str]:
    head = ["step", "until", "what", "layers", "rule"]
    rows = [
        [
            str(finding.step),
            finding.until,
            f"{finding.word}: {finding.message}",
            f"{len(finding.layers)}: {named(finding.layers, 1)}" if finding.layers else "",
            finding.rule,
        ]
        for finding in found[:_MAX_ROWS]
    ]
    # Beside the rule's id, which the block below repeats, a narrow window has no room for words.
    columns = 5 if paper.width >= 90 else 4
    colors = ["red" if finding.is_warning else "" for finding in found]
    lines = table([head[:columns], *(row[:columns] for row in rows)], paper, colors, wide={2: 3, 3: 2})
    rest = len(found) - _MAX_ROWS
    return lines + ([f"  and {rest} more"] if rest > 0 else [])


def _to_explain(found: Sequence[Finding]) -> list[Finding]:
    """Choose what is told in full: each rule and optimizer once, since a fault that comes back says the same again."""
    chosen: dict[tuple[str, int], Finding] = {}
    for finding in found:
        chosen.setdefault((finding.rule, finding.optimizer), finding)
    return [finding for finding in chosen.values() if not finding.is_muted][:_MAX_BLOCKS]


def _block(finding: Finding, paper: Paper) -> list[str]:
    head = paper.ink(printable(f"{finding.word}, step {finding.step}"), "bold")
    facts = (("layers", named(finding.layers)), ("measured", finding.measured), ("why", finding.cause))
    lines = [f"  {head}", *(line for key, text in facts if text for line in _row(key, text, paper))]
    for number, way in enumerate(finding.ways_out[:_MAX_WAYS]):
        lines += _way_out(way, paper) if number == 0 else _row("or", way.title, paper)
    rest = len(finding.ways_out) - _MAX_WAYS
    return [*lines, *(_row("", f"and {rest} more", paper) if rest > 0 else []), *_row("rule", finding.rule, paper)]


def _way_out(way: WayOut, paper: Paper) -> list[str]:
    """Write the best way out in full. Lines to paste are not wrapped: they have to stay what they are."""
    rows = (("do", way.title), ("", f"rehearsed: {way.effect}" if way.effect else ""), ("", way.reason))
    lines = [line for key, text in rows if text for line in _row(key, text, paper)]
    code = way.code.expandtabs(4).rstrip().splitlines()
    return lines + [
        f"    {'' if number else 'paste':<{_KEY}} {printable(line)}".rstrip() for number, line in enumerate(code)
    ]


def _row(key: str, text: str, paper: Paper) -> list[str]:
    return wrapped(text, paper.width, indent=f"    {key:<{_KEY}} ")


def table(
    rows: Sequence[Sequence[str]], paper: Paper, colors: Sequence[str] = (), wide: Mapping[int, int] | None = None
) -> list[str]:
    """Set rows in columns; the first row is the head.

    Args:
        rows: Of texts, each row as long as the first.
        paper: What it is written on.
        colors: Of the rows below the head; empty for none.
        wide: The columns that are wrapped, each with its share of the room that the others leave.

    Returns:
        Lines.

    Example:
        >>> table([["step", "what"], ["3", "VANISHING"]], Paper(40))
        ['  step  what', '  3     VANISHING']
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    needed = [max(columns_of(row[column]) for row in cells) for column in range(len(cells[0]))]
    widths = _widths(needed, wide or {}, paper.width - 2 * len(needed))
    lines = []
    for number, row in enumerate(cells):
        color = "dim" if number == 0 else colors[number - 1] if number <= len(colors) else ""
        parts = [wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
        for height in range(max(len(part) for part in parts)):
            pieces = [part[height] if height < len(part) else "" for part in parts]
            line = "".join(f"  {_padded(piece, width)}" for piece, width in zip(pieces, widths, strict=True)).rstrip()
            lines.append(paper.ink(line, color) if color else line)
    return lines


def _widths(needed: Sequence[int], wide: Mapping[int, int], room: int) -> list[int]:
    """Give the narrow columns what they need and divide the rest; what one does not use, the next ones get."""
    widths = list(needed)
    left = room - sum(width for column, width in enumerate(needed) if column not in wide)
    # The most modest first, so that what it leaves is known when the others are served.
    by_need = sorted(wide, key=lambda column: needed[column] / wide[column])
    for place, column in enumerate(by_need):
        share = left * wide[column] // sum(wide[other] for other in by_need[place:])
        widths[column] = max(8, min(needed[column], share))
        left -= widths[column]
    return widths


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Break a text into lines at its blanks, and within a word that is longer than a line.

    Args:
        text: The text; what would steer the terminal is made visible.
        width: Columns of a line; letters of East Asian scripts take two.
        indent: What the first line begins with; the others begin with as many blanks.

    Returns:
        Lines, at least one.

    Example:
        >>> wrapped("tea at four", 9, indent="- ")
        ['- tea at', '  four']
    """
    room = max(width - columns_of(indent), 4)
    lines, line = [], ""
    for word in printable(text).split(" "):
        if line and columns_of(line) + 1 + columns_of(word) <= room:
            line += f" {word}"
            continue
        lines += [line] if line else []
        *full, line = _pieces(word, room)
        lines += full
    lines.append(line)
    return [(" " * columns_of(indent) if number else indent) + line for number, line in enumerate(lines)]


def _pieces(word: str, room: int) -> list[str]:
    """Cut a word that is longer than a line."""
    pieces = [""]
    for letter in word:
        if columns_of(pieces[-1]) + columns_of(letter) > room:
            pieces.append("")
        pieces[-1] += letter
    return pieces


def columns_of(text: str) -> int:
    """Count the columns that a text takes in a terminal.

    Example:
        >>> columns_of("net"), columns_of("\u5c64"), columns_of("e\u0301")
        (3, 2, 1)
    """
    if text.isascii():
        return len(text)
    marks = {"Mn", "Me", "Cf"}
    return sum(
        0 if unicodedata.category(letter) in marks else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def _padded(text: str, width: int) -> str:
    return text + " " * (width - columns_of(text))
