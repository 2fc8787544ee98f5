"""Test ``lightning_gradwatch.report.ways_out``."""

from __future__ import annotations

from lightning_gradwatch import Diagnosis, Remedy, Symptom
from lightning_gradwatch.report.log import onset_text
from lightning_gradwatch.report.ways_out import did_in_words, ways_out

SICK = Diagnosis("vanishing.depth", Symptom.VANISHING, layers=("0",), message="fades")
EVEN = {"loss_before": 2.0, "loss_after": 1.0, "loss_untreated": 1.5, "steps": 3}
EVEN |= {"first_over_last_before": 0.5, "first_over_last_after": 0.5}
MENDED = {**EVEN, "first_over_last_before": 1e-9}


def remedy(title: str, effect: dict[str, float] | None = None) -> Remedy:
    """Return a remedy."""
    return Remedy(title, "", SICK, effect=effect)


def test_what_a_word_means_is_said_where_it_is_used():
    """The ratio along depth is explained where one is shown, and not where none is."""
    (how, text), (key, tried) = ways_out([remedy("a", MENDED)])
    assert (how, key) == ("tried", "try 1")
    assert "first/last gradient: what reaches the first layer" in text
    assert tried.splitlines() == ["a", did_in_words(remedy("a", MENDED))]
    (_, text), _ = ways_out([remedy("a", EVEN)])
    assert text == "rehearsed on this batch, each on a copy of the model"


def test_no_more_than_three_are_shown_and_what_was_not_tried_has_one_line():
    """In the order in which they are given."""
    rows = ways_out([remedy("a", EVEN), remedy("b"), remedy("c", EVEN), remedy("d", EVEN)], "d: not rehearsed")
    assert [key for key, _ in rows] == ["tried", "try 1", "try 2", "try 3"]
    assert rows[0][1].endswith("; d: not rehearsed")
    assert rows[2] == ("try 2", "b\nnot rehearsed")


def test_without_a_rehearsal_only_the_first_is_told_in_the_log():
    """With the reason, where a rehearsal was asked for."""
    assert ways_out([remedy("a"), remedy("b")]) == [("do", "a"), ("tried", "")]
    assert ways_out([], alternatives=True) == [("tried", "")]


def test_the_log_sets_the_second_line_below_the_first():
    """A person looks down a column."""
    sick = Diagnosis("r", Symptom.VANISHING, layers=("0",), message="fades", remedies=(remedy("a", EVEN),))
    head, tried, first, second, rule = onset_text(sick, 2).splitlines()
    assert head.endswith("VANISHING: fades (1 of 2 layers: 0)")
    assert tried.startswith("  tried      rehearsed on this batch")
    assert (first, second) == ("  try 1      a", "             loss 2 -> 1 in 3 steps (1.5 without it)")
    assert rule == "  rule       r"
