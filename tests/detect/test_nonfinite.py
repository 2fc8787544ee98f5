"""Test ``lightning_gradwatch.detect.nonfinite``."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lightning_gradwatch.detect.diagnosis import Symptom
from lightning_gradwatch.detect.nonfinite import NonFiniteRule

RULE = NonFiniteRule()


def test_finite_gradients_are_silent(observe) -> None:
    """Numbers of any size, zero among them, are finite."""
    assert list(RULE(observe([0.0, 1e-300, 1e300]))) == []


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_one_layer_is_enough_and_is_named(observe, value: float) -> None:
    """A single layer that is not finite is named, as non_finite and never as exploding, a warning at once."""
    (finding,) = RULE(observe([1.0, value, 1.0]))
    assert (finding.rule, finding.symptom, finding.severity) == ("non_finite", Symptom.NON_FINITE, "warning")
    assert finding.layers == ("fc1",)
    assert finding.cause == "it began in the backward pass at fc1, the sick layer nearest the loss"


def test_the_layer_nearest_the_output_comes_first(observe) -> None:
    """Backward runs from the loss to the input: in forward order 2, 0, 1 layer 1 is where it began."""
    (finding,) = RULE(observe([np.nan, np.inf, np.nan], order=[2, 0, 1], loss=[0.5]))
    assert finding.layers == ("fc1", "fc0", "fc2")
    assert finding.message == "gradients are NaN"
    assert finding.measured == "of 3 layers 2 NaN, 1 infinite; loss 0.5"
    assert finding.evidence == {
        "loss": 0.5,
        "began_in": "gradient",
        "num_nan": 2,
        "num_inf": 1,
        "exploded_before": False,
        "in_the_loss": False,
        "num_clean": 0,
        "first_ratio": None,
        "learning_rate": 0.1,
        "rescaled": False,
    }


def test_infinite_gradients_are_called_infinite(observe) -> None:
    """Where there is no NaN the message says infinite."""
    (finding,) = RULE(observe([np.inf, 1.0]))
    assert finding.message == "gradients are infinite"


def test_an_absent_layer_is_not_sick(observe) -> None:
    """NaN in the column of a layer without a gradient means absent, and absent layers are not counted as finite."""
    assert list(RULE(observe([np.nan, 1.0], present=[False, True]))) == []
    (finding,) = RULE(observe([np.nan, np.nan, 1.0], present=[False, True, True]))
    assert finding.layers == ("fc1",)
    assert finding.measured == "of 2 layers 1 NaN, 1 finite; loss 1"


@pytest.mark.parametrize(
    ("loss", "norms", "words"),
    [
        (np.inf, [np.nan, np.nan], "the loss itself is infinite"),
        (np.nan, [np.nan, np.nan], "the loss is NaN, or not known"),
        (np.nan, [np.nan, 1.0], "backward pass at fc0"),
        (0.5, [np.nan, np.nan], "it began in the loss: the slope of log, sqrt, norm or a division at 0"),
        (0.5, [np.inf, np.inf], "backward pass at fc1"),
        (0.5, [1.0, np.nan], "backward pass at fc1"),
        (0.5, [np.nan, 1.0], "backward pass at fc0"),
        (0.5, [np.nan], "it began in the loss"),
    ],
)
def test_the_cause_tells_forward_from_backward(observe, loss: float, norms: list[float], words: str) -> None:
    """A loss that is not finite broke in the forward pass; a finite one breaks in the backward pass."""
    (finding,) = RULE(observe(norms, loss=[loss]))
    assert words in finding.cause


class TestLoss:
    """A loss function that gives NaN, or whose slope does."""

    @pytest.mark.parametrize(("before", "words"), [([2.0, 1.5], "NaN"), ([np.nan, np.nan], "NaN or not known")])
    def test_a_loss_that_was_known_before_is_nan_now(self, observe, before: list[float], words: str) -> None:
        """Only where no loss was ever a number may it be that nobody knows it."""
        (finding,) = RULE(observe([[1.0], [1.0], [np.nan]], loss=[*before, np.nan]))
        assert finding.measured == f"of 1 layer 1 NaN; loss {words}"

    def test_weights_of_the_same_size_leave_the_loss_and_the_batch(self, observe) -> None:
        """Nothing was blown up, so log(0) and its kin are named; weights that have grown tenfold are looked at."""
        norms = [[1.0, 1.0], [np.nan, np.nan]]
        (finding,) = RULE(observe(norms, loss=[2.0, np.nan]))
        assert finding.cause.startswith("the loss is NaN: log(0)")
        assert finding.evidence["in_the_loss"] is True
        (finding,) = RULE(observe(norms, loss=[2.0, np.nan], weights=[[10.0, 10.0], [10.0, 200.0]]))
        assert "weights that an earlier step blew up" in finding.cause
        assert finding.evidence["in_the_loss"] is False


class TestForward:
    """What the signal probe of the same step saw."""

    def test_the_first_output_that_was_not_finite_is_named(self, observe, probe) -> None:
        """In the order of the calls; that layer comes first, the others as backward runs."""
        seen = probe(np.ones(4), signal=[np.inf, 1.0, np.nan, 1.0], order=[3, 1, 2, 0], step=0)
        (finding,) = RULE(observe(np.full(4, np.nan), loss=[np.nan], signals=[seen]))
        assert finding.layers == ("fc2", "fc3", "fc1", "fc0")
        assert "the output of fc2 was the first" in finding.cause
        assert finding.evidence["began_in"] == "activation"

    def test_a_probe_of_another_step_tells_nothing(self, observe, probe) -> None:
        """What was finite or not some steps ago is no cause of today."""
        seen = probe(np.ones(2), signal=[np.inf, 1.0], step=0)
        (finding,) = RULE(observe([[1.0, 1.0], [np.nan, np.nan]], loss=[0.5, np.nan], signals=[seen]))
        assert finding.evidence["began_in"] == "loss"

    def test_finite_outputs_leave_the_loss_or_the_backward_pass(self, observe, probe) -> None:
        """Where every layer gave numbers the loss tells which of both it was."""
        for loss, began in ((np.nan, "loss"), (np.inf, "loss"), (0.5, "gradient")):
            (finding,) = RULE(observe([np.nan, np.nan], loss=[loss], signals=[probe(np.ones(2))]))
            assert finding.evidence["began_in"] == began


def test_the_loss_is_that_of_the_reading(observe) -> None:
    """With several optimizers no losses since the start are known, and the loss of this reading is told still."""
    seen = observe([[1.0], [np.nan]], loss=[0.5, 0.25])
    (finding,) = RULE(replace(seen, loss=np.full(2, np.nan)))
    assert finding.measured == "of 1 layer 1 NaN; loss 0.25"
    assert finding.evidence["loss"] == 0.25


def test_only_the_newest_reading_counts(observe) -> None:
    """A NaN of the past is over."""
    assert list(RULE(observe([[np.nan], [1.0]]))) == []


def test_two_thousand_layers_are_judged_like_one_by_one(observe) -> None:
    """Judging 2,000 layers in one call names what judging each by hand names."""
    rng = np.random.default_rng(0)
    norms = rng.choice([0.0, 1.0, np.inf, np.nan], 2000)
    present, order = rng.random(2000) < 0.8, rng.permutation(2000)
    (finding,) = RULE(observe(norms, present=present, order=order))
    by_hand = [f"fc{i}" for i in reversed(order) if present[i] and norms[i] not in (0.0, 1.0)]
    assert finding.layers == tuple(by_hand)


class TestExplosionBefore:
    """A step that overwrote weights is the likeliest cause of NaN right after it."""

    @pytest.mark.parametrize("back", [2, 3, 4])
    def test_it_is_named_with_its_step(self, observe, back: int) -> None:
        """Up to three readings back, a step that moved a layer by more than twice its weights is the cause."""
        norms = np.ones((6, 2))
        norms[-1], norms[-back, 1] = np.nan, 1e4
        (finding,) = RULE(observe(norms, loss=np.full(6, np.nan)))
        step = 6 - back
        assert finding.cause == f"step {step} had moved fc1 by 1e+02 times its weights: an explosion came before"
        assert finding.evidence["exploded_before"] is True

    def test_a_usual_step_is_none(self, observe) -> None:
        """A step below that is not blamed, and neither is one long ago."""
        norms = np.ones((6, 2))
        norms[-1], norms[-2], norms[0] = np.nan, 150.0, 1e4
        (finding,) = RULE(observe(norms, loss=np.full(6, np.nan)))
        assert finding.evidence["exploded_before"] is False

    @pytest.mark.parametrize(
        "more", [{"weights": [0.0, 10.0]}, {"kind": "Lion"}, {"weights": np.nan}, {"learning_rate": np.nan}]
    )
    def test_where_the_step_is_not_known_nothing_is_blamed(self, observe, more: dict[str, object]) -> None:
        """A layer that starts at zero, an unknown optimizer and weights that were not measured tell nothing."""
        norms = np.ones((6, 2))
        norms[-1] = np.nan
        (finding,) = RULE(observe(norms, loss=np.full(6, np.nan), **more))
        assert finding.evidence["exploded_before"] is False
