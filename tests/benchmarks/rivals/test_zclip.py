"""Test ``benchmarks.ward.rivals.zclip``."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.ward.rivals.zclip import ZScore

NAN, INF = float("nan"), float("inf")
# Mean 2 and variance 1, whatever their order.
WARM = [1.0, 3.0] * 12 + [2.0]


def spikes(look, norms: list[float]) -> list[tuple[int, str]]:
    """Return steps and symptoms of the flags that a fresh rule raises."""
    rule = ZScore()
    return [
        (number, flag.symptom.value)
        for number, norm in enumerate(norms)
        for flag in rule.observe(look([[norm]], number=number))
    ]


def published(norms: list[float]) -> list[int]:
    """Return the steps that ZClip's paper would clip: algorithm 1 with alpha 0.97 and z 2.5, written down anew."""
    mean, variance = float(np.mean(norms[:25])), float(np.var(norms[:25]))
    found = []
    for step, norm in enumerate(norms[25:], 25):
        sigma = variance**0.5
        z = (norm - mean) / (sigma + 1e-6)
        taken = norm
        if z > 2.5:
            found.append(step)
            taken = mean + (2.5 * sigma) / (z / 2.5)
        mean = 0.97 * mean + 0.03 * taken
        variance = 0.97 * variance + 0.03 * (taken - mean) ** 2
    return found


def test_nothing_is_said_in_the_warm_up(look) -> None:
    """The first 25 norms are only gathered, whatever they are."""
    assert spikes(look, [1.0] * 24 + [1e9]) == []


def test_the_bound_lies_two_and_a_half_deviations_above_the_mean(look) -> None:
    """With mean 2 and a deviation of nearly 1 a norm of 4.44 is let through, and one of 4.46 is not."""
    deviation = float(np.std(WARM))
    assert 2 + 2.5 * deviation == pytest.approx(4.449, abs=1e-3)
    assert spikes(look, [*WARM, 4.44]) == []
    assert spikes(look, [*WARM, 4.46]) == [(25, "spike")]
    assert spikes(look, [*WARM, 0.0]) == []


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_published_algorithm(look, seed: int) -> None:
    """On 300 norms of a heavy-tailed walk the flagged steps are those of an independent implementation."""
    chance = np.random.default_rng(seed)
    norms = np.exp(0.7 * chance.standard_normal(300) + 0.3 * np.sin(np.arange(300) / 30)).tolist()
    expected = published(norms)
    assert 3 < len(expected) < 100
    assert [step for step, symptom in spikes(look, norms) if symptom == "spike"] == expected


def test_a_norm_that_is_not_finite_enters_nothing(look) -> None:
    """NaN and infinity are told after the warm-up and leave mean and variance as they were; in it they are no norms."""
    assert spikes(look, [*WARM, NAN, INF, 4.44]) == [(25, "non_finite"), (26, "non_finite")]
    assert spikes(look, [*WARM, NAN, INF, 4.46]) == [(25, "non_finite"), (26, "non_finite"), (27, "spike")]
    assert spikes(look, [NAN, *WARM, 4.46]) == [(26, "spike")]
