"""What advice is computed from: a diagnosis, and how the layers that it names stand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from lightning_gradwatch.detect.diagnosis import Diagnosis
from lightning_gradwatch.measure.layers import Layer
from lightning_gradwatch.remedy.standing import WeightStanding

# What a description says where no activation of the network's inside follows a layer.
NO_ACTIVATIONS = frozenset({"linear", "output", "gate", None})
# An exponential makes a variance or a rate of what it is given, more often than a signal.
_NO_SIGNAL = frozenset({"exp"})


@dataclass(frozen=True)
class Case:
    """A diagnosis with what is known of the model.

    Attributes:
        diagnosis: What is wrong.
        sick: The layers that it names, worst first.
        standings: How the weight matrices of the sick layers stand, and of those that the same activations follow.
        activations: The activation that follows each layer, by name.
        weights_before: Root mean square of each layer's parameters before the step, by name; empty where not known.
        weights_at_first: The same at the first reading.
        model: The model, so that an edit of it can be planned; no remedy keeps it. None where it is not known.
        called_at: The line that calls each layer's activation, by name, where it is called as a function.
        feed_batch_norm: Names of the layers that a batch normalization follows directly.
        shapes: Shape of each layer's output in a batch, by name; empty where not known.
        outputs: How the weight matrices of output layers stand.
        at_output: Names of the activations that follow output layers.
    """

    diagnosis: Diagnosis
    sick: tuple[Layer, ...] = ()
    standings: tuple[WeightStanding, ...] = ()
    activations: Mapping[str, str | None] = field(default_factory=dict)
    weights_before: Mapping[str, float] = field(default_factory=dict)
    weights_at_first: Mapping[str, float] = field(default_factory=dict)
    model: nn.Module | None = field(default=None, repr=False)
    called_at: Mapping[str, str] = field(default_factory=dict)
    feed_batch_norm: frozenset[str] = frozenset()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    outputs: tuple[WeightStanding, ...] = ()
    at_output: frozenset[str] = frozenset()

    @property
    def standings_at_first(self) -> tuple[WeightStanding, ...]:
        """How the weights stood at the first reading: training begins anew where they are initialized anew."""
        known = {name: size for name, size in self.weights_at_first.items() if math.isfinite(size)}
        return tuple(standing.before(known.get(standing.layer)) for standing in self.standings)

    @property
    def hidden(self) -> list[str]:
        """Names of the layers with a weight matrix that an activation inside the network follows."""
        return [standing.layer for standing in self.standings if self.is_hidden(standing.layer)]

    def is_hidden(self, layer: str) -> bool:
        """Tell whether an activation inside the network follows a layer: no gate, and none that is the output's.

        Example:
            >>> from lightning_gradwatch.detect.diagnosis import Symptom
            >>> case = Case(Diagnosis("spike", Symptom.SPIKE), activations={"0": "relu", "2": "output"})
            >>> case.is_hidden("0"), case.is_hidden("2")
            (True, False)
        """
        return self.activations.get(layer) not in NO_ACTIVATIONS | _NO_SIGNAL

    def growth(self, layer: str) -> float:
        """Return what a layer's parameters are, before the step, of what they were at the first reading; NaN unknown.

        Example:
            >>> from lightning_gradwatch.detect.diagnosis import Symptom
            >>> sick = Diagnosis("spike", Symptom.SPIKE)
            >>> Case(sick, weights_before={"0": 0.4}, weights_at_first={"0": 0.1}).growth("0")
            4.0
        """
        first = self.weights_at_first.get(layer, math.nan)
        return self.weights_before.get(layer, math.nan) / first if first > 0 else math.nan


def count_layers(number: int) -> str:
    """Say how many layers, in words.

    Example:
        >>> count_layers(1), count_layers(2)
        ('1 layer', '2 layers')
    """
    return "1 layer" if number == 1 else f"{number} layers"
