"""Test ``benchmarks.ward.rivals.sagemaker``."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.ward.rivals.look import Units
from benchmarks.ward.rivals.sagemaker import SageMaker

NAN, INF = float("nan"), float("inf")


def said(*looks) -> list[tuple[int, str, tuple[str, ...]]]:
    """Let a fresh rule see looks; return step, symptom and layers of its flags."""
    rule = SageMaker()
    return [(flag.step, flag.symptom.value, flag.layers) for one in looks for flag in rule.observe(one)]


@pytest.mark.parametrize(
    ("gradient", "symptoms"),
    [
        ([1e-7, -1e-7], []),
        ([0.9e-7, -0.9e-7], ["vanishing"]),
        ([0.0, 0.0], ["vanishing", "dead"]),
        ([0.0, 1.0], []),
        ([NAN, 1.0], ["non_finite"]),
        ([INF, 1.0], ["non_finite"]),
    ],
)
def test_gradients_have_the_published_bounds(look, gradient: list[float], symptoms: list[str]) -> None:
    """VanishingGradient is a mean absolute value below 1e-7, AllZero all of it, ExplodingTensor NaN or infinity."""
    assert said(look([[1.0], gradient])) == [(0, symptom, ("b",)) for symptom in symptoms]


def test_a_loss_that_is_no_number_is_an_exploding_tensor(look) -> None:
    """NaN and infinity count in the loss as well."""
    assert said(look([[1.0]], loss=NAN)) == said(look([[1.0]], loss=INF)) == [(0, "non_finite", ())]


@pytest.mark.parametrize(
    ("after", "symptoms"),
    [
        ([3.0, 4.0 * (1 + 1e-4)], []),
        ([3.0 + 51.0, 4.0], ["exploding"]),
        ([3.0 + 49.0, 4.0], []),
        ([3.0 + 4e-8, 4.0], ["vanishing"]),
        ([3.0 + 6e-8, 4.0], []),
    ],
)
def test_an_update_is_held_against_the_weights(look, after: list[float], symptoms: list[str]) -> None:
    """WeightUpdateRatio: a weight of norm 5 that moves by more than 50 or by less than 5e-8 is told."""
    looks = (look([[1.0, 2.0]], [[3.0, 4.0]]), look([[1.0, 2.0]], [after], number=1))
    assert said(*looks) == [(1, symptom, ("a",)) for symptom in symptoms]


def test_a_weight_close_to_itself_in_three_looks_is_unchanged(look) -> None:
    """UnchangedTensor is ``numpy.allclose`` with rtol 1e-5 and atol 1e-8 over three looks."""

    def run(*weights: float) -> list[int]:
        looks = [look([[1.0]], [[weight]], number=number) for number, weight in enumerate(weights)]
        return [step for step, symptom, _ in said(*looks) if symptom == "vanishing"]

    assert run(1.0, 1.000005) == []
    assert run(1.0, 1.000005, 1.000009) == [2]
    assert run(1.0, 1.000005, 1.00002) == []


def test_weights_of_uneven_spread_count_in_the_first_ten_steps_while_the_loss_does_not_fall(look) -> None:
    """PoorWeightInitialization: variances that differ by more than 10 times, once five looks brought no lower loss."""

    def run(spread: float, losses: list[float], first: int = 0) -> list[int]:
        looks = [
            look(
                [[0.0, 1.0, 2.0]] * 2,
                [[n, n + 1.0], [n, n + spread]],
                number=first + n,
                loss=loss,
            )
            for n, loss in enumerate(losses)
        ]
        return [step for step, symptom, layers in said(*looks) if (symptom, layers) == ("exploding", ("b",))]

    # A spread of s has the variance (s / 2)^2, and the bound of 10 lies at s = 3.162.
    assert run(3.2, [1.0] * 7) == [5, 6]
    assert run(3.1, [1.0] * 7) == []
    assert run(3.2, [1.0] * 5 + [0.9] * 2) == []
    assert run(3.2, [1.0] * 7, first=10) == []


def test_a_narrow_gradient_counts_likewise(look) -> None:
    """PoorWeightInitialization: 90% of a gradient within 1e-3 while the loss does not fall."""

    def run(width: float) -> list[int]:
        gradient = np.linspace(1.0, 1.0 + width, 101).tolist()
        looks = [look([gradient], [[n + 1.0, n + 2.0]], number=n) for n in range(6)]
        return [step for step, symptom, _ in said(*looks) if symptom == "vanishing"]

    # From the 5th to the 95th percentile are nine tenths of the width.
    assert run(1.0e-3) == [5]
    assert run(1.2e-3) == []


def units(*shares: float, kind: str) -> dict[str, Units]:
    return {"relu": Units("a", **{kind: np.array(shares)})}


@pytest.mark.parametrize(("kind", "symptom"), [("off", "dead"), ("beyond_bounds", "vanishing")])
def test_a_layer_counts_when_more_than_half_of_its_units_rest(look, kind: str, symptom: str) -> None:
    """DeadRelu and SaturatedActivation: a unit rests in more than 99% of the samples, a layer when most of it does."""
    assert said(look([[1.0]], units=units(1.0, 0.995, 0.0, kind=kind))) == [(0, symptom, ("a",))]
    assert said(look([[1.0]], units=units(1.0, 0.99, 0.0, kind=kind))) == []
    assert said(look([[1.0]], units=units(1.0, 0.0, kind=kind))) == []


def test_it_may_look_more_rarely(look) -> None:
    """With ``every_n_steps`` it looks at the first step and then at each so-manieth."""
    rule = SageMaker(every_n_steps=3)
    steps = [n for n in range(8) if rule.observe(look([[NAN]], [[n + 1.0]], number=n))]
    assert steps == [0, 3, 6]
