"""``python -m pages``: train the small sick networks, and put their logs and pictures into ``docs/``."""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from pages.pictures import draw
from pages.sick import CASES, heard, told, train

DOCS = Path(__file__).parents[1] / "docs"
_EXCERPT = re.compile(r"(<!-- python -m pages: ([\w-]+) -->\n```text\n)(.*?)(^```$)", flags=re.DOTALL | re.MULTILINE)


def excerpts(text: str) -> dict[str, str]:
    """Return the log excerpts of a page, by the name of their case."""
    return {name: log.strip("\n") for _, name, log, _ in _EXCERPT.findall(text)}


def with_excerpts(text: str, logs: dict[str, str]) -> str:
    """Return a page with these logs in the place of its own; others stay."""

    def fresh(found: re.Match[str]) -> str:
        head, name, log, end = found.groups()
        return f"{head}{logs[name]}\n{end}" if name in logs else f"{head}{log}{end}"

    return _EXCERPT.sub(fresh, text)


def first_page() -> str:
    """Run the program of the first page, and return what is told."""
    program = re.findall(r"```python\n(.*?)```", (DOCS / "index.md").read_text(), flags=re.DOTALL)[0]
    names: dict[str, Any] = {}
    home = Path.cwd()
    with heard() as lines, tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            exec(program, names)  # noqa: S102 - our own page
        finally:
            os.chdir(home)
    return told(lines).replace(str(Path(folder).resolve()) + "/", "")


def main() -> None:
    """Make all of them, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], help="by default all")
    logs = {"start": first_page()}
    for name in parser.parse_args().cases or CASES:
        watch, lines = train(name)
        logs[name] = told(lines)
        draw(name, watch, DOCS / "pictures")
        print(f"--- {name}\n{logs[name]}")
    for page in DOCS.rglob("*.md"):
        text = page.read_text()
        if (new := with_excerpts(text, logs)) != text:
            page.write_text(new)


if __name__ == "__main__":
    main()
