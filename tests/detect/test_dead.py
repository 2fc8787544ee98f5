"""Test ``lightning_gradwatch.detect.dead``."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_gradwatch.detect.dead import DeadRule
from lightning_gradwatch.detect.diagnosis import Symptom

RULE = DeadRule(num_readings=4)


def table(*columns: list[float]) -> np.ndarray:
    """Put columns of readings side by side, [n, num_layers]."""
    return np.array(columns).T


def test_an_exact_zero_is_dead(observe) -> None:
    """A layer that got exactly zero in each of the last readings is dead, never vanishing."""
    (finding,) = RULE(observe(table([0.0] * 4, [1.0] * 4)))
    assert (finding.rule, finding.symptom, finding.layers) == ("dead", Symptom.DEAD, ("fc0",))


@pytest.mark.parametrize("value", [5e-324, 1e-30, np.nan])
def test_a_small_number_is_not_dead(observe, value: float) -> None:
    """The smallest number above zero is not zero, and neither is NaN."""
    assert list(RULE(observe(table([0.0, 0.0, value, 0.0], [1.0] * 4)))) == []


def test_fewer_readings_decide_nothing(observe) -> None:
    """A LoRA pair or a zero-initialized branch starts with some zeros and is not dead."""
    assert list(RULE(observe(table([0.0] * 3, [1.0] * 3)))) == []
    assert list(RULE(observe(table([0.0, 0.0, 0.0, 1e-9], [1.0] * 4)))) == []


def test_an_absent_layer_is_not_dead(observe) -> None:
    """A layer without a gradient in one of the readings was not zero in it, whatever its column holds."""
    present = np.ones((4, 2), dtype=np.bool_)
    present[2, 0] = False
    assert list(RULE(observe(table([0.0] * 4, [1.0] * 4), present=present))) == []


def test_a_loss_of_zero_has_nothing_to_teach(observe) -> None:
    """Where the loss is exactly zero, zero gradients are right."""
    assert list(RULE(observe(np.zeros((4, 2)), loss=[1.0, 1.0, 1.0, 0.0]))) == []


def test_a_cut_before_the_input_is_a_warning(observe) -> None:
    """Zeros from some layer back to the input mean that the gradient is cut, and are a warning."""
    (finding,) = RULE(observe(table([1.0] * 4, [0.0] * 4, [0.0] * 4), order=[2, 1, 0]))
    assert (finding.severity, finding.layers) == ("warning", ("fc2", "fc1"))
    assert finding.message == "no gradient at all reaches the first layers"


def test_a_single_dead_layer_is_a_notice(observe) -> None:
    """A dead layer with a living one before it, such as an expert that no sample chose, is a notice."""
    (finding,) = RULE(observe(table([1.0] * 4, [0.0] * 4, [1.0] * 4)))
    assert (finding.severity, finding.layers) == ("notice", ("fc1",))
    assert finding.message == "some layers get no gradient at all"


def test_zeros_everywhere_are_told_as_such(observe) -> None:
    """Where every layer that was ever present is dead, no gradient reaches any layer; absent ones do not count."""
    present = np.broadcast_to([True, True, False], (4, 3))
    (finding,) = RULE(observe(np.zeros((4, 3)), present=present))
    assert finding.message == "no gradient at all reaches any layer"
    assert (finding.severity, finding.evidence["everywhere"]) == ("warning", True)
    assert finding.layers == ("fc0", "fc1")


def test_it_tells_whether_the_layer_was_ever_alive(observe) -> None:
    """A layer that had a gradient before has died, one that had not was born dead."""
    (died,) = RULE(observe(table([1.0, 0.0, 0.0, 0.0, 0.0], [1.0] * 5)))
    (born,) = RULE(observe(table([0.0] * 5, [1.0] * 5)))
    assert (died.evidence["ever_alive"], born.evidence["ever_alive"]) == (True, False)
    assert "it was not 0 before" in died.measured
    assert "it was never anything else" in born.measured


def test_two_thousand_layers_are_judged_like_one_by_one(observe) -> None:
    """Judging 2,000 layers in one call names what judging each by hand names, in forward order."""
    rng = np.random.default_rng(0)
    norms = rng.choice([0.0, 1.0], (6, 2000), p=[0.9, 0.1])
    present, order = rng.random((6, 2000)) < 0.9, rng.permutation(2000)
    (finding,) = RULE(observe(norms, present=present, order=order))
    by_hand = [f"fc{i}" for i in order if all(present[row, i] and norms[row, i] == 0 for row in range(2, 6))]
    assert finding.layers == tuple(by_hand)


def test_no_reading_is_no_setting() -> None:
    """The number of readings has to be positive."""
    with pytest.raises(ValueError, match=r"`num_readings` must be a positive integer\. Got 0"):
        DeadRule(num_readings=0)


def test_nothing_is_dead_before_its_losses_are_known(observe) -> None:
    """Where processes exchange their losses now and then, the newest are NaN: a loss that was 0 is not known yet."""
    unknown, zeros = float("nan"), np.zeros((6, 2))
    assert list(RULE(observe(zeros, loss=[1.0, 1.0, 1.0, unknown, unknown, unknown]))) == []
    assert list(RULE(observe(zeros, loss=[1.0, 0.0, 0.0, 0.0, unknown, unknown]))) == []
    assert [finding.rule for finding in RULE(observe(zeros, loss=[1.0, 1.0, 1.0, 1.0, unknown, unknown]))] == ["dead"]
    assert [finding.rule for finding in RULE(observe(zeros, loss=[unknown] * 6))] == ["dead"]
