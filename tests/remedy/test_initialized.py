"""Test ``lightning_gradwatch.remedy.initialized``."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from lightning_gradwatch.measure.layers import find_layers
from lightning_gradwatch.remedy.initialized import InitializedLayer, root_mean_squares, tied_layers, usable_weights


class Turned(nn.Module):
    """A layer of unknown make."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 3))


class Quantized(torch.Tensor):
    """Stands for the tensors in which other libraries keep packed numbers."""


def packed() -> nn.Module:
    """Make a layer whose weight is a tensor of another kind."""
    layer = nn.Linear(3, 3)
    layer.weight = nn.Parameter(torch.ones(3, 3).as_subclass(Quantized))
    return layer


def whole_numbers() -> nn.Module:
    """Make a layer whose weight is kept in bytes."""
    layer = nn.Linear(3, 3)
    layer.weight = nn.Parameter(torch.zeros(3, 3, dtype=torch.uint8), requires_grad=False)
    return layer


def head_of_an_embedding() -> nn.Module:
    """Make a layer with a bias of its own and the weight of an embedding."""
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5))
    model[1].weight = model[0].weight
    return model


LEFT_ALONE = {
    "norm": (nn.BatchNorm2d(3), "a norm layer"),
    "layer norm": (nn.LayerNorm(3), "a norm layer"),
    "rms norm": (nn.RMSNorm(3), "a norm layer"),
    "embedding": (nn.Embedding(3, 3), "an embedding"),
    "weight norm": (parametrizations.weight_norm(nn.Linear(3, 3)), "parametrized"),
    "spectral norm": (parametrizations.spectral_norm(nn.Conv1d(3, 3, 3)), "parametrized"),
    "pruned": (prune.l1_unstructured(nn.Linear(3, 3), "weight", amount=2), "computed"),
    "lazy": (nn.LazyLinear(3), "lazy"),
    "meta": (nn.Linear(3, 3, device="meta"), "meta"),
    "frozen": (nn.Linear(3, 3).requires_grad_(requires_grad=False), "frozen"),
    "whole numbers": (whole_numbers(), "quantized"),
    "packed": (packed(), "its weight is a Quantized, no plain parameter"),
    "unknown": (Turned(), "how a Turned uses its parameters is not known"),
    "slope": (nn.PReLU(), "no matrix"),
    "tied": (head_of_an_embedding(), "tied"),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_is_left_alone_has_a_reason(name):
    """No matrix is offered, and the reason says why."""
    model, reason = LEFT_ALONE[name]
    weights, told = usable_weights(find_layers(model)[-1])
    assert weights == {}
    assert reason in told


def test_an_old_weight_norm_is_computed():
    """The weight that the first form of weight_norm computes is no parameter."""
    with pytest.warns(FutureWarning):
        layer = nn.utils.weight_norm(nn.Linear(3, 3))
    assert usable_weights(find_layers(layer)[0]) == ({}, "its weight is computed, not a parameter")


def test_of_a_layer_that_is_partly_frozen_the_rest_is_usable():
    """A recurrent layer whose input weights are frozen offers the others, and the reason for those."""
    layer = nn.LSTM(3, 4)
    layer.weight_ih_l0.requires_grad_(requires_grad=False)
    weights, reason = usable_weights(find_layers(layer)[0])
    assert (list(weights), reason) == (["weight_hh_l0"], "it is frozen")


def test_modules_without_anything_of_their_own_are_named():
    """A head that has nothing but an embedding's weight is tied; a layer that is used twice is one."""
    model = nn.ModuleDict(
        {"embedding": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False), "own": nn.Linear(3, 3)}
    )
    model["head"].weight = model["embedding"].weight
    model["again"] = model["own"]
    assert tied_layers(model, find_layers(model)) == ["head"]


def test_root_mean_squares_are_those_of_all_numbers():
    """Groups are measured together, in any precision; what has no numbers is NaN."""
    groups = [[torch.ones(3), 3 * torch.ones(1)], [torch.full((300, 300), 1000.0, dtype=torch.float16)], []]
    found = root_mean_squares([*groups, [torch.empty(2, device="meta")]])
    assert found[:2] == pytest.approx([math.sqrt(3), 1000.0], rel=1e-3)
    assert math.isnan(found[2])
    assert math.isnan(found[3])
    assert root_mean_squares([]) == []


def test_a_layer_without_a_scheme_is_not_changed():
    """``changed`` tells what was initialized from what was left alone."""
    assert InitializedLayer("0", "relu", "He", 1.4, 0.1, 0.2).changed
    assert not InitializedLayer("0", "relu", "", math.nan, 0.1, 0.1, "it is frozen").changed
