"""Test that ``README.zh.md`` says what is true: its code runs, its commands exist, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "README.zh.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Return the code blocks of the page."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.filterwarnings("ignore:.*(GPU|TPU|HPU) available")
def test_python_blocks_run_in_their_order(tmp_path, monkeypatch, capsys):
    """Each block runs after those before it, and the last one prints what is wrong, why, and lines to paste."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks("python"):
        exec(block, names)
    assert [diagnosis.rule for diagnosis in names["watch"].diagnoses] == ["vanishing.depth"]
    printed = capsys.readouterr().out
    assert "the first layers get almost no gradient" in printed
    assert "12 x sigmoid" in printed
    assert "nn." in names["watch"].remedies[0].code


def test_commands_exist():
    """Each `make` command of the page is a target."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    named = re.findall(r"make ([\w-]+)", PAGE)
    assert {"demo", "test", "dashboard"} <= set(named)
    assert set(named) <= set(targets)


def test_links_lead_somewhere():
    """Every relative link is a file of the repository."""
    targets = re.findall(r"\]\(([^)#:]+)\)", PAGE)
    assert "docs/seed.md" in targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_it_is_in_step_with_the_english_page():
    """What a reader types first is the same on both pages."""
    english = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line.split("#")[0].strip() for line in "\n".join([*blocks("bash"), blocks("python")[0]]).splitlines()]
    assert [line for line in lines if line not in english] == []


def table(page: str) -> list[list[str]]:
    """Return the cells of the only table of a page."""
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_its_table_is_the_english_one():
    """The same columns, and "yes" and "no" in the same places."""
    plain = {"是": "yes", "否": "no"}
    english, chinese = table((ROOT / "README.md").read_text(encoding="utf-8")), table(PAGE)
    assert chinese[0] == english[0]
    assert [[plain.get(cell, "") for cell in row] for row in chinese] == [
        [cell if cell in plain.values() else "" for cell in row] for row in english
    ]


def test_its_numbers_of_the_ward_are_the_english_ones():
    """How many runs, and the shares of the sick and of the healthy."""
    english = re.search(
        r"On (\d+) sick and .* in (\d+)% of the sick .* in (\d+)% of", (ROOT / "README.md").read_text("utf-8")
    )
    chinese = re.search(r"在 (\d+) 次有问题和正常的训练中.*?(\d+)% .*?(\d+)% ", PAGE, flags=re.DOTALL)
    assert english is not None
    assert chinese is not None
    assert chinese.groups() == english.groups()


def test_chinese_has_its_own_punctuation():
    """Between two Chinese characters there is no comma, colon, semicolon or bracket of Latin text."""
    assert re.findall(r"[\u4e00-\u9fff][,:;?!()][\u4e00-\u9fff]", PAGE) == []
