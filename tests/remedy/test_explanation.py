"""Test ``lightning_gradwatch.remedy.explanation``."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.measure.layers import find_layers
from lightning_gradwatch.remedy.case import Case
from lightning_gradwatch.remedy.explanation import explain, weights_in_words
from lightning_gradwatch.remedy.standing import WeightStanding, measure_standing

WIDTH = 128
VANISHING = Diagnosis("vanishing.depth", Symptom.VANISHING, layers=("0",))
EXPLODING = Diagnosis("exploding.depth", Symptom.EXPLODING, layers=("0",))


def stack(depth: int = 6) -> nn.Sequential:
    """Return linear layers and ReLUs as PyTorch initializes them."""
    return nn.Sequential(*(module for _ in range(depth) for module in (nn.Linear(WIDTH, WIDTH), nn.ReLU())))


def case_of(model: nn.Module, diagnosis: Diagnosis, activation: str | None = "relu") -> Case:
    """Return what advice is computed from, all layers being sick and followed by one activation."""
    layers = find_layers(model)
    standings = measure_standing(layers)
    return Case(diagnosis, layers, standings, {layer.name: activation for layer in layers})


def test_the_default_initialization_is_named_and_its_share_is_the_truth():
    """The share that a ReLU layer is said to keep is what a stack of such layers keeps, to 10%."""
    model = stack()
    words = explain(case_of(model, VANISHING))
    assert words.startswith("weights of 0 stand at PyTorch's default, std 0.051, He would give 0.12: ")
    claimed = float(words.partition("a ReLU layer keeps ")[2].split()[0])
    for layer in model[::2]:
        nn.init.zeros_(layer.bias)
    inputs = torch.randn(512, WIDTH)
    kept = float((model(inputs).detach().square().mean() / inputs.square().mean()).sqrt()) ** (1 / 6)
    assert claimed == pytest.approx(kept, rel=0.1)
    assert claimed == pytest.approx(math.sqrt(1 / 6), rel=0.03)


@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_of_other_activations_no_share_is_claimed(activation):
    """Only for ReLU is it a plain factor; the default is named all the same."""
    words = explain(case_of(stack(), VANISHING, activation))
    assert words.startswith("weights of 0 stand at PyTorch's default, std 0.051, ")
    assert "keeps" not in words


def test_the_layer_that_is_furthest_off_is_named():
    """One layer that starts a hundred times too small explains more than those at the default."""
    model = stack()
    nn.init.normal_(model[4].weight, std=0.001)
    assert explain(case_of(model, VANISHING)) == "weights of 4 have std 0.001, He would give 0.12"
    nn.init.normal_(model[6].weight, std=3.0)
    assert explain(case_of(model, EXPLODING)) == "weights of 6 have std 3, He would give 0.12"


def test_weights_that_are_not_too_large_do_not_explain_an_explosion():
    """At PyTorch's default they shrink what passes."""
    assert explain(case_of(stack(), EXPLODING)) == ""


def test_an_activation_that_nobody_knows_gets_all_three_schemes():
    """What the weights should be is left open."""
    words = explain(case_of(stack(1), VANISHING, None))
    assert words.startswith("weights of 0 stand at PyTorch's default, std 0.05")
    assert words.endswith("(He 0.12, Xavier 0.088, LeCun 0.088)")


def test_spread_weights_have_no_number():
    """Of a sharded weight the schemes are known and its size is not."""
    standing = WeightStanding("0", math.nan, 0.12, 0.088, 0.088, "its weight is a DTensor: initialize before sharding")
    words = weights_in_words(Case(VANISHING, standings=(standing,), activations={"0": "relu"}))
    assert words.startswith("weights of 0 are spread over processes, their std is not known (He 0.12, ")
    assert words.endswith("not to be initialized anew: its weight is a DTensor: initialize before sharding")


