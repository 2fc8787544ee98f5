"""Test ``benchmarks.ward``: a fast slice of the ward, each case with one seed, watched by GradWatch alone."""

from __future__ import annotations

import pytest

from benchmarks.ward.cases import all_cases
from benchmarks.ward.run import OURS, run
from benchmarks.ward.score import named, placed, warnings_of

CASES = {case.name: case for case in all_cases()}

# Short ones whose outcome is not close, of every symptom, under SGD and under Adam.
SICK = (
    "dense/sigmoid-6-default/sgd",
    "dense/sigmoid-6-default/adam",
    "training/sgd-1e-9",
    "training/adam-1e-10",
    "recurrent/rnn-25-momentum/early",
    "training/sgd-far-too-fast",
    "training/all-zero-weights",
    "published/45337371-one-unit-softmax-adam",
    "training/nan-in-a-batch",
    "training/poisoned-batch-sgd",
    "rest/detached-trunk/adam",
)
HEALTHY = (
    "recurrent/rnn-25-momentum/late",
    "rest/low-rank-adam",
    "rest/head-on-frozen-trunk",
    "rest/unused-branch",
    "rest/embedding-adam",
    "disconnected/probe",
    "training/loss-scaler",
    "training/summed-loss-sgd",
    "training/loss-1e-4-adam",
    "training/batch-of-4-momentum",
    "training/warm-up-sgd",
    "training/odd-batch-survived",
)


@pytest.mark.parametrize("name", SICK)
def test_a_sick_network_is_found_named_and_placed(name: str) -> None:
    """It fails, its cure alone trains, and GradWatch warns of the right symptom with a culprit among three layers."""
    found = run(CASES[name], 0, rivals=False)
    assert found["label"] == "sick", (found["score"], found["cure_score"])
    assert named(found, OURS) is not None, found["detectors"][OURS]
    assert placed(found, OURS), found["detectors"][OURS]


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_network_is_left_in_peace(name: str) -> None:
    """It learns what it is asked for, and GradWatch does not warn once."""
    found = run(CASES[name], 0, rivals=False)
    assert found["label"] == "healthy", found["score"]
    assert warnings_of(found, OURS) == []


def test_the_slice_holds_every_symptom_both_optimizers_and_ten_hard_negatives() -> None:
    """What is left out of the slice is more of the same."""
    symptoms = {CASES[name].symptom.value for name in SICK}
    assert symptoms == {"vanishing", "exploding", "non_finite", "spike", "dead", "disconnected"}
    for names in (SICK, HEALTHY):
        optimizers = {type(CASES[name].lesson(0).optimizer).__name__ for name in names}
        assert {"SGD", "Adam"} <= optimizers
    assert len({CASES[name].negative for name in HEALTHY} - {""}) >= 10
