"""Test ``lightning_gradwatch.remedy.initialization``."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_gradwatch.remedy.initialization import HE, LECUN, SCHEMES, XAVIER, scheme_for

LEAKY = scheme_for("leaky_relu", 0.3)
LAYERS = [
    nn.Linear(200, 300),
    nn.Conv2d(16, 32, 5),
    nn.ConvTranspose1d(64, 32, 7),
    nn.Bilinear(20, 30, 40),
]


@pytest.mark.parametrize("layer", LAYERS, ids=[type(layer).__name__ for layer in LAYERS])
@pytest.mark.parametrize("scheme", [HE, XAVIER, LECUN, LEAKY], ids=["He", "Xavier", "LeCun", "leaky"])
def test_a_scheme_gives_what_it_promises(layer, scheme):
    """The line of ``torch.nn.init`` in ``call``, and ``apply_``, give the promised standard deviation, bit for bit."""
    weight, again = layer.weight.detach(), torch.empty_like(layer.weight)
    torch.manual_seed(0)
    scheme.apply_(weight)
    torch.manual_seed(0)
    exec(scheme.call.format(weight="w"), {"nn": nn, "w": again})
    assert torch.equal(weight, again)
    receptive = math.prod(weight.shape[2:])
    promised = scheme.std(weight.shape[1] * receptive, weight.shape[0] * receptive)
    assert float(weight.double().square().mean().sqrt()) == pytest.approx(promised, rel=0.03)


@pytest.mark.parametrize("slope", [0.01, 0.2, 0.25, 1 / 3, 1.0])
def test_a_leaky_slope_is_counted(slope):
    """The scheme before a leaky ReLU is that of ``calculate_gain``, and is the same object for the same slope."""
    scheme = scheme_for("leaky_relu", slope)
    assert scheme.std(100, 1) == pytest.approx(nn.init.calculate_gain("leaky_relu", slope) / 10)
    assert scheme is scheme_for("leaky_relu", slope)
    assert scheme.name == "He"


def test_a_slope_counts_only_before_a_leaky_relu():
    """Other activations, and a leaky ReLU whose slope is 0 or not known, have the scheme of the table."""
    assert scheme_for("relu", 0.2) is HE
    assert scheme_for("leaky_relu") is HE
    assert scheme_for("tanh", 0.2) is XAVIER
    assert scheme_for(None) is None
    assert scheme_for("gate") is None


def test_activations_have_a_scheme_that_keeps_the_signal():
    """With the scheme of each activation a 20-layer net neither loses nor inflates its signal."""
    functions = {"relu": torch.relu, "selu": torch.selu, "tanh": torch.tanh, "linear": lambda x: x}
    for name, function in functions.items():
        torch.manual_seed(0)
        x = torch.randn(64, 256)
        for _ in range(20):
            layer = nn.Linear(256, 256, bias=False)
            SCHEMES[name].apply_(layer.weight)
            x = function(layer(x))
        assert 0.1 < x.detach().square().mean().sqrt().item() < 3
