"""Fills the weights of a module, layer by layer, and says what was done: what all initializations have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradwatch.measure.layers import Layer, find_layers
from lightning_gradwatch.measure.snapshot import LayerDescription
from lightning_gradwatch.remedy.following import describe_following, refuse_stranger
from lightning_gradwatch.remedy.gains import gain_of
from lightning_gradwatch.remedy.initialized import (
    InitializedLayer,
    root_mean_squares,
    tied_layers,
    usable_weights,
    without_complex,
)
from lightning_gradwatch.remedy.matrices import RECURRENT, SELF_CONTAINED, Matrix, matrices_of

# Jozefowicz et al., 2015: an LSTM that starts by remembering learns far better.
_FORGET_BIAS = 1.0


@dataclass(frozen=True)
class Way:
    """One way to initialize.

    Attributes:
        scheme: Whose it is.
        caller: The function that a person has called.
        fill_: Fills a matrix, given its gain.
        gained: Whether the gain depends on what follows; 1 otherwise.
    """

    scheme: str
    caller: str
    fill_: Callable[[Matrix, float], None]
    gained: bool = True


def initialize_(module: nn.Module, example_input: Any, way: Way) -> tuple[InitializedLayer, ...]:
    """Initialize a module in place.

    Args:
        module: The module.
        example_input: What its forward pass takes, or None.
        way: How.

    Returns:
        One value a layer.

    Raises:
        TypeError: If it is no module.
    """
    refuse_stranger(module, way.caller)
    layers = find_layers(module)
    described = describe_following(module, layers, example_input, way.caller)
    chosen = [_chosen(layer, about, way) for layer, about in zip(layers, described, strict=True)]
    return fill_layers_(module, layers, chosen, way)


@dataclass(frozen=True, eq=False)
class Chosen:
    """What is to be done to a layer.

    Attributes:
        weights: The matrices to fill, by name.
        gain: Their gain; NaN where there are none.
        activation: What follows.
        reason: Why it is left alone, wholly or in part.
    """

    weights: Mapping[str, Tensor]
    gain: float
    activation: str | None
    reason: str


def _chosen(layer: Layer, about: LayerDescription, way: Way) -> Chosen:
    weights, reason = usable_weights(layer)
    if way.fill_ is orthogonal_ or isinstance(layer.module, RECURRENT):
        weights, reason = without_complex(weights, reason)
    gain = 1.0 if isinstance(layer.module, SELF_CONTAINED) else gain_of(about.activation, about.curve)
    if weights and gain is None:
        weights, reason = {}, _unknown(about)
    if not weights or gain is None:
        return Chosen({}, math.nan, about.activation, reason)
    return Chosen(weights, gain if way.gained else 1.0, about.activation, reason)


def _unknown(about: LayerDescription) -> str:
    if about.activation is None:
        return "what follows it is not known: no activation was found, or the output does not depend on it"
    return f"no gain is known for {about.activation}, which follows it"


def fill_layers_(
    module: nn.Module, layers: Sequence[Layer], chosen: Sequence[Chosen], way: Way
) -> tuple[InitializedLayer, ...]:
    """Fill the chosen matrices, set the biases beside them, and say what was done.

    Args:
        module: The module.
        layers: Its layers.
        chosen: What is to be done to each of them, ``[num_layers]``.
        way: How.

    Returns:
        One value a layer, and one for each module whose parameters all belong to layers before it.
    """
    measured = [
        list((plan.weights or usable_weights(layer)[0]).values()) for layer, plan in zip(layers, chosen, strict=True)
    ]
    before = root_mean_squares(measured)
    for layer, plan in zip(layers, chosen, strict=True):
        _fill_layer_(layer, plan, way)
    after = root_mean_squares(measured)
    done = [
        InitializedLayer(
            layer.name, plan.activation, way.scheme if plan.weights else "", plan.gain, std, new_std, plan.reason
        )
        for layer, plan, std, new_std in zip(layers, chosen, before, after, strict=True)
    ]
    tied = "its parameters are tied: they are those of another layer, which is treated once"
    ties = [
        InitializedLayer(name, None, "", math.nan, math.nan, math.nan, tied) for name in tied_layers(module, layers)
    ]
    return (*done, *ties)


@torch.no_grad()
def _fill_layer_(layer: Layer, plan: Chosen, way: Way) -> None:
    assert layer.module is not None
    for name, weight in plan.weights.items():
        for matrix in matrices_of(layer.module, name, weight.detach()):
            if matrix.recurrent:
                orthogonal_(matrix, 1.0)
            else:
                way.fill_(matrix, plan.gain)
    if plan.weights:
        _set_biases_(layer)


def _set_biases_(layer: Layer) -> None:
    hidden = getattr(layer.module, "hidden_size", 0)
    for name, bias in layer.parameters.items():
        recurrent = isinstance(layer.module, RECURRENT) and name.startswith("bias_")
        if not bias.requires_grad or not (recurrent or name in ("bias", "in_proj_bias")):
            continue
        bias.zero_()
        if isinstance(layer.module, (nn.LSTM, nn.LSTMCell)) and name.startswith("bias_ih"):
            # torch adds two biases, and its gates stand in the order input, forget, cell, output.
            bias[hidden : 2 * hidden] = _FORGET_BIAS


def orthogonal_(matrix: Matrix, gain: float) -> None:
    """Fill a matrix with orthonormal rows or columns times a gain.

    Args:
        matrix: The matrix.
        gain: The gain.

    Example:
        >>> weight = torch.empty(2, 3)
        >>> orthogonal_(Matrix("weight", weight, 3.0, 2.0), 2.0)
        >>> bool(torch.allclose(weight @ weight.T, 4 * torch.eye(2), atol=1e-5))
        True
    """
    # Torch has no QR of half precision, and its function takes no view.
    dtype = torch.promote_types(matrix.weight.dtype, torch.float32)
    drawn = torch.empty(matrix.weight.shape[0], matrix.weight[0].numel(), dtype=dtype, device=matrix.weight.device)
    nn.init.orthogonal_(drawn, gain * math.sqrt(matrix.weight[0].numel() / matrix.fan_in))
    matrix.weight.copy_(drawn.view(matrix.weight.shape))
