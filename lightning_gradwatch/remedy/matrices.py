"""The matrices of a layer whose rows are units: per group, per gate, per projection, with what enters each unit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_gradwatch.measure.layers import Layer

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
RECURRENT = (nn.RNNBase, nn.RNNCellBase)
# Nothing but their own gates and products follows what enters them.
SELF_CONTAINED = (*RECURRENT, nn.MultiheadAttention)
_PROJECTIONS = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True, eq=False)
class Matrix:
    """Weights that make some units out of the same inputs.

    Attributes:
        name: The parameter that they are a part of.
        weight: A view of them, units first: ``[num_units, ...]``.
        fan_in: How many products are summed in a unit on the way forward.
        fan_out: How many gradients are summed in an input on the way back.
        recurrent: Whether they lead from a state to the next.
    """

    name: str
    weight: Tensor
    fan_in: float
    fan_out: float
    recurrent: bool = False


def weights_of(layer: Layer) -> dict[str, Tensor]:
    """Return the parameters of a layer that are matrices, by their name; none for layers of unknown make.

    Example:
        >>> from lightning_gradwatch.measure.layers import find_layers
        >>> list(weights_of(find_layers(nn.GRU(2, 3))[0])), weights_of(find_layers(nn.LayerNorm(3))[0])
        (['weight_ih_l0', 'weight_hh_l0'], {})
    """
    if isinstance(layer.module, RECURRENT):
        return {name: p for name, p in layer.parameters.items() if name.startswith("weight_")}
    if isinstance(layer.module, nn.MultiheadAttention):
        names = ("in_proj_weight", *_PROJECTIONS)
        return {name: layer.parameters[name] for name in names if name in layer.parameters}
    if (
        isinstance(layer.module, (nn.Linear, nn.Bilinear, *_CONVOLUTIONS, *_TRANSPOSED))
        and "weight" in layer.parameters
    ):
        return {"weight": layer.parameters["weight"]}
    return {}


def matrices_of(module: nn.Module, name: str, weight: Tensor) -> list[Matrix]:
    """Split a parameter into the matrices that it is made of.

    A grouped convolution has one a group, a recurrent layer one a gate, the input projection of attention one each for
    queries, keys and values. ``fan_in`` counts what is summed in one unit. In a transposed convolution that is
    ``in_channels / groups * prod(kernel_size / stride)``, on average, and not what ``torch.nn.init`` takes, which swaps
    the channels; ``fan_out`` is the same on the way back, where a convolution with a stride is a transposed one.
    What is summed at a border is less and is not counted.

    Args:
        module: The module that uses the parameter.
        name: What the module calls it.
        weight: The parameter, detached.

    Returns:
        Views of the parameter.

    Example:
        >>> conv = nn.ConvTranspose2d(8, 6, 4, stride=2, groups=2)
        >>> [(m.weight.shape[0], m.fan_in, m.fan_out) for m in matrices_of(conv, "weight", conv.weight)]
        [(3, 16.0, 48.0), (3, 16.0, 48.0)]
    """
    if isinstance(module, (*_CONVOLUTIONS, *_TRANSPOSED)):
        return [_of_convolution(module, part) for part in weight.chunk(module.groups)]
    parts, recurrent = [weight], False
    if isinstance(module, RECURRENT) and not name.startswith("weight_hr"):
        parts, recurrent = list(torch.split(weight, module.hidden_size)), name.startswith("weight_hh")
    elif name == "in_proj_weight":
        parts = list(weight.chunk(3))
    return [Matrix(name, part, float(part[0].numel()), _fan_out(part), recurrent) for part in parts]


def _fan_out(weight: Tensor) -> float:
    # Both inputs of a bilinear layer meet in each product.
    return float(weight.shape[0] * math.prod(weight.shape[2:]))


def _of_convolution(module: nn.modules.conv._ConvNd, weight: Tensor) -> Matrix:
    receptive, stride = math.prod(module.kernel_size), math.prod(module.stride)
    if isinstance(module, _TRANSPOSED):
        fan_in, fan_out = weight.shape[0] * receptive / stride, float(weight.shape[1] * receptive)
        return Matrix("weight", weight.transpose(0, 1), fan_in, fan_out)
    return Matrix("weight", weight, float(weight.shape[1] * receptive), weight.shape[0] * receptive / stride)
