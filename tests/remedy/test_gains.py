"""Test ``lightning_gradwatch.remedy.gains``."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_gradwatch.measure.snapshot import Curve
from lightning_gradwatch.remedy.gains import gain_of

INTEGRATED = {
    "gelu": (functional.gelu, Curve("gelu")),
    "silu": (functional.silu, Curve("silu")),
    "mish": (functional.mish, Curve("mish")),
    "hardswish": (functional.hardswish, Curve("hardswish")),
    "elu": (lambda z: functional.elu(z, 0.5), Curve("elu", 0.5)),
    "celu": (lambda z: functional.celu(z, 0.5), Curve("celu", 0.5)),
    "softplus": (lambda z: functional.softplus(z, 2.0), Curve("softplus", 2.0)),
    "relu": (functional.relu, Curve("relu")),
    "leaky_relu": (lambda z: functional.leaky_relu(z, 0.3), Curve("leaky_relu", 0.3)),
    "selu": (functional.selu, Curve("selu")),
}
FAMILY = {"mish": "silu", "hardswish": "silu", "celu": "elu"}


@cache
def halves(num: int) -> tuple[np.ndarray, np.ndarray]:
    """Return points and weights on both halves of the line: the functions have a corner at zero."""
    points, weights = np.polynomial.legendre.leggauss(num)
    z = np.concatenate([5 * (points - 1), 5 * (points + 1)])
    return z, 5 * np.concatenate([weights, weights]) * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


def power(function, gain: float, num: int = 100) -> float:
    """Integrate phi(gain z)^2 over a unit Gaussian by Gauss-Hermite quadrature, on both sides of zero."""
    z, density = halves(num)
    return float((function(torch.from_numpy(gain * z)).numpy() ** 2 * density).sum())


@pytest.mark.parametrize("name", INTEGRATED)
def test_what_enters_with_power_one_leaves_with_power_one(name):
    """E[phi(gain z)^2] = 1, by another quadrature, for closed forms and computed ones."""
    function, curve = INTEGRATED[name]
    assert power(function, gain_of(FAMILY.get(name, name), curve)) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("name", INTEGRATED)
def test_a_million_samples_agree(name):
    """The same by drawing."""
    function, curve = INTEGRATED[name]
    z = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    gain = gain_of(FAMILY.get(name, name), curve)
    assert float(function(gain * z).square().mean()) == pytest.approx(1.0, abs=0.01)


def test_closed_forms_are_those_of_torch():
    """ReLU, leaky ReLU and linear have the gains of ``torch.nn.init.calculate_gain``."""
    assert gain_of("relu") == nn.init.calculate_gain("relu")
    for slope in (0.01, 0.2, 1.0):
        assert gain_of("leaky_relu", Curve("leaky_relu", slope)) == nn.init.calculate_gain("leaky_relu", slope)
    assert gain_of("leaky_relu") == nn.init.calculate_gain("leaky_relu")
    assert gain_of("linear") == gain_of("output") == gain_of("gate") == nn.init.calculate_gain("linear")


def test_tanh_has_the_gain_with_which_gradients_neither_grow_nor_shrink():
    """gain^2 E[phi'(z)^2] at the fixed point of the signal is 1 for gain 1, and above 1.2 for torch's 5/3."""

    def stretch(gain: float) -> float:
        variance = 1.0
        for _ in range(2000):
            variance = gain**2 * power(torch.tanh, math.sqrt(variance))
        return gain**2 * power(lambda z: 1 - torch.tanh(z) ** 2, math.sqrt(variance))

    assert stretch(gain_of("tanh")) == pytest.approx(1.0, abs=0.01)
    assert stretch(nn.init.calculate_gain("tanh")) > 1.2


def test_families_have_the_gain_of_their_usual_member():
    """Where the exact function is not known, ELU has alpha 1 and softplus beta 1."""
    assert gain_of("elu") == gain_of("elu", Curve("elu", 1.0))
    assert gain_of("softplus") == gain_of("softplus", Curve("softplus", 1.0))
    assert gain_of("gelu") == gain_of("gelu", Curve("gelu"))


def test_what_is_not_known_has_no_gain():
    """Exponentials, and layers of which is not known what follows."""
    assert gain_of("exp") is None
    assert gain_of(None) is None


def test_a_softplus_that_is_nearly_constant_has_gain_one():
    """No gain gives power 1 to what has more of it without any signal."""
    assert gain_of("softplus", Curve("softplus", 0.5)) == 1.0
