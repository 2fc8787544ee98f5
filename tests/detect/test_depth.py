"""Test ``lightning_gradwatch.detect.depth``."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import linregress, theilslopes

from lightning_gradwatch.detect.depth import DepthRule, activations_in_words, depth_profile
from lightning_gradwatch.detect.diagnosis import Symptom
from lightning_gradwatch.detect.rules import default_rules
from lightning_gradwatch.measure.snapshot import LayerDescription

RULE = DepthRule()
FLAT = 2.3 + 0.01 * np.random.default_rng(0).normal(size=150)
FALLING = np.linspace(2.3, 0.3, 150)


def steep(decades: float, num_layers: int = 10) -> np.ndarray:
    """Return levels that lose so many decades from the last layer to the first."""
    return 10 ** np.linspace(-decades, 0, num_layers)


class TestProfile:
    """The fit."""

    @pytest.mark.parametrize("num_layers", [4, 9, 32, 33, 100])
    @pytest.mark.parametrize("factor", [0.14, 0.9, 3.0])
    def test_an_exponential_profile_gives_back_its_factor(self, profile_of, factor: float, num_layers: int) -> None:
        """Where every layer back multiplies by r the fit says r, with R2 1, for any number of layers."""
        levels = 0.01 * factor ** np.arange(num_layers)[::-1]
        profile = depth_profile(profile_of(levels))
        assert profile.factor == pytest.approx(factor, rel=1e-9)
        assert profile.attenuation == pytest.approx(-(num_layers - 1) * np.log10(factor), rel=1e-9)
        assert profile.r2 == pytest.approx(1.0)
        assert profile.levels == pytest.approx(levels)

    @given(logs=st.lists(st.floats(-12, 6), min_size=4, max_size=32))
    def test_the_slope_is_that_of_theil_and_sen(self, profile_of, logs: list[float]) -> None:
        """Up to 32 layers the slope is the one that scipy computes from the same points."""
        profile = depth_profile(profile_of(10 ** np.array(logs)))
        expected = theilslopes(logs).slope
        assert profile.attenuation / (len(logs) - 1) == pytest.approx(expected, abs=1e-9)

    def test_many_layers_are_taken_in_groups(self, profile_of) -> None:
        """Above 32 layers the slope is that of the means of 32 groups of neighbors, unequal ones included."""
        logs = np.random.default_rng(1).normal(0, 1, 205) + np.linspace(-6, 0, 205)
        groups = [
            (np.mean(logs[low:high]), (low + high - 1) / 2)
            for low, high in zip(
                [int(i * 205 / 32) for i in range(32)], [int(i * 205 / 32) for i in range(1, 33)], strict=True
            )
        ]
        expected = theilslopes(*zip(*groups, strict=True)).slope
        assert depth_profile(profile_of(10**logs)).attenuation == pytest.approx(204 * expected, rel=1e-9)

    def test_r2_is_that_of_a_straight_line(self, profile_of) -> None:
        """R2 is the share of the variance that scipy's regression explains."""
        logs = np.random.default_rng(2).normal(0, 1, 20) + np.linspace(-3, 0, 20)
        expected = linregress(np.arange(20), logs).rvalue ** 2
        assert depth_profile(profile_of(10**logs)).r2 == pytest.approx(expected)

    def test_one_odd_layer_moves_the_slope_hardly(self, profile_of) -> None:
        """A single layer a million times off does not bend the profile."""
        levels = np.ones(20)
        levels[0] = 1e-6
        assert abs(depth_profile(profile_of(levels)).attenuation) < 0.1

    def test_equal_levels_are_flat(self, profile_of) -> None:
        """Equal levels have the factor 1 and are a straight line."""
        profile = depth_profile(profile_of(np.full(6, 0.5)))
        assert (profile.factor, profile.r2) == (1.0, 1.0)

    def test_layers_are_taken_in_forward_order(self, profile_of) -> None:
        """The depth of a layer is its place in the forward pass, not in the list of modules."""
        order = np.array([3, 1, 4, 0, 2])
        levels = np.empty(5)
        levels[order] = steep(4, 5)
        profile = depth_profile(profile_of(levels, order=order))
        assert profile.layers.tolist() == order.tolist()
        assert profile.attenuation == pytest.approx(4)

    def test_the_level_does_not_depend_on_the_width(self, observe) -> None:
        """Layers of different width with the same gradient an entry have the same level."""
        layers = [LayerDescription(f"fc{n}", "Linear", num_parameters=n, num_biases=n) for n in (4, 64, 1024, 9, 1)]
        profile = depth_profile(observe(np.ones(5), biases=0.1 * np.sqrt([4, 64, 1024, 9, 1]), layers=layers))
        assert profile.levels == pytest.approx(np.full(5, 0.1))

    def test_biases_before_a_batch_normalization_are_left_out(self, observe) -> None:
        """Their gradient is rounding noise: the others alone make the profile."""
        layers = [
            LayerDescription(f"fc{i}", "Linear", num_parameters=9, num_biases=1, feeds_batch_norm=i % 2 == 1)
            for i in range(10)
        ]
        biases = np.where(np.arange(10) % 2 == 1, 1e-12, 0.5)
        observations = observe(np.ones(10), biases=biases, layers=layers, loss=FLAT)
        assert depth_profile(observations).layers.tolist() == [0, 2, 4, 6, 8]
        assert list(RULE(observations)) == []

    @pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
    def test_what_has_no_logarithm_is_left_out(self, profile_of, value: float) -> None:
        """Dead, broken and absent layers have no level; with fewer than four others there is no profile."""
        profile = depth_profile(profile_of([1.0, value, 1.0, 1.0, 1.0]))
        assert profile.layers.tolist() == [0, 2, 3, 4]
        assert depth_profile(profile_of([1.0, value, 1.0, 1.0])) is None


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
        self, profile_of, decades: float, num_layers: int, level: float, noise: float, seed: int, kind: str
    ) -> None:
        """No default rule says anything of a shallow profile with noise, at any scale, though the loss stays flat."""
        jitter = np.random.default_rng(seed).uniform(-noise, noise, num_layers)
        levels = 10 ** (level + np.linspace(-decades, 0, num_layers) + jitter)
        rate = 1e-3 * 10.0**-level  # a learning rate that fits the scale of the loss
        observations = profile_of(levels, loss=FLAT, kind=kind, eps=1e-30, learning_rate=rate)
        assert [finding for rule in default_rules() for finding in rule(observations)] == []

    def test_a_poor_profile_in_the_gray_zone_waits_for_the_outcome(self, profile_of) -> None:
        """Between 2.5 and 3 decades nothing is said while the loss is open or falls, and a warning once it has not."""
        levels = steep(2.8)
        assert list(RULE(profile_of(levels, loss=FLAT[:50]))) == []
        assert list(RULE(profile_of(levels, loss=FALLING))) == []
        assert [d.severity for d in RULE(profile_of(levels, loss=FLAT))] == ["warning"]

    def test_a_shallow_network_has_no_depth(self, profile_of) -> None:
        """Three layers are not judged."""
        assert list(RULE(profile_of([1e-9, 1e-5, 1.0], loss=FLAT))) == []

    def test_growth_late_in_training_is_none(self, profile_of) -> None:
        """When the last bias has settled its small gradient is no explosion."""
        assert list(RULE(profile_of(steep(-5), loss=FLAT[:51]))) == []
        assert list(RULE(profile_of(steep(-5), loss=FALLING))) == []


