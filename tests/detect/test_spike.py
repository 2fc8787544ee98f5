"""Test ``lightning_gradwatch.detect.spike``."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gradwatch.detect.diagnosis import Observations, Symptom
from lightning_gradwatch.detect.spike import SpikeRule
from lightning_gradwatch.measure.snapshot import LayerDescription

RULE = SpikeRule()
ENOUGH = RULE.min_readings
SPIKE = 5 * RULE.factor


def usual(number: int, num_layers: int = 3, spread: float = 0.1, seed: int = 0) -> np.ndarray:
    """Return norms around 1, [number, num_layers]."""
    return 10 ** np.random.default_rng(seed).normal(0, spread, (number, num_layers))


def spiked(number: int = 60, size: float = SPIKE, layers: tuple[int, ...] = (1,), **more: object) -> np.ndarray:
    """Return norms whose newest reading stands so many times above the others in some layers."""
    norms = usual(number, **more)
    norms[-1, list(layers)] *= size
    return norms


class TestSpike:
    """A jump."""

    def test_a_jump_is_a_spike_with_its_layers_and_numbers(self, observe) -> None:
        """The layers that jumped are named, those that jumped most first."""
        norms = np.ones((60, 3))
        norms[-1] = [SPIKE, 10 * SPIKE, 1.0]
        (finding,) = RULE(observe(norms, learning_rate=1e-6))
        assert (finding.rule, finding.symptom, finding.severity) == ("spike", Symptom.SPIKE, "notice")
        assert finding.layers == ("fc1", "fc0")
        assert finding.evidence["norm"] == pytest.approx(np.linalg.norm(norms[-1]))
        assert finding.evidence["median"] == pytest.approx(3**0.5)
        assert (finding.evidence["step"], finding.step) == (59, 59)
        assert f"most in fc1, {10 * SPIKE:.3g} times" in finding.measured

    def test_it_is_judged_before_it_belongs_to_the_baseline(self, observe) -> None:
        """The very first reading at another level speaks; a rule that adds it first would have to outvote itself."""
        assert len(list(RULE(observe(spiked(ENOUGH + 1))))) == 1

    def test_it_is_over_with_the_next_usual_reading(self, observe) -> None:
        """A reading after the spike that is as usual is silent."""
        norms = np.concatenate([spiked(), usual(1, seed=1)])
        assert list(RULE(observe(norms))) == []

    @pytest.mark.parametrize("junk", [np.nan, np.inf, 0.0])
    def test_the_baseline_is_immune_to_what_is_not_usual(self, observe, junk: float) -> None:
        """Overflow steps, NaN and zeros, up to half of all readings, hide no spike and make none."""
        rows = np.concatenate([usual(2 * ENOUGH + 2), spiked(1, num_layers=3)])
        rows[:-1:2] = junk
        assert len(list(RULE(observe(rows)))) == 1
        rows[-1] = 1.0
        assert list(RULE(observe(rows))) == []

    @pytest.mark.parametrize("junk", [np.nan, np.inf, 0.0])
    def test_what_is_not_finite_or_zero_is_no_spike(self, observe, junk: float) -> None:
        """Other rules speak of it."""
        rows = usual(60)
        rows[-1] = junk
        assert list(RULE(observe(rows))) == []

    def test_an_absent_layer_is_no_zero(self, observe) -> None:
        """Layers that had no gradient now and then count where they had one."""
        rows, present = spiked(), np.ones((60, 3), dtype=np.bool_)
        present[::2, 0] = False
        rows[::2, 0] = np.nan
        present[-1, 0], rows[-1, 0] = True, 1.0
        (finding,) = RULE(observe(rows, present=present))
        assert finding.layers == ("fc1",)

    def test_a_layer_that_never_had_a_gradient_makes_no_noise(self, observe) -> None:
        """A frozen or unused layer is left out, without a warning of numpy."""
        rows, present = spiked(), np.ones((60, 3), dtype=np.bool_)
        rows[:, 2], present[:, 2] = np.nan, False
        (finding,) = RULE(observe(rows, present=present))
        assert finding.layers == ("fc1",)

    def test_a_jump_of_layers_that_are_new_ends_nothing(self, observe) -> None:
        """Where only layers without a past have a gradient none can be said to have jumped."""
        rows, present = spiked(num_layers=2, layers=(1,)), np.ones((60, 2), dtype=np.bool_)
        rows[:-1, 1], present[:-1, 1] = np.nan, False
        rows[-1, 0], present[-1, 0] = np.nan, False
        findings = list(RULE(observe(rows, present=present)))
        assert all(finding.layers == ("fc1",) for finding in findings)


class TestHealthy:
    """Silence."""

    @settings(max_examples=60)
    @given(seed=st.integers(0, 2**16), spread=st.floats(0, 0.2), number=st.integers(1, 256))
    def test_noise_is_no_spike(self, observe, seed: int, spread: float, number: int) -> None:
        """Norms that vary by their usual share are silent at any time."""
        assert list(RULE(observe(usual(number, spread=spread, seed=seed)))) == []

    @pytest.mark.parametrize("number", [2, ENOUGH])
    def test_few_readings_have_no_baseline(self, observe, number: int) -> None:
        """The fast change of the first steps is over before anything is called a spike."""
        assert list(RULE(observe(spiked(number)))) == []

    def test_heavy_tails_are_no_spikes(self, observe) -> None:
        """Where a norm varies by decades anyway, six deviations are more than the factor."""
        assert list(RULE(observe(spiked(200, spread=1.0, size=RULE.factor)))) == []

    def test_a_fall_is_no_spike(self, observe) -> None:
        """A gradient that suddenly becomes small is none."""
        assert list(RULE(observe(spiked(size=1e-6, layers=(0, 1, 2))))) == []

    def test_steady_growth_is_no_spike(self, observe) -> None:
        """Norms that grow by a third in ten steps go on within their own spread."""
        rows = np.linspace(0, 5, 200)[:, None] + np.zeros((200, 3))
        assert all(not list(RULE(observe(10 ** rows[:number]))) for number in range(1, 201, 7))

    def test_a_new_level_is_learned(self, observe) -> None:
        """A new learning rate, or thawed layers: told at most a few times, and never again."""
        rows = np.concatenate([usual(100), SPIKE * usual(80, seed=1)])
        told = [number for number in range(100, 181) if list(RULE(observe(rows[:number], learning_rate=1e-9)))]
        assert told
        assert max(told) <= 100 + 5

    def test_two_levels_in_turn_are_no_spikes(self, observe) -> None:
        """Two tasks whose losses take turns have two usual sizes."""
        rows = usual(120)
        rows[::2] *= SPIKE
        assert all(not list(RULE(observe(rows[:number]))) for number in (119, 120))


class TestHarm:
    """Notice or warning."""

    def test_a_step_that_overwrites_a_layer_is_a_warning(self, observe) -> None:
        """A learning rate that lets the spike move half of a layer leaves a mark; with clipping it does not."""
        rows = spiked()
        worst = float(rows[-1, 1])
        (finding,) = RULE(observe(rows, weights=10.0, learning_rate=20.0 / worst))
        (clipped,) = RULE(observe(rows, clipped=np.minimum(rows, 1e-2), weights=10.0, learning_rate=20.0 / worst))
        assert (finding.severity, clipped.severity) == ("warning", "notice")
        assert "its step moved fc1 by" in finding.message
        assert clipped.evidence["harm"] == ""

    @pytest.mark.parametrize(
        "more",
        [{"weights": 1e-6}, {"kind": "Adam", "learning_rate": 1e-3, "eps": 1e-8}, {"kind": "Lion"}],
        ids=["started near zero", "Adam", "unknown optimizer"],
    )
    def test_where_nothing_is_lost_it_stays_a_notice(self, observe, more: dict[str, object]) -> None:
        """A layer near zero has nothing to lose, Adam's step does not grow with the gradient, others are not known."""
        (finding,) = RULE(observe(spiked(), **{"learning_rate": 1e3, **more}))
        assert finding.severity == "notice"

    def test_a_layer_that_jumps_alone_is_told_only_where_it_is_overwritten(self, observe) -> None:
        """A small layer's jump does not show in the whole; its own norms tell it, when its step leaves a mark."""
        rows = np.concatenate([1e4 * usual(60, num_layers=2), spiked(num_layers=1, layers=(0,))], axis=1)
        worst = float(rows[-1, 2])
        (finding,) = RULE(observe(rows, weights=[1e6, 1e6, 10.0], learning_rate=10.0 / worst))
        assert (finding.severity, finding.layers) == ("warning", ("fc2",))
        assert list(RULE(observe(rows, weights=1e6, learning_rate=10.0 / worst))) == []

    @staticmethod
    def after(observe, since: float, number: int = 10) -> Observations:
        """Return a run whose loss fell to 0.1, spiked and has stood at ``since`` for some readings."""
        loss = np.concatenate([np.linspace(2.0, 0.1, 60), np.full(40, 0.1), np.full(number, since)])
        rows = np.concatenate([spiked(100), usual(number, seed=1)])
        return observe(rows, learning_rate=1e-9, loss=loss)

    def test_a_loss_that_has_not_come_back_is_a_warning(self, observe) -> None:
        """Some readings later the loss tells what the spike did; the step of the spike is named."""
        (finding,) = RULE(self.after(observe, since=2.3))
        assert (finding.severity, finding.evidence["step"]) == ("warning", 99)
        assert "has not come back" in finding.message
        assert finding.layers == ("fc1",)

    def test_a_loss_that_has_come_back_is_silent(self, observe) -> None:
        """So is one that is only a little above."""
        assert list(RULE(self.after(observe, since=0.1))) == []
        assert list(RULE(self.after(observe, since=0.2))) == []
        assert list(RULE(self.after(observe, since=np.nan))) == []

    def test_a_rise_without_a_spike_is_none(self, observe) -> None:
        """The rule speaks of gradients that jumped, not of every loss that rises."""
        sick = self.after(observe, since=2.3)
        assert list(RULE(observe(usual(110), learning_rate=1e-9, loss=sick.loss))) == []

    def test_long_after_it_is_history(self, observe) -> None:
        """The aftermath is some readings long."""
        assert list(RULE(self.after(observe, since=2.3, number=60))) == []


