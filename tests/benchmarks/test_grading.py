"""Test ``benchmarks.ward.grading``."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.ward.cases import all_cases
from benchmarks.ward.data import table
from benchmarks.ward.grading import chance, grade


@pytest.mark.parametrize(
    ("score", "after", "expected"),
    [
        # The twin has 0.9 and chance 0.1: a gain of 0.8, of which 95% are 0.76 and half are 0.4.
        (0.1, 0.86, "cured"),
        (0.1, 0.8599, "helped"),
        (0.1, 0.5, "helped"),
        (0.1, 0.4999, "not helped"),
        (0.3, 0.6999, "not helped"),
        (0.3, 0.7, "helped"),
        (0.1, 0.1, "not helped"),
        # NaN scores 0; to be back at chance, or half a gain above 0, is no help.
        (0.0, 0.4, "not helped"),
        (0.0, 0.5, "helped"),
        (0.8, 0.95, "cured"),
    ],
)
def test_grades_are_those_of_the_gain_over_chance(score: float, after: float, expected: str) -> None:
    """Cured is 95% of the twin's gain, helped is half of it more than before, counted from chance at least."""
    assert grade(score, after, twin=0.9, by_chance=0.1) == expected


class Constant(nn.Module):
    """Gives the same row whatever it is asked."""

    def __init__(self, row: torch.Tensor) -> None:
        super().__init__()
        self.row = row

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.row.expand(len(x), *self.row.shape)


def blind(case) -> float:
    """Return the best score, on average over what it may say, of a network that looks at nothing."""
    lesson = case.lesson(0)
    if case.name.startswith("generative/autoencoder"):
        return lesson.score(Constant(table("digits")[0][:-300].mean(0)))
    if lesson.batches[0][1].is_floating_point():
        return lesson.score(Constant(torch.cat([batch[1] for batch in lesson.batches]).mean(0)))
    if "one-unit" in case.name:
        scores = [lesson.score(Constant(torch.tensor([share]))) for share in (0.0, 1.0)]
    else:
        with torch.no_grad():
            outputs = lesson.model.eval()(lesson.batches[0][0]).shape[-1]
        scores = [lesson.score(Constant(row)) for row in torch.eye(outputs)]
    return sum(scores) / len(scores)


def test_chance_is_what_a_blind_network_gets_in_every_sick_case() -> None:
    """For each case with a fault, guessing one class, the mean of the targets or the mean picture scores as it says."""
    sick = [case for case in all_cases() if case.symptom is not None]
    seen = set()
    for case in sick:
        by_chance = chance(case, case.lesson(0))
        seen.add(round(by_chance, 3))
        assert blind(case) == pytest.approx(by_chance, abs=0.01), case.name
    assert seen == {0.0, 0.1, 0.25, 0.333, 0.474, 0.5}