class TestVanishing:
    """Too little gradient at the input."""

    def test_plain_descent_that_starves_is_a_warning_at_once(self, profile_of) -> None:
        """Under SGD the first layers hardly move: no outcome is waited for."""
        (finding,) = RULE(profile_of(steep(8), loss=FLAT[:3]))
        assert (finding.rule, finding.symptom, finding.severity) == (
            "vanishing.depth",
            Symptom.VANISHING,
            "warning",
        )
        assert finding.message == "the first layers get almost no gradient and hardly move"
        assert finding.evidence["update_ratio"] == pytest.approx(0.1 * 1e-8 / 10)
        assert finding.evidence["attenuation"] == pytest.approx(8)
        assert finding.evidence["first_over_last"] == pytest.approx(1e-8)
        assert "fc0 gets 1e-08 of what fc9 gets" in finding.measured

    def test_adam_makes_it_a_notice(self, profile_of) -> None:
        """Under Adam the same profile is a notice that says why, and is one still when the loss falls."""
        (open_,) = RULE(profile_of(steep(8), kind="Adam", eps=1e-30, loss=FLAT[:3]))
        (falls,) = RULE(profile_of(steep(8), kind="Adam", eps=1e-30, loss=FALLING))
        assert (open_.severity, falls.severity) == ("notice", "notice")
        assert open_.message.endswith("the loss will tell; Adam rescales each step, so training may cope")
        assert falls.message == "the first layers get little gradient, but the loss falls"
        assert open_.evidence["update_ratio"] is None

    def test_a_loss_that_does_not_fall_makes_it_a_warning(self, profile_of) -> None:
        """Under Adam, too, it is a warning once the loss has not fallen."""
        (finding,) = RULE(profile_of(steep(8), kind="Adam", eps=1e-30, loss=FLAT))
        assert finding.severity == "warning"
        assert finding.message == "the first layers get almost no gradient, and the loss does not fall"

    def test_adam_starves_below_its_eps(self, profile_of) -> None:
        """Where the gradient is far below eps Adam cannot rescale it: a warning at once."""
        (finding,) = RULE(profile_of(1e-4 * steep(10), kind="Adam", eps=1e-8, learning_rate=1e-3, loss=FLAT[:3]))
        assert finding.severity == "warning"

    def test_an_unknown_optimizer_waits_for_the_outcome(self, profile_of) -> None:
        """Of an optimizer whose step is not known only the loss tells."""
        (finding,) = RULE(profile_of(steep(8), kind="Lion", loss=FLAT[:3]))
        assert finding.severity == "notice"
        assert finding.message.endswith("the loss will tell")
        (finding,) = RULE(profile_of(steep(8), kind="Lion", loss=FLAT))
        assert finding.severity == "warning"

    def test_slow_everywhere_is_not_starved(self, profile_of) -> None:
        """A tiny learning rate moves all layers little: that alone is no warning of starved first layers."""
        observations = profile_of(steep(3.5), norms=np.ones(10), learning_rate=1e-9, loss=FLAT[:3])
        (finding,) = RULE(observations)
        assert finding.severity == "notice"

    def test_the_layers_below_a_hundredth_are_named_worst_first(self, profile_of) -> None:
        """Named are those with less than a hundredth of what the last quarter gets."""
        (finding,) = RULE(profile_of(steep(9), loss=FLAT))
        assert finding.layers == ("fc0", "fc1", "fc2", "fc3", "fc4", "fc5", "fc6")

    def test_where_no_layer_is_below_a_hundredth_the_least_is_named(self, profile_of) -> None:
        """A rule that is stricter than the default, shown a profile of 1.5 decades, names the one layer."""
        (finding,) = DepthRule(notice=1.0, suspect=1.0)(profile_of(steep(1.5), loss=FLAT))
        assert finding.layers == ("fc0",)

    def test_weights_that_were_not_measured_make_no_noise(self, profile_of) -> None:
        """Where no weight norm is known the rule neither fails nor warns of an empty slice."""
        (finding,) = RULE(profile_of(steep(8), weights=np.nan, loss=FLAT[:3]))
        assert finding.severity == "notice"

    def test_two_thousand_layers_are_judged_in_one_call(self, profile_of) -> None:
        """In a network of 2,000 layers the layers below a hundredth are those found by hand."""
        rng = np.random.default_rng(0)
        levels = steep(9, 2000) * 10 ** rng.normal(0, 0.2, 2000)
        (finding,) = RULE(profile_of(levels, loss=FLAT))
        bound = 1e-2 * float(np.median(levels[1500:]))
        sick = sorted((i for i in range(2000) if levels[i] < bound), key=lambda i: levels[i])
        assert finding.layers == tuple(f"fc{i}" for i in sick)


