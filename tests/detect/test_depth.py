"""Test ``lightning_gradwatch.detect.depth``."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gradwatch.detect.depth import DepthRule, activations_in_words
from lightning_gradwatch.detect.diagnosis import Symptom
from lightning_gradwatch.detect.rules import default_rules
from lightning_gradwatch.measure.snapshot import LayerDescription

RULE = DepthRule()
FLAT = 2.3 + 0.01 * np.random.default_rng(0).normal(size=150)
FALLING = np.linspace(2.3, 0.3, 150)
GRAY = (RULE.suspect + RULE.notice) / 2


def steep(decades: float, num_layers: int = 10) -> np.ndarray:
    """Return levels that lose so many decades from the last layer to the first."""
    return 10 ** np.linspace(-decades, 0, num_layers)


def starving(share: float, num_layers: int = 10) -> np.ndarray:
    """Return updates of which the first half of the layers gets a share of what the others get."""
    return np.where(np.arange(num_layers) < num_layers // 2, 1e-3 * share, 1e-3)


class TestProbes:
    """What a claim about depth needs."""

    def test_without_a_probe_nothing_is_said(self, observe) -> None:
        """Parameter gradients alone, however steep and however flat the loss, tell nothing about depth."""
        assert list(RULE(observe(steep(12), biases=steep(12), loss=FLAT))) == []

    def test_one_probe_decides_nothing(self, observe, probe) -> None:
        """A second one has to agree, and one that is fine takes the claim back."""
        seen, fine = probe(steep(8)), probe(steep(0.5))
        assert list(RULE(observe(np.ones(10), signals=[seen], loss=FLAT))) == []
        assert len(list(RULE(observe(np.ones(10), signals=[seen, seen], loss=FLAT)))) == 1
        assert list(RULE(observe(np.ones(10), signals=[seen, fine], loss=FLAT))) == []

    @pytest.mark.parametrize("before", [steep(0.5), steep(-8), np.full(10, np.nan), np.zeros(10)])
    def test_both_probes_have_to_be_poor_in_the_same_direction(self, probed, before: np.ndarray) -> None:
        """A flat, an opposite and an empty probe before leave the newest one alone."""
        assert list(RULE(probed(steep(8), before=before, loss=FLAT))) == []
        assert list(RULE(probed(before, before=steep(8), loss=FLAT))) == []

    def test_the_newest_probes_count(self, observe, probe) -> None:
        """What was poor once and is not any more is over."""
        old, new = [probe(steep(8))] * 5, [probe(steep(0.5))] * 2
        assert list(RULE(observe(np.ones(10), signals=old + new, loss=FLAT))) == []
        assert len(list(RULE(observe(np.ones(10), signals=new + old, loss=FLAT)))) == 1


class TestHealthy:
    """Silence."""

    @settings(max_examples=100, deadline=None)
    @given(
        decades=st.floats(-2, 2, exclude_min=True, exclude_max=True),
        num_layers=st.integers(1, 60),
        level=st.floats(-6, 4),
        noise=st.floats(0, 0.1),
        seed=st.integers(0, 2**16),
        kind=st.sampled_from(["SGD", "Adam", "Lion"]),
    )
    def test_a_profile_of_less_than_two_decades_is_no_diagnosis(
        self, probed, decades: float, num_layers: int, level: float, noise: float, seed: int, kind: str
    ) -> None:
        """No default rule says anything of a shallow profile with noise, at any scale, though the loss stays flat."""
        jitter = np.random.default_rng(seed).uniform(-noise, noise, num_layers)
        levels = 10 ** (level + np.linspace(-decades, 0, num_layers) + jitter)
        rate = 1e-3 * 10.0**-level  # a learning rate that fits the scale of the loss
        observations = probed(levels, norms=levels, loss=FLAT, kind=kind, eps=1e-30, learning_rate=rate)
        assert [finding for rule in default_rules() for finding in rule(observations)] == []

    def test_a_poor_profile_in_the_gray_zone_waits_for_the_outcome(self, probed) -> None:
        """Between suspicion and notice nothing is said while the loss is open or falls; a warning once it has not."""
        levels = steep(GRAY)
        assert list(RULE(probed(levels, loss=FLAT[:50]))) == []
        assert list(RULE(probed(levels, loss=FALLING))) == []
        assert [d.severity for d in RULE(probed(levels, loss=FLAT))] == ["warning"]

    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_a_shallow_network_has_no_depth(self, probed, number: int) -> None:
        """Up to three layers are not judged."""
        assert list(RULE(probed(steep(9, 3)[:number], loss=FLAT))) == []

    def test_layers_that_were_not_called_make_no_depth(self, probed) -> None:
        """What the forward pass left out has no place in depth."""
        assert list(RULE(probed(steep(9), order=[7, 8, 9], loss=FLAT))) == []

    @pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
    def test_what_has_no_logarithm_is_silent(self, probed, value: float) -> None:
        """A probe that saw only zeros, NaN or infinity is left to other rules, without a warning of numpy."""
        with np.errstate(all="ignore"):
            assert list(RULE(probed(np.full(10, value), loss=FLAT))) == []

    def test_a_bottleneck_is_not_a_depth(self, probed) -> None:
        """Of layers that all get the same, one that gets next to nothing makes no network vanish."""
        levels = np.ones(12)
        levels[5] = 1e-9
        assert list(RULE(probed(levels, loss=FLAT))) == []


class TestVanishing:
    """Too little gradient at the input."""

    def test_first_layers_that_hardly_move_are_a_warning_at_once(self, probed) -> None:
        """Where the optimizer's step leaves them where they are no outcome is waited for."""
        (finding,) = RULE(probed(steep(8), update_ratio=steep(8), loss=FLAT[:3]))
        assert (finding.rule, finding.symptom, finding.severity) == (
            "vanishing.depth",
            Symptom.VANISHING,
            "warning",
        )
        assert "hardly move" in finding.message
        assert finding.evidence["update_ratio"] == pytest.approx(1e-8)
        assert finding.evidence["attenuation"] == pytest.approx(8)
        assert finding.evidence["first_over_last"] == pytest.approx(1e-8)
        assert finding.evidence["factor"] == pytest.approx(10 ** (-8 / 9))
        assert "fc0 gets 1e-08 of what fc9 gets" in finding.measured

    def test_an_optimizer_that_moves_them_makes_it_a_notice(self, probed) -> None:
        """Under Adam the same profile is a notice that says why, and is one still when the loss falls."""
        (open_,) = RULE(probed(steep(8), kind="Adam", loss=FLAT[:3]))
        (falls,) = RULE(probed(steep(8), kind="Adam", loss=FALLING))
        assert (open_.severity, falls.severity) == ("notice", "notice")
        assert "Adam rescales each step" in open_.message
        assert "the loss falls" in falls.message
        assert open_.evidence["update_ratio"] is None

    @pytest.mark.parametrize("kind", ["SGD", "Adam", "Lion"])
    def test_a_loss_that_does_not_fall_makes_it_a_warning(self, probed, kind: str) -> None:
        """Whatever the optimizer, it is a warning once the loss has not fallen."""
        (finding,) = RULE(probed(steep(8), kind=kind, loss=FLAT))
        assert finding.severity == "warning"
        assert "the loss does not fall" in finding.message
        assert finding.evidence["loss_has_fallen"] is False

    @pytest.mark.parametrize("kind", ["Adam", "Lion"])
    def test_starving_is_measured_whatever_the_optimizer(self, probed, kind: str) -> None:
        """Gradients far below Adam's eps, or an optimizer that nobody knows: what moved the weights is what counts."""
        (finding,) = RULE(probed(steep(8), update_ratio=starving(1e-6), kind=kind, loss=FLAT[:3]))
        assert finding.severity == "warning"

    def test_slow_everywhere_is_not_starved(self, probed) -> None:
        """A small learning rate moves all layers little: that alone is no warning, but steps that move nothing are."""
        for updates, severity in ((2 * RULE.unmoved, "notice"), (RULE.unmoved / 2, "warning")):
            (finding,) = RULE(probed(steep(8), update_ratio=updates, learning_rate=1e-7, loss=FLAT[:3]))
            assert finding.severity == severity

    def test_a_small_share_of_a_large_step_is_not_starved(self, probed) -> None:
        """First layers that move by a usual amount are fed, however far the last one goes."""
        updates = np.where(np.arange(10) < 9, 10 * RULE.min_update, 1.0)
        (finding,) = RULE(probed(steep(8), update_ratio=updates, loss=FLAT[:3]))
        assert finding.severity == "notice"

    def test_both_steps_have_to_starve_them(self, observe, probe) -> None:
        """One step that left the first layers alone (a skipped one, a warm-up's first) decides nothing."""
        signals = [probe(steep(8), update_ratio=starving(share)) for share in (1.0, 1e-6)]
        for order in (signals, signals[::-1]):
            (finding,) = RULE(observe(np.ones(10), signals=order, loss=FLAT[:3]))
            assert finding.severity == "notice"

    @pytest.mark.parametrize("updates", [np.nan, np.where(np.arange(10) < 5, np.nan, 1e-3)])
    def test_updates_that_were_not_measured_make_no_noise(self, probed, updates: np.ndarray) -> None:
        """Where they are not known, or not those of the first layers, the outcome is waited for."""
        (finding,) = RULE(probed(steep(8), update_ratio=updates, loss=FLAT[:3]))
        assert (finding.severity, finding.evidence["update_ratio"]) == ("notice", None)

    def test_the_layers_below_a_hundredth_are_named_worst_first(self, probed) -> None:
        """Named are those with less than a hundredth of what the last quarter gets."""
        (finding,) = RULE(probed(steep(9), loss=FLAT))
        assert finding.layers == ("fc0", "fc1", "fc2", "fc3", "fc4", "fc5", "fc6")

    def test_where_no_layer_is_below_a_hundredth_the_least_is_named(self, probed) -> None:
        """A rule that is stricter than the default, shown a profile of 1.5 decades, names the one layer."""
        (finding,) = DepthRule(notice=1.0, suspect=1.0)(probed(steep(1.5), loss=FLAT))
        assert finding.layers == ("fc0",)

    def test_what_the_signal_does_is_told(self, probed) -> None:
        """Where the signal shrinks as well, as in PyTorch's default initialization, the numbers say so."""
        (finding,) = RULE(probed(steep(5), signal=steep(-4), loss=FLAT))
        assert finding.evidence["signal_growth"] == pytest.approx(-4)
        assert "on the way forward the signal shrinks by 1e-4" in finding.measured
        (finding,) = RULE(probed(steep(5), signal=1.0, loss=FLAT))
        assert "forward" not in finding.measured

    def test_two_thousand_layers_are_judged_in_one_call(self, probed) -> None:
        """In a network of 2,000 layers the layers below a hundredth are those found by hand."""
        levels = steep(9, 2000) * 10 ** np.random.default_rng(0).normal(0, 0.2, 2000)
        (finding,) = RULE(probed(levels, loss=FLAT))
        # The steepest stretch is found to one part in 64, so what lies behind it may be left out.
        kept = len(finding.layers)
        bound = 1e-2 * float(np.median(levels[1500:]))
        sick = sorted((i for i in range(2000) if levels[i] < bound), key=lambda i: levels[i])
        assert abs(kept - len(sick)) < 2000 / 64
        assert finding.layers[:1000] == tuple(f"fc{i}" for i in sick[:1000])


