"""Test ``lightning_gradwatch.detect.stall``."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.detect.diagnosis import Symptom
from lightning_gradwatch.detect.stall import StallRule
from lightning_gradwatch.measure.snapshot import LayerDescription

RULE = StallRule()
FLAT = 2.3 + 0.01 * np.random.default_rng(0).normal(size=150)
FALLING = np.linspace(2.3, 0.3, 150)
UNMOVED = RULE.unmoved / 10
SLOW = (RULE.unmoved * RULE.min_update) ** 0.5


def test_steps_that_change_no_float_are_told_at_once(probed) -> None:
    """Below the distance of float32 numbers no outcome is waited for; the slowest layer comes first."""
    updates = UNMOVED * np.array([1.0, 0.1, 0.5, 0.2])
    (finding,) = RULE(probed(np.ones(4), update_ratio=updates, loss=FLAT[:3]))
    assert (finding.rule, finding.symptom, finding.severity) == ("vanishing.update", Symptom.VANISHING, "warning")
    assert finding.layers == ("fc1", "fc3", "fc2", "fc0")
    assert finding.evidence["update_ratio"] == pytest.approx(UNMOVED)
    assert finding.message == "the steps move no weight"


def test_slow_steps_wait_for_the_outcome(probed) -> None:
    """Nothing while the loss is open or falls; a warning that says so once it has not fallen."""
    assert list(RULE(probed(np.ones(4), update_ratio=SLOW, loss=FLAT[:50]))) == []
    assert list(RULE(probed(np.ones(4), update_ratio=SLOW, loss=FALLING))) == []
    (finding,) = RULE(probed(np.ones(4), update_ratio=SLOW, loss=FLAT))
    assert (finding.severity, finding.evidence["loss_has_fallen"]) == ("warning", False)
    assert "the loss does not fall" in finding.message


def test_a_network_that_has_learned_and_rests_is_healthy(probed) -> None:
    """However small its last steps are, a loss that fell before is no fault."""
    rests = np.concatenate([np.linspace(2.3, 0.01, 100), np.full(400, 0.01)])
    for updates in (SLOW, UNMOVED, 0.0):
        assert list(RULE(probed(np.ones(4), update_ratio=updates, loss=rests))) == []


@given(updates=st.lists(st.floats(-12, 0), min_size=1, max_size=9), loss=st.sampled_from([FLAT, FLAT[:9], FALLING]))
def test_one_layer_that_moves_is_enough(probed, updates: list[float], loss: np.ndarray) -> None:
    """Where any layer goes by as much as is usual the steps move something, whatever the loss does."""
    ratios = np.array([*(10 ** np.array(updates)), 10 * RULE.min_update])
    assert list(RULE(probed(np.ones(len(ratios)), update_ratio=ratios, loss=loss))) == []


@pytest.mark.parametrize("before", [1e-3, np.nan])
def test_one_probe_is_not_enough(observe, probe, before: float) -> None:
    """A skipped step leaves everything where it is; the probe before it, or an unmeasured one, speaks against it."""
    still = probe(np.ones(4), update_ratio=UNMOVED)
    other = probe(np.ones(4), update_ratio=before)
    for signals in ([], [still], [other, still], [still, other]):
        assert list(RULE(observe(np.ones(4), signals=signals, loss=FLAT))) == []
    assert len(list(RULE(observe(np.ones(4), signals=[other, still, still], loss=FLAT)))) == 1


def test_layers_without_a_measured_update_are_left_out(probed) -> None:
    """Those of another optimizer, which no step of this one moves, are not named."""
    (finding,) = RULE(probed(np.ones(4), update_ratio=[UNMOVED, np.nan, UNMOVED, UNMOVED], loss=FLAT))
    assert finding.layers == ("fc0", "fc2", "fc3")


def test_only_layers_with_a_matrix_count(probed) -> None:
    """A normalization that moves does not make a network learn, and one that rests is no fault."""
    layers = [LayerDescription(f"fc{i}", "Any", num_parameters=9, has_matrix=i < 2) for i in range(4)]
    (finding,) = RULE(probed(np.ones(4), update_ratio=[SLOW, SLOW, 1e-2, 1e-2], layers=layers, loss=FLAT))
    assert finding.layers == ("fc0", "fc1")
    assert list(RULE(probed(np.ones(4), update_ratio=[1e-2, SLOW, SLOW, SLOW], layers=layers, loss=FLAT))) == []


@pytest.mark.parametrize(
    "more",
    [
        {"norms": np.zeros(4)},
        {"norms": np.full(4, np.nan)},
        {"learning_rate": 0.0},
        {"learning_rate": np.linspace(0, 1e-3, 40)[:, None], "norms": np.ones((40, 4))},
        {"present": np.zeros(4, dtype=np.bool_)},
    ],
    ids=["dead", "NaN", "learning rate 0", "warm-up", "absent"],
)
def test_what_other_rules_speak_of_and_a_warm_up_are_no_stall(probed, more: dict[str, object]) -> None:
    """Exact zeros, NaN, a learning rate that is 0 or rises, and layers without a gradient stand still rightly."""
    assert list(RULE(probed(np.ones(4), update_ratio=0.0, loss=FLAT[:40], **more))) == []


def test_a_warm_up_that_is_over_is_judged(probed) -> None:
    """When the learning rate has stopped rising the outcome decides again."""
    rates = np.minimum(np.arange(1, 251), 20)[:, None] * 1e-9
    norms = np.ones((250, 4))
    flat = 2.3 + 0.01 * np.random.default_rng(1).normal(size=250)
    assert len(list(RULE(probed(np.ones(4), update_ratio=SLOW, norms=norms, learning_rate=rates, loss=flat)))) == 1


def test_the_cause_is_the_learning_rate_or_the_gradient(probed) -> None:
    """Gradients of a usual size point to the learning rate, gradients of next to nothing to themselves."""
    (rate,) = RULE(probed(np.ones(4), norms=np.ones(4), learning_rate=1e-12, update_ratio=UNMOVED, loss=FLAT))
    (tiny,) = RULE(probed(np.ones(4), norms=np.full(4, 1e-12), update_ratio=UNMOVED, loss=FLAT))
    assert "learning rate of 1e-12 is too small" in rate.cause
    assert "gradient itself is next to nothing" in tiny.cause
    assert rate.evidence["learning_rate"] == 1e-12
    assert "at most 1e-08 of its weights" in rate.measured


def test_a_network_of_one_layer_is_judged(probed) -> None:
    """Standing still does not ask for depth."""
    assert [d.layers for d in RULE(probed(np.ones(1), update_ratio=UNMOVED, loss=FLAT))] == [("fc0",)]


@given(seed=st.integers(0, 2**16), largest=st.floats(-12, -4))
def test_the_order_of_registration_changes_nothing(probed, seed: int, largest: float) -> None:
    """Modules listed in another order give the same layers, slowest first, and the same number."""
    rng = np.random.default_rng(seed)
    updates, places = 10 ** np.linspace(largest, largest - 2, 7), rng.permutation(7)
    moved, names = np.empty(7), np.empty(7, dtype=object)
    moved[places], names[places] = updates, [f"fc{i}" for i in range(7)]
    layers = [LayerDescription(name, "Linear", num_parameters=100) for name in names]
    plain = list(RULE(probed(np.ones(7), update_ratio=updates, loss=FLAT)))
    twin = list(RULE(probed(np.ones(7), update_ratio=moved, order=places, layers=layers, loss=FLAT)))
    assert [d.layers for d in twin] == [d.layers for d in plain]
    assert [d.evidence for d in twin] == [d.evidence for d in plain]


@pytest.mark.parametrize("more", [{"unmoved": 0.0}, {"unmoved": 1e-3}, {"min_update": 1e-9}])
def test_bounds_that_contradict_each_other_are_refused(more: dict[str, float]) -> None:
    """What is unmoved moves less than what is slow."""
    with pytest.raises(ValueError, match="`unmoved` must be positive and at most `min_update`"):
        StallRule(**more)
