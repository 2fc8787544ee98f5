"""Test ``lightning_gradwatch.viewer.terminal``."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from viewer.planted import planted_diagnosis, planted_run

from lightning_gradwatch.viewer.run import Run
from lightning_gradwatch.viewer.terminal import Paper, columns_of, report_lines, table, wrapped


class Terminal(io.StringIO):
    """A stream that is one."""

    def isatty(self):
        return True


def test_colors_are_for_terminals_only(monkeypatch):
    """And not where the person or the terminal wants none."""
    for name in ("NO_COLOR", "TERM", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    assert Paper.of(Terminal()).colored
    assert not Paper.of(io.StringIO()).colored
    monkeypatch.setenv("TERM", "dumb")
    assert not Paper.of(Terminal()).colored
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Paper.of(Terminal()).colored
    monkeypatch.setenv("NO_COLOR", "")  # no-color.org: "when present and not an empty string"
    assert Paper.of(Terminal()).colored


def test_the_width_is_the_windows_within_reason(monkeypatch):
    """``COLUMNS`` goes first; a file has 100."""
    monkeypatch.setenv("COLUMNS", "72")
    assert Paper.of(io.StringIO()).width == 72
    monkeypatch.setenv("COLUMNS", "5")
    assert Paper.of(io.StringIO()).width == 50
    monkeypatch.setenv("COLUMNS", "900")
    assert Paper.of(io.StringIO()).width == 140
    monkeypatch.delenv("COLUMNS")
    assert Paper.of(io.StringIO()).width == 100


@pytest.mark.parametrize("width", [50, 72, 100, 140])
@pytest.mark.parametrize("kind", ["sigmoid", "relu", "mixed", "recurrent"])
@pytest.mark.parametrize("hostile", [False, True])
def test_no_line_is_wider_than_the_window_but_those_to_paste(width, kind, hostile):
    """Whatever layers are called."""
    run = planted_run(kind=kind, hostile=hostile)
    code = {line.strip() for d in run.diagnoses for way in d["remedies"] for line in way["code"].splitlines()}
    for line in report_lines(run, Paper(width)):
        assert columns_of(line) <= width or any(line.endswith(part) for part in code)
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e]", line)


def test_the_verdict_comes_first_then_the_numbers_then_ways_out():
    """As a person reads."""
    text = "\n".join(report_lines(planted_run("version_0"), Paper(120)))
    parts = ["version_0: VANISHING since step 3", "step  until  what", "VANISHING: the first layers", "measured"]
    parts += ["every layer back multiplies", "why ", "do ", "paste", "self.net = nn.Sequential(", "or "]
    parts += ["rule       vanishing.depth", "gradient norms at step 199"]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_lines_to_paste_are_not_broken_and_keep_their_indentation():
    """They have to stay what they are."""
    long = f"x = {'1 + ' * 60}1"
    way = {"title": "t", "reason": "", "code": f"if y:\n\t{long}\n"}
    sick = {**planted_diagnosis("vanishing.depth", step=1, layers=["a"]), "remedies": [way]}
    lines = report_lines(Run("r", (), ({"event": "onset", "diagnosis": sick},)), Paper(60))
    first = next(number for number, line in enumerate(lines) if "paste" in line)
    column = lines[first].index("if y:")
    assert [line[column:] for line in lines[first : first + 2]] == ["if y:", f"    {long}"]


def test_a_sick_run_is_red_and_a_healthy_one_green():
    """In colors that end where the line ends."""
    sick = report_lines(planted_run(), Paper(100, colored=True))
    assert sick[0].startswith("\x1b[31;1m")
    assert report_lines(planted_run(kind="relu"), Paper(100, colored=True))[0].startswith("\x1b[32m")
    assert all(line.count("\x1b[") in {0, 2} and ("\x1b[" not in line or line.endswith("\x1b[0m")) for line in sick)


def test_two_optimizers_of_one_class_are_told_apart():
    """By their number, as in the log."""
    run = planted_run(kind="relu")
    (norms,) = (series for series in run.series if series.about.name == "norms/0")
    second = replace(norms, about=replace(norms.about, optimizer=1))
    text = "\n".join(report_lines(replace(run, series=(*run.series, second)), Paper(width=100)))
    assert "gradient norms of optimizer_0 (Adam) at step 199" in text
    assert "gradient norms of optimizer_1 (Adam) at step 199" in text


def test_a_fault_that_comes_back_is_explained_once():
    """The table has each onset, up to twenty."""
    events = [
        {"event": "onset", "diagnosis": planted_diagnosis("vanishing.depth", step=step, layers=["a"])}
        for step in range(30)
    ]
    text = "\n".join(report_lines(Run("r", (), tuple(events)), Paper(100)))
    assert text.count("measured") == 1
    assert "and 10 more" in text


def test_columns_are_aligned_by_what_a_terminal_shows():
    """A letter of an East Asian script takes two places, an accent none."""
    lines = table([["layer", "x"], ["\u5c64\u5c64", "1"], ["e\u0301", "2"], ["abc", "3"]], Paper(60))
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines]
    assert [cell[1] for cell in cells] == ["x", "1", "2", "3"]
    assert {columns_of(line[: line.rindex(cell[1])]) for line, cell in zip(lines, cells, strict=True)} == {9}


def test_wide_columns_share_what_the_others_leave():
    """What the modest one does not use the other gets."""
    lines = table([["a", "b", "c"], ["1", "word " * 30, "short"]], Paper(60), wide={1: 1, 2: 1})
    assert max(map(len, lines)) > 50
    assert all(columns_of(line) <= 60 for line in lines)


def test_a_text_is_broken_at_blanks_and_a_long_word_anywhere():
    """No letter is lost."""
    text = "tea at " + "x" * 25 + " four"
    lines = wrapped(text, 12, indent="- ")
    assert all(columns_of(line) <= 12 for line in lines)
    assert "".join(line[2:] for line in lines).replace(" ", "") == text.replace(" ", "")
    assert wrapped("", 12) == [""]