class TestExploding:
    """Too much gradient at the input."""

    def test_growth_is_a_notice_the_most_gradient_first(self, probed) -> None:
        """A gradient that grows on its way back is a notice while the outcome is open, and where the loss falls."""
        for loss in (FLAT[:3], FALLING[: RULE.horizon - 1]):
            (finding,) = RULE(probed(steep(-6), loss=loss))
            assert (finding.rule, finding.symptom, finding.severity) == ("exploding.depth", Symptom.EXPLODING, "notice")
            assert finding.layers == ("fc0", "fc1", "fc2", "fc3", "fc4", "fc5")
            assert finding.evidence["factor"] == pytest.approx(10 ** (6 / 9))

    def test_it_is_a_warning_when_the_loss_does_not_fall(self, probed) -> None:
        """Once the loss has not fallen it is a warning that says so."""
        (finding,) = RULE(probed(steep(-6), loss=FLAT))
        assert finding.severity == "warning"
        assert "the loss does not fall" in finding.message

    def test_it_is_a_warning_where_training_does_not_mend_it(self, observe, probe) -> None:
        """A profile that explodes in the first probe and after the horizon is a fault, though a huge loss falls."""
        bad, good = probe(steep(-6)), probe(steep(-1))
        (lasts,) = RULE(observe(np.ones(10), signals=[bad, bad, bad], loss=FALLING))
        (came,) = RULE(observe(np.ones(10), signals=[good, bad, bad], loss=FALLING))
        assert (lasts.severity, came.severity) == ("warning", "notice")
        assert "training does not mend that" in lasts.message

    def test_there_is_no_gray_zone(self, probed) -> None:
        """Below the notice growth is nothing, whatever the loss does."""
        assert list(RULE(probed(steep(-GRAY), loss=FLAT))) == []

    def test_an_odd_last_layer_does_not_empty_the_finding(self, probed) -> None:
        """Where the last layer alone is off the scale, the others are named as they would be without it."""
        levels = steep(-6, 12)
        levels[-1] = 1e6
        (finding,) = DepthRule(min_r2=0.0)(probed(levels, loss=FLAT))
        assert finding.layers[0] == "fc0"


