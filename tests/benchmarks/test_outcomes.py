"""Test ``benchmarks.ward.outcomes``."""

from __future__ import annotations

import json
import sys
from functools import partial

import pytest
import torch
from torch import nn

from benchmarks.ward import outcomes
from benchmarks.ward.case import Case, Lesson
from lightning_gradwatch import Symptom


def lesson(seed: int, score: float) -> Lesson:
    """Make a lesson of one step with a known score."""
    torch.manual_seed(seed)
    model = nn.Linear(2, 1)
    return Lesson(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        batches=[(torch.ones(4, 2),)],
        loss=lambda net, batch: net(batch[0]).mean(),
        score=lambda _: score,
        passes=0.8,
    )


def case(score: float, cured: float | None) -> Case:
    """Make a case that reaches a score, and whose cure reaches another."""
    if cured is None:
        return Case("plain", partial(lesson, score=score))
    return Case("ill", partial(lesson, score=score), Symptom.VANISHING, ("*",), cure=partial(lesson, score=cured))


@pytest.mark.parametrize(
    ("score", "cured", "label"),
    [
        (0.1, 0.9, "sick"),
        (0.1, 0.8, "sick"),
        (0.79, 0.9, "sick"),
        (0.8, 0.9, "healthy"),
        (0.9, 0.1, "healthy"),
        (0.1, 0.7, "undecided"),
        (0.9, None, "healthy"),
        (0.8, None, "healthy"),
        (0.79, None, "undecided"),
    ],
)
def test_the_outcome_decides_whatever_was_claimed(score: float, cured: float | None, label: str) -> None:
    """Only a run that failed and that the cure alone mends is sick; a claim without its outcome is undecided."""
    # A run that has trained has nothing to be cured of, and its cure is not trained.
    asked = None if score >= 0.8 else cured
    assert outcomes.outcome(case(score, cured), 0) == {"label": label, "score": score, "cure_score": asked}


def test_a_known_score_is_not_trained_for_again() -> None:
    """Where the run has been trained already, its score is taken and only the cure is trained."""
    assert outcomes.outcome(case(0.1, 0.9), 0, score=0.95)["label"] == "healthy"
    assert outcomes.outcome(case(0.9, 0.9), 0, score=0.2)["label"] == "sick"


def test_a_score_of_nan_is_no_pass() -> None:
    """A network whose score is not a number has failed."""
    assert outcomes.outcome(case(float("nan"), 0.9), 0)["label"] == "sick"
    assert outcomes.outcome(case(0.1, float("nan")), 0)["label"] == "undecided"


def test_the_command_prints_a_line_a_run_and_goes_on_where_it_was(monkeypatch, tmp_path, capsys) -> None:
    """Every run has its line and its entry in the file, and a second call trains only what the file lacks."""
    monkeypatch.setattr(outcomes, "all_cases", lambda: (case(0.9, None), case(0.1, 0.9)))
    file = tmp_path / "labels.json"

    def lines(*arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["outcomes", "--out", str(file), *arguments])
        outcomes.main()
        return [line.split()[:2] for line in capsys.readouterr().out.splitlines()]

    assert lines("--seeds", "1", "--only", "pl*") == [["plain:0", "healthy"]]
    assert lines("--seeds", "2") == [["plain:1", "healthy"], ["ill:0", "sick"], ["ill:1", "sick"]]
    assert lines("--seeds", "2") == []
    assert set(json.loads(file.read_text())) == {"plain:0", "plain:1", "ill:0", "ill:1"}
