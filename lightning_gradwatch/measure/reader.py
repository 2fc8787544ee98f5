"""Which layers there are, and one reading after the other of each optimizer's gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradwatch.measure.activations import describe_layers
from lightning_gradwatch.measure.drawn import find_drawn
from lightning_gradwatch.measure.graph import Topology, forward_order, read_topology
from lightning_gradwatch.measure.layers import (
    KnownLayer,
    ParameterIndex,
    find_layers,
    in_known_order,
    index_parameters,
    stray_layers,
)
from lightning_gradwatch.measure.norms import measure_with_weights
from lightning_gradwatch.measure.reading import Reading
from lightning_gradwatch.measure.snapshot import (
    BoolArray,
    FloatArray,
    GradientSnapshot,
    IntArray,
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


# A tensor that stays zero is measured in float64 now and then only. As often as this, a rule that asks for so many
# zeros in a row (``DeadRule.num_readings``) never rests on float32 alone.
_ZEROS_EVERY = 10


@dataclass
class _OptimizerState:
    index: ParameterIndex
    weight_norms: FloatArray
    known_zeros: BoolArray
    num_readings: int = 0
    step: int | None = None


@dataclass(frozen=True, eq=False)
class _Step:
    """What is known of a step before its numbers arrive; all arrays ``[num_gradients]``."""

    optimizer: int
    step: int
    unscales: bool
    state: _OptimizerState
    layer: IntArray
    members: IntArray
    rates: Sequence[float | Tensor | None]


class Reader:
    """Knows the model's layers and reads each optimizer's gradients.

    Args:
        model: The model whose layers the columns are.
        known: The columns of an earlier reader of the same model, which keep their places.
    """

    def __init__(self, model: nn.Module, known: Sequence[KnownLayer] = ()) -> None:
        self.model = model
        self.layers = in_known_order(find_layers(model), known)
        self.topology = Topology()
        self.descriptions = describe_layers(model, self.layers, self.topology)
        self.order = forward_order((), len(self.layers))
        self.num_measured = 0
        self._places: dict[int, str] = {}
        self._shapes: dict[int, tuple[int, ...]] = {}
        self._left_out: frozenset[str] = frozenset()
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
            outlets=_joined(self.topology.outlets, new.outlets),
            opaque=self.topology.opaque or new.opaque,
            curves={**new.curves, **self.topology.curves},
        )
        self._describe()
        seen.update(new.order)
        unseen = any(layer.trainable and number not in seen for number, layer in enumerate(self.layers))
        self._graphs_left = self._graphs_left - 1 if unseen else 0

    def note_calls(self, places: Mapping[int, str], shapes: Mapping[int, tuple[int, ...]]) -> None:
        """Note what a probe has seen of how layers are called.

        Args:
            places: The line of the person's code that calls the activation behind a layer as a function, such as
                ``"model.py:31"``, by the layer's index.
            shapes: Shape of the layer's output, by its index; that of the first probe is kept.
        """
        if self._places != places or not self._shapes.keys() >= shapes.keys():
            self._places, self._shapes = dict(places), {**shapes, **self._shapes}
            self._describe()

    def note_left_out(self, names: Iterable[str]) -> None:
        """Note which layers no optimizer holds; only those whose weights nothing has trained yet are of interest.

        Args:
            names: Names of layers.
        """
        wanted = set(names)
        self._left_out = find_drawn([layer for layer in self.layers if layer.name in wanted])
        self._describe()

    def _describe(self) -> None:
        described = describe_layers(self.model, self.layers, self.topology)
        self.descriptions = tuple(
            replace(
                about,
                where=self._places.get(number, about.where),
                shape=self._shapes.get(number, ()),
                left_out=about.name in self._left_out,
            )
            for number, about in enumerate(described)
        )
        self.order = forward_order(self.topology.order, len(self.layers))

    def read(
        self,
        number: int,
        optimizer: Optimizer,
        step: int,
        loss: Tensor | None = None,
        scale: Tensor | None = None,
        unscales: bool = False,
    ) -> Reading:
        """Measure the gradients of an optimizer: one pass on the device, one transfer to the host.

        Args:
            number: Number of the optimizer in the training run.
            optimizer: The optimizer.
            step: ``global_step`` before the step.
            loss: The loss.
            scale: What a loss scaler multiplies the loss by.
            unscales: Whether the gradients are still multiplied by it: the optimizer unscales inside ``step``.

        Returns:
            The reading, to be clipped, sent and turned into one value a layer.
        """
        state = self._state(number, optimizer)
        if step != state.step:
            # Not at each evaluation of a closure (LBFGS): only the last one of a step is kept.
            state.step, state.num_readings = step, state.num_readings + 1
            if (state.num_readings - 1) % _ZEROS_EVERY == 0:
                state.known_zeros[:] = False
        due = state.num_readings <= _FIRST_WEIGHT_READINGS or (state.num_readings - 1) % _WEIGHTS_EVERY == 0
        if due:
            self._note_unfrozen()
        measured, weights = measure_with_weights(state.index, number, weights=due)
        self.num_measured += 1
        # A schedule may change a tensor in place before anybody asks for the snapshot.
        rates = [_now(group.get("lr")) for group in optimizer.param_groups]
        extras = {
            "weight_norms": weights,
            "loss": None if loss is None else loss.detach().reshape(1),
            "scale": None if scale is None else scale.reshape(1),
            "learning_rates": _rates_on_a_device(rates),
        }
        about = _Step(number, step, unscales, state, state.index.layer[measured.members], measured.members, rates)
        sent = {name: part for name, part in extras.items() if part is not None}
        return Reading(measured, sent, state.known_zeros, partial(_arrange, about))

    def _note_unfrozen(self) -> None:
        """Describe layers that ask for a gradient by now as such: unfrozen behind a cut, none would ever tell."""
        # One way only: where optimizers are toggled, each one's layers are frozen while another one's are read.
        pairs = list(zip(self.descriptions, self.layers, strict=True))
        if any(layer.trainable and not about.trainable for about, layer in pairs):
            self.descriptions = tuple(
                replace(about, trainable=about.trainable or layer.trainable) for about, layer in pairs
            )

    def columns_of(self, number: int, optimizer: Optimizer) -> IntArray:
        """Return the indices of the layers that an optimizer holds and that have numbers, ``[num_columns]``."""
        index = self._state(number, optimizer).index
        columns: IntArray = np.unique(index.layer[index.filled])
        return columns

    def sharded(self, number: int, optimizer: Optimizer) -> bool:
        """Tell whether an optimizer's parameters are spread over processes, so that all have to measure together."""
        return self._state(number, optimizer).index.sharded

    def _state(self, number: int, optimizer: Optimizer) -> _OptimizerState:
        groups = [group["params"] for group in optimizer.param_groups]
        flat = [parameter for group in groups for parameter in group]
        state = self._states.get(number)
        if state is None or not state.index.covers(flat) or state.index.num_layers != len(self.layers):
            index = self._index(groups, flat)
            if state is not None:
                # A lazy layer may have got its shape.
                self._describe()
            zeros = np.zeros(len(index.parameters), dtype=np.bool_)
            state = self._states[number] = _OptimizerState(index, np.full(len(self.layers), np.nan), zeros)
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