@settings(max_examples=60)
@given(seed=st.integers(0, 2**16), scale=st.floats(-12, 12), size=st.floats(0, 4))
def test_neither_the_loss_scale_nor_the_registration_order_matters(
    observe, seed: int, scale: float, size: float
) -> None:
    """A loss times a number, and modules listed in another order, give the same finding."""
    rows = spiked(size=10**size, layers=(0, 2), num_layers=5, seed=seed)
    places = np.random.default_rng(seed).permutation(5)
    moved, names = np.empty_like(rows), np.empty(5, dtype=object)
    moved[:, places], names[places] = rows * 10**scale, [f"fc{i}" for i in range(5)]
    layers = [LayerDescription(name, "Linear", num_parameters=100) for name in names]
    plain = list(RULE(observe(rows, learning_rate=1e-9)))
    twin = list(RULE(observe(moved, learning_rate=1e-9 * 10**-scale, order=places, layers=layers)))
    assert [(d.severity, d.layers) for d in twin] == [(d.severity, d.layers) for d in plain]


def test_the_rule_remembers_nothing(observe) -> None:
    """Asked twice it says the same, and equal settings are equal rules."""
    observations = observe(spiked())
    assert [d.layers for d in RULE(observations)] == [d.layers for d in RULE(observations)]
    assert replace(RULE) == SpikeRule()
