"""Test ``lightning_gradwatch.judging``, through the core that drives it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import deep_net, train
from torch import nn

from lightning_gradwatch import Diagnosis, Symptom, judging
from lightning_gradwatch.settings import Settings
from lightning_gradwatch.watching import Watch


def watched(net: nn.Module, steps: int = 6, **settings: Any) -> Watch:
    """Watch a few steps of plain SGD on random data."""
    watch = Watch(Settings(**settings))
    batches = [(torch.randn(4, 8), torch.tensor([0, 1, 2, 0])) for _ in range(steps)]
    train(net, batches, watch, steps)
    return watch


def test_a_diagnosis_carries_how_every_sick_layer_stands():
    """The evidence has the measured standard deviation beside He, Xavier and LeCun, layer by layer."""
    (diagnosis,) = watched(deep_net(nn.Sigmoid, 12)).diagnoses
    weights = diagnosis.evidence["weights"]
    assert set(diagnosis.layers) <= set(weights)
    assert weights["0"]["he"] == pytest.approx(0.5)
    assert weights["0"]["std"] == pytest.approx(1 / 8**0.5 / 3**0.5, rel=0.2)
    assert diagnosis.remedies[0].diagnosis.rule == diagnosis.rule


def test_a_failing_advice_costs_the_advice_only(monkeypatch, caplog):
    """A diagnosis without a way out is better than none."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise ArithmeticError("no idea")

    monkeypatch.setattr(judging, "advise", fail)
    watch = watched(deep_net(nn.Sigmoid, 12))
    assert watch.disabled_reason is None
    assert [(d.rule, d.remedies) for d in watch.diagnoses] == [("vanishing.depth", ())]
    assert caplog.text.count("found no advice: ArithmeticError: no idea") == 1


def test_a_short_rule_is_completed():
    """A rule that names neither layers nor step means all layers of this reading."""

    def rule(observations: Any) -> Any:
        yield Diagnosis("mine", Symptom.SPIKE, message="hm")

    (diagnosis,) = watched(deep_net(nn.ReLU, 2), rules=[rule], patience=2).diagnoses
    assert diagnosis.layers == ("0", "2", "4")
    assert diagnosis.step == 1


def test_muted_rules_and_layers_are_not_told():
    """``ignore`` takes a rule, or some of its layers, out of everything."""
    assert watched(deep_net(nn.Sigmoid, 12), ignore=["vanishing"]).diagnoses == []
    (diagnosis,) = watched(deep_net(nn.Sigmoid, 12), ignore=["vanishing.depth:[0-9]"]).diagnoses
    assert diagnosis.layers[0] == "10"


def test_ways_out_are_found_again_after_a_checkpoint():
    """A checkpoint keeps no model: what lasts is advised on anew at the first reading after it."""
    before = watched(deep_net(nn.Sigmoid, 12))
    after = Watch(Settings())
    after.load_state_dict(before.state_dict())
    train(deep_net(nn.Sigmoid, 12), [(torch.randn(4, 8), torch.tensor([0, 1, 2, 0]))] * 2, after, 2)
    assert [d.step for d in after.diagnoses] == [d.step for d in before.diagnoses]
    assert [remedy.title for remedy in after.remedies] == [remedy.title for remedy in before.remedies]
    assert after.diagnoses[0].cause == before.diagnoses[0].cause
