"""Test ``lightning_gradwatch.detect.disconnected``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.detect.diagnosis import Observations, Symptom
from lightning_gradwatch.detect.disconnected import DisconnectedRule
from lightning_gradwatch.measure.snapshot import LayerDescription

RULE = DisconnectedRule()


@pytest.fixture(scope="session")
def without(observe, probe):
    """Return a function that makes observations of six layers in which some never had a gradient.

    What the layers without one give is fed, cut, into all others, unless ``fed_by_cut`` says something else.
    """

    def make(
        missing,
        *,
        number: int = RULE.first_readings,
        called=None,
        probes: int = 1,
        training: Any = 1.0,
        fed_by_cut: Any = None,
        **more,
    ) -> Observations:
        present = ~np.isin(np.arange(6), list(missing))
        norms = np.where(present, 1.0, np.nan) + np.zeros((number, 6))
        fed = present if fed_by_cut is None else fed_by_cut
        order = range(6) if called is None else called
        signals = [probe(np.ones(6), order=order, training=training, fed_by_cut=fed)] * probes
        return observe(norms, present=present, signals=signals, **more)

    return make


@pytest.fixture(scope="session")
def idle(observe) -> Callable[..., Observations]:
    """Return a function that makes observations of three layers without any gradient, the last one frozen."""

    def make(number: int = RULE.idle_readings, loss: Any = 1.0, signals: Any = (), **about: Any) -> Observations:
        layers = [LayerDescription(f"fc{i}", "Linear", num_parameters=9, trainable=i < 2) for i in range(3)]
        nothing = np.full((number, 3), np.nan)
        found = observe(
            nothing, present=False, loss=np.broadcast_to(loss, number), layers=layers, signals=signals, optimizer=1
        )
        return replace(found, **about)

    return make


class TestCut:
    """What is used, and nothing comes back to it."""

    def test_layers_before_all_others_are_cut_off(self, without) -> None:
        """A warning after few readings; the layer nearest to the cut comes first."""
        (finding,) = RULE(without({0, 1, 2}))
        assert (finding.rule, finding.symptom, finding.severity) == ("disconnected", Symptom.DISCONNECTED, "warning")
        assert finding.layers == ("fc2", "fc1", "fc0")
        assert finding.evidence == {"num_readings": RULE.first_readings, "cut": True, "next_layer": "fc3"}
        assert "the graph is cut" in finding.message
        assert "None, not 0" in finding.measured
        assert "detach()" in finding.cause

    def test_the_forward_pass_decides_what_comes_first(self, without) -> None:
        """Registration says nothing: layers that are called after a living one are no cut."""
        assert list(RULE(without({0, 1}, called=[5, 4, 3, 2, 1, 0]))) == []
        (finding,) = RULE(without({4, 5}, called=[5, 4, 3, 2, 1, 0]))
        assert finding.layers == ("fc4", "fc5")

    def test_fewer_readings_decide_nothing(self, without) -> None:
        """An optimizer's first step may leave a part out."""
        assert list(RULE(without({0, 1}, number=RULE.first_readings - 1))) == []

    def test_without_a_probe_nobody_knows_what_was_called(self, without) -> None:
        """Then the layers are merely unused, and that takes longer to tell."""
        assert list(RULE(without({0, 1}, probes=0))) == []
        (finding,) = RULE(without({0, 1}, probes=0, number=RULE.num_readings))
        assert (finding.severity, finding.evidence["cut"]) == ("notice", False)

    def test_frozen_layers_and_those_of_another_optimizer_do_not_hide_it(self, without) -> None:
        """A frozen embedding before the cut neither is cut nor ends the cut, and neither does another's layer."""
        rates = [np.nan, 0.1, 0.1, 0.1, 0.1, 0.1]
        (finding,) = RULE(without({0, 1, 2}, learning_rate=rates))
        assert finding.layers == ("fc2", "fc1")


class TestAtRest:
    """What is called first and gets nothing, and is no cut: a notice at most, and that takes longer."""

    @pytest.mark.parametrize(
        "about",
        [
            {"fed_by_cut": 0.0},
            {"fed_by_cut": [0, 1, 1, 0, 0, 0]},
            {"fed_by_cut": [np.nan] * 6},
            {"training": 0.0},
            {"training": [1, 0, 1, 1, 1, 1]},
        ],
        ids=["teacher", "chain of the teacher", "unknown", "evaluation mode", "a layer in evaluation mode"],
    )
    def test_it_is_no_warning(self, without, about: dict[str, Any]) -> None:
        """A teacher feeds the loss alone, if itself, and a trunk in evaluation mode is at rest on purpose."""
        assert list(RULE(without({0, 1, 2}, number=RULE.num_readings - 1, **about))) == []
        (finding,) = RULE(without({0, 1, 2}, number=RULE.num_readings, **about))
        assert (finding.severity, finding.layers) == ("notice", ("fc0", "fc1", "fc2"))
        assert finding.evidence["cut"] is False

    def test_one_living_layer_that_is_fed_is_enough(self, without) -> None:
        """The head need not be the next layer that is called."""
        (finding,) = RULE(without({0, 1}, fed_by_cut=[0, 0, 0, 0, 1, 0]))
        assert (finding.severity, finding.layers) == ("warning", ("fc1", "fc0"))

    def test_a_layer_of_another_optimizer_that_is_fed_says_nothing(self, without) -> None:
        """It is judged where its own optimizer steps."""
        rates = [0.1, 0.1, 0.1, 0.1, np.nan, 0.1]
        assert list(RULE(without({0, 1}, fed_by_cut=[0, 0, 0, 0, 1, 0], learning_rate=rates))) == []


