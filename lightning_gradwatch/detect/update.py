"""Whether one step would move a layer by many times its own weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lightning_gradwatch.detect.diagnosis import Diagnosis, Observations, Symptom
from lightning_gradwatch.detect.progress import PLAIN_OPTIMIZERS, relative_updates
from lightning_gradwatch.measure.snapshot import FloatArray


@dataclass(frozen=True)
class UpdateRule:
    """Call a gradient exploding when the step that it causes overwrites the layer.

    ``learning_rate * |g| / |w| > max_ratio`` in a layer with a weight matrix, for SGD, whose step is proportional to
    the gradient, after clipping. The loss's scale cancels: a summed loss goes with a small learning rate. One such
    step destroys what the layer knew, so patience does not apply. Layers that start near zero (LoRA, layer scale,
    zero-initialized branches) have nothing to lose and are left out, as is a model of one layer: linear
    regression may go as far as it likes in a step.

    Attributes:
        max_ratio: Amazon SageMaker Debugger's WeightUpdateRatio flags 10. Ours: 475 healthy runs with SGD and more
            than one layer stayed below 1.5.
        min_weight: Root mean square of weights below which a layer counts as started near zero. Ours.

    Example:
        >>> UpdateRule().max_ratio
        10.0
    """

    max_ratio: float = 10.0
    min_weight: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse a ratio that every step would reach."""
        if not self.max_ratio > 0:
            raise ValueError(f"`max_ratio` must be a positive number. Got {self.max_ratio!r}")

    def __call__(self, observations: Observations) -> Iterator[Diagnosis]:
        """Yield one diagnosis, the layer that is moved most first."""
        updates = relative_updates(observations)
        if updates is None or observations.optimizer_description.kind not in PLAIN_OPTIMIZERS:
            return
        updates = updates * _grown(observations)
        high = np.isfinite(updates) & (updates > self.max_ratio)
        if not high.any() or observations.matrices.sum() < 2:
            return
        started = observations.gradients.weight_norms[-1] / np.sqrt(observations.sizes) > self.min_weight
        sick = np.flatnonzero(high & started & observations.matrices)
        if not sick.size:
            return
        sick = sick[np.argsort(-updates[sick], kind="stable")]
        worst, rate = float(updates[sick[0]]), float(observations.learning_rate[sick[0]])
        yield Diagnosis(
            rule="exploding.update",
            symptom=Symptom.EXPLODING,
            optimizer=observations.optimizer,
            layers=observations.names(sick),
            step=observations.step,
            message="this step overwrites weights instead of adjusting them",
            measured=(
                f"learning rate {rate:.3g} x gradient is {worst:.3g} times the weights of "
                f"{observations.layers[sick[0]].name}; usual is about 0.001"
            ),
            cause="the gradient grew on its way back through the layers or through time, or the learning rate is "
            "too high for it",
            evidence={"update_ratio": worst, "learning_rate": rate, "max_ratio": self.max_ratio},
        )


def _grown(observations: Observations) -> FloatArray:
    """Return by how much weights may have grown since they were last measured, as a factor of at most 1.

    ``|w_measured| / (|w_measured| + sum of learning_rate * |g| / (1 - momentum))`` over the readings since then:
    weights are measured now and then only, and what began near zero grows fast.
    """
    readings = observations.gradients
    weights = readings.weight_norms
    same = np.logical_and.reduce(np.equal(weights, weights[-1]) | np.isnan(weights), axis=1)
    changed = np.flatnonzero(~same)
    since = int(changed[-1]) + 1 if changed.size else 0
    moved = readings.learning_rates[since:-1] * readings.clipped_norms[since:-1]
    gain = 1 / max(1 - observations.optimizer_description.momentum, 1e-3)
    path: FloatArray = np.nansum(np.where(np.isfinite(moved), moved, 0.0), axis=0) * gain
    measured = np.maximum(weights[-1], np.finfo(np.float64).tiny)
    shrunk: FloatArray = measured / (measured + path)
    return shrunk
