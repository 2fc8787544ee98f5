"""Which activation follows which layer, and what else outlives the model: descriptions of the layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lightning_gradwatch.measure.graph import Topology
from lightning_gradwatch.measure.layers import Layer, num_elements
from lightning_gradwatch.measure.snapshot import LayerDescription

_MODULES = {
    "ReLU": "relu", "ReLU6": "relu", "LeakyReLU": "leaky_relu", "PReLU": "leaky_relu", "RReLU": "leaky_relu",
    "Sigmoid": "sigmoid", "LogSigmoid": "sigmoid", "Hardsigmoid": "sigmoid", "Tanh": "tanh", "Hardtanh": "tanh",
    "GELU": "gelu", "SiLU": "silu", "Mish": "silu", "Hardswish": "silu", "ELU": "elu", "CELU": "elu", "SELU": "selu",
    "Softplus": "softplus",
}  # fmt: skip


def describe_layers(model: nn.Module, layers: Sequence[Layer], topology: Topology) -> tuple[LayerDescription, ...]:
    """Describe each layer in plain words and numbers.

    The activation is the one that the autograd graph shows behind the layer; where the graph was opaque
    (``torch.compile``), it is the activation module that is registered next.

    Args:
        model: The model.
        layers: Its layers.
        topology: What the graph told; empty where it told nothing.

    Returns:
        One description a layer, ``[num_layers]``.

    Example:
        >>> from lightning_gradwatch.measure.layers import find_layers
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
        >>> [about.activation for about in describe_layers(model, find_layers(model), Topology())]
        ['tanh', None]
    """
    registered = {} if topology.activations else _registered_activations(model, layers)
    return tuple(
        LayerDescription(
            name=layer.name,
            kind=layer.kind,
            num_parameters=layer.num_parameters,
            num_biases=_num_biases(layer),
            has_matrix=any(parameter.ndim > 1 for parameter in layer.parameters.values()),
            trainable=layer.trainable,
            activation=topology.activations.get(number, registered.get(number)),
            feeds_batch_norm=number in topology.feed_batch_norm,
            outlets=tuple(sorted(topology.outlets.get(number, ()))),
            curve=topology.curves.get(number),
        )
        for number, layer in enumerate(layers)
    )


def activation_of(module: nn.Module) -> str | None:
    """Name the activation that a module is, by its class or one that it is derived from; None where it is none.

    Example:
        >>> activation_of(nn.ReLU6()), activation_of(nn.Linear(1, 1))
        ('relu', None)
    """
    return next((_MODULES[kind.__name__] for kind in type(module).__mro__ if kind.__name__ in _MODULES), None)


def _num_biases(layer: Layer) -> int:
    bias = layer.parameters.get("bias")
    return num_elements(bias) if bias is not None and bias.ndim == 1 else 0


def _registered_activations(model: nn.Module, layers: Sequence[Layer]) -> dict[int, str]:
    numbers = {id(layer.module): number for number, layer in enumerate(layers)}
    found: dict[int, str] = {}
    last: int | None = None
    for module in model.modules():
        name = activation_of(module)
        if name is not None and last is not None:
            found.setdefault(last, name)
        last = numbers.get(id(module), last)
    if last is not None and found.get(last) == "sigmoid":
        # No layer is registered behind it: it makes probabilities for the loss.
        found[last] = "output"
    return found
