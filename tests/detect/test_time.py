"""Test ``lightning_gradwatch.detect.time``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.detect.diagnosis import Symptom
from lightning_gradwatch.detect.time import TimeRule, time_fit
from lightning_gradwatch.measure.snapshot import TimeProfile

RULE = TimeRule()
FLAT = 2.3 + 0.01 * np.random.default_rng(0).normal(size=150)
FALLING = np.linspace(2.3, 0.3, 150)
FORGETS = (RULE.suspect + RULE.notice) / 2


def fading(decades: float, num_steps: int = 30) -> np.ndarray:
    """Return a gradient that loses so many decades from the last step to the first."""
    return 10 ** np.linspace(-decades, 0, num_steps)


def fit(delta, *, both_ways=False):
    """Fit a profile given as plain numbers."""
    return time_fit(TimeProfile(0, np.asarray(delta, dtype=np.float64), both_ways=both_ways))


@pytest.fixture
def through_time(probed):
    """Return a function that makes observations of a recurrent layer ``fc0`` and a head, from one profile."""

    def make(delta, *, earlier=None, **more):
        observations = probed(np.ones(2), time={0: delta}, **more)
        if earlier is not None:
            observations.signals[0] = probed(np.ones(2), time=earlier).signals[0]
        return observations

    return make


@pytest.fixture
def history(observe, probe):
    """Return a function that makes observations of a recurrent layer ``fc0`` and a head, from all its profiles."""

    def make(profiles, *, loss, both_ways=False):
        signals = [probe(np.ones(2), time={0: delta}, both_ways=both_ways) for delta in profiles]
        return observe(np.ones(2), signals=signals, loss=loss)

    return make


class TestFit:
    """The line along time."""

    @pytest.mark.parametrize("num_steps", [8, 31, 33, 500])
    @pytest.mark.parametrize("factor", [0.3, 0.99, 1.2])
    def test_an_exponential_profile_gives_back_its_factor(self, factor: float, num_steps: int) -> None:
        """Where every step back multiplies by r the fit says r, with R2 1."""
        found = fit(0.01 * factor ** np.arange(num_steps)[::-1])
        assert found.factor == pytest.approx(factor, rel=1e-6)
        assert found.r2 == pytest.approx(1.0)
        assert found.num_steps == num_steps
        # The ends are medians over an eighth of the steps each, so it is a little less than the whole.
        whole = -(num_steps - 1) * np.log10(factor)
        assert 0.8 * abs(whole) <= abs(found.attenuation) <= abs(whole) + 1e-9
        assert np.sign(found.attenuation) == np.sign(whole)

    def test_r2_is_that_of_a_straight_line(self) -> None:
        """R2 is the share of the variance that numpy's least squares line leaves out."""
        logs = np.linspace(-6, 0, 20) + np.random.default_rng(0).normal(0, 0.3, 20)
        logs[-1] = 0.5  # the step that gets most
        slope, start = np.polyfit(np.arange(20), logs, 1)
        rest = np.sum((logs - slope * np.arange(20) - start) ** 2)
        assert fit(10**logs).r2 == pytest.approx(1 - rest / np.sum((logs - logs.mean()) ** 2))

    def test_it_is_judged_back_from_the_step_that_gets_most(self) -> None:
        """Steps behind the answer get nothing, and what fades towards the end is no part of the way back."""
        answer = np.concatenate([fading(6, 30), 10 ** np.linspace(-1, -3, 10)])
        assert fit(answer).num_steps == 30
        assert fit(answer).attenuation == pytest.approx(fit(fading(6, 30)).attenuation)

    @pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
    def test_padding_and_what_is_broken_are_left_out(self, value: float) -> None:
        """Steps without a gradient change nothing."""
        padded = np.concatenate([fading(6), np.full(10, value)])
        assert fit(padded).attenuation == pytest.approx(fit(fading(6)).attenuation)

    @pytest.mark.parametrize("delta", [fading(6, 7), np.zeros(50), np.full(50, np.nan), np.r_[fading(6, 7), [0.0] * 9]])
    def test_fewer_than_eight_steps_are_no_time(self, delta: np.ndarray) -> None:
        """Of the steps that a gradient reaches."""
        assert fit(delta) is None

    def test_a_flat_profile_fades_by_nothing(self) -> None:
        """Equal numbers have the factor 1 and are a straight line."""
        found = fit(np.full(20, 0.5))
        assert (found.factor, found.attenuation, found.r2) == (1.0, 0.0, 1.0)

    def test_a_layer_that_reads_both_ways_is_fitted_the_way_it_fades(self) -> None:
        """What reads backwards gets most at the first step: turned around it is the same fit; otherwise it grows."""
        one = fit(fading(6))
        for found in (fit(fading(6), both_ways=True), fit(fading(6)[::-1], both_ways=True)):
            assert (found.num_steps, found.attenuation) == (one.num_steps, pytest.approx(one.attenuation))
            assert found.factor == pytest.approx(one.factor)
        assert fit(fading(6)[::-1]).attenuation < -3

    @given(logs=st.lists(st.floats(-12, 6), min_size=8, max_size=64), scale=st.floats(-6, 6))
    def test_the_loss_scale_changes_nothing(self, logs: list[float], scale: float) -> None:
        """Multiplying every gradient by a number gives the same fit."""
        # Rounded, so that the largest stays the largest.
        values = np.round(logs, 3)
        plain, scaled = fit(10**values), fit(10 ** (values + np.round(scale, 3)))
        if plain is None or len(set(values)) < len(values):
            return
        assert scaled.num_steps == plain.num_steps
        assert scaled.attenuation == pytest.approx(plain.attenuation, abs=1e-6)


