"""Runs as one HTML file: the same page as the tab in TensorBoard, with its numbers inside, to be opened from disk.

The file asks for nothing: script, style and numbers are in it, and its Content-Security-Policy forbids the browser to
load or send anything, whatever a layer is called.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import math
import re
from collections.abc import Sequence
from typing import Any

from lightning_gradwatch.viewer.bundle import STATIC, bundle
from lightning_gradwatch.viewer.markdown import to_markdown
from lightning_gradwatch.viewer.metadata import MAX_RECORDS
from lightning_gradwatch.viewer.run import Run
from lightning_gradwatch.viewer.wire import describe, encode

# By this a file is known as one of ours, and may be written again.
MARK = '<meta name="generator" content="gradwatch">'
# GitHub takes files of up to 25 MB in an issue; script, style and descriptions are the rest.
MAX_BYTES = 20_000_000
# What a cell takes before it is compressed (three int16 and a uint8), and how far that shrinks at best. Ours: 1.2 to 3
# times for noisy norms; four is a bound that spares the work of compressing what cannot fit.
_CELL_BYTES, _COMPRESSION = 7, 4

_NOTE_STYLE = ".gw-note { max-width: 1800px; margin: 0 auto; padding: 12px 24px 0; color: var(--faint); }"

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
{mark}
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{note}<div id="gradwatch"></div>
<noscript>This page draws with JavaScript, which is switched off. Nothing is loaded from anywhere.</noscript>
<script type="application/json" id="gradwatch-data">{data}</script>
<script type="module">{script}</script>
</body>
</html>
"""


def html_page(runs: Sequence[Run], title: str = "GradWatch", *, max_bytes: int = MAX_BYTES) -> str:
    """Write runs as one self-contained HTML file.

    Args:
        runs: The runs, under different names.
        title: What the window is called.
        max_bytes: What the numbers may take. Where they take more, neighboring columns are merged, as they are in a
            long run (the median is drawn, both ends are kept, so that no spike is lost), and the page says so.

    Returns:
        The HTML.

    Raises:
        ValueError: If two runs have one name, or the numbers do not fit even with one column each.

    Example:
        >>> page = html_page([Run("version_0")], "My run")
        >>> "<title>My run</title>" in page, "default-src 'none'" in page
        (True, True)
    """
    names = [run.name for run in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f'`runs` must have different names. Got "{twice[0]}" more than once')
    series, note = _packed(runs, max_bytes)
    data = {
        "runs": [describe(run) for run in runs],
        "series": series,
        "markdown": {run.name: to_markdown(run) for run in runs},
        "note": note,
    }
    script = f"\n{bundle('report.js')}"
    style = f"\n{(STATIC / 'style.css').read_text(encoding='utf-8')}{_NOTE_STYLE}\n"
    _check_inline(script, style)
    return _PAGE.format(
        mark=MARK,
        policy=_policy(script, style),
        title=html.escape(title),
        style=style,
        note=f'<p class="gw-note" role="note">{html.escape(note)}</p>\n' if note else "",
        data=_json(data),
        script=script,
    )


def _packed(runs: Sequence[Run], max_bytes: int) -> tuple[dict[str, dict[str, str]], str]:
    """Return each series in base64, of as many columns as fit, and what has to be said about that."""
    most, full = MAX_RECORDS, max((len(s.windows) for run in runs for s in run.series), default=0)
    while most >= 1:
        if _least_size(runs, most) <= max_bytes:
            packed = {run.name: {s.name: _base64(encode(s, most)) for s in run.series} for run in runs}
            if sum(len(text) for of_run in packed.values() for text in of_run.values()) <= max_bytes:
                return packed, _note(most, full, max_bytes)
        most //= 2
    raise ValueError(
        f"{len(runs)} runs with {sum(len(run.series) for run in runs)} series do not fit into one page of "
        f"{max_bytes / 1e6:g} MB. Choose fewer runs"
    )


def _least_size(runs: Sequence[Run], most: int) -> float:
    cells = sum(min(len(s.windows), most) * len(s.layers) for run in runs for s in run.series)
    return cells * _CELL_BYTES / _COMPRESSION * 4 / 3


def _note(most: int, full: int, max_bytes: int) -> str:
    if full <= most:
        return ""
    return (
        f"To keep this file small (numbers below {max_bytes / 1e6:g} MB), columns were merged: at most {most:,} of "
        f"{full:,} are left. The middle value is drawn; the least and the largest are kept, so no spike is lost."
    )


def _base64(block: bytes) -> str:
    # A fixed time makes the same run the same file.
    return base64.b64encode(gzip.compress(block, compresslevel=6, mtime=0)).decode()


def _json(data: Any) -> str:
    """Write JSON that cannot end the element it stands in, and that a browser can read."""
    text = json.dumps(finite(data), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def finite(value: Any) -> Any:
    """Return plain values with a text in place of each number that JSON has no word for.

    Example:
        >>> finite({"factor": float("nan"), "steps": [1, float("inf")]})
        {'factor': 'nan', 'steps': [1, 'inf']}
    """
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _check_inline(script: str, style: str) -> None:
    """Refuse a script or a style sheet of ours that would end its own element."""
    for what, text, ends in (("script", script, r"</script|<!--"), ("style sheet", style, r"</style|<!--")):
        found = re.search(ends, text, re.IGNORECASE)
        if found:
            raise ValueError(f'the {what} holds "{found[0]}", which ends it where it stands in a page: split the text')


def _policy(script: str, style: str) -> str:
    """Allow this script and this style sheet, and nothing else: no request, no frame, no form."""
    allowed = {
        "default-src": "'none'",
        "script-src": _digest(script),
        "style-src": _digest(style),
        "img-src": "data: blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{directive} {source}" for directive, source in allowed.items())


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