class TestUnused:
    """What no loss uses."""

    def test_layers_behind_a_living_one_are_a_notice(self, without) -> None:
        """After more readings; in forward order."""
        assert list(RULE(without({2, 4}, number=RULE.num_readings - 1))) == []
        (finding,) = RULE(without({2, 4}, number=RULE.num_readings))
        assert (finding.severity, finding.layers) == ("notice", ("fc2", "fc4"))
        assert finding.message == "no loss has used these layers so far"
        assert finding.cause == ""

    def test_layers_that_were_never_called_are_a_notice(self, without) -> None:
        """Even registered first, what the forward pass does not call is unused and not cut off."""
        observations = without({0, 1}, called=[2, 3, 4, 5], number=RULE.num_readings)
        assert [(d.severity, d.layers) for d in RULE(observations)] == [("notice", ("fc0", "fc1"))]

    def test_a_cut_and_an_unused_layer_are_two_findings(self, without) -> None:
        """They have nothing in common but the missing gradient."""
        findings = list(RULE(without({0, 1, 4}, number=RULE.num_readings)))
        assert [(d.severity, d.layers) for d in findings] == [("warning", ("fc1", "fc0")), ("notice", ("fc4",))]


class TestHealthy:
    """Silence."""

    def test_layers_with_a_gradient_are_silent(self, without) -> None:
        """Whatever it is."""
        assert list(RULE(without(set(), number=100))) == []

    def test_one_gradient_ever_is_enough(self, observe, probe) -> None:
        """A head that is trained in turns, or a layer that some batches use, is connected; zero is a gradient."""
        present = np.ones((50, 3), dtype=np.bool_)
        present[:, 0] = False
        present[7, 0] = True
        for value in (1.0, 0.0, np.nan):
            norms = np.where(present, 1.0, np.nan)
            norms[7, 0] = value
            assert list(RULE(observe(norms, present=present, signals=[probe(np.ones(3))]))) == []

    @pytest.mark.parametrize(
        "about",
        [{"trainable": False}, {"num_parameters": 0}],
        ids=["frozen", "empty"],
    )
    def test_layers_that_can_have_none_are_silent(self, without, about: dict[str, object]) -> None:
        """Frozen ones do not ask for a gradient, empty ones have nothing to move."""
        plain = {"num_parameters": 9}
        layers = [LayerDescription(f"fc{i}", "Linear", **(plain | about if i < 2 else plain)) for i in range(6)]
        assert list(RULE(without({0, 1}, number=100, layers=layers))) == []

    def test_layers_of_another_optimizer_are_silent(self, without) -> None:
        """The generator has no gradient in the discriminator's step."""
        rates = [np.nan, np.nan, 0.1, 0.1, 0.1, 0.1]
        assert list(RULE(without({0, 1}, number=100, learning_rate=rates))) == []

    def test_what_was_trained_before_the_readings_that_are_kept_is_connected(self, without) -> None:
        """A backbone that is detached after a while once had gradients; of nothing but the rest it is said."""
        observations = without({0, 1, 2}, number=256)
        (finding,) = RULE(replace(observations, num_present=np.array([40, 40, 0, 296, 296, 296])))
        assert finding.layers == ("fc2",)
        assert finding.evidence["cut"] is False


