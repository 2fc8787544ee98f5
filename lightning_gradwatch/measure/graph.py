"""What the autograd graph of one loss tells of the model: forward order and what follows each layer.

The graph is only read, between forward and backward: no hook, no change to the model, and an activation called as a
function (``torch.sigmoid(self.fc(x))``) is seen as well as a module. ``torch.compile`` leaves one opaque node in the
graph; then nothing is found, and registration order stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lightning_gradwatch.measure.curves import curve_of_node
from lightning_gradwatch.measure.layers import Layer
from lightning_gradwatch.measure.snapshot import Curve

# The operations as autograd names their backward nodes, without "Backward0".
ACTIVATIONS = {
    "Relu": "relu", "LeakyRelu": "leaky_relu", "PreluKernel": "leaky_relu", "RreluWithNoise": "leaky_relu",
    "Sigmoid": "sigmoid", "LogSigmoid": "sigmoid", "Hardsigmoid": "sigmoid", "Tanh": "tanh", "Hardtanh": "tanh",
    "Gelu": "gelu", "Silu": "silu", "Mish": "silu", "Hardswish": "silu", "Elu": "elu", "Celu": "elu",
    "Softplus": "softplus", "Exp": "exp",
}  # fmt: skip
_BATCH_NORMS = {"NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm"}
_RESHAPES = {
    "View", "UnsafeView", "Reshape", "T", "Transpose", "Permute", "Squeeze", "Unsqueeze", "Expand", "Clone", "Alias",
    "ToCopy", "Select", "Slice", "Split", "Unbind", "Contiguous",
}  # fmt: skip
# What a parameter may pass before the layer uses it.
_PARAMETER_STEPS = _RESHAPES | {"WeightNormInterface"}
# What a layer's output may pass before its activation.
_OUTPUT_STEPS = _RESHAPES | _BATCH_NORMS | {
    "NativeLayerNorm", "NativeGroupNorm", "FusedRmsNorm", "NativeDropout", "Add", "Stack", "Cat", "Mean", "Sum",
    "Scale", "MaxPool1D", "MaxPool2DWithIndices", "MaxPool3DWithIndices", "MkldnnMaxPool2D", "AvgPool2D", "AvgPool3D",
    "AdaptiveAvgPool2D", "AdaptiveAvgPool3D", "AdaptiveMaxPool2D", "AdaptiveMaxPool3D", "FractionalMaxPool2D",
    "FractionalMaxPool3D",
}  # fmt: skip
_GATES = {"sigmoid", "tanh"}
# How many operations may lie between a layer and its activation: pooling, norm, dropout and reshapes are about six.
_REACH = 12
# A recurrent network unrolled by hand over 10,000 steps has some 100,000 nodes; far beyond, reading costs seconds.
MAX_NODES = 200_000


@dataclass(frozen=True)
class Topology:
    """Where layers stand in the forward pass.

    Attributes:
        order: Indices of the layers that the loss depends on, in the order in which the forward pass used them.
        activations: The activation that follows each of them, ``"linear"`` where the next layer comes first,
            ``"output"`` where the loss does (an output's sigmoid belongs to the loss, as its softmax does), ``"gate"``
            where a sigmoid or tanh is multiplied with something; unknown ones are left out.
        feed_batch_norm: Indices of the layers whose output goes straight into a batch normalization.
        outlets: For each of the layers those that depend on it and on which no other layer depends; one that ends a
            branch has itself. Layers without an outlet in common, such as an actor and a critic side by side, are no
            chain.
        opaque: Whether ``torch.compile`` hides a part of the graph.
        curves: Which function exactly each of those activations is, where that is known.
    """

    order: tuple[int, ...] = ()
    activations: Mapping[int, str] = field(default_factory=dict)
    feed_batch_norm: frozenset[int] = frozenset()
    outlets: Mapping[int, frozenset[int]] = field(default_factory=dict)
    opaque: bool = False
    curves: Mapping[int, Curve] = field(default_factory=dict)


def read_topology(loss: Tensor, layers: Sequence[Layer], max_nodes: int = MAX_NODES) -> Topology:
    """Read forward order and following activations from the autograd graph of a loss.

    Args:
        loss: A loss on which ``backward`` has not run yet.
        layers: The model's layers.
        max_nodes: Size of the graph above which it is not read.

    Returns:
        What was found; empty where the graph is opaque or too large.

    Example:
        >>> from torch import nn, ones
        >>> from lightning_gradwatch.measure.layers import find_layers
        >>> head, body = nn.Linear(3, 1), nn.Linear(2, 3)
        >>> layers = find_layers(nn.ModuleList([head, body]))
        >>> topology = read_topology(head(body(ones(1, 2)).sigmoid()).sum(), layers)
        >>> topology.order, topology.activations[1]
        ((1, 0), 'sigmoid')
    """
    owners = {id(p): number for number, layer in enumerate(layers) for p in layer.parameters.values()}
    graph = _Graph(loss.grad_fn, max_nodes)
    uses = graph.first_uses(owners)
    consumers = {node for nodes in uses.values() for node in nodes}
    graph.mark_before(consumers)
    activations: dict[int, str] = {}
    curves: dict[int, Curve] = {}
    feed_batch_norm = set()
    outputs = {layer: max(nodes, key=graph.position.__getitem__) for layer, nodes in uses.items()}
    for layer, output in outputs.items():
        name = graph.name_after(output, consumers - set(uses[layer]))
        if name is not None:
            activations[layer] = name
        follower = graph.followers.get(output)
        curve = None if follower is None else curve_of_node(follower)
        if curve is not None:
            curves[layer] = curve
        if graph.reaches_batch_norm(output):
            feed_batch_norm.add(layer)
    order = sorted(uses, key=lambda layer: min(graph.position[node] for node in uses[layer]))
    outlets = graph.outlets(outputs)
    return Topology(tuple(order), activations, frozenset(feed_batch_norm), outlets, graph.opaque, curves)


class _Graph:
    """The nodes behind a loss, with what uses each of them; dropped as soon as it is read."""

    def __init__(self, root: Any, max_nodes: int) -> None:
        self.users: dict[Any, list[Any]] = {}
        self.position: dict[Any, int] = {}
        self.before_layer: set[Any] = set()
        # The activation that was found behind an operation.
        self.followers: dict[Any, Any] = {}
        for node in _forward_order(root, max_nodes):
            self.position[node] = len(self.position)

    @property
    def opaque(self) -> bool:
        """Whether a part of the graph was compiled into one node."""
        return any(_name(node).startswith("CompiledFunction") for node in self.position)

    def first_uses(self, owners: Mapping[int, int]) -> dict[int, list[Any]]:
        """Find, for each layer, the operation in which each of its parameters is used first."""
        for node in self.position:
            for source, _ in node.next_functions:
                if source is not None:
                    self.users.setdefault(source, []).append(node)
        uses: dict[int, list[Any]] = {}
        for node in self.position:
            owner = owners.get(id(getattr(node, "variable", None)))
            if owner is not None:
                consumers = list(self._past(node, _PARAMETER_STEPS))
                if consumers:
                    uses.setdefault(owner, []).append(min(consumers, key=self.position.__getitem__))
        return uses

    def mark_before(self, consumers: set[Any]) -> None:
        """Mark the operations behind which a layer is still to come."""
        for node in reversed(self.position):
            if any(user in consumers or user in self.before_layer for user in self.users.get(node, ())):
                self.before_layer.add(node)

    def outlets(self, outputs: Mapping[int, Any]) -> dict[int, frozenset[int]]:
        """Find the layers at which each layer's way forward ends."""
        ends = [layer for layer, node in outputs.items() if node not in self.before_layer]
        # Bits of one number: a set at each node of a large graph would take seconds.
        reached = {outputs[layer]: 1 << place for place, layer in enumerate(ends)}
        for node in reversed(self.position):
            found = reached.get(node, 0)
            for user in self.users.get(node, ()):
                found |= reached.get(user, 0)
            if found:
                reached[node] = found
        return {
            layer: frozenset(end for place, end in enumerate(ends) if reached.get(node, 0) >> place & 1)
            for layer, node in outputs.items()
        }

    def _past(self, start: Any, steps: set[str]) -> Iterator[Any]:
        frontier, seen = list(self.users.get(start, ())), set()
        while frontier:
            node = frontier.pop()
            if node in seen:
                continue
            seen.add(node)
            if _name(node) in steps:
                frontier += self.users.get(node, ())
            else:
                yield node

    def name_after(self, output: Any, consumers: set[Any]) -> str | None:
        """Name the nearest activation after a layer, going through what leaves it in place."""
        frontier, seen = [output], {output}
        for _ in range(_REACH):
            # Each once: many paths meet in a node where branches are joined again and again.
            users = list(dict.fromkeys(user for node in frontier for user in self.users.get(node, ())))
            if any(not self.users.get(node) for node in frontier) or any(_ends(_name(user)) for user in users):
                return "output"
            for user in users:
                name = _activation(user)
                if name in _GATES and self._multiplied(user):
                    return "gate"
                if name is not None:
                    self.followers[output] = user
                    return "output" if name == "sigmoid" and user not in self.before_layer else name
            if any(user in consumers and _name(user) not in _OUTPUT_STEPS for user in users):
                return "linear"
            frontier = [user for user in users if _name(user) in _OUTPUT_STEPS and user not in seen]
            seen.update(frontier)
            if not frontier:
                return None
        return None

    def _multiplied(self, node: Any) -> bool:
        return any(_name(user) == "Mul" for user in self.users.get(node, ()))

    def reaches_batch_norm(self, output: Any) -> bool:
        """Tell whether a batch normalization follows with nothing but reshapes between."""
        return any(_cancels_bias(node) for node in self._past(output, _RESHAPES))


def _forward_order(root: Any, max_nodes: int) -> list[Any]:
    """List the nodes so that each comes after all that it depends on: a depth-first walk without recursion."""
    done: dict[Any, None] = {}
    entered: set[Any] = set()
    stack = [root] if root is not None else []
    while stack:
        node = stack[-1]
        if node in entered:
            stack.pop()
            done.setdefault(node)
            continue
        entered.add(node)
        if len(entered) > max_nodes:
            return []
        stack += [source for source, _ in reversed(node.next_functions) if source is not None and source not in entered]
    return list(done)


def _name(node: Any) -> str:
    name = re.sub(r"Backward\d*$", "", node.name())
    # A product with a number or a mask (dropout) scales; only one with another part of the graph is a gate.
    scales = name in ("Mul", "Div") and sum(source is not None for source, _ in node.next_functions) < 2
    return "Scale" if scales else name


def _activation(node: Any) -> str | None:
    name = _name(node)
    # ReLU6 and SELU are special cases of other operations.
    if name == "Hardtanh" and node._saved_min_val == 0:
        return "relu"
    if name == "Elu" and node._saved_scale != 1:
        return "selu"
    return ACTIVATIONS.get(name)


def _cancels_bias(node: Any) -> bool:
    """Tell whether a normalization subtracts the mean of each channel by itself, and with it any bias."""
    name = _name(node)
    if name == "NativeGroupNorm":
        # One channel a group; the operation keeps both numbers for its backward pass.
        return getattr(node, "_saved_group", 0) == getattr(node, "_saved_C", None)
    return name in _BATCH_NORMS


def _ends(name: str) -> bool:
    return "Loss" in name or "Softmax" in name or "CrossEntropy" in name


def forward_order(traced: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Complete a traced order: a layer that was not traced stands behind the one registered before it.

    Args:
        traced: Indices of layers in forward order.
        num_layers: How many layers there are.

    Returns:
        All indices, ``[num_layers]``.

    Example:
        >>> forward_order((2, 0), 4)
        (2, 3, 0, 1)
    """
    place = {layer: number for number, layer in enumerate(traced)}
    keys, last = [], -1
    for layer in range(num_layers):
        last = place.get(layer, last)
        keys.append((last, layer not in place, layer))
    return tuple(layer for *_, layer in sorted(keys))