def _joined(known: Mapping[int, frozenset[int]], new: Mapping[int, frozenset[int]]) -> dict[int, frozenset[int]]:
    """Join the outlets of two losses: a trunk may have one head for each."""
    return {layer: known.get(layer, frozenset()) | new.get(layer, frozenset()) for layer in (*known, *new)}


def _now(rate: float | Tensor | None) -> float | Tensor | None:
    return float(rate) if isinstance(rate, Tensor) and rate.device.type == "cpu" else rate


def _rates_on_a_device(rates: Sequence[float | Tensor | None]) -> Tensor | None:
    """Join learning rates that live on a device (``capturable=True``): asking for one by one would wait for each."""
    tensors = [rate.detach().reshape(()) for rate in rates if isinstance(rate, Tensor)]
    return torch.stack([tensor.to(tensors[0].device) for tensor in tensors]) if tensors else None


def _learning_rates(rates: Sequence[float | Tensor | None], on_a_device: FloatArray) -> FloatArray:
    """Return each group's learning rate, NaN where the optimizer chooses its own (Adafactor's relative step)."""
    arrived = iter(on_a_device.tolist())
    known = [next(arrived) if isinstance(rate, Tensor) else rate for rate in rates]
    return np.array([np.nan if rate is None else float(rate) for rate in known])


# What float64 cannot hold becomes infinite without a warning in a person's run.
@np.errstate(over="ignore")
def _arrange(about: _Step, numbers: Mapping[str, FloatArray]) -> GradientSnapshot:
    """Make one value a layer of one value a parameter, and take a loss scaler's factor out."""
    state, index, layer = about.state, about.state.index, about.layer
    # A factor that has fallen to 0 leaves nothing that could be known.
    factor = float(numbers["scale"][0]) or np.nan if "scale" in numbers else 1.0
    scale = factor if about.unscales else 1.0
    if "weight_norms" in numbers:
        state.weight_norms = combine_norms(numbers["weight_norms"], index.layer[index.filled], index.num_layers)
    norms = combine_norms(numbers["norms"] / scale, layer, index.num_layers)
    clipped = norms
    if "clipped_norms" in numbers:
        # An optimizer that unscales by itself has written unscaled gradients back, unless it dropped the step.
        kept = scale if not np.isfinite(numbers["clipped_norms"]).all() else 1.0
        clipped = combine_norms(numbers["clipped_norms"] / kept, layer, index.num_layers)
    biases = index.bias[about.members]
    bias_norms = np.full(index.num_layers, np.nan)
    bias_norms[layer[biases]] = numbers["norms"][biases] / scale
    rates = np.full(index.num_layers, np.nan)
    rates[index.layer] = _learning_rates(about.rates, numbers.get("learning_rates", np.empty(0)))[index.group]
    return GradientSnapshot(
        step=about.step,
        optimizer=about.optimizer,
        norms=norms,
        clipped_norms=clipped,
        bias_norms=bias_norms,
        weight_norms=state.weight_norms,
        present=np.bincount(layer, minlength=index.num_layers) > 0,
        learning_rates=rates,
        loss=float(numbers["loss"][0]) / factor if "loss" in numbers else float("nan"),
    )


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
    kind: Any = type(optimizer)
    return OptimizerDescription(_torchs_name(kind), *numbers)


@lru_cache(maxsize=64)
def _torchs_name(kind: type[Any]) -> str:
    """Tell a person's subclass of one of torch's optimizers by what it is made of."""
    torchs = [each.__name__ for each in kind.__mro__ if each.__module__.startswith("torch.optim.")]
    return next((name for name in torchs if name != "Optimizer"), kind.__name__)
