"""Test ``benchmarks.ward.rivals.thresholds``."""

from __future__ import annotations

import pytest

from benchmarks.ward.rivals.thresholds import GlobalThresholds, LayerThresholds, lightning_proposal
from lightning_gradwatch import Symptom

NAN, INF = float("nan"), float("inf")


def said(flags) -> dict[str, tuple[str, ...]]:
    return {flag.symptom.value: flag.layers for flag in flags}


def test_each_layer_has_its_bounds(look) -> None:
    """Norms below 1e-7 and above 1e3 are named with their layers; those at the bounds are not."""
    one = look([[1e-7], [0.9e-7], [1e3], [1000.1], [1.0]])
    assert said(LayerThresholds().observe(one)) == {"vanishing": ("b",), "exploding": ("d",)}


def test_a_norm_of_zero_is_dead_and_small_and_one_of_nan_is_neither(look) -> None:
    """Zero satisfies both small rules; NaN and infinity are named for what they are and not as exploding."""
    one = look([[0.0, 0.0], [NAN, 1.0], [INF, 1.0]])
    expected = {"non_finite": ("b", "c"), "dead": ("a",), "vanishing": ("a",)}
    assert said(LayerThresholds().observe(one)) == expected


@pytest.mark.parametrize(
    ("gradients", "symptoms"),
    [
        ([[3e-8], [4e-8]], {"vanishing"}),
        ([[6e-8], [8e-8]], set()),
        ([[0.0], [0.0]], {"vanishing", "dead"}),
        ([[600.0], [800.0]], set()),
        ([[600.0], [801.0]], {"exploding"}),
        ([[1.0], [NAN]], {"non_finite"}),
        ([[1.0], [INF]], {"non_finite"}),
    ],
)
def test_the_global_norm_has_its_bounds(look, gradients, symptoms: set[str]) -> None:
    """The root of the sum of all squares is held against both bounds; no layer can be named."""
    assert said(GlobalThresholds().observe(look(gradients))) == dict.fromkeys(symptoms, ())


@pytest.mark.parametrize(("norm", "symptom"), [(0.0, None), (1e4, None), (10_001.0, "exploding"), (NAN, "non_finite")])
def test_the_proposal_for_lightning_has_no_lower_bound(look, norm: float, symptom: str | None) -> None:
    """It warns above 1e4 and, in its favor, of NaN; never of small norms."""
    assert said(lightning_proposal().observe(look([[norm]]))) == ({} if symptom is None else {symptom: ()})


def test_a_flag_is_of_its_step(look) -> None:
    """The step of a flag is the step looked at."""
    flags = GlobalThresholds().observe(look([[1e5]], number=12))
    assert [(flag.step, flag.symptom) for flag in flags] == [(12, Symptom.EXPLODING)]