class TestExploding:
    """Too much gradient at the input."""

    def test_growth_at_the_start_is_a_notice(self, profile_of) -> None:
        """A gradient that grows on its way back is a notice while the outcome is open, most gradient first."""
        (finding,) = RULE(profile_of(steep(-6), loss=FLAT[:3]))
        assert (finding.rule, finding.symptom, finding.severity) == ("exploding.depth", Symptom.EXPLODING, "notice")
        assert finding.layers == ("fc0", "fc1", "fc2", "fc3", "fc4", "fc5")
        assert finding.evidence["factor"] == pytest.approx(10 ** (6 / 9))

    def test_it_is_a_warning_when_the_loss_does_not_fall(self, profile_of) -> None:
        """Once the loss has not fallen it is a warning that says so."""
        (finding,) = RULE(profile_of(steep(-6), loss=FLAT))
        assert finding.severity == "warning"
        assert finding.message.endswith("and the loss does not fall")

    def test_an_odd_last_layer_does_not_empty_the_finding(self, profile_of) -> None:
        """Where the last layer alone is off the scale, the largest layer is named instead of none."""
        levels = steep(-6, 12)
        levels[-1] = 1e6
        (finding,) = DepthRule(min_r2=0.0)(profile_of(levels, loss=FLAT))
        assert finding.layers == ("fc0",)


