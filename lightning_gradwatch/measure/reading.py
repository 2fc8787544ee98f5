"""One optimizer step as a snapshot: from the optimizer's parameters to one value a layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradwatch.measure.activations import describe_layers
from lightning_gradwatch.measure.graph import Topology, forward_order, read_topology
from lightning_gradwatch.measure.layers import ParameterIndex, find_layers, index_parameters, stray_layers
from lightning_gradwatch.measure.norms import (
    GradientNorms,
    HostReading,
    measure_gradients,
    norms_of,
    read_to_host,
)
from lightning_gradwatch.measure.snapshot import (
    FloatArray,
    GradientSnapshot,
    OptimizerDescription,
    combine_norms,
)

# Reading the weights costs as much as reading the gradients. The first readings see a fast change; after them the
# weights are read every 50th time, as often as Lightning logs.
_FIRST_WEIGHT_READINGS = 5
_WEIGHTS_EVERY = 50
# The graph is read until every trainable layer has been seen: a GAN needs two losses, a layer that is never used
# needs an end.
_MAX_GRAPHS = 4


@dataclass
class _OptimizerState:
    index: ParameterIndex
    weight_norms: FloatArray
    num_readings: int = 0


class Reader:
    """Knows the model's layers and reads each optimizer's gradients.

    Args:
        model: The model whose layers the columns are.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.layers = find_layers(model)
        self.topology = Topology()
        self.descriptions = describe_layers(model, self.layers, self.topology)
        self.order = forward_order((), len(self.layers))
        self._graphs_left = _MAX_GRAPHS
        self._states: dict[int, _OptimizerState] = {}

    def read_graph(self, loss: Tensor) -> None:
        """Learn forward order and following activations from a loss, while trainable layers remain unseen.

        Args:
            loss: A loss on which ``backward`` has not run yet.
        """
        if self._graphs_left == 0:
            return
        seen = set(self.topology.order)
        try:
            new = read_topology(loss, self.layers)
        except (AttributeError, RuntimeError, TypeError):
            # A graph of a kind that nobody thought of: registration order has to do.
            new = Topology()
        self.topology = Topology(
            order=self.topology.order + tuple(layer for layer in new.order if layer not in seen),
            activations={**new.activations, **self.topology.activations},
            feed_batch_norm=self.topology.feed_batch_norm | new.feed_batch_norm,
        )
        self._describe()
        seen.update(new.order)
        unseen = any(layer.trainable and number not in seen for number, layer in enumerate(self.layers))
        self._graphs_left = self._graphs_left - 1 if unseen else 0

    def _describe(self) -> None:
        self.descriptions = describe_layers(self.model, self.layers, self.topology)
        self.order = forward_order(self.topology.order, len(self.layers))

    def read(
        self,
        number: int,
        optimizer: Optimizer,
        step: int,
        clip: Callable[[GradientNorms], Tensor] | None = None,
        loss: Tensor | None = None,
        gradient_scale: float = 1.0,
        loss_scale: float = 1.0,
    ) -> tuple[GradientSnapshot, GradientNorms]:
        """Read the gradients of an optimizer: one pass on the device, one transfer to the host, two with a clipper.

        Args:
            number: Number of the optimizer in the training run.
            optimizer: The optimizer.
            step: ``global_step`` before the step.
            clip: Clips the gradients in place and returns their norms after it.
            loss: The loss.
            gradient_scale: What a loss scaler has multiplied the gradients by.
            loss_scale: What it has multiplied the loss by.

        Returns:
            One value a layer, and the norms on the device.
        """
        state = self._state(number, optimizer)
        due = state.num_readings < _FIRST_WEIGHT_READINGS or state.num_readings % _WEIGHTS_EVERY == 0
        state.num_readings += 1
        measured = measure_gradients(state.index, number)
        weights = norms_of(state.index.parameters) if due else None
        host = read_to_host(measured, weights, loss)
        if due:
            state.weight_norms = combine_norms(host.weight_norms, state.index.layer, len(self.layers))
        clipped = None
        if clip:
            # Only now: what float32 could not hold has to be measured again before it is changed.
            if host.overflowed:
                measured = replace(measured, norms=torch.as_tensor(host.norms).to(measured.norms))
            clipped = read_to_host(replace(measured, norms=clip(measured))).norms
        return self._arrange(measured, host, clipped, state, optimizer, step, gradient_scale, loss_scale), measured

    def read_again(self, measured: GradientNorms, gradient_scale: float = 1.0) -> FloatArray:
        """Read the same gradients once more, after someone else has clipped them.

        Args:
            measured: What ``read`` returned for the step.
            gradient_scale: What a loss scaler has multiplied the gradients by.

        Returns:
            One norm a layer, ``[num_layers]``.
        """
        host = read_to_host(replace(measured, norms=norms_of(measured.gradients)))
        layer = measured.index.layer[measured.members]
        return combine_norms(host.norms / gradient_scale, layer, measured.index.num_layers)

    def _arrange(
        self,
        measured: GradientNorms,
        host: HostReading,
        clipped_norms: FloatArray | None,
        state: _OptimizerState,
        optimizer: Optimizer,
        step: int,
        gradient_scale: float,
        loss_scale: float,
    ) -> GradientSnapshot:
        num_layers = len(self.layers)
        layer = state.index.layer[measured.members]
        norms = combine_norms(host.norms / gradient_scale, layer, num_layers)
        clipped = norms
        if clipped_norms is not None:
            clipped = combine_norms(clipped_norms / gradient_scale, layer, num_layers)
        biases = state.index.bias[measured.members]
        bias_norms = np.full(num_layers, np.nan)
        bias_norms[layer[biases]] = host.norms[biases] / gradient_scale
        rates = np.full(num_layers, np.nan)
        by_group = np.array([_learning_rate(group) for group in optimizer.param_groups])
        rates[state.index.layer] = by_group[state.index.group]
        return GradientSnapshot(
            step=step,
            optimizer=measured.optimizer,
            norms=norms,
            clipped_norms=clipped,
            bias_norms=bias_norms,
            weight_norms=state.weight_norms,
            present=np.bincount(layer, minlength=num_layers) > 0,
            learning_rates=rates,
            loss=host.loss / loss_scale,
        )

    def _state(self, number: int, optimizer: Optimizer) -> _OptimizerState:
        groups = [group["params"] for group in optimizer.param_groups]
        flat = [parameter for group in groups for parameter in group]
        state = self._states.get(number)
        if state is None or not state.index.covers(flat) or state.index.num_layers != len(self.layers):
            index = self._index(groups, flat)
            state = self._states[number] = _OptimizerState(index, np.full(len(self.layers), np.nan))
        return state

    def _index(self, groups: Sequence[Sequence[Tensor]], flat: Sequence[Tensor]) -> ParameterIndex:
        index = index_parameters(self.layers, groups)
        if index is None:
            self._add_layers(flat)
            index = index_parameters(self.layers, groups)
        assert index is not None, "every stray parameter has become a layer"
        return index

    def _add_layers(self, parameters: Sequence[Tensor]) -> None:
        """Append the layers that appeared since the start, so that columns keep their places."""
        fresh = {layer.name: layer for layer in find_layers(self.model)}
        kept = tuple(fresh.pop(layer.name, layer) for layer in self.layers)
        layers = kept + tuple(fresh.values())
        self.layers = layers + stray_layers(layers, parameters)
        self._graphs_left = max(self._graphs_left, 1)
        self._describe()


def _learning_rate(group: Mapping[str, Any]) -> float:
    """Return a group's learning rate, NaN where the optimizer chooses its own (Adafactor's relative step)."""
    rate = group.get("lr")
    return float("nan") if rate is None else float(rate)


def describe_optimizer(optimizer: Optimizer) -> OptimizerDescription:
    """Describe an optimizer in plain values.

    Args:
        optimizer: Any optimizer.

    Returns:
        Its class, momentum and eps.

    Example:
        >>> describe_optimizer(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)).momentum
        0.9
    """
    first = optimizer.param_groups[0] if optimizer.param_groups else {}
    momentum, eps = first.get("momentum", 0.0), first.get("eps", 0.0)
    numbers = [float(value) if isinstance(value, (int, float)) else 0.0 for value in (momentum, eps)]
    return OptimizerDescription(type(optimizer).__name__, *numbers)