def test_time_is_explained_by_what_a_layer_keeps():
    """A recurrent layer's radius over the steps that the rule has seen; a layer without a state says nothing."""
    model = nn.RNN(3, 8)
    nn.init.orthogonal_(model.weight_hh_l0, 2.0)
    diagnosis = Diagnosis("exploding.time", Symptom.EXPLODING, layers=("(root)",), evidence={"num_steps": 100})
    assert explain(case_of(model, diagnosis)) == (
        "recurrent weights of (root) have spectral radius 2 over 100 steps (2^100 = 1e+30)"
    )
    assert explain(case_of(nn.Linear(3, 4), diagnosis)) == ""


def test_a_radius_above_one_does_not_explain_fading():
    """What stretches the state does not shrink the gradient; below 1 it may."""
    fading = Diagnosis("vanishing.time", Symptom.VANISHING, layers=("(root)",), evidence={"num_steps": 100})
    for radius, said in ((2.0, False), (0.5, True)):
        model = nn.RNN(3, 8)
        nn.init.orthogonal_(model.weight_hh_l0, radius)
        assert ("spectral radius" in explain(case_of(model, fading, None))) == said


def test_a_cell_written_by_hand_is_explained_by_its_sigmoid():
    """Its slope is at most a quarter; of a tanh nothing is said."""
    fading = Diagnosis("vanishing.time", Symptom.VANISHING, layers=("(root)",), evidence={"num_steps": 80})
    words = "a sigmoid follows (root), whose slope is at most 0.25"
    assert explain(case_of(nn.Linear(64, 32), fading, "sigmoid")) == words
    assert explain(case_of(nn.Linear(64, 32), fading, "tanh")) == ""


def test_weights_that_training_made_large_are_told_so():
    """Where the first reading found them small, no initialization is named beside them."""
    model = stack(1)
    nn.init.normal_(model[0].weight, std=40.0)
    case = replace(case_of(model, EXPLODING), weights_before={"0": 40.0}, weights_at_first={"0": 0.1})
    assert explain(case) == "training has made the weights of 0 4e+02 times as large as they were at first"
    assert "He would give" in explain(replace(case, weights_at_first={"0": 40.0}))
    assert "He would give" in explain(replace(case, weights_at_first={}))


def test_layers_that_no_loss_uses_may_be_experts_or_cut_off():
    """Where nothing is cut."""
    unused = Diagnosis("disconnected", Symptom.DISCONNECTED, layers=("0",), evidence={"cut": False})
    assert "rarely routed to, or detach()" in explain(case_of(stack(1), unused))
    assert explain(case_of(stack(1), replace(unused, evidence={"cut": True}))) == ""


def test_steps_that_move_nothing_are_not_the_weights_fault():
    """However the weights stand, the rule itself has named the cause."""
    assert explain(case_of(stack(), replace(VANISHING, rule="vanishing.update"))) == ""


def test_dead_units_are_explained_by_their_bias():
    """A bias that keeps them off is named; without such a bias the weights are; beyond them nothing is."""
    model = stack(2)
    dead = Diagnosis("dead", Symptom.DEAD, layers=("2", "0"), evidence={"dead_units": "2"})
    assert explain(case_of(model, dead)).startswith("weights of 0 stand at PyTorch's default")
    nn.init.constant_(model[2].bias, -10.0)
    assert explain(case_of(model, dead)) == "the biases of 2 are -10 on average"
    assert explain(case_of(model, replace(dead, severity="notice"))) == ""
    assert explain(case_of(model, replace(dead, evidence={"everywhere": True, "one_unit": "2"}))) == ""


def test_dead_units_without_a_bias_are_explained_by_their_weights():
    """Where there is no bias there is nothing to say of it."""
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    dead = Diagnosis("dead", Symptom.DEAD, layers=("0",), evidence={"dead_units": "0"})
    assert explain(case_of(model, dead)).startswith("weights of 0 ")


def test_layers_that_no_optimizer_holds_are_no_unused_branch() -> None:
    """The rule has said what they suffer from; nothing is added."""
    evidence = {"cut": False, "left_out": True}
    assert explain(Case(Diagnosis("disconnected", Symptom.DISCONNECTED, layers=("0",), evidence=evidence))) == ""
