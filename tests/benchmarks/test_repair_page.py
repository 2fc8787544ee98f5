"""Test ``benchmarks.ward.repair_page``."""

from __future__ import annotations

from typing import Any

from benchmarks.ward.repair_page import page, summary, uncured


def result(**what: Any) -> dict[str, Any]:
    """Make a result."""
    plain = {
        "case": "dense/x", "seed": 0, "held_back": False, "claim": "vanishing", "label": "sick", "score": 0.1,
        "twin": 0.9, "passes": 0.8, "chance": 0.1, "said": [["vanishing.depth", "warning", 3, None]],
        "strategy": "ours", "grade": "cured", "title": "He", "rule": "vanishing.depth", "severity": "warning",
        "words_only": False, "by_hand": False, "after": 0.9, "note": "", "seconds": 60.0,
    }  # fmt: skip
    return {**plain, **what}


RESULTS = [
    result(),
    result(seed=1, by_hand=True),
    result(seed=2, grade="helped", after=0.6, held_back=True),
    result(seed=3, grade="not helped", after=0.1, words_only=True, note="words only", title="look", rule="spike"),
    result(seed=4, grade="not helped", after=0.2, note="training ended: RuntimeError: no\nmore", rule="spike"),
    result(
        case="rest/y", grade="no advice", title=None, after=None, rule="", said=[["dead", "notice", 7, 9]], claim="dead"
    ),
    result(case="rest/y", seed=1, grade="needs an edit", after=None, note="edit model.py:3", claim="dead"),
    result(strategy="clip", grade="not helped"),
    result(case="rest/y", strategy="clip", grade="cured", claim="dead"),
    result(case="rest/well", label="healthy", claim=None, twin=None, grade="kept"),
    result(case="rest/well", seed=1, label="healthy", claim=None, twin=None, grade="worse", after=0.3, score=0.95),
    result(case="rest/well", seed=2, label="healthy", claim=None, twin=None, grade="no advice", title=None),
    result(case="rest/well", label="healthy", claim=None, twin=None, grade="", strategy="clip"),
    result(case="rest/z", label="undecided", grade=""),
]


def rows(text: str) -> dict[str, list[str]]:
    """Return the cells of a table by the first one."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in cells}


def test_the_summary_counts_every_sick_run_once() -> None:
    """Grades add up to the sick runs; healthy runs and those without a label count nowhere."""
    table = rows(summary(RESULTS))
    assert table["GradWatch's first remedy"] == ["7", "2 (28.6%)", "1", "1", "2", "1", "1", "1"]
    assert table["clip by global norm 1"] == ["2", "1 (50.0%)", "0", "0", "1", "0", "0", "0"]
    assert "AUTOTRAINER's first repair" not in table


def test_the_list_names_what_was_tried_by_rule() -> None:
    """Each run that is not cured has its advice, how it ended and its scores; what had none says what was said."""
    text = uncured([r for r in RESULTS if r["label"] == "sick" and r["strategy"] == "ours"])
    parts = {part.split("\n")[0]: part for part in text.split("### ")[1:]}
    assert list(parts) == ["spike", "vanishing.depth", "No advice"]
    helped = "- helped: `dense/x` (held back) seed 2, vanishing: *He*; score 0.1, treated 0.6, twin 0.9"
    assert helped in parts["vanishing.depth"]
    assert "*He* (edit model.py:3); score 0.1, twin 0.9" in parts["vanishing.depth"]
    assert "*look* (words only); score 0.1, treated 0.1" in parts["spike"]
    assert "(training ended: RuntimeError: no); score" in parts["spike"]
    assert "no remedy; said dead (notice, step 7 to 9)" in parts["No advice"]
    assert "cured" not in text
    assert uncured([result()]) == "None."


def test_the_page_says_how_it_was_made_and_holds_all_tables() -> None:
    """Families, symptoms, held-back and healthy runs each have their part."""
    text = page(RESULTS, "make repair", "3 minutes")
    assert "`make repair` (3 minutes)" in text
    assert "2 cases, 7 sick runs." in text
    parts = {part.split("\n")[0]: part for part in text.split("## ")}
    families = rows(parts["By family of networks: runs cured"])
    assert families["family"] == ["sick runs", "GradWatch's first remedy", "clip by global norm 1"]
    assert families["dense"] == ["5", "40%", "0%"]
    assert families["rest"] == ["2", "0%", "100%"]
    assert rows(parts["By symptom: runs cured"])["dead"] == ["2", "0%", "100%"]
    held = rows(parts["Runs that were held back while the rules' numbers were chosen"])
    assert held["GradWatch's first remedy"][:2] == ["1", "0 (0.0%)"]
    healthy = parts["Healthy runs"]
    assert "3 runs reached their score. 2 of them had a remedy" in healthy
    assert "1 reached their score again and 1 did not. 0 needed an edit, 1 had no remedy" in healthy
    assert "- worse: `rest/well` seed 1, None: *He*; score 0.95, treated 0.3, asked for 0.8" in healthy


def test_a_part_without_runs_is_a_page_too() -> None:
    """Of nothing the tables have heads only."""
    text = page([], "make repair", "0 minutes")
    assert "0 cases, 0 sick runs." in text
    assert "None." in text
