"""Test ``lightning_gradwatch.detect.update``."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lightning_gradwatch.detect.diagnosis import Symptom
from lightning_gradwatch.detect.update import UpdateRule
from lightning_gradwatch.measure.snapshot import LayerDescription

RULE = UpdateRule()


def test_a_step_that_overwrites_a_layer_is_exploding(observe) -> None:
    """Layers that a step moves by more than ten times their weights are named, most moved first."""
    (finding,) = RULE(observe([2e3, 1.0, 9e3, 999.0], weights=10.0, learning_rate=0.1))
    assert (finding.rule, finding.symptom, finding.severity) == ("exploding.update", Symptom.EXPLODING, "warning")
    assert finding.layers == ("fc2", "fc0")
    assert finding.evidence == pytest.approx(
        {
            "update_ratio": 90.0,
            "learning_rate": 0.1,
            "max_ratio": 10.0,
            "rescaled": False,
            "first_ratio": None,
            "usual_norm": None,
        }
    )


def test_what_the_first_step_did_and_what_was_usual_before_are_told(observe, probe) -> None:
    """The fastest layer of the first probe that did not begin near zero; the median norm of 32 readings and more."""
    first = probe([1.0] * 3, update_ratio=[0.3, 7.0, np.inf])
    norms = np.full((40, 3), 2.0)
    norms[-1] = 9e3
    weights = np.broadcast_to([10.0, 1e-3, 10.0], norms.shape)
    (finding,) = RULE(observe(norms, weights=weights, signals=[first]))
    assert finding.evidence["first_ratio"] == 0.3
    assert finding.evidence["usual_norm"] == pytest.approx(math.sqrt(12))
    (early,) = RULE(observe(norms[8:], weights=weights[8:], signals=[first]))
    assert early.evidence["usual_norm"] is None


def test_the_loss_scale_cancels(observe) -> None:
    """A summed loss with a learning rate that fits is healthy, whatever its gradient."""
    assert list(RULE(observe([1e9, 1e9], learning_rate=1e-10))) == []


def test_clipping_prevents_it(observe) -> None:
    """What counts is what the optimizer gets: after clipping there is nothing to say."""
    assert list(RULE(observe([1e9, 1e9], clipped=[1.0, 1.0]))) == []


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "RMSprop", "Lion"])
def test_optimizers_that_rescale_are_not_judged(observe, kind: str) -> None:
    """Adam's step does not grow with the gradient, and of an unknown optimizer nothing is known."""
    assert list(RULE(observe([1e9, 1e9], kind=kind, eps=1e-8))) == []


def test_layers_that_start_near_zero_are_left_out(observe) -> None:
    """A zero-initialized branch has nothing to lose."""
    assert list(RULE(observe([1.0, 1.0], weights=[1e-4, 10.0]))) == []


def test_a_model_of_one_matrix_may_go_far(observe) -> None:
    """Linear regression may go as far as it likes in a step, and so may a norm's scale."""
    scale = LayerDescription("norm", "LayerNorm", num_parameters=100, has_matrix=False)
    one = LayerDescription("fc", "Linear", num_parameters=100)
    two = LayerDescription("head", "Linear", num_parameters=100)
    assert list(RULE(observe([1e9, 1e9], layers=(one, scale)))) == []
    assert list(RULE(observe([1.0, 1.0, 1e9], layers=(one, two, scale)))) == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_not_exploding(observe, value: float) -> None:
    """Infinity and NaN are left to the rule for non-finite gradients."""
    assert list(RULE(observe([value, 1.0]))) == []


def test_two_thousand_layers_are_judged_like_one_by_one(observe) -> None:
    """Judging 2,000 layers in one call names what judging each by hand names."""
    rng = np.random.default_rng(0)
    norms, weights = 10 ** rng.uniform(0, 6, 2000), 10 ** rng.uniform(-4, 2, 2000)
    rates = rng.choice([1e-3, 1e-1], 2000)
    share = [rates[i] * norms[i] / weights[i] for i in range(2000)]
    sick = [i for i in range(2000) if share[i] > 10 and weights[i] / math.sqrt(100) > 1e-3]
    (finding,) = RULE(observe(norms, weights=weights, learning_rate=rates))
    assert finding.layers == tuple(f"fc{i}" for i in sorted(sick, key=lambda i: -share[i]))


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_a_ratio_that_every_step_reaches_is_refused(value: float) -> None:
    """The ratio has to be positive."""
    with pytest.raises(ValueError, match="`max_ratio` must be a positive number"):
        UpdateRule(max_ratio=value)
