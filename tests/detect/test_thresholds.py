"""Test ``lightning_gradwatch.detect.thresholds``."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.detect.diagnosis import Symptom
from lightning_gradwatch.detect.thresholds import ThresholdRule

RULE = ThresholdRule(vanishing=1e-4, exploding=1e2)


def test_layers_below_and_above_are_named_worst_first(observe) -> None:
    """There is one diagnosis for the layers below and one for those above, each sorted by how far it is off."""
    low, high = RULE(observe([1e-5, 1.0, 1e-9, 1e3, 1e7]))
    assert (low.rule, low.symptom, low.layers) == ("vanishing.threshold", Symptom.VANISHING, ("fc2", "fc0"))
    assert (high.rule, high.symptom, high.layers) == ("exploding.threshold", Symptom.EXPLODING, ("fc4", "fc3"))
    assert low.evidence == {"threshold": 1e-4, "worst": 1e-9}
    assert high.evidence == {"threshold": 1e2, "worst": 1e7}
    assert low.measured == "fc2 has 1e-09; vanishing_threshold is 0.0001"


def test_the_thresholds_themselves_are_healthy(observe) -> None:
    """A norm that equals a threshold has not crossed it."""
    assert list(RULE(observe([1e-4, 1e2]))) == []
    assert len(list(RULE(observe([np.nextafter(1e-4, 0), np.nextafter(1e2, 1e3)])))) == 2


def test_exact_zero_is_never_vanishing(observe) -> None:
    """An exact zero is dead: the threshold does not speak of it."""
    assert list(RULE(observe([0.0, 1.0]))) == []


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_what_is_not_finite_is_never_exploding(observe, value: float) -> None:
    """Infinity and NaN are non_finite: the threshold does not speak of them."""
    assert list(RULE(observe([value, 1.0]))) == []


def test_absent_layers_are_not_judged(observe) -> None:
    """A layer without a gradient in the reading crosses nothing, whatever its column holds."""
    assert list(RULE(observe([1e-9, 1e9], present=[False, False]))) == []


def test_norms_are_judged_before_clipping(observe) -> None:
    """Clipping hides no explosion."""
    (finding,) = RULE(observe([1e5, 1.0], clipped=[1.0, 1e-5]))
    assert finding.layers == ("fc0",)


def test_one_threshold_alone_judges_one_side(observe) -> None:
    """Without the other threshold the other side is free."""
    observations = observe([1e-30, 1e30])
    assert [d.layers for d in ThresholdRule(vanishing=1e-7)(observations)] == [("fc0",)]
    assert [d.layers for d in ThresholdRule(exploding=1e7)(observations)] == [("fc1",)]


def test_two_thousand_layers_are_judged_like_one_by_one(observe) -> None:
    """Judging 2,000 layers in one call names what judging each by hand names."""
    rng = np.random.default_rng(0)
    norms = 10 ** rng.uniform(-8, 6, 2000)
    norms[rng.integers(0, 2000, 300)] = rng.choice([0.0, np.nan, np.inf], 300)
    present = rng.random(2000) < 0.8
    low = [i for i in range(2000) if present[i] and 0 < norms[i] < 1e-4]
    high = [i for i in range(2000) if present[i] and 1e2 < norms[i] < math.inf]
    found = {d.symptom: d.layers for d in RULE(observe(norms, present=present))}
    assert found[Symptom.VANISHING] == tuple(f"fc{i}" for i in sorted(low, key=lambda i: norms[i]))
    assert found[Symptom.EXPLODING] == tuple(f"fc{i}" for i in sorted(high, key=lambda i: -norms[i]))


@given(norms=st.lists(st.floats().map(abs), min_size=1, max_size=8))
def test_every_layer_gets_at_most_one_of_the_two(observe, norms: list[float]) -> None:
    """Whatever the norms are, no layer is both vanishing and exploding, and every named one is positive and finite."""
    named = [int(name[2:]) for finding in RULE(observe(norms)) for name in finding.layers]
    assert len(named) == len(set(named))
    assert all(0 < norms[i] < math.inf for i in named)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "1e-7", True])
@pytest.mark.parametrize("name", ["vanishing", "exploding"])
def test_thresholds_that_nothing_could_cross_are_refused(name: str, value: object) -> None:
    """A threshold has to be a positive finite number; the message names it and what came."""
    with pytest.raises(ValueError, match=rf"`{name}` must be a positive finite number or None. Got {value!r}"):
        ThresholdRule(**{name: value})


@pytest.mark.parametrize("exploding", [1e-3, 1e-4])
def test_thresholds_out_of_order_are_refused(exploding: float) -> None:
    """The lower threshold has to be below the upper one."""
    with pytest.raises(ValueError, match="`vanishing` must be below `exploding`"):
        ThresholdRule(vanishing=1e-3, exploding=exploding)