class TestDoubt:
    """What speaks against a claim about depth."""

    def test_a_profile_that_no_line_explains_is_not_judged(self, probed) -> None:
        """Two layers that get next to nothing make no network vanish."""
        levels = np.array([1e-8, 1e-8, 1.0, 0.5, 1.1, 0.8, 1.2, 0.9])
        assert list(RULE(probed(levels, loss=FLAT))) == []

    def test_a_rising_learning_rate_leaves_the_outcome_open(self, probed) -> None:
        """During warm-up a loss that has not fallen makes no warning; afterwards it does."""
        rising = np.linspace(1e-4, 1e-2, len(FLAT))[:, None]
        norms = np.ones((len(FLAT), 10))
        (early,) = RULE(probed(steep(8), norms=norms, loss=FLAT, learning_rate=rising))
        (late,) = RULE(probed(steep(8), norms=norms, loss=FLAT))
        assert (early.severity, late.severity) == ("notice", "warning")

    def test_a_loss_that_is_not_known_leaves_the_outcome_open(self, probed) -> None:
        """Of adversaries, or where nobody hands over a loss, a poor profile stays a notice."""
        (finding,) = RULE(probed(steep(8), loss=np.full(150, np.nan)))
        assert (finding.severity, finding.evidence["loss_has_fallen"]) == ("notice", None)


