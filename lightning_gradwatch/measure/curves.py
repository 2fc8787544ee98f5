"""Which function exactly an activation is, beyond its family: the slope of a leaky ReLU, the alpha of an ELU."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from lightning_gradwatch.measure.snapshot import Curve

# Names of backward nodes (without "Backward0") and of modules, in small letters. The others have a shape of their own.
_PLAIN = frozenset({
    "relu", "relu6", "sigmoid", "logsigmoid", "hardsigmoid", "tanh", "hardtanh", "gelu", "silu", "mish", "hardswish",
    "selu",
})  # fmt: skip
# What nn.PReLU starts with.
_PRELU_SLOPE = 0.25


def curve_of_node(node: Any) -> Curve | None:
    """Read the function from the autograd node of an activation; no saved tensor is asked for.

    Args:
        node: A node of the autograd graph.

    Returns:
        The function, None where it is not known.

    Example:
        >>> import torch
        >>> x = torch.ones(1, requires_grad=True)
        >>> curve_of_node(torch.nn.functional.leaky_relu(x, 0.2).grad_fn)
        Curve(operation='leaky_relu', parameter=0.2)
    """
    return _curve(str(node.name()).partition("Backward")[0].lower(), node, _OF_NODES)


def curve_of_module(module: Any) -> Curve | None:
    """Read the function from an activation module.

    Args:
        module: Any module.

    Returns:
        The function, None where the module is no activation.

    Example:
        >>> from torch import nn
        >>> curve_of_module(nn.ELU(0.5)), curve_of_module(nn.Dropout())
        (Curve(operation='elu', parameter=0.5), None)
    """
    return _curve(type(module).__name__.lower(), module, _OF_MODULES)


def _curve(name: str, source: Any, shaped: Mapping[str, Callable[[Any], Curve]]) -> Curve | None:
    read = shaped.get(name)
    if read is not None:
        return read(source)
    return Curve(name) if name in _PLAIN else None


def _elu(node: Any) -> Curve:
    """Tell ELU from what torch computes with the same operation and other scales."""
    if node._saved_scale != 1:
        return Curve("selu")
    return Curve("elu" if node._saved_input_scale == 1 else "celu", float(node._saved_alpha))


def _drawn(lower: float, upper: float) -> Curve:
    """Return a leaky ReLU whose slope is drawn between two bounds: the root of the mean square counts."""
    return Curve("leaky_relu", math.sqrt((lower**2 + lower * upper + upper**2) / 3))


def _learned(node: Any) -> Curve:
    """Return a PReLU with the slope of the parameter behind its node.

    The tensor that the node has saved is not asked for: under activation checkpointing that would run a block again.
    """
    # The first input is the signal.
    source = node.next_functions[1][0]
    while source is not None and not hasattr(source, "variable"):
        source = source.next_functions[0][0] if source.next_functions else None
    return Curve("leaky_relu", _PRELU_SLOPE if source is None else _root_mean_square(source.variable))


def _root_mean_square(weight: Any) -> float:
    if hasattr(weight, "full_tensor") or weight.device.type == "meta":
        # The mean of a DTensor is a collective.
        return _PRELU_SLOPE
    return float(weight.detach().float().square().mean().sqrt())


_OF_NODES: Mapping[str, Callable[[Any], Curve]] = {
    "leakyrelu": lambda node: Curve("leaky_relu", float(node._saved_negative_slope)),
    "prelukernel": _learned,
    "rreluwithnoise": lambda node: _drawn(float(node._saved_lower), float(node._saved_upper)),
    "elu": _elu,
    "celu": lambda node: Curve("celu", float(node._saved_alpha)),
    "softplus": lambda node: Curve("softplus", float(node._saved_beta)),
    "hardtanh": lambda node: Curve("relu6" if node._saved_min_val == 0 else "hardtanh"),
}
_OF_MODULES: Mapping[str, Callable[[Any], Curve]] = {
    "leakyrelu": lambda module: Curve("leaky_relu", float(module.negative_slope)),
    "prelu": lambda module: Curve("leaky_relu", _root_mean_square(module.weight)),
    "rrelu": lambda module: _drawn(float(module.lower), float(module.upper)),
    "elu": lambda module: Curve("elu", float(module.alpha)),
    "celu": lambda module: Curve("celu", float(module.alpha)),
    "softplus": lambda module: Curve("softplus", float(module.beta)),
}
