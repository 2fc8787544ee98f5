"""By how much a layer's weights have to exceed ``1 / sqrt(fan_in)``, given the activation that follows it."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch.nn import functional

from lightning_gradwatch.measure.snapshot import Curve

# tanh has slope 1 at zero, where initialized signals lie (Glorot and Bengio, 2010), and mean-field theory agrees: with
# gain 1 the gradient neither grows nor shrinks (Schoenholz et al., 2017). torch's 5/3 keeps the signal up and lets the
# gradient's variance grow by 1.21 a layer back, 1.59 (1 / sqrt(E[tanh(z)^2])) by 1.18 (computed).
# A sigmoid has slope 1/4: gain 1 loses 0.94 of that variance a layer back, gain 4 still 0.60; no gain cures it.
# Klambauer et al., 2017: SELU's fixed point asks for 1; torch's 3/4 trades it for larger gradients.
_ONE = frozenset({"tanh", "sigmoid", "selu", "linear", "output", "gate"})
# By their names in torch.nn.functional; those that a number shapes, and the others.
_SHAPED = frozenset({"elu", "celu", "softplus"})
_INTEGRATED = _SHAPED | {"gelu", "silu", "mish", "hardswish"}
# Of families of which the exact function is not known.
_USUAL = {"gelu": Curve("gelu"), "silu": Curve("silu"), "elu": Curve("elu", 1.0), "softplus": Curve("softplus", 1.0)}
# A Gaussian has 1e-32 of its mass beyond 12; steps of 1e-3 leave the trapezoidal rule an error below 1e-7.
_BOUND, _POINTS = 12.0, 24_001
_MAX_GAIN, _PRECISION = 16.0, 1e-9


def gain_of(activation: str | None, curve: Curve | None = None) -> float | None:
    """Return the gain with which a layer in front of an activation keeps the variance of the signal.

    ``E[phi(gain * z)^2] = 1`` for a unit Gaussian ``z``: what enters with power 1 leaves with power 1. In closed form
    that is ``sqrt(2)`` for ReLU and ``sqrt(2 / (1 + a^2))`` for a leaky one (He et al., 2015); by numeric integration
    and bisection it is 1.47 for GELU, 1.56 for SiLU, 1.45 for Mish, 1.57 for hardswish, 1.28 for ELU, 1.08 for
    softplus. tanh, sigmoid and SELU have 1, as have layers that another layer, a gate or the loss follows.

    Args:
        activation: Name of the activation, as in ``LayerDescription.activation``.
        curve: Which function exactly it is, where that is known.

    Returns:
        The gain, None where the activation is not known.

    Example:
        >>> round(gain_of("relu"), 4), round(gain_of("leaky_relu", Curve("leaky_relu", 0.2)), 4), gain_of("tanh")
        (1.4142, 1.3868, 1.0)
        >>> round(gain_of("gelu"), 4), gain_of("exp")
        (1.468, None)

    References:
        He, Zhang, Ren and Sun, Delving Deep into Rectifiers, ICCV 2015, https://arxiv.org/abs/1502.01852.
        Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks, AISTATS 2010.
        Klambauer et al., Self-Normalizing Neural Networks, NeurIPS 2017, https://arxiv.org/abs/1706.02515.
        Schoenholz et al., Deep Information Propagation, ICLR 2017, https://arxiv.org/abs/1611.01232.
    """
    if activation in _ONE:
        return 1.0
    if activation == "relu":
        return math.sqrt(2.0)
    if activation == "leaky_relu":
        # torch's own default slope where it is not known.
        slope = 0.01 if curve is None else curve.parameter
        return math.sqrt(2.0 / (1.0 + slope**2))
    curve = curve or _USUAL.get(activation or "")
    return None if curve is None or curve.operation not in _INTEGRATED else _integrated(curve)


# 1 / sqrt(E[phi(z)^2]), the same for what is linear on both sides of zero, would be another choice. Ours: over 50
# layers 256 wide it lets the power of the signal grow to 500 (GELU) and 3e6 (SiLU), sqrt(2) lets it fall to 1e-12 and
# 1e-14; with the gain below it stays between 0.07 and 0.8 for GELU, and reaches 200 for SiLU (3 seeds).
@lru_cache
def _integrated(curve: Curve) -> float:
    z = torch.linspace(-_BOUND, _BOUND, _POINTS, dtype=torch.float64, device="cpu")
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    function = getattr(functional, curve.operation)
    shape = (curve.parameter,) if curve.operation in _SHAPED else ()

    def power(gain: float) -> float:
        return float(torch.trapezoid(function(gain * z, *shape).square() * density, z))

    low, high = 0.0, _MAX_GAIN
    if power(low) >= 1 or power(high) <= 1:
        # A softplus so flat that it has that power without any signal.
        return 1.0
    while high - low > _PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle) < 1 else (low, middle)
    return (low + high) / 2
