"""Test ``benchmarks.ward.run``."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from benchmarks.ward import run as module
from benchmarks.ward.case import Case
from benchmarks.ward.recipes import Recipe, sick, well
from benchmarks.ward.recording import observed
from benchmarks.ward.rivals.callback import published_rules
from benchmarks.ward.run import OURS, attempt, run
from lightning_gradwatch import Symptom

_PLAIN = Recipe(data="circle", depth=2, width=16, rate=1e-2, num_steps=120)
WELL = well("family/well", _PLAIN, "a circle")
ILL = sick(
    "family/ill",
    replace(_PLAIN, optimizer="sgd", rate=1e-12),
    Symptom.VANISHING,
    ("0",),
    {"optimizer": "adam", "rate": 1e-2},
    decided="start",
)


def test_a_result_is_plain_and_whole() -> None:
    """A result survives JSON, and holds the claim, the outcome and what each detector said."""
    found = run(WELL, 0)
    assert json.loads(json.dumps(found)) == found
    assert (found["case"], found["seed"], found["claim"], found["negative"]) == ("family/well", 0, None, "a circle")
    assert (found["label"], found["num_steps"], found["culprits"]) == ("healthy", 120, [])
    assert set(found["detectors"]) == {OURS, *(rule.name for rule in published_rules())}
    assert found["seconds"] > 0


def test_the_rivals_may_stay_away() -> None:
    """Without rivals GradWatch says the same, and is alone."""
    alone = run(ILL, 0, rivals=False)["detectors"]
    assert alone == {OURS: run(ILL, 0)["detectors"][OURS]}


def test_a_sick_run_has_our_diagnosis_with_names_as_in_the_case() -> None:
    """The names of layers are those of the lesson's model, at most three, and the cure was trained."""
    found = run(ILL, 1)
    assert (found["label"], found["claim"], found["decided"]) == ("sick", "vanishing", "start")
    assert found["score"] < 0.85 <= found["cure_score"]
    warnings = [said for said in found["detectors"][OURS] if said["severity"] == "warning"]
    assert [said["rule"] for said in warnings] == ["vanishing.update"]
    assert set(warnings[0]["layers"]) <= {"0", "2", "4"}
    assert len(warnings[0]["layers"]) <= 3
    # The weights move by less than 1e-8 of themselves: SageMaker Debugger's rule says so as well.
    assert "vanishing" in {said["symptom"] for said in found["detectors"]["SageMaker Debugger"]}


def test_steps_are_those_of_the_optimizer() -> None:
    """With accumulation four batches make one step."""
    case = Case("family/four", replace(_PLAIN, accumulate=4, num_steps=20).lesson)
    assert run(case, 0)["num_steps"] == 20


def test_a_recording_is_written_where_asked_and_changes_nothing_that_is_said(tmp_path: Path) -> None:
    """With a folder the run can be replayed; what the detectors say is the same as without."""
    plain, recorded = run(ILL, 0), run(ILL, 0, record=tmp_path)
    assert recorded["detectors"] == plain["detectors"]
    assert [about.step for about in observed(tmp_path / "family+ill+0.pkl")] == list(range(120))


def test_a_watch_that_has_switched_itself_off_is_an_error(monkeypatch) -> None:
    """A monitor that died must not look like one that has found nothing."""

    class Off(module.GradWatch):
        @property
        def disabled_reason(self) -> str:
            return "no more"

    monkeypatch.setattr(module, "GradWatch", Off)
    with pytest.raises(RuntimeError, match="switched itself off in family/well: no more"):
        run(WELL, 0)


def test_an_attempt_finds_its_case_and_survives_a_broken_one(monkeypatch) -> None:
    """A case that breaks is told of with its traceback, and the others go on."""

    def broken(seed: int) -> None:
        raise KeyError(f"no seed {seed}")

    cases = (WELL, Case("family/broken", partial(broken)))
    monkeypatch.setattr(module, "all_cases", lambda: cases)
    assert attempt(("family/well", 0), None)["label"] == "healthy"
    failed = attempt(("family/broken", 3), None)
    assert (failed["case"], failed["seed"]) == ("family/broken", 3)
    assert "KeyError: 'no seed 3'" in failed["failed"]
