"""Test ``lightning_gradwatch.detect.precedence``."""

from __future__ import annotations

from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.detect.precedence import by_cause


def fault(rule: str, step: int, recovered_at: int | None = None, severity: str = "warning") -> Diagnosis:
    """Make a diagnosis."""
    return Diagnosis(rule, Symptom.EXPLODING, severity, step=step, recovered_at=recovered_at)


def order(*diagnoses: Diagnosis) -> list[str]:
    """Return the rules in the order in which they are to be cured."""
    return [each.rule for each in by_cause(diagnoses)]


def test_what_came_first_is_cured_first() -> None:
    """Of warnings that last the oldest."""
    assert order(fault("late", 9), fault("early", 3)) == ["early", "late"]


def test_a_warning_that_ended_shortly_before_the_lasting_ones_leads() -> None:
    """A step that overwrites weights is over at once; what was over long before led to nothing that lasts."""
    jump, dead = fault("jump", 0, recovered_at=3), fault("dead", 17)
    assert order(jump, dead) == ["jump", "dead"]
    assert order(jump, fault("dead", 104)) == ["dead", "jump"]


def test_warnings_come_before_notices_and_what_lasts_before_what_is_over() -> None:
    """All are there."""
    faults = (
        fault("notice over", 1, 2, "notice"), fault("notice", 5, None, "notice"), fault("over", 7, 8),
        fault("lasting", 500),
    )  # fmt: skip
    assert order(*faults) == ["lasting", "over", "notice", "notice over"]


def test_without_a_lasting_warning_those_that_are_over_come_by_age() -> None:
    """A run whose faults have all recovered still has something to be cured."""
    assert order(fault("second", 50, 60), fault("first", 1, 4)) == ["first", "second"]
    assert order() == []
