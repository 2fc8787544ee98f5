"""How well each detector has told sick from healthy runs: pure functions of the results of runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from statistics import median
from typing import Any

Result = dict[str, Any]


@dataclass(frozen=True)
class Score:
    """What one detector has reached on some runs.

    Attributes:
        detector: Its name.
        sick: How many runs were sick.
        healthy: How many were healthy.
        found: Sick runs in which it warned.
        false_alarms: Healthy runs in which it warned.
        right_symptom: Sick runs in which it named the symptom.
        right_layer: Sick runs in which a culprit was among the first three layers named with the symptom.
        steps_at_start: Median of the steps until it named the symptom, where that can be decided at the start.
        steps_by_outcome: The same where only the outcome decides.
        healthy_steps: Steps of all healthy runs.
        alarms: Warnings in them.
    """

    detector: str
    sick: int
    healthy: int
    found: int
    false_alarms: int
    right_symptom: int
    right_layer: int
    steps_at_start: float | None
    steps_by_outcome: float | None
    healthy_steps: int
    alarms: int

    @property
    def precision(self) -> float:
        """Share of the runs it warned in that were sick."""
        return self.found / max(self.found + self.false_alarms, 1)

    @property
    def recall(self) -> float:
        """Share of the sick runs that it warned in."""
        return self.found / max(self.sick, 1)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0

    @property
    def silent(self) -> float:
        """Share of the healthy runs without a false alarm."""
        return 1 - self.false_alarms / max(self.healthy, 1)

    @property
    def alarms_per_1000(self) -> float:
        """False alarms in 1,000 healthy steps."""
        return 1000 * self.alarms / max(self.healthy_steps, 1)


def warnings_of(result: Result, detector: str) -> list[dict[str, Any]]:
    """Return what a detector has warned of in a run, first things first; notices are none."""
    said = result["detectors"][detector]
    return sorted((each for each in said if each["severity"] == "warning"), key=lambda each: each["step"])


def named(result: Result, detector: str) -> dict[str, Any] | None:
    """Return the first warning with the right symptom, None where there is none."""
    return next((w for w in warnings_of(result, detector) if w["symptom"] == result["claim"]), None)


def steps_until_named(result: Result, detector: str) -> int | None:
    """Return how many steps it took from the event, or from the start, to the first warning with the right symptom."""
    first = named(result, detector)
    return None if first is None else max(first["step"] - result["event_step"], 0) + 1


def placed(result: Result, detector: str) -> bool:
    """Tell whether a culprit is among the first three layers that were named with the right symptom."""
    first = named(result, detector)
    if first is None:
        return False
    return any(fnmatchcase(layer, culprit) for layer in first["layers"][:3] for culprit in result["culprits"])


def score(results: Iterable[Result], detector: str) -> Score:
    """Score a detector.

    Args:
        results: Runs; those without a label are left out.
        detector: Whom.

    Returns:
        Its score.
    """
    results = list(results)
    sick = [result for result in results if result["label"] == "sick"]
    healthy = [result for result in results if result["label"] == "healthy"]
    alarms = [len(warnings_of(result, detector)) for result in healthy]
    return Score(
        detector=detector,
        sick=len(sick),
        healthy=len(healthy),
        found=sum(bool(warnings_of(result, detector)) for result in sick),
        false_alarms=sum(count > 0 for count in alarms),
        right_symptom=sum(named(result, detector) is not None for result in sick),
        right_layer=sum(placed(result, detector) for result in sick),
        steps_at_start=_median_steps(sick, detector, "start"),
        steps_by_outcome=_median_steps(sick, detector, "outcome"),
        healthy_steps=sum(result["num_steps"] for result in healthy),
        alarms=sum(alarms),
    )


def _median_steps(sick: Sequence[Result], detector: str, decided: str) -> float | None:
    steps = [steps_until_named(result, detector) for result in sick if result["decided"] == decided]
    known = [count for count in steps if count is not None]
    return median(known) if known else None