@settings(max_examples=60, deadline=None)
@given(
    decades=st.floats(-9, 9),
    scale=st.floats(-8, 8),
    noise=st.floats(0, 0.3),
    seed=st.integers(0, 2**16),
    loss=st.sampled_from([FLAT, FALLING, FLAT[:20]]),
)
def test_neither_the_loss_scale_nor_the_registration_order_matters(
    probed, decades: float, scale: float, noise: float, seed: int, loss: np.ndarray
) -> None:
    """A loss times a number, and modules listed in another order, give the same finding with the same numbers."""
    rng = np.random.default_rng(seed)
    levels = steep(decades, 12) * 10 ** rng.normal(0, noise, 12)
    updates = 10 ** rng.uniform(-9, -2, 12)
    places = rng.permutation(12)
    names = np.empty(12, dtype=object)
    names[places] = [f"fc{i}" for i in range(12)]
    layers = [LayerDescription(name, "Linear", num_parameters=100) for name in names]

    def placed(values: np.ndarray) -> np.ndarray:
        moved = np.empty(12)
        moved[places] = values
        return moved

    plain = list(RULE(probed(levels, update_ratio=updates, loss=loss)))
    other = placed(levels * 10**scale)
    twin = list(RULE(probed(other, update_ratio=placed(updates), order=places, layers=layers, loss=loss)))
    assert [(d.rule, d.severity, d.layers, d.message) for d in twin] == [
        (d.rule, d.severity, d.layers, d.message) for d in plain
    ]
    for one, two in zip(plain, twin, strict=True):
        assert two.evidence["attenuation"] == pytest.approx(one.evidence["attenuation"], abs=1e-6)


