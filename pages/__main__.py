"""``python -m pages``: train the small sick networks, run the gallery, and put their logs and pictures into ``docs/``.

``python -m pages vanishing gallery:optimizers`` makes only these.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pages.figures import FIGURES
from pages.gallery import GALLERY, alone, run
from pages.panels import save
from pages.pictures import draw
from pages.sick import CASES, heard, told, train

DOCS = Path(__file__).parents[1] / "docs"
_EXCERPT = re.compile(r"(<!-- python -m pages: ([\w:-]+) -->\n```text\n)(.*?)(^```$)", flags=re.DOTALL | re.MULTILINE)


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


def sick(name: str) -> str:
    """Train a network of the symptom pages, draw its pictures and return its log."""
    watch, lines = train(name)
    draw(name, watch, DOCS / "pictures")
    return told(lines)


def of_the_gallery(name: str) -> str:
    """Run a script of the gallery, draw its picture and return what it prints."""
    with tempfile.TemporaryDirectory() as folder:
        ran = run(name, Path(folder))
        # Some train for their picture.
        with alone(ran.folder, [name]):
            figure = FIGURES[name](ran)
        save(figure, DOCS / "pictures" / f"gallery-{name}.png")
    return ran.text


def main() -> None:
    """Make all of them, or those that are named."""
    makers: dict[str, Callable[[], str]] = {"start": first_page}
    makers |= {name: partial(sick, name) for name in CASES}
    makers |= {f"gallery:{name}": partial(of_the_gallery, name) for name in GALLERY}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *makers], help="by default all")
    logs = {}
    for name in parser.parse_args().names or makers:
        logs[name] = makers[name]()
        print(f"--- {name}\n{logs[name]}")
    for page in DOCS.rglob("*.md"):
        text = page.read_text()
        if (new := with_excerpts(text, logs)) != text:
            page.write_text(new)


if __name__ == "__main__":
    main()
