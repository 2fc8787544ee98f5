"""Test ``benchmarks.ward.cases``: what holds for all cases without training them."""

from __future__ import annotations

from collections import Counter
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch

from benchmarks.ward.case import Case
from benchmarks.ward.cases import all_cases

CASES = all_cases()
SICK = [case for case in CASES if case.symptom is not None]
NAMES = [case.name for case in CASES]

# What the ward has to hold among its healthy cases, in the words of the cases.
HARD_NEGATIVES = (
    "frozen layers",
    "unused layers",
    "trained long after it has converged",
    "LoRA's zero start",
    "a summed loss",
    "a tiny loss under Adam",
    "big targets",
    "accumulation",
    "sparse rows",
    "small batches",
    "a GAN",
    "fine-tuning of a head",
    "a teacher that the optimizer holds",
    "a trunk at rest that the optimizer holds",
    "warm-up of a loss scaler",
    "warm-up of the learning rate",
    "a new learning rate",
    "zero-initialized residual branches",
    "a deep pre-LN transformer",
    "a deep tanh or SELU stack that learns",
    "a default ReLU stack that Adam saves",
    "forgets, and need not remember",
    "a very wide or narrow network",
    "noisy labels",
    "a hard task whose loss falls slowly",
    "dropout",
    "weight sharing",
    "BatchNorm",
    "RMSprop or Adagrad",
    "one odd batch that training survives",
    "a loss that need not fall",
    "detached on purpose",
)


def tensors(value: Any) -> list[torch.Tensor]:
    """Return the weights of a lesson, and its first batch."""
    return [*value.model.state_dict().values(), *value.batches[0]]


def alike(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    """Tell whether all are the same, NaN included."""
    return len(first) == len(second) and all(
        torch.equal(a.nan_to_num(123.0), b.nan_to_num(123.0)) for a, b in zip(first, second, strict=True)
    )


def test_there_are_enough_of_each_kind_and_no_two_of_a_name() -> None:
    """At least 80 cases, at least 45% of them claimed healthy, and about a third held back, of each kind."""
    assert len(CASES) >= 80
    assert len(set(NAMES)) == len(NAMES)
    assert 1 - len(SICK) / len(CASES) >= 0.45
    assert 0.25 <= sum(case.held_back for case in CASES) / len(CASES) <= 0.42
    assert 0.25 <= sum(case.held_back for case in SICK) / len(SICK) <= 0.42


def test_every_symptom_has_cases() -> None:
    """Each symptom that a rule can name has at least three cases."""
    found = Counter(case.symptom.value for case in SICK if case.symptom is not None)
    assert set(found) == {"vanishing", "exploding", "non_finite", "spike", "dead", "disconnected"}
    assert min(found.values()) >= 3


@pytest.mark.parametrize("negative", HARD_NEGATIVES)
def test_every_hard_negative_is_among_the_healthy(negative: str) -> None:
    """What fools naive rules is among the cases that are claimed healthy."""
    assert any(case.negative == negative and case.symptom is None for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_a_claim_is_whole(case: Case) -> None:
    """A sick case names culprits and has a cure, and a healthy one has neither."""
    sick = case.symptom is not None
    assert (bool(case.culprits), case.cure is not None) == (sick, sick)
    assert not (sick and case.negative)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_the_same_seed_makes_the_same_lesson(case: Case) -> None:
    """Weights and the first batch depend on the seed alone, not on the chance of the process."""
    torch.manual_seed(1)
    first = tensors(case.lesson(0))
    torch.manual_seed(2)
    assert alike(first, tensors(case.lesson(0)))
    assert not alike(first, tensors(case.lesson(1)))


@pytest.mark.parametrize("case", SICK, ids=[case.name for case in SICK])
def test_culprits_are_layers_of_the_network(case: Case) -> None:
    """Every pattern of culprits matches a layer that owns parameters."""
    model = case.lesson(0).model
    layers = [name for name, module in model.named_modules() if list(module.parameters(recurse=False))]
    for culprit in case.culprits:
        assert any(fnmatchcase(layer, culprit) for layer in layers), (culprit, layers)


@pytest.mark.parametrize("case", SICK, ids=[case.name for case in SICK])
def test_the_cure_is_held_to_the_same_score_and_as_long_a_training(case: Case) -> None:
    """Neither a lower bar nor more training is a cure."""
    assert case.cure is not None
    sick, cured = case.lesson(0), case.cure(0)
    assert (sick.passes, len(sick.batches), sick.accumulate) == (cured.passes, len(cured.batches), cured.accumulate)


@pytest.mark.parametrize("family", ["dense", "convolutional"])
def test_every_stack_is_there_under_sgd_and_under_adam(family: str) -> None:
    """A sick stack has a case under SGD and one under Adam: that is where naive rules fail."""
    names = [case.name for case in SICK if case.name.startswith(f"{family}/")]
    stacks = {name.rpartition("/")[0] for name in names if name.endswith("/sgd")}
    assert stacks
    assert all(f"{stack}/adam" in NAMES for stack in stacks)


def test_every_network_that_forgets_has_its_answer_early_and_late() -> None:
    """The same recurrent network is there with an answer that it forgets and with one that it need not remember."""
    early = [case.name for case in SICK if case.name.startswith("recurrent/") and "/early" in case.name]
    assert early
    assert all(name.replace("/early", "/late") in NAMES for name in early)


def test_an_event_lies_within_training() -> None:
    """What begins later than the start begins before the end, and is told of at its own step."""
    events = [case for case in CASES if case.event_step]
    assert events
    for case in events:
        lesson = case.lesson(0)
        assert 0 < case.event_step < len(lesson.batches) // lesson.accumulate
        assert case.decided == "start"
