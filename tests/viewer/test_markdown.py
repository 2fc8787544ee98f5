"""Test ``lightning_gradwatch.viewer.markdown``."""

from __future__ import annotations

import re

import pytest
from viewer.planted import HOSTILE_MESSAGE, HOSTILE_NAME, planted_diagnosis, planted_run

from lightning_gradwatch.viewer.markdown import code_span, escaped, printable, to_markdown
from lightning_gradwatch.viewer.run import Run


def without_code(markdown: str) -> str:
    """Drop fenced blocks and code spans, in which Markdown means nothing.

    A span ends with as many backticks as it begins with (CommonMark 0.31, 6.1).
    """
    markdown = re.sub(r"^ *(`{3,})\w*\n.*?\n *\1$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", "", markdown)


def of(*diagnoses: dict) -> str:
    """Return the Markdown of a run with these diagnoses."""
    return to_markdown(Run("r", (), tuple({"event": "onset", "diagnosis": d} for d in diagnoses)))


def test_it_has_verdict_table_numbers_cause_ways_out_and_norms():
    """In that order."""
    text = to_markdown(planted_run("version_0"))
    parts = [
        "### GradWatch: `version_0`",
        "**VANISHING since step 3 (20 layers, steps 0 to 199)**",
        "| step | until | what | layers | rule |",
        "| 3 | lasts | **VANISHING**: the first layers get almost no gradient and hardly move | 10: `encoder.layers.0",
        "#### Step 3: VANISHING",
        "- measured: every layer back multiplies the gradient by 0.2",
        "- why: 20 x sigmoid",
        "- do: **nn.BatchNorm1d between 19 layers and their activations, then start again** (",
        "  ```python\n  self.net = nn.Sequential(\n      nn.Linear(32, 32)",
        "- or: **ReLU in place of sigmoid",
        "Gradient norms at step 199: ",
    ]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_a_healthy_run_is_told_in_a_line():
    """And what its norms are."""
    assert "**no warning (20 layers, steps 0 to 199)**" in to_markdown(planted_run(kind="relu"))


def test_hostile_names_and_messages_are_text():
    """No tag, no image, no bold, no table cell of theirs."""
    text = to_markdown(planted_run(kind="mixed", hostile=True))
    assert HOSTILE_NAME.replace("|", "\\|") in to_markdown(planted_run(kind="sigmoid", hostile=True))
    bare = without_code(text)
    assert not re.search(r"(?<!\\)<", bare)
    rows = [line for line in bare.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {6}
    assert "\u202e" not in text
    assert HOSTILE_MESSAGE not in text


@pytest.mark.parametrize("name", ["a`b", "``", "a|b", "line\nbreak", "\x1b[31mred", "# x", "", "@everyone", "$x$"])
def test_a_name_is_one_code_span(name):
    """Even in a table, where a bar would end the cell."""
    assert without_code(f"x {code_span(name)} y") == "x  y"
    assert not re.search(r"(?<!\\)\||\n|\x1b", code_span(name, in_table=True))


def test_a_message_mentions_nobody():
    """An issue must not call a person that a layer is named after."""
    assert "@someone" not in escaped("see @someone")


def test_underscores_within_words_stay_as_they_are():
    """``max_norm`` is read in a chat as well, where nothing is escaped."""
    assert escaped("max_norm _x_ 2*3") == r"max_norm \_x\_ 2\*3"


def test_code_cannot_leave_its_fence():
    """It has longer fences than any within; what steers a terminal is made visible."""
    way = {"title": "t", "reason": "", "code": "x = '''\n```\n</script>\n'''\n\ty\x1b[2J"}
    text = of({**planted_diagnosis("vanishing.depth", step=1, layers=["a"]), "remedies": [way]})
    assert "  ````python\n  x = '''\n  ```\n  </script>\n  '''\n      y\\x1b[2J\n  ````" in text
    assert "</script>" not in without_code(text)


def test_many_diagnoses_are_counted():
    """Twenty rows, five sections."""
    text = of(*(planted_diagnosis("spike", step=step, layers=["a"]) for step in range(30)))
    assert text.count("`spike`") == 20
    assert text.count("#### Step") == 5
    assert "and 25 more" in text


def test_a_text_in_a_line_has_nothing_that_steers_a_terminal():
    """Letters of any script stay; what is invisible is written out."""
    assert printable("gr\u00fc\u00df \u5c64\n  next\tx") == "gr\u00fc\u00df \u5c64 next x"
    assert printable("\x1b]0;t\x07\u202eabc\x9b\u2028") == r"\x1b]0;t\x07\u202eabc\x9b\u2028"
