"""What advice is computed from: a diagnosis, and how the layers that it names stand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from lightning_gradwatch.detect.diagnosis import Diagnosis
from lightning_gradwatch.measure.layers import Layer
from lightning_gradwatch.remedy.initialization import WeightStanding


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
    """

    diagnosis: Diagnosis
    sick: tuple[Layer, ...] = ()
    standings: tuple[WeightStanding, ...] = ()
    activations: Mapping[str, str | None] = field(default_factory=dict)
    weights_before: Mapping[str, float] = field(default_factory=dict)
    weights_at_first: Mapping[str, float] = field(default_factory=dict)

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