class TestDoubt:
    """What speaks against a claim about depth."""

    def test_a_profile_that_no_line_explains_is_not_judged(self, profile_of) -> None:
        """Two layers whose bias gradients cancel to noise make no network vanish."""
        levels = np.array([1e-8, 1e-8, 1.0, 0.5, 1.1, 0.8, 1.2, 0.9])
        assert list(RULE(profile_of(levels, loss=FLAT))) == []

    def test_a_rising_learning_rate_leaves_the_outcome_open(self, profile_of) -> None:
        """During warm-up a loss that has not fallen makes no warning; afterwards it does."""
        rising = np.linspace(1e-4, 1e-2, len(FLAT))[:, None]
        norms = np.ones((len(FLAT), 10))
        (early,) = RULE(profile_of(steep(4), norms=norms, loss=FLAT, learning_rate=rising))
        (late,) = RULE(profile_of(steep(4), norms=norms, loss=FLAT))
        assert (early.severity, late.severity) == ("notice", "warning")


class TestWithoutBiases:
    """Networks that have weights only."""

    def test_gradients_that_change_no_weight_are_vanishing(self, observe) -> None:
        """Under SGD a network in which every layer's gradient is nothing beside its weights is told, worst first."""
        (finding,) = RULE(observe([1e-9, 1e-10, 1e-9, 1e-9], weights=10.0, loss=FLAT))
        assert (finding.rule, finding.layers[0], finding.severity) == ("vanishing.depth", "fc1", "warning")
        assert finding.evidence == {"largest_ratio": pytest.approx(1e-10)}

    @pytest.mark.parametrize(
        "more",
        [
            {"kind": "Adam", "eps": 1e-8},
            {"loss": FALLING},
            {"weights": [10.0, 10.0, 10.0, 1e-3]},
            {"learning_rate": 1e4},
            {"weights": np.nan},
            {"present": [True, True, True, False]},
        ],
        ids=["Adam", "falling loss", "one layer moves", "high learning rate", "weights not known", "three layers"],
    )
    def test_it_is_silent_where_something_may_move(self, observe, more: dict[str, object]) -> None:
        """Adam, a falling loss, one layer that moves, a learning rate to match, or a shallow network are no fault."""
        assert list(RULE(observe([1e-9] * 4, **{"loss": FLAT, **more}))) == []

    def test_exact_zeros_are_left_to_the_dead_rule(self, observe) -> None:
        """A zero is dead, never vanishing."""
        assert list(RULE(observe(np.zeros(4), loss=FLAT))) == []


def test_activations_are_counted_the_most_frequent_first(observe) -> None:
    """Two kinds are named, gates and linear layers are not, and sigmoid comes with its slope."""
    follow = ["sigmoid"] * 3 + ["relu"] * 2 + ["tanh", "linear", "gate", None]
    layers = [LayerDescription(str(i), "Linear", activation=name) for i, name in enumerate(follow)]
    observations = observe(np.ones(9), layers=layers)
    assert activations_in_words(observations, range(9)) == "3 x sigmoid (slope at most 0.25), 2 x relu"
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
