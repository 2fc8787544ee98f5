"""Test ``hatch_build``: the readme that a package index shows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hatch_build import IndexReadme

ROOT = Path(__file__).parents[1]


def shown(**metadata):
    """Return the readme of a project with this metadata."""
    IndexReadme(str(ROOT), {}).update(metadata)
    assert metadata["readme"]["content-type"] == "text/markdown"
    return metadata["readme"]["text"]


def test_without_an_address_no_link_leads_nowhere():
    """Pictures are left out, and links that are files of the repository keep their words."""
    text = shown()
    assert re.findall(r"\]\((?!https?:)[^)]*\)", text) == []
    assert "![" not in text
    assert "* Symptoms: vanishing, exploding" in text


def test_the_rest_is_what_readme_md_says():
    """Every line that has no link is there, in its order, and below them where the pages are."""
    kept = shown().splitlines()
    lines = [
        line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line and "](" not in line
    ]
    assert [line for line in kept if line in lines] == lines
    assert kept[-1].endswith("are in the source distribution.")


def test_with_an_address_links_and_pictures_are_whole():
    """They lead to the branch `main`."""
    text = shown(urls={"Repository": "https://example.org/someone/project/"})
    assert "(https://example.org/someone/project/blob/main/docs/alternatives.md)" in text
    assert "(https://example.org/someone/project/raw/main/docs/pictures/sigmoid-beside-relu.png)" in text
    assert re.findall(r"\]\((?!https?:)[^)]*\)", text) == []


@pytest.fixture(scope="module")
def built():
    """Return what hatchling makes of pyproject.toml."""
    command = [sys.executable, "-W", "ignore", "-m", "hatchling", "metadata"]
    return json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def test_it_is_the_readme_of_what_is_built(built):
    """``pyproject.toml`` asks for it."""
    assert built["readme"]["text"] == shown(urls=built.get("urls", {}))
    assert built["authors"] == [{"name": "The lightning_gradwatch contributors"}]
