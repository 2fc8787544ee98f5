"""Test ``lightning_gradwatch.detect.dead``."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lightning_gradwatch.detect.dead import DeadRule
from lightning_gradwatch.detect.diagnosis import Symptom
from lightning_gradwatch.measure.snapshot import LayerDescription

RULE = DeadRule(num_readings=5)
FIRST, LATER = RULE.first_readings, RULE.num_readings
FLAT = 2.3 + 0.01 * np.random.default_rng(0).normal(size=150)


def table(*columns: list[float]) -> np.ndarray:
    """Put columns of readings side by side, [n, num_layers]."""
    return np.array(columns).T


def zeros_and_ones(num_dead: int, num_alive: int, number: int = FIRST) -> np.ndarray:
    """Return readings of dead layers and of living ones behind them."""
    return np.repeat([[0.0] * num_dead + [1.0] * num_alive], number, axis=0)


class TestZero:
    """What counts."""

    def test_a_layer_that_never_had_anything_else_is_dead_soon(self, observe) -> None:
        """After the first readings; never vanishing."""
        (finding,) = RULE(observe(zeros_and_ones(1, 1)))
        assert (finding.rule, finding.symptom, finding.layers) == ("dead", Symptom.DEAD, ("fc0",))

    def test_a_layer_that_was_alive_is_dead_later(self, observe) -> None:
        """It takes more readings in a row, up to the newest."""
        alive = [1.0] * (LATER + 1)
        assert [d.layers for d in RULE(observe(table([1.0, *[0.0] * LATER], alive)))] == [("fc0",)]
        assert list(RULE(observe(table([1.0, 1.0, *[0.0] * (LATER - 1)], alive)))) == []
        assert list(RULE(observe(table([1.0, *[0.0] * (LATER - 1), 1e-30], alive)))) == []

    def test_fewer_readings_decide_nothing(self, observe) -> None:
        """A LoRA pair or a zero-initialized branch starts with one or two zeros and is not dead."""
        assert list(RULE(observe(zeros_and_ones(1, 1, number=FIRST - 1)))) == []
        lora = table([0.0, 1e-9, 1e-8, 1e-7], [1.0] * 4)
        assert all(not list(RULE(observe(lora[:number]))) for number in (1, 2, 3, 4))

    @pytest.mark.parametrize("value", [5e-324, 1e-30, np.inf])
    def test_a_small_number_is_not_dead(self, observe, value: float) -> None:
        """The smallest number above zero is not zero."""
        assert list(RULE(observe(table([0.0, 0.0, value, 0.0], [1.0] * 4)))) == []

    def test_nan_is_no_zero(self, observe) -> None:
        """It does not count towards the readings in a row, and where there was nothing else nothing is claimed."""
        assert list(RULE(observe(table([0.0, np.nan, 0.0], [1.0] * 3)))) == []
        assert list(RULE(observe(table([np.nan] * 9, [1.0] * 9)))) == []

    def test_an_absent_layer_is_not_dead(self, observe) -> None:
        """A layer without a gradient in a reading was not zero in it, whatever its column holds."""
        present = np.ones((FIRST, 2), dtype=np.bool_)
        present[1, 0] = False
        assert list(RULE(observe(zeros_and_ones(1, 1), present=present))) == []

    def test_a_layer_without_parameters_is_not_dead(self, observe) -> None:
        """An empty gradient has the norm 0 and is right."""
        layers = [LayerDescription("empty", "Linear"), LayerDescription("fc", "Linear", num_parameters=9)]
        assert list(RULE(observe(zeros_and_ones(1, 1, number=20), layers=layers))) == []

    def test_a_learning_rate_of_zero_decides_nothing(self, observe) -> None:
        """Such steps leave a zero start as it is: they do not count."""
        rates = np.array([0.0, 0.0, 0.1, 0.1])[:, None]
        norms = zeros_and_ones(1, 1, number=4)
        assert list(RULE(observe(norms, learning_rate=rates))) == []
        assert len(list(RULE(observe(np.concatenate([norms, norms[:1]]), learning_rate=0.1)))) == 1

    def test_a_loss_of_zero_has_nothing_to_teach(self, observe) -> None:
        """Where the loss is exactly zero, zero gradients are right."""
        for number in (FIRST, LATER, 20):
            assert list(RULE(observe(np.zeros((number, 2)), loss=[*[1.0] * (number - 1), 0.0]))) == []

    def test_nothing_is_dead_before_its_losses_are_known(self, observe) -> None:
        """Where processes exchange their losses now and then, the newest are NaN: one that was 0 is not known yet."""
        unknown, zeros = float("nan"), np.zeros((6, 2))
        assert list(RULE(observe(zeros, loss=[1.0, 1.0, *[unknown] * 4]))) == []
        assert list(RULE(observe(zeros, loss=[1.0, 0.0, 0.0, 0.0, unknown, unknown]))) == []
        assert len(list(RULE(observe(zeros, loss=[1.0, 1.0, 1.0, 1.0, unknown, unknown])))) == 1
        assert len(list(RULE(observe(zeros, loss=[unknown] * 6)))) == 1


class TestSeverity:
    """Notice or warning."""

    def test_a_cut_before_the_input_is_a_warning(self, observe) -> None:
        """Zeros from some layer back to the input, in half of the layers or more; nearest to the cut first."""
        (finding,) = RULE(observe(zeros_and_ones(2, 1)[:, ::-1], order=[2, 1, 0]))
        assert (finding.severity, finding.layers) == ("warning", ("fc1", "fc2"))
        assert finding.message == "no gradient at all reaches the first layers"

    def test_a_cut_before_few_layers_waits_for_the_outcome(self, observe) -> None:
        """Less than half of the layers are a notice until the loss has not fallen."""
        norms = zeros_and_ones(1, 3, number=150)
        assert [d.severity for d in RULE(observe(norms, loss=np.linspace(2.3, 0.3, 150)))] == ["notice"]
        assert [d.severity for d in RULE(observe(norms, loss=FLAT))] == ["warning"]

    def test_a_single_dead_layer_is_a_notice(self, observe) -> None:
        """A dead layer with a living one before it, such as an expert that no sample chose, is a notice for ever."""
        (finding,) = RULE(observe(table([1.0] * 150, [0.0] * 150, [1.0] * 150), loss=FLAT))
        assert (finding.severity, finding.layers) == ("notice", ("fc1",))
        assert finding.message == "some layers get no gradient at all"

    def test_zeros_everywhere_are_told_as_such(self, observe) -> None:
        """Where every layer that was ever present is dead, no gradient reaches any layer; absent ones do not count."""
        present = np.broadcast_to([True, True, False], (FIRST, 3))
        (finding,) = RULE(observe(np.zeros((FIRST, 3)), present=present))
        assert finding.message == "no gradient at all reaches any layer"
        assert (finding.severity, finding.evidence["everywhere"]) == ("warning", True)
        assert finding.layers == ("fc1", "fc0")
        assert "in 2 of 2 layers" in finding.measured

    def test_a_network_of_one_layer_can_be_dead(self, observe) -> None:
        """It does not ask for depth."""
        assert [d.severity for d in RULE(observe(np.zeros((FIRST, 1))))] == ["warning"]


class TestCause:
    """Why."""

    def test_it_tells_whether_the_layer_was_ever_alive(self, observe) -> None:
        """A layer that had a gradient before has died, one that had not was born dead."""
        (died,) = RULE(observe(table([1.0, *[0.0] * LATER], [1.0] * (LATER + 1))))
        (born,) = RULE(observe(zeros_and_ones(1, 1)))
        assert (died.evidence["ever_alive"], born.evidence["ever_alive"]) == (True, False)
        assert "it was not 0 before" in died.measured
        assert "it was never anything else" in born.measured

    def test_units_that_the_probe_saw_off_are_named(self, observe, probe) -> None:
        """Where all units behind a layer are off for every sample, that is the cause, and that layer the place."""
        seen = probe(np.zeros(3), dead=[0.5, 1.0, np.nan])
        (finding,) = RULE(observe(zeros_and_ones(2, 1), signals=[seen]))
        assert "all units behind fc1 are 0 for every sample" in finding.measured
        assert finding.cause.startswith("dead ReLU")

    def test_float16_without_a_scaler_is_the_likely_cause(self, observe, probe) -> None:
        """Zeros in every layer, or from one back to the input; with a scaler, or once alive, something else is it."""
        for zeros, alive in ((2, 1), (3, 0)):
            seen = replace(probe(np.zeros(zeros + alive), dead=0.5), unscaled_float16=True)
            (finding,) = RULE(observe(zeros_and_ones(zeros, alive), signals=[seen]))
            assert finding.cause.startswith("gradients below 6e-8, the least number of float16")
            assert finding.evidence["float16"]
            assert not finding.evidence["flat_operation"]
            (other,) = RULE(observe(zeros_and_ones(zeros, alive), signals=[replace(seen, unscaled_float16=False)]))
            assert not other.evidence["float16"]

    def test_half_of_the_units_off_is_what_relu_is(self, observe, probe) -> None:
        """Such units are no cause, and neither is what was not measured."""
        for dead in ([0.5, 0.99, 0.0], np.nan):
            (finding,) = RULE(observe(zeros_and_ones(2, 1), signals=[probe(np.zeros(3), dead=dead)]))
            assert "units behind" not in finding.measured
            assert "detached graph" in finding.cause

    def test_a_head_of_one_unit_is_named(self, observe) -> None:
        """A softmax over one unit gives exact zeros everywhere: the last layer of the forward pass is named."""
        layers = [LayerDescription(f"fc{i}", "Linear", num_parameters=9, num_biases=1 if i == 0 else 4) for i in (0, 1)]
        (finding,) = RULE(observe(np.zeros((FIRST, 2)), layers=layers, order=[1, 0]))
        assert "the last layer, fc0, has one unit: a softmax over one unit" in finding.cause
        (finding,) = RULE(observe(np.zeros((FIRST, 2)), layers=layers))
        assert "fc1" not in finding.cause


class TestSaturation:
    """Zeros behind a last layer that has one unit, and no softmax."""

    @staticmethod
    def find(observe, norms: np.ndarray, activation: str, **more: object):
        """Return what is found in two layers, the last one with one unit."""
        layers = [
            LayerDescription("fc0", "Linear", 9, num_biases=4, activation="relu"),
            LayerDescription("fc1", "Linear", 9, num_biases=1, activation=activation),
        ]
        (finding,) = RULE(observe(norms, layers=layers, **more))
        return finding

    def test_what_was_alive_is_no_softmax_over_one_unit(self, observe) -> None:
        """Such a softmax never has a gradient; what had one before has saturated."""
        died = self.find(observe, np.repeat([[1.0, 1.0], [0.0, 0.0]], [2, LATER], axis=0), "output")
        assert (died.evidence["one_unit"], died.evidence["saturated"]) == ("", "fc1")
        assert died.cause.startswith("a saturated output: a sigmoid or softmax behind fc1")
        born = self.find(observe, np.zeros((FIRST, 2)), "output")
        assert (born.evidence["one_unit"], born.evidence["saturated"]) == ("fc1", "")

    @pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
    def test_a_sigmoid_behind_the_last_layer_is_no_softmax(self, observe, activation: str) -> None:
        """What follows is known, so nothing else is claimed, whatever the loss is."""
        born = self.find(observe, np.zeros((FIRST, 2)), activation)
        assert (born.evidence["one_unit"], born.evidence["saturated"]) == ("", "fc1")
        idle = self.find(observe, np.zeros((FIRST, 2)), activation, loss=np.zeros(FIRST))
        assert (idle.evidence["one_unit"], "softmax" in idle.cause) == ("", False)

    def test_without_a_probe_dead_units_stay_possible(self, observe, probe) -> None:
        """Where the probe saw units that live, they are not named."""
        norms = np.repeat([[1.0, 1.0], [0.0, 0.0]], [2, LATER], axis=0)
        assert "dead ReLU" in self.find(observe, norms, "output").cause
        assert "dead ReLU" not in self.find(observe, norms, "output", signals=[probe(np.zeros(2), dead=0.5)]).cause


def test_an_expert_may_be_rarely_routed_to(observe) -> None:
    """A dead layer with living ones before it may be one that no sample chose."""
    (finding,) = RULE(observe(table([1.0] * 5, [0.0] * 5, [1.0] * 5)))
    assert "rarely routed" in finding.cause


def test_two_thousand_layers_are_judged_like_one_by_one(observe) -> None:
    """Judging 2,000 layers in one call names what judging each by hand names, in forward order."""
    rng = np.random.default_rng(0)
    norms = rng.choice([0.0, 1.0], (6, 2000), p=[0.9, 0.1])
    present, order = rng.random((6, 2000)) < 0.9, rng.permutation(2000)
    (finding,) = RULE(observe(norms, present=present, order=order))

    def sick(i: int) -> bool:
        zeros = [present[row, i] and norms[row, i] == 0 for row in range(6)]
        born = not norms[:, i].any() and sum(zeros) >= FIRST and present[-1, i]
        return born or all(zeros[-LATER:])

    assert finding.layers == tuple(f"fc{i}" for i in order if sick(i))


@pytest.mark.parametrize("name", ["num_readings", "first_readings"])
def test_no_reading_is_no_setting(name: str) -> None:
    """The numbers of readings have to be positive."""
    with pytest.raises(ValueError, match=rf"`{name}` must be a positive integer\. Got 0"):
        DeadRule(**{name: 0})


def test_a_loss_that_was_never_anything_but_zero_is_a_notice(observe) -> None:
    """There is nothing to learn from it, as with cross entropy over one unit; once it was more, it is learned."""
    zeros = np.zeros((5, 3))
    (finding,) = RULE(observe(zeros, loss=np.zeros(5)))
    assert (finding.severity, len(finding.layers)) == ("notice", 3)
    assert "nothing to learn" in finding.message
    assert list(RULE(observe(zeros, loss=np.array([0.3, 0.0, 0.0, 0.0, 0.0])))) == []
    assert list(RULE(observe(zeros[:2], loss=np.zeros(2)))) == []
    assert list(RULE(observe(np.ones((5, 3)), loss=np.zeros(5)))) == []