def test_activations_are_counted_the_most_frequent_first(observe) -> None:
    """Two kinds are named, gates and linear layers are not, and sigmoid comes with its slope and its lines."""
    follow = ["sigmoid"] * 3 + ["relu"] * 2 + ["tanh", "linear", "gate", None]
    places = ["model.py:31", "model.py:31", "model.py:40"] + [""] * 6
    layers = [
        LayerDescription(str(i), "Linear", activation=name, where=where)
        for i, (name, where) in enumerate(zip(follow, places, strict=True))
    ]
    observations = observe(np.ones(9), layers=layers)
    expected = "3 x sigmoid (slope at most 0.25), model.py:31, model.py:40; 2 x relu"
    assert activations_in_words(observations, range(9)) == expected
    assert activations_in_words(observations, [6, 7, 8]) == ""


@pytest.mark.parametrize("more", [{"suspect": 0.0}, {"suspect": 3.5}, {"notice": 2.0}])
def test_bounds_that_contradict_each_other_are_refused(more: dict[str, float]) -> None:
    """Suspicion has to begin above zero and not after the notice."""
    with pytest.raises(ValueError, match="`suspect` must be positive and at most `notice`"):
        DepthRule(**more)


@pytest.mark.parametrize("horizon", [29, 257])
def test_a_horizon_that_no_loss_can_be_judged_by_is_refused(horizon: int) -> None:
    """A loss needs thirty readings."""
    with pytest.raises(ValueError, match=rf"`horizon` must be between 30.* and 256.* Got {horizon}"):
        DepthRule(horizon=horizon)


class TestSinceTheStart:
    """What the first probe tells."""

    @pytest.fixture
    def history(self, observe, probe):
        """Return a function that makes observations from the levels that each probe saw."""

        def make(*levels, loss=FALLING, **more):
            return observe(np.ones(10), signals=[probe(each) for each in levels], loss=loss, **more)

        return make

    @pytest.mark.parametrize("now", [-3.5, -2.4])
    def test_an_explosion_that_training_mends_in_part_is_a_warning(self, history, now: float) -> None:
        """Whatever the loss does, once the horizon is over."""
        (finding,) = RULE(history(steep(-4), steep(now), steep(now)))
        assert (finding.rule, finding.severity, finding.evidence["lasts"]) == ("exploding.depth", "warning", True)
        assert list(RULE(history(steep(-4), steep(now), steep(now), loss=FALLING[:50])))[1:] == []

    def test_one_that_training_has_mended_or_that_came_later_is_none(self, history) -> None:
        """Below what lasts, and below notice at first, nothing is said while the loss falls."""
        assert list(RULE(history(steep(-4), steep(-2), steep(-2)))) == []
        assert list(RULE(history(steep(-2.9), steep(-2.4), steep(-2.4)))) == []

    def test_layers_are_named_by_the_first_poor_profile(self, history) -> None:
        """Later the valley may lie elsewhere; a profile that was fine at first says nothing of it."""
        valley = steep(8)[[3, 4, 5, 0, 1, 2, 6, 7, 8, 9]]
        (moved,) = RULE(history(steep(8), valley, valley, loss=FLAT))
        (late,) = RULE(history(steep(0.5), valley, valley, loss=FLAT))
        assert moved.layers[:3] == ("fc0", "fc1", "fc2")
        assert late.layers[:3] == ("fc3", "fc4", "fc5")

    def test_a_loss_that_fell_a_little_and_rests_is_a_warning(self, history) -> None:
        """The last layers have done what they can; one that fell by more than half may be done."""
        rest = 0.7 + 0.001 * np.random.default_rng(0).normal(size=200)
        little, far = (np.concatenate([np.linspace(start, 0.7, 40), rest]) for start in (1.0, 7.0))
        severities = [[f.severity for f in RULE(history(*[steep(5)] * 3, loss=loss))] for loss in (little, far)]
        assert severities == [["warning"], ["notice"]]
