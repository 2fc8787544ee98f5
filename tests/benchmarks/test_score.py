"""Test ``benchmarks.ward.score``."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.ward.score import Score, named, placed, score, steps_until_named, warnings_of


def warned(step: int, symptom: str = "vanishing", *layers: str, severity: str = "warning") -> dict[str, Any]:
    """Make something that a detector said."""
    return {"step": step, "symptom": symptom, "layers": list(layers), "severity": severity, "rule": "any"}


def result(label: str, *said: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Make the result of a run that one detector, ``D``, watched."""
    plain = {
        "label": label,
        "claim": "vanishing" if label == "sick" else None,
        "culprits": ["0", "2", "block.*"] if label == "sick" else [],
        "decided": "outcome",
        "event_step": 0,
        "num_steps": 100,
        "detectors": {"D": list(said)},
    }
    return plain | more


# Four sick runs and five healthy ones, and one without a label.
RUNS = (
    result("sick", warned(9, "vanishing", "0", "8")),
    result("sick", warned(4, "spike"), warned(19, "vanishing", "8", "6", "4", "0")),
    result("sick", warned(3, "exploding", "0"), decided="start"),
    result("sick", warned(2, "vanishing", "0", severity="notice")),
    result("healthy"),
    result("healthy", warned(3), warned(5, "spike"), num_steps=300),
    result("healthy", warned(3, severity="notice")),
    result("healthy", num_steps=400),
    result("healthy", warned(1, "dead"), num_steps=600),
    result("undecided", warned(1), warned(2)),
)


def test_a_run_without_a_label_counts_nowhere() -> None:
    """The undecided run is in neither of the two counts."""
    assert (score(RUNS, "D").sick, score(RUNS, "D").healthy) == (4, 5)


def test_precision_recall_and_their_mean_by_hand() -> None:
    """Of 4 sick runs 3 have a warning and of 5 healthy ones 2: precision 3 / 5, recall 3 / 4, F1 2 / 3."""
    found = score(RUNS, "D")
    assert (found.found, found.false_alarms) == (3, 2)
    assert found.precision == pytest.approx(3 / 5)
    assert found.recall == pytest.approx(3 / 4)
    assert found.f1 == pytest.approx(2 / 3)
    assert found.silent == pytest.approx(3 / 5)


def test_alarms_are_counted_by_healthy_steps() -> None:
    """Three warnings in 100 + 300 + 100 + 400 + 600 healthy steps are two in 1,000."""
    found = score(RUNS, "D")
    assert (found.alarms, found.healthy_steps) == (3, 1500)
    assert found.alarms_per_1000 == pytest.approx(2.0)


def test_a_symptom_counts_by_its_name_and_a_layer_by_the_first_such_warning() -> None:
    """Two runs have the right name; in one of them the culprit is only the fourth layer named."""
    found = score(RUNS, "D")
    assert (found.right_symptom, found.right_layer) == (2, 1)


def test_steps_are_the_median_of_those_that_were_named() -> None:
    """Named in the 10th and in the 20th step the median is 15; what was never named has no steps."""
    found = score(RUNS, "D")
    assert found.steps_by_outcome == 15.0
    assert found.steps_at_start is None


def test_steps_count_from_the_event() -> None:
    """A fault that begins in step 120 and is named in that step took one step; an earlier warning is no sooner."""
    at_once = result("sick", warned(120), event_step=120)
    later = result("sick", warned(124), event_step=120)
    before = result("sick", warned(50), event_step=120)
    assert [steps_until_named(each, "D") for each in (at_once, later, before)] == [1, 5, 1]
    assert steps_until_named(result("sick", warned(3, "dead")), "D") is None


def test_notices_are_no_warnings_and_warnings_come_in_the_order_of_steps() -> None:
    """Only warnings are returned, first things first, whatever the order in which they were written down."""
    run = result("sick", warned(9), warned(1, severity="notice"), warned(2, "dead"))
    assert [each["step"] for each in warnings_of(run, "D")] == [2, 9]
    first = named(run, "D")
    assert first is not None
    assert first["step"] == 9


@pytest.mark.parametrize(
    ("layers", "right"),
    [(("0",), True), (("9", "8", "2"), True), (("9", "8", "7", "2"), False), (("block.3.out",), True), ((), False)],
)
def test_a_culprit_is_among_the_first_three(layers: tuple[str, ...], right: bool) -> None:
    """Names are matched as patterns, and the fourth layer does not count."""
    assert placed(result("sick", warned(1, "vanishing", *layers)), "D") is right


def test_without_any_run_nothing_is_divided_by_zero() -> None:
    """A detector without runs scores zero, and is silent."""
    empty = score([], "D")
    assert (empty.precision, empty.recall, empty.f1, empty.silent, empty.alarms_per_1000) == (0, 0, 0, 1, 0)


def test_a_perfect_and_a_mute_detector() -> None:
    """Whoever warns in all sick runs alone has F1 1; whoever never warns has 0 and raises no false alarm."""
    perfect = Score("D", 4, 5, 4, 0, 4, 4, 1.0, 1.0, 100, 0)
    mute = Score("D", 4, 5, 0, 0, 0, 0, None, None, 100, 0)
    assert (perfect.precision, perfect.recall, perfect.f1, perfect.silent) == (1, 1, 1, 1)
    assert (mute.precision, mute.recall, mute.f1, mute.silent) == (0, 0, 0, 1)
