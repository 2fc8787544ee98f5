"""Test ``pages``: what ``docs/`` shows of small sick networks is what GradWatch says of them today."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from pages.__main__ import DOCS, excerpts, first_page, with_excerpts
from pages.gallery import GALLERY
from pages.pictures import PICTURES
from pages.sick import CASES, told, train

ROOT = Path(__file__).parents[2]
TEXTS = {page.relative_to(DOCS).as_posix(): page.read_text() for page in sorted(DOCS.rglob("*.md"))}
SHOWN = {name: log for text in TEXTS.values() for name, log in excerpts(text).items()}


def masked(log: str) -> str:
    """Hide numbers: another processor rounds otherwise, and layers that lie at a bound fall on its other side."""
    return re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "#", log)


@pytest.mark.parametrize("name", CASES)
def test_a_log_in_the_docs_is_what_is_said_today(name):
    """The same words, and as many of them; ``make pages`` renews what has changed."""
    _, lines = train(name)
    assert masked(told(lines)) == masked(SHOWN[name])


def test_the_log_of_the_first_page_is_what_its_program_gives():
    """A newcomer who runs it reads the same."""
    assert masked(first_page()) == masked(SHOWN["start"])


def test_every_log_has_its_network_and_every_network_its_log():
    """None is left over; those of the gallery are tested in ``test_gallery.py``."""
    assert set(SHOWN) == {*CASES, "start", *(f"gallery:{name}" for name in GALLERY)}


def test_every_picture_that_is_drawn_is_shown():
    """And lies in the repository."""
    everything = "\n".join(TEXTS.values())
    for name, quantities in PICTURES.items():
        for quantity in quantities:
            file = f"symptom-{name}-{quantity}.png"
            assert (DOCS / "pictures" / file).is_file()
            assert f"pictures/{file})" in everything, file


def test_only_the_named_logs_of_a_page_are_renewed():
    """Everything around them stays, also a log that is still empty."""
    page = "a\n<!-- python -m pages: one -->\n```text\n```\nb\n<!-- python -m pages: two -->\n```text\nold\n```\n"
    renewed = with_excerpts(page, {"one": "new\n  line"})
    assert renewed == page.replace("```text\n```", "```text\nnew\n  line\n```")
    assert excerpts(renewed) == {"one": "new\n  line", "two": "old"}


def test_the_site_has_every_page_once():
    """What is written can be found, and what is announced is there."""

    def files(nav):
        for entry in nav:
            for value in entry.values() if isinstance(entry, dict) else [entry]:
                yield from files(value) if isinstance(value, list) else [value]

    # The last two lie at the root of the repository.
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert sorted(files(nav)) == sorted([*TEXTS, "changelog.md", "contributing.md"])
