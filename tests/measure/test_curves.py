"""Test ``lightning_gradwatch.measure.curves``."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lightning_gradwatch.measure.activations import describe_layers
from lightning_gradwatch.measure.curves import curve_of_module, curve_of_node
from lightning_gradwatch.measure.graph import read_topology
from lightning_gradwatch.measure.layers import find_layers
from lightning_gradwatch.measure.snapshot import Curve

DRAWN = math.sqrt((0.1**2 + 0.1 * 0.4 + 0.4**2) / 3)
CURVES = [
    (nn.ReLU(), Curve("relu")),
    (nn.ReLU6(), Curve("relu6")),
    (nn.LeakyReLU(0.2), Curve("leaky_relu", 0.2)),
    (nn.PReLU(3, init=0.3), Curve("leaky_relu", 0.3)),
    (nn.RReLU(0.1, 0.4), Curve("leaky_relu", DRAWN)),
    (nn.ELU(0.5), Curve("elu", 0.5)),
    (nn.CELU(0.5), Curve("celu", 0.5)),
    (nn.SELU(), Curve("selu")),
    (nn.GELU(), Curve("gelu")),
    (nn.SiLU(), Curve("silu")),
    (nn.Mish(), Curve("mish")),
    (nn.Hardswish(), Curve("hardswish")),
    (nn.Softplus(beta=2.0), Curve("softplus", 2.0)),
    (nn.Tanh(), Curve("tanh")),
    (nn.Sigmoid(), Curve("sigmoid")),
    (nn.Hardtanh(), Curve("hardtanh")),
]


def approximately(curve: Curve) -> Curve:
    """Compare the number within rounding."""
    return Curve(curve.operation, pytest.approx(curve.parameter, rel=1e-6))


@pytest.mark.parametrize(("module", "curve"), CURVES, ids=[type(module).__name__ for module, _ in CURVES])
def test_the_graph_and_the_module_tell_the_same(module, curve):
    """Node and module name the function and its number, as they were set."""
    x = torch.randn(2, 3, requires_grad=True)
    assert curve_of_node(module(2 * x).grad_fn) == approximately(curve)
    if not isinstance(module, nn.ReLU6):
        assert curve_of_module(module) == approximately(curve)


def test_a_drawn_slope_counts_with_its_power():
    """Of a randomized slope the mean square enters the variance of the signal."""
    drawn = torch.empty(1_000_000).uniform_(0.1, 0.4, generator=torch.Generator().manual_seed(0))
    assert float(drawn.square().mean().sqrt()) == pytest.approx(DRAWN, rel=2e-3)


def test_what_is_no_activation_has_no_curve():
    """A product and a dropout are none."""
    assert curve_of_node((2 * torch.ones(1, requires_grad=True)).grad_fn) is None
    assert curve_of_module(nn.Dropout()) is None


def test_a_slope_whose_parameter_is_not_there_is_prelus_first():
    """A PReLU whose slope is a constant, or lies on the meta device, counts as it starts."""
    x = torch.ones(2, 3, requires_grad=True)
    assert curve_of_node(functional.prelu(x, torch.tensor([0.7])).grad_fn) == Curve("leaky_relu", 0.25)
    assert curve_of_module(nn.PReLU(device="meta")) == Curve("leaky_relu", 0.25)


def test_reading_a_slope_runs_no_checkpointed_block_again():
    """Saved tensors are not asked for: that would make activation checkpointing recompute."""
    calls = []

    class Block(nn.Sequential):
        def forward(self, x):
            calls.append(1)
            return super().forward(x)

    block = Block(nn.Linear(3, 3), nn.PReLU(init=0.4), nn.Linear(3, 3))
    loss = checkpoint(block, torch.ones(2, 3, requires_grad=True), use_reentrant=False).sum()
    topology = read_topology(loss, find_layers(block))
    assert topology.curves[0] == approximately(Curve("leaky_relu", 0.4))
    assert len(calls) == 1


def test_a_layer_is_described_with_the_function_that_follows():
    """The description has the number of a function that is called, not only of modules."""
    layer = nn.Linear(2, 2)
    layers = find_layers(layer)
    topology = read_topology(functional.leaky_relu(layer(torch.ones(1, 2)), 0.3).sum(), layers)
    (about,) = describe_layers(layer, layers, topology)
    assert (about.activation, about.curve) == ("leaky_relu", Curve("leaky_relu", 0.3))