class TestRule:
    """What is said of it."""

    def test_fading_is_a_notice_until_the_loss_tells(self, through_time) -> None:
        """Far fading is told, small, while the outcome is open and where the task does not need the early steps."""
        for loss in (FLAT[:3], FALLING):
            (finding,) = RULE(through_time(fading(13), loss=loss))
            assert (finding.rule, finding.symptom, finding.severity) == ("vanishing.time", Symptom.VANISHING, "notice")
            assert finding.layers == ("fc0",)
            assert "only if the answer lies there" in finding.message

    def test_it_is_a_warning_once_the_loss_has_not_fallen(self, through_time) -> None:
        """Then the early steps are what is missing, and the numbers say by how much a step shrinks it."""
        (finding,) = RULE(through_time(fading(13), loss=FLAT))
        assert finding.severity == "warning"
        assert "the loss does not fall" in finding.message
        assert finding.evidence["factor"] == pytest.approx(10 ** (-13 / 29))
        assert finding.evidence["num_steps"] == 30
        assert f"multiplies the gradient by {10 ** (-13 / 29):.2g}" in finding.measured
        assert "Linear used over 30 steps" in finding.cause

    def test_between_suspicion_and_notice_only_the_outcome_speaks(self, through_time) -> None:
        """Nothing while the loss is open or falls, a warning once it has not."""
        delta = fading(FORGETS * 29 / 26)  # the medians at both ends lie 26 steps apart
        assert list(RULE(through_time(delta, loss=FLAT[:50]))) == []
        assert list(RULE(through_time(delta, loss=FALLING))) == []
        assert [d.severity for d in RULE(through_time(delta, loss=FLAT))] == ["warning"]

    def test_growth_is_exploding(self, through_time) -> None:
        """A gradient that grows on its way back: a notice while open, a warning without a fall."""
        (open_,) = RULE(through_time(fading(-5), loss=FLAT[:3]))
        (sick,) = RULE(through_time(fading(-5), loss=FLAT))
        assert (open_.rule, open_.symptom, open_.severity) == ("exploding.time", Symptom.EXPLODING, "notice")
        assert (sick.severity, sick.evidence["factor"]) == ("warning", pytest.approx(10 ** (5 / 29)))
        assert "the loss does not fall" in sick.message

    def test_growth_that_came_later_and_a_loss_that_falls_are_nothing(self, history) -> None:
        """Training copes with it; only what exploded from the first probe on is told whatever the loss."""
        assert list(RULE(history([fading(0), fading(-5), fading(-5)], loss=FALLING))) == []
        (finding,) = RULE(history([fading(-5), fading(-5), fading(-5)], loss=FALLING))
        assert (finding.rule, finding.severity, finding.evidence["lasts"]) == ("exploding.time", "warning", True)
        assert list(RULE(history([fading(-5)] * 3, loss=FALLING[:50]))) == []

    @pytest.mark.parametrize("now", [fading(20), np.where(np.arange(30) < 25, 0.0, 1.0)], ids=["fades", "underflows"])
    def test_an_explosion_that_has_saturated_its_layer_keeps_its_name(self, history, now: np.ndarray) -> None:
        """What grew at first and lets nothing through by now has exploded: the first numbers are told, and today's."""
        (finding,) = RULE(history([fading(-5), now, now], loss=FALLING))
        assert (finding.rule, finding.severity, finding.layers) == ("exploding.time", "warning", ("fc0",))
        assert finding.evidence["factor"] == pytest.approx(10 ** (5 / 29))
        assert "made the layer forget" in finding.message
        assert "in the first step every step back multiplied the gradient by 1.5" in finding.measured
        assert "by now" in finding.measured
        assert list(RULE(history([fading(-5), now, now], loss=FALLING, both_ways=True)))[:1] != [finding]

    def test_a_gradient_that_grew_a_little_and_fades_now_has_exploded(self, history) -> None:
        """What fades by nature does not grow at first; while the loss is open it is a notice of fading."""
        grew, fades = fading(-1.5), fading(8)
        (sick,) = RULE(history([grew, fades, fades], loss=FLAT))
        (open_,) = RULE(history([grew, fades, fades], loss=FLAT[:50]))
        (never,) = RULE(history([fading(-0.5), fades, fades], loss=FLAT))
        assert [f.rule for f in (sick, open_, never)] == ["exploding.time", "vanishing.time", "vanishing.time"]
        assert [f.severity for f in (sick, open_, never)] == ["warning", "notice", "warning"]

    def test_a_short_sequence_is_no_underflow(self, history) -> None:
        """Fewer than eight steps say nothing of a layer that exploded at first."""
        assert list(RULE(history([fading(-5), fading(0, 5), fading(0, 5)], loss=FLAT))) == []

    @pytest.mark.parametrize("way", [1, -1])
    def test_a_layer_that_reads_both_ways_may_fade_and_never_grows(self, through_time, way: int) -> None:
        """Towards the first step or the last, it forgets; of neither can growth be told."""
        (finding,) = RULE(through_time(fading(13)[::way], both_ways=True, loss=FLAT))
        assert (finding.rule, finding.severity) == ("vanishing.time", "warning")
        # It grows, but for the one step that gets most.
        growing = np.append(fading(-5), 1e6)[::way]
        assert list(RULE(through_time(growing, both_ways=True, loss=FLAT))) == []
        if way == 1:
            assert [d.rule for d in RULE(through_time(growing, loss=FLAT))] == ["exploding.time"]

    @given(decades=st.floats(-2.5, 2.5), num_steps=st.integers(1, 200), scale=st.floats(-9, 9))
    def test_what_keeps_its_gradient_is_healthy(self, probed, decades: float, num_steps: int, scale: float) -> None:
        """Less than suspicion, either way, is nothing at any scale, though the loss stays flat."""
        delta = 10**scale * fading(decades, num_steps)
        assert list(RULE(probed(np.ones(2), time={0: delta}, loss=FLAT))) == []

    def test_both_probes_have_to_agree(self, through_time) -> None:
        """A probe before that saw another length, no such layer, or none at all leaves the newest alone."""
        for earlier in ({0: fading(0.5)}, {0: fading(-2)}, {0: fading(13, 5)}, {1: fading(13)}, {}):
            assert list(RULE(through_time(fading(13), earlier=earlier, loss=FLAT))) == []

    def test_without_two_probes_nothing_is_said(self, observe, probe) -> None:
        """No probe, one probe, and probes of a network without time are silent."""
        one = probe(np.ones(2), time={0: fading(13)})
        for signals in ([], [one], [one, probe(np.ones(2))]):
            assert list(RULE(observe(np.ones(2), signals=signals, loss=FLAT))) == []

    def test_layers_that_forget_are_one_fault_the_worst_first(self, probed) -> None:
        """Each layer has a profile of its own, the worst one's numbers are told, and healthy ones are left out."""
        time = {0: fading(9), 1: fading(0.5), 2: fading(13)}
        (finding,) = RULE(probed(np.ones(4), time=time, loss=FLAT))
        assert finding.layers == ("fc2", "fc0")
        assert finding.evidence["attenuation"] == time_fit(TimeProfile(2, fading(13))).attenuation

    def test_layers_that_forget_and_layers_in_which_it_grows_are_two(self, probed) -> None:
        """Two symptoms are two findings."""
        findings = list(RULE(probed(np.ones(2), time={0: fading(13), 1: fading(-9)}, loss=FLAT)))
        assert [(f.symptom.value, f.layers) for f in findings] == [("vanishing", ("fc0",)), ("exploding", ("fc1",))]

    def test_few_calls_of_a_shared_layer_are_depth_and_no_time(self, probed) -> None:
        """Weight sharing has fewer calls than a sequence has steps; torch's recurrent modules always have time."""
        rule = TimeRule(min_calls=31)
        assert list(rule(probed(np.ones(2), time={0: fading(13)}, recurrent=False, loss=FLAT))) == []
        assert len(list(rule(probed(np.ones(2), time={0: fading(13)}, loss=FLAT)))) == 1
        assert len(list(RULE(probed(np.ones(2), time={0: fading(13)}, recurrent=False, loss=FLAT)))) == 1

    def test_a_warm_up_and_an_unknown_loss_leave_it_open(self, through_time) -> None:
        """While the learning rate rises, and where no loss is known, fading stays a notice."""
        rising = np.linspace(1e-4, 1e-2, len(FLAT))[:, None]
        warming = through_time(fading(13), norms=np.ones((len(FLAT), 2)), learning_rate=rising, loss=FLAT)
        unknown = through_time(fading(13), loss=np.full(150, np.nan))
        assert [d.severity for observations in (warming, unknown) for d in RULE(observations)] == ["notice"] * 2


def test_the_profile_of_a_linear_recurrence_is_its_radius(probed) -> None:
    """The gradient of h[t] = r h[t-1] + x[t] with respect to x[t] is r^(T-1-t): autograd's profile gives back r."""
    inputs = torch.ones(60, 1, dtype=torch.float64, requires_grad=True)
    state = torch.zeros(1, dtype=torch.float64)
    for step in inputs:
        state = 0.7 * state + step
    state.sum().backward()
    (finding,) = RULE(probed(np.ones(2), time={0: inputs.grad[:, 0].numpy()}, loss=FLAT))
    assert finding.evidence["factor"] == pytest.approx(0.7)
    assert finding.evidence["r2"] == pytest.approx(1.0)
