"""Test ``benchmarks.ward.table``."""

from __future__ import annotations

import re
from typing import Any

from benchmarks.ward.run import OURS
from benchmarks.ward.table import page, scores


def warned(step: int, symptom: str, *layers: str) -> dict[str, Any]:
    """Make a warning."""
    rule = {"vanishing": "vanishing.depth"}.get(symptom, symptom)
    return {"step": step, "symptom": symptom, "layers": list(layers), "severity": "warning", "rule": rule}


def result(
    name: str, label: str, ours: list[dict[str, Any]], theirs: list[dict[str, Any]], **more: Any
) -> dict[str, Any]:
    """Make the result of a run that GradWatch and one rival watched."""
    sick = label == "sick"
    plain = {
        "case": name,
        "seed": 0,
        "label": label,
        "held_back": False,
        "claim": "vanishing" if sick else None,
        "negative": "",
        "culprits": ["0"] if sick else [],
        "decided": "start",
        "event_step": 0,
        "num_steps": 100,
        "detectors": {"Rival": theirs, OURS: ours},
        "score": 0.123 if sick else 0.987,
        "cure_score": 0.9 if sick else None,
    }
    return plain | more


RIGHT = [warned(4, "vanishing", "0")]
RESULTS = [
    result("a/found", "sick", RIGHT, []),
    result("a/missed", "sick", [], RIGHT),
    result("a/misnamed", "sick", [warned(7, "spike", "0")], RIGHT),
    result("a/misplaced", "sick", [warned(8, "vanishing", "6")], RIGHT, held_back=True),
    result("b/quiet", "healthy", [], RIGHT, negative="a GAN"),
    result("b/alarm", "healthy", RIGHT, RIGHT, held_back=True),
    result("c/neither", "undecided", RIGHT, [], claim="dead", seed=3),
]
PAGE = page(RESULTS, "make something", "12 minutes")


def section(title: str) -> str:
    """Return what stands under a heading."""
    return re.split(r"\n## ", PAGE.partition(f"## {title}\n")[2])[0].strip()


def cells(line: str) -> list[str]:
    """Return the cells of a row."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_it_names_the_command_and_what_was_run() -> None:
    """The page says what makes it, how long that took, and how many runs of each kind there were."""
    assert "`make something` (12 minutes)" in PAGE
    assert "7 cases, 7 runs: 4 sick (4 vanishing), 2 healthy (33% of those with a label), 1 without a label." in PAGE


def test_all_runs_tuned_ones_and_held_back_ones_have_a_table_each() -> None:
    """The three tables hold the same detectors, ours first, and the counts of their own runs."""
    titles = ("All runs", "Runs of the cases on which the numbers of the rules were chosen")
    for title in (*titles, "Runs of the cases that were held back"):
        rows = section(title).splitlines()
        assert [cells(row)[0] for row in rows] == ["detector", "---", "GradWatch", "Rival"]
    everything = cells(section("All runs").splitlines()[2])
    # 3 of 4 found and 1 of 2 alarms: precision 3 / 4, recall 3 / 4; 2 of 4 named, 1 of 4 placed; steps 5 and 9.
    assert everything == ["GradWatch", "0.750", "0.750", "0.750", "50.0%", "25.0%", "7", "-", "50.0%", "5.00"]
    held = cells(section("Runs of the cases that were held back").splitlines()[2])
    assert held == ["GradWatch", "0.500", "1.000", "0.667", "100.0%", "0.0%", "9", "-", "0.0%", "10.00"]


def test_rivals_are_ordered_by_how_good_they_are() -> None:
    """Ours stands first whatever its score, then the best."""
    run = result("a/x", "sick", [], [])
    run["detectors"] = {"bad": [], "good": RIGHT, OURS: []}
    assert [cells(row)[0] for row in scores([run]).splitlines()[2:]] == [OURS, "good", "bad"]


def test_every_mistake_of_ours_is_listed_and_nothing_else() -> None:
    """A false alarm, a missed, a misnamed and a misplaced run are named with what was said; the right ones are not."""
    assert section("What GradWatch got wrong").splitlines() == [
        "- missed: `a/missed` seed 0, vanishing (score 0.123, cured 0.9)",
        "- wrong symptom: `a/misnamed` seed 0 is vanishing, said spike at step 7",
        "- wrong layer: `a/misplaced` seed 0, vanishing, said vanishing.depth at step 8",
        "- false alarm: `b/alarm` seed 0 said vanishing.depth at step 4 (score 0.987)",
    ]


def test_runs_without_a_label_are_named_with_their_scores() -> None:
    """Nothing is left out in silence."""
    assert section("Runs without a label") == "- `c/neither` seed 3: score 0.987, cured None"


def test_every_case_has_a_row() -> None:
    """Each case stands with its claim, the labels of its runs and what we said, the held back ones marked."""
    rows = [cells(row) for row in section("The cases").splitlines()[2:9]]
    assert rows[0] == ["a/found", "vanishing", "1, 0, 0", "1 of 1"]
    assert rows[4] == ["b/quiet", "healthy: a GAN", "0, 1, 0", "0 of 1"]
    assert rows[5] == ["b/alarm *", "healthy", "0, 1, 0", "1 of 1"]
    assert len(rows) == 7


def test_without_mistakes_it_says_so() -> None:
    """A page of right answers alone lists none."""
    good = page([RESULTS[0], RESULTS[4]], "x", "y")
    assert "## What GradWatch got wrong\n\nNothing.\n" in good
    assert "## Runs without a label\n\nNone.\n" in good
    assert "Runs of the cases that were held back" in good
