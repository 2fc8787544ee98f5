"""Test ``lightning_gradwatch.detect.profile``."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.detect.profile import (
    _MIN_STRETCH_R2,
    MIN_LAYERS,
    depth_profile,
    levels_of,
    may_be_steep,
    steepest_stretch,
    theil_sen,
)
from lightning_gradwatch.measure.snapshot import LayerDescription

LOGS = st.lists(st.floats(-12, 6).map(lambda value: round(value, 6)), min_size=6, max_size=24)


def profile(observations):
    """Return the depth profile of the newest probe."""
    return depth_profile(observations, observations.signals[-1])


def median_slope(values, places) -> float:
    """Return the median slope over all pairs of points, pair by pair."""
    pairs = combinations(range(len(values)), 2)
    return float(np.median([(values[j] - values[i]) / (places[j] - places[i]) for i, j in pairs]))


def explained(values: np.ndarray) -> tuple[float, float]:
    """Return slope and R2 of the least squares line, as numpy fits it."""
    places = np.arange(len(values))
    slope, start = np.polyfit(places, values, 1)
    rest = np.sum((values - slope * places - start) ** 2)
    return float(slope), float(1 - rest / max(np.sum((values - values.mean()) ** 2), 1e-12))


class TestTheilSen:
    """The robust slope."""

    @given(logs=st.lists(st.floats(-12, 6), min_size=2, max_size=32))
    def test_up_to_32_points_it_is_the_median_over_all_pairs(self, logs: list[float]) -> None:
        """The slope is that of a loop over all pairs."""
        assert theil_sen(np.array(logs)) == pytest.approx(median_slope(logs, range(len(logs))), abs=1e-9)

    @pytest.mark.parametrize("number", [33, 64, 205, 1000])
    def test_more_points_are_taken_in_32_groups(self, number: int) -> None:
        """Above 32 it is that of the means of 32 groups of neighbors, unequal ones included."""
        logs = np.random.default_rng(1).normal(0, 1, number) + np.linspace(-6, 0, number)
        bounds = [i * number // 32 for i in range(33)]
        groups = [range(low, high) for low, high in pairwise(bounds)]
        expected = median_slope([np.mean(logs[list(g)]) for g in groups], [np.mean(list(g)) for g in groups])
        assert theil_sen(logs) == pytest.approx(expected, rel=1e-9)

    @given(slope=st.floats(-3, 3), start=st.floats(-5, 5), number=st.integers(2, 100))
    def test_a_straight_line_gives_back_its_slope(self, slope: float, start: float, number: int) -> None:
        """Of any number of points on a line."""
        assert theil_sen(start + slope * np.arange(number)) == pytest.approx(slope, abs=1e-9)

    @given(logs=st.lists(st.floats(-12, 6), min_size=2, max_size=80), shift=st.floats(-9, 9))
    def test_a_shift_changes_nothing_and_the_mirror_turns_the_sign(self, logs: list[float], shift: float) -> None:
        """The loss's scale shifts all logarithms; the other direction is the other sign."""
        values = np.array(logs[: 32 * (len(logs) // 32) or len(logs)])
        assert theil_sen(values + shift) == pytest.approx(theil_sen(values), abs=1e-9)
        assert theil_sen(values[::-1]) == pytest.approx(-theil_sen(values), abs=1e-9)


class TestStretch:
    """Where the line is steepest."""

    @given(logs=LOGS)
    def test_no_other_stretch_that_a_line_explains_falls_farther(self, logs: list[float]) -> None:
        """It is the largest rise or fall of all stretches of six or more that lie on a line, each fitted by numpy."""
        values = np.array(logs)
        number = len(values)
        pairs = [(i, j) for i in range(number) for j in range(i + 6, number + 1)]
        lines = {pair: explained(values[slice(*pair)]) for pair in pairs}
        falls = {pair: abs(slope) * (pair[1] - pair[0] - 1) for pair, (slope, _) in lines.items()}
        # What lies on the bound may be taken or left.
        surely = [falls[pair] for pair in pairs if lines[pair][1] > _MIN_STRETCH_R2 + 1e-6]
        found = steepest_stretch(values)
        if found == (0, number) and lines[found][1] < _MIN_STRETCH_R2 - 1e-6:
            assert max(surely, default=0.0) == pytest.approx(0, abs=1e-6)
        else:
            assert lines[found][1] > _MIN_STRETCH_R2 - 1e-6 or np.ptp(values[slice(*found)]) < 1e-5
            assert falls[found] >= max(surely, default=0.0) - 1e-6

    def test_fewer_than_six_layers_are_one_stretch(self) -> None:
        """There is nothing to choose from."""
        assert steepest_stretch(np.array([-4.0, 0.0, -4.0, 0.0, 1.0])) == (0, 5)

    @pytest.mark.parametrize("number", [10, 64, 65, 500])
    def test_a_straight_line_is_one_stretch(self, number: int) -> None:
        """No part of a line falls as far as the whole."""
        assert steepest_stretch(np.linspace(-9, 0, number)) == (0, number)

    def test_in_a_deep_network_the_stretch_is_found_to_a_64th(self) -> None:
        """Of many layers not every start is tried, but none lies farther than one part in 64 from it."""
        logs = np.full(1280, -6.0)
        logs[400:800] = np.linspace(-12, 0, 400)
        start, stop = steepest_stretch(logs)
        assert abs(start - 400) <= 20
        assert abs(stop - 800) <= 20


class TestProfile:
    """The fit."""

    @pytest.mark.parametrize("num_layers", [4, 9, 32, 33, 100])
    @pytest.mark.parametrize("factor", [0.14, 0.9, 3.0])
    def test_an_exponential_profile_gives_back_its_factor(self, probed, factor: float, num_layers: int) -> None:
        """Where every layer back multiplies by r the fit says r, with R2 1, for any number of layers."""
        levels = 0.01 * factor ** np.arange(num_layers)[::-1]
        fit = profile(probed(levels, signal=factor ** np.arange(num_layers)))
        assert fit.factor == pytest.approx(factor, rel=1e-9)
        assert fit.attenuation == pytest.approx(-(num_layers - 1) * np.log10(factor), rel=1e-9)
        assert fit.growth == pytest.approx((num_layers - 1) * np.log10(factor), rel=1e-9)
        assert fit.r2 == pytest.approx(1.0)
        assert fit.levels == pytest.approx(levels)

    def test_slope_and_r2_are_those_of_independent_fits(self, probed) -> None:
        """The slope is the median over pairs, R2 that of numpy's least squares line."""
        logs = np.random.default_rng(2).normal(0, 0.5, 20) + np.linspace(-6, 0, 20)
        fit = profile(probed(10**logs))
        assert fit.layers.tolist() == list(range(20))
        assert fit.attenuation == pytest.approx(19 * median_slope(logs, range(20)))
        assert fit.r2 == pytest.approx(explained(logs)[1])

    def test_one_odd_layer_moves_the_slope_hardly(self, probed) -> None:
        """A single layer a million times off does not bend the profile."""
        levels = np.ones(20)
        levels[0] = 1e-6
        assert abs(profile(probed(levels)).attenuation) < 0.1

    def test_equal_levels_are_flat(self, probed) -> None:
        """Equal levels have the factor 1 and are a straight line."""
        fit = profile(probed(np.full(8, 0.5)))
        assert (fit.factor, fit.r2, len(fit.layers)) == (1.0, 1.0, 8)

    def test_layers_are_taken_in_the_order_of_their_calls(self, probed) -> None:
        """The depth of a layer is its place in the probe's forward pass, not in the list of modules."""
        order = np.array([3, 1, 4, 0, 2])
        levels = np.empty(5)
        levels[order] = 10 ** np.linspace(-4, 0, 5)
        fit = profile(probed(levels, order=order))
        assert fit.layers.tolist() == order.tolist()
        assert fit.attenuation == pytest.approx(4)

    def test_a_layer_that_was_not_called_has_no_depth(self, probed) -> None:
        """What the forward pass left out is no point of the line, whatever its column holds."""
        fit = profile(probed(np.ones(6), order=[0, 1, 3, 4, 5]))
        assert fit.layers.tolist() == [0, 1, 3, 4, 5]

    def test_the_level_is_the_norm_over_the_whole_output(self, probed) -> None:
        """Root mean square times the square root of the size: a pooling to fewer, larger numbers is no loss."""
        sizes = np.array([4096, 1024, 256, 64, 16])
        observations = probed(np.ones(5), sizes=sizes)
        assert observations.signals[-1].delta == pytest.approx(1 / np.sqrt(sizes))
        assert profile(observations).attenuation == pytest.approx(0, abs=1e-12)

    def test_normalizations_are_left_out(self, probed) -> None:
        """What only scales and shifts has no matrix and is no layer of depth."""
        layers = [LayerDescription(f"fc{i}", "Any", num_parameters=9, has_matrix=i % 2 == 0) for i in range(10)]
        levels = np.where(np.arange(10) % 2 == 1, 1e-12, 0.5)
        assert profile(probed(levels, layers=layers)).layers.tolist() == [0, 2, 4, 6, 8]

    @pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
    def test_what_has_no_logarithm_is_left_out(self, probed, value: float) -> None:
        """Dead, broken and unreached layers have no level; with fewer than four others there is no profile."""
        assert profile(probed([1.0, value, 1.0, 1.0, 1.0])).layers.tolist() == [0, 2, 3, 4]
        assert profile(probed([1.0, value, 1.0, 1.0])) is None
        assert MIN_LAYERS == 4

    @pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
    def test_a_signal_without_a_logarithm_is_left_out_of_growth_only(self, probed, value: float) -> None:
        """A layer that gives nothing still gets a gradient; with fewer than four signals growth is unknown, so 0."""
        fit = profile(probed(np.ones(6), signal=[1.0, 10.0, value, 1e2, 1e3, 1e4]))
        assert (len(fit.layers), fit.growth) == (6, pytest.approx(4.0))
        assert profile(probed(np.ones(4), signal=[1.0, 10.0, value, 1e2])).growth == 0

    def test_where_branches_lie_side_by_side_the_steep_one_is_judged(self, probed) -> None:
        """A deep branch that fades behind one that does not is a stretch of the forward order, and a line."""
        logs = np.concatenate([np.zeros(10), np.linspace(-8, 0, 10)])
        fit = profile(probed(10**logs))
        assert fit.layers.tolist() == list(range(10, 20))
        assert fit.attenuation == pytest.approx(8)

    def test_side_branches_do_not_hide_the_way_that_the_gradient_takes(self, probed) -> None:
        """Four of six layers of a block get a hundredth and less, scattered: those that get most lie on the line."""
        main = np.repeat(np.linspace(-5, 0, 16), 6)
        branches = np.tile([0.0, -4.0, -2.0, -6.0, 0.0, -3.0], 16) * np.repeat(np.linspace(1, 2, 16), 6)
        fit = profile(probed(10 ** (main + branches)))
        assert fit.r2 > 0.95
        assert fit.stride == 8
        assert fit.attenuation == pytest.approx(5, abs=0.5)
        assert fit.factor == pytest.approx(10 ** (-5 / 95), rel=0.02)

    def test_where_a_line_explains_the_whole_all_layers_are_points_of_it(self, probed) -> None:
        """A plain stack, however deep, is fitted as it is."""
        fit = profile(probed(10 ** np.linspace(-6, 0, 100)))
        assert (fit.stride, len(fit.layers)) == (1, 100)

    def test_scatter_without_a_trend_is_none(self, probed) -> None:
        """Layers that get very different gradients, in no order, have no slope that is explained."""
        fit = profile(probed(10 ** np.random.default_rng(0).uniform(-6, 0, 96)))
        assert fit.r2 < 0.5 or abs(fit.attenuation) < 2.5

    @given(logs=LOGS, scale=st.floats(-6, 6), seed=st.integers(0, 2**16))
    def test_neither_scale_nor_registration_order_matters(
        self, probed, logs: list[float], scale: float, seed: int
    ) -> None:
        """A loss times a number, and modules listed in another order, give the same line through the same layers."""
        levels, number = 10 ** np.array(logs), len(logs)
        places = np.random.default_rng(seed).permutation(number)
        moved = np.empty(number)
        moved[places] = levels * 10**scale
        plain, other = profile(probed(levels)), profile(probed(moved, order=places))
        if [places[layer] for layer in plain.layers] == other.layers.tolist():
            assert other.attenuation == pytest.approx(plain.attenuation, abs=1e-6)
            assert other.r2 == pytest.approx(plain.r2, abs=1e-6)
        else:  # two stretches that fall equally far
            fits = [explained(np.log10(fit.levels)) for fit in (plain, other)]
            falls = [abs(slope) * (len(fit.levels) - 1) for (slope, _), fit in zip(fits, (plain, other), strict=True)]
            assert falls[0] == pytest.approx(falls[1], abs=1e-6)


def parallel(observe, probe, *towers: list[float]):
    """Return the profile of towers side by side, each given by the levels of its layers."""
    ends = np.cumsum([len(tower) for tower in towers]) - 1
    layers = [
        LayerDescription(f"fc{n}", "Linear", outlets=(int(end),))
        for tower, end in zip(towers, ends, strict=True)
        for n in range(len(tower))
    ]
    levels = np.concatenate([np.asarray(tower) for tower in towers])
    return profile(observe(np.ones((1, len(levels))), layers=layers, signals=[probe(levels)]))


class TestChains:
    """Layers side by side are not one line."""

    def test_a_quiet_actor_beside_a_loud_critic_is_no_line(self, observe, probe) -> None:
        """Two flat towers of very different level are two flat profiles, and short ones are none."""
        assert parallel(observe, probe, [1e-3] * 4, [1.0] * 4).attenuation == 0
        assert parallel(observe, probe, [1e-3] * 3, [1.0] * 3) is None

    @pytest.mark.parametrize("place", [0, 1])
    def test_the_steepest_of_the_towers_counts(self, observe, probe, place: int) -> None:
        """A tower in which the gradient vanishes is found beside a longer healthy one, whichever comes first."""
        towers = [[1.0] * 7]
        towers.insert(place, [1e-6, 1e-4, 1e-2, 1.0])
        found = parallel(observe, probe, *towers)
        assert found.attenuation == pytest.approx(6.0)
        assert found.layers.tolist() == (list(range(4)) if place == 0 else list(range(7, 11)))

    def test_only_the_longest_of_many_are_fitted(self, observe, probe) -> None:
        """Eight towers are looked at, the longest ones."""
        steep = [1e-6, 1e-4, 1e-2, 1.0]
        assert parallel(observe, probe, steep, *[[1.0] * 5] * 7).attenuation == pytest.approx(6.0)
        assert parallel(observe, probe, steep, *[[1.0] * n for n in range(5, 13)]).attenuation == 0


@given(decades=st.floats(2.5, 12), number=st.integers(4, 60), seed=st.integers(0, 999))
def test_a_quick_look_rules_out_no_line(probed, decades: float, number: int, seed: int) -> None:
    """What the quick look sends away would not have been steep: lines with noise all pass it."""
    logs = np.linspace(-decades, 0, number) + np.random.default_rng(seed).normal(0, 0.1, number)
    observations = probed(10**logs)
    _, levels = levels_of(observations, observations.signals[-1])
    steep = abs(profile(observations).attenuation)
    assert may_be_steep(levels, min(steep, np.ptp(logs)) - 1e-6)
    assert not may_be_steep(levels, np.ptp(logs) + 1e-6)
