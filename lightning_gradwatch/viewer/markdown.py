"""A run's diagnoses as Markdown, to be pasted into an issue or a chat.

Names of layers and messages are text: nothing in them becomes a tag, a link, a mention or a table's border.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from lightning_gradwatch.viewer.finding import Finding, findings
from lightning_gradwatch.viewer.run import Run
from lightning_gradwatch.viewer.verdict import newest_norms, norms_in_words, optimizer_in_words, verdict

# A person reads no more; the page has them all.
_MAX_ROWS, _MAX_SECTIONS, _NAMED_LAYERS = 20, 5, 5
_SPECIAL = re.compile(r"([\\`*\[\]<>|~&$])|((?<!\w)_|_(?!\w))|(@)")


def to_markdown(run: Run) -> str:
    """Write a run as Markdown: the verdict, a table of diagnoses, then numbers, cause and ways out of each.

    Args:
        run: The run.

    Returns:
        Markdown as GitHub reads it.

    Example:
        >>> print(to_markdown(Run("version_0")))
        ### GradWatch: `version_0`
        <BLANKLINE>
        **nothing was measured**
        <BLANKLINE>
    """
    found = findings(run)
    parts = [f"### GradWatch: {code_span(run.name)}", f"**{escaped(verdict(run))}**"]
    parts += [_table(found)] if found else []
    parts += [_section(finding) for finding in found[:_MAX_SECTIONS]]
    parts += [f"and {len(found) - _MAX_SECTIONS} more"] if len(found) > _MAX_SECTIONS else []
    for newest in newest_norms(run):
        of = f" of {optimizer_in_words(newest)}" if len(newest_norms(run)) > 1 else ""
        step = int(newest.series.windows.steps[-1])
        parts.append(f"Gradient norms{escaped(of)} at step {step}: {escaped(norms_in_words(newest))}")
    return "\n\n".join(parts) + "\n"


def _table(found: Sequence[Finding]) -> str:
    rows = ["| step | until | what | layers | rule |", "|---:|---|---|---|---|"]
    for finding in found[:_MAX_ROWS]:
        word = f"**{escaped(finding.word)}**" if finding.is_warning else escaped(finding.word)
        what = f"{word}: {escaped(finding.message)}"
        layers = f"{len(finding.layers)}: {_layers(finding.layers)}" if finding.layers else ""
        rule = code_span(finding.rule, in_table=True)
        rows.append(f"| {finding.step} | {finding.until} | {what} | {layers} | {rule} |")
    return "\n".join(rows)


def _layers(layers: Sequence[str]) -> str:
    rest = len(layers) - _NAMED_LAYERS
    shown = ", ".join(code_span(name, in_table=True) for name in layers[:_NAMED_LAYERS])
    return shown + (f" and {rest} more" if rest > 0 else "")


def _section(finding: Finding) -> str:
    lines = [f"#### Step {finding.step}: {escaped(finding.word)}", ""]
    lines += [
        f"- {key}: {escaped(text)}" for key, text in (("measured", finding.measured), ("why", finding.cause)) if text
    ]
    for key, way in zip(["do", *["or"] * len(finding.ways_out)], finding.ways_out, strict=False):
        more = "; ".join(filter(None, [way.reason, f"rehearsed: {way.effect}" if way.effect else ""]))
        lines.append(f"- {key}: **{escaped(way.title)}**" + (f" ({escaped(more)})" if more else ""))
        lines += ["", *_fenced(way.code), ""] if way.code else []
    return "\n".join(lines).rstrip()


def _fenced(code: str) -> list[str]:
    """Return code in a fence that no line of it can close, as a part of the list's item."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", code)), default=0))
    lines = [printable(line) for line in code.expandtabs(4).splitlines()]
    return [f"  {line}".rstrip() for line in (f"{fence}python", *lines, fence)]


def code_span(text: str, *, in_table: bool = False) -> str:
    r"""Return a name as code, whatever is in it.

    Args:
        text: The name.
        in_table: Whether it stands in a table, where a bar would end the cell.

    Example:
        >>> code_span("net.0"), code_span("a`b"), code_span("a|b", in_table=True)
        ('`net.0`', '`` a`b ``', '`a\\|b`')
    """
    text = printable(text) or " "
    if in_table:
        text = text.replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"


def escaped(text: str) -> str:
    r"""Return text that Markdown shows as it is, and that calls nobody.

    Example:
        >>> print(escaped("<b> a|b *c* max_norm"))
        \<b\> a\|b \*c\* max_norm
    """
    return _SPECIAL.sub(lambda found: "@\u200b" if found[3] else f"\\{found[0]}", printable(text))


def printable(text: str) -> str:
    r"""Return text in one line, without what steers a terminal or turns the direction of writing.

    Example:
        >>> print(printable("red\x1b[31m\nand on"))
        red\x1b[31m and on
    """
    text = re.sub(r"\s*\n\s*", " ", text)
    return "".join(_visible(letter) for letter in text)


def _visible(letter: str) -> str:
    if letter in "\t\u200c\u200d":  # the last two join letters of some scripts
        return letter.replace("\t", " ")
    hidden = unicodedata.category(letter) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
    return letter.encode("unicode_escape", "backslashreplace").decode() if hidden else letter