class TestIdle:
    """An optimizer that steps and never had any gradient."""

    def test_it_is_a_warning_after_ten_readings(self, idle) -> None:
        """All of its trainable layers are named, the last one first."""
        assert list(RULE(idle(RULE.idle_readings - 1))) == []
        (finding,) = RULE(idle())
        assert (finding.rule, finding.severity, finding.layers) == ("disconnected", "warning", ("fc1", "fc0"))
        assert finding.message == "optimizer 1 steps in vain: no gradient has ever reached what it holds"
        assert "in 10 readings (None, not 0)" in finding.measured

    def test_batches_without_a_loss_do_not_count(self, idle) -> None:
        """Where ``training_step`` returned None nobody had a gradient; ten others decide."""
        assert list(RULE(idle(100, loss=np.nan))) == []
        some = np.where(np.arange(100) < RULE.idle_readings - 1, 1.0, np.nan)
        assert list(RULE(idle(100, loss=some))) == []
        some[50] = 1.0
        assert len(list(RULE(idle(100, loss=some)))) == 1

    def test_gradients_of_another_optimizer_count_as_a_loss_does(self, idle) -> None:
        """It is the first one to step that takes the loss."""
        assert list(RULE(idle(loss=np.nan, num_elsewhere=RULE.idle_readings - 1))) == []
        assert len(list(RULE(idle(loss=np.nan, num_elsewhere=RULE.idle_readings)))) == 1

    def test_one_gradient_ever_is_enough(self, idle) -> None:
        """A generator that rests is not disconnected."""
        assert list(RULE(idle(256, num_present=np.array([0, 3, 0])))) == []

    def test_gradients_that_somebody_has_used_already_are_no_fault(self, idle, probe) -> None:
        """An optimizer in the backward pass leaves None behind; the probe has seen what came back."""
        assert list(RULE(idle(signals=[probe([np.nan, 1.0, np.nan])]))) == []
        assert len(list(RULE(idle(signals=[probe([np.nan, np.nan, 1.0])])))) == 1


@given(missing=st.sets(st.integers(0, 5), max_size=5), seed=st.integers(0, 999))
def test_every_missing_layer_is_named_once_whatever_the_order(without, missing: set[int], seed: int) -> None:
    """Cut and unused layers together are those without a gradient, in any order of calls."""
    called = np.random.default_rng(seed).permutation(6)
    findings = list(RULE(without(missing, number=RULE.num_readings, called=called)))
    assert sorted(name for d in findings for name in d.layers) == [f"fc{i}" for i in sorted(missing)]
    first = next(i for i in range(6) if called[i] not in missing)
    cut = {name for d in findings if d.severity == "warning" for name in d.layers}
    assert cut == {f"fc{i}" for i in called[:first]}


class TestLeftOut:
    """Layers that no optimizer holds."""

    FLAT = np.full(120, 2.3)

    @pytest.fixture
    def left_out(self, observe, probe):
        """Return a function that makes observations of two layers that nobody holds and a head."""

        def make(
            *, loss=None, drawn=(True, True, False), rates=(np.nan, np.nan, 0.1), levels=(1.0, 1.0, 1.0), present=None
        ):
            layers = [LayerDescription(f"fc{i}", "Linear", num_parameters=100, left_out=d) for i, d in enumerate(drawn)]
            loss = self.FLAT if loss is None else loss
            return observe(
                np.ones((len(loss), 3)),
                layers=layers,
                loss=loss,
                learning_rate=np.array(rates),
                present=present or [False, False, True],
                signals=[probe(np.array(levels))],
            )

        return make

    def test_they_are_a_warning_where_the_loss_hardly_falls(self, left_out) -> None:
        """In forward order, and told that no step has used their gradient."""
        (finding,) = RULE(left_out())
        assert (finding.rule, finding.severity, finding.layers) == ("disconnected", "warning", ("fc0", "fc1"))
        assert "no optimizer holds" in finding.message
        assert "all 2 of them" in finding.measured
        (slow,) = RULE(left_out(loss=np.linspace(2.3, 2.0, 120)))
        assert slow.severity == "warning"

    def test_a_trunk_at_random_that_is_enough_is_none(self, left_out) -> None:
        """The loss decides, and not before the horizon."""
        assert list(RULE(left_out(loss=np.linspace(2.3, 0.5, 120)))) == []
        assert list(RULE(left_out(loss=self.FLAT[:99]))) == []

    def test_a_head_at_random_behind_what_is_trained_is_none(self, left_out) -> None:
        """What is below learns to suit it, however long that takes; one in between is part of a trunk."""
        assert (
            list(RULE(left_out(drawn=(False, True, True), rates=(0.1, np.nan, np.nan), present=[True, False, False])))
            == []
        )
        (finding,) = RULE(left_out(drawn=(False, True, False), rates=(0.1, np.nan, 0.1), present=[True, False, True]))
        assert finding.layers == ("fc1",)

    def test_trained_weights_held_layers_and_a_teacher_are_none(self, left_out) -> None:
        """Pretrained weights rest on purpose, an optimizer may take layers later, and no gradient reaches a teacher."""
        assert list(RULE(left_out(drawn=(False, False, False)))) == []
        assert not any(f.evidence.get("left_out") for f in RULE(left_out(rates=(0.1, 0.1, 0.1))))
        assert list(RULE(left_out(levels=(np.nan, np.nan, 1.0)))) == []
