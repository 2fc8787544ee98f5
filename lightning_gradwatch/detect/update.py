"""Whether one step would move a layer by many times its own weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lightning_gradwatch.detect.diagnosis import Diagnosis, Observations, Symptom
from lightning_gradwatch.detect.progress import (
    PLAIN_OPTIMIZERS,
    RESCALING_OPTIMIZERS,
    fastest_at_first,
    outcome_of,
    relative_updates,
    shrunk_by_growth,
)
from lightning_gradwatch.measure.snapshot import BoolArray, FloatArray, IntArray

# So many readings tell what is usual; as `SpikeRule.min_readings`.
_USUAL_AFTER = 32


@dataclass(frozen=True)
class UpdateRule:
    """Call a gradient exploding when the step that it causes overwrites the layer.

    ``learning_rate * |g| / |w| > max_ratio`` in a layer with a weight matrix, for SGD, whose step is proportional to
    the gradient, after clipping. The loss's scale cancels: a summed loss goes with a small learning rate. One such
    step destroys what the layer knew, so patience does not apply. Layers that start near zero (LoRA, layer scale,
    zero-initialized branches) have nothing to lose and are left out, as is a model of one layer: linear
    regression may go as far as it likes in a step.

    For every other optimizer the probe's own measurement of the step counts, ``|dW| / |W| > max_measured`` in half of
    the layers with a weight matrix: a learning rate that is far too high moves all of them. Where the loss has not
    fallen after ``horizon`` readings, ``large`` is enough. Embeddings are left out.

    Attributes:
        max_ratio: Amazon SageMaker Debugger's WeightUpdateRatio flags 10. Ours: 475 healthy runs with SGD and more
            than one layer stayed below 1.5.
        max_measured: Ours: healthy runs moved no layer by more than 0.9 in a step, a learning rate of 3 under Adam all
            of them by 10 and more.
        large: Ours: healthy runs whose loss stays flat moved no layer by more than 0.04 in a step.
        horizon: How many readings it takes to tell that the loss does not fall; as in ``DepthRule``.
        min_weight: Root mean square of weights below which a layer counts as started near zero. Ours.

    Raises:
        ValueError: If a bound is not positive.

    Example:
        >>> UpdateRule().max_ratio
        10.0
    """

    max_ratio: float = 10.0
    max_measured: float = 2.0
    large: float = 0.1
    horizon: int = 100
    min_weight: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse a ratio that every step would reach."""
        for name in ("max_ratio", "max_measured", "large"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be a positive number. Got {getattr(self, name)!r}")

    def __call__(self, observations: Observations) -> Iterator[Diagnosis]:
        """Yield one diagnosis, the layer that is moved most first."""
        if observations.optimizer_description.kind in PLAIN_OPTIMIZERS:
            found = self._by_gradient(observations)
        else:
            found = self._by_measurement(observations)
        if found is None:
            return
        updates, sick = found
        sick = sick[np.argsort(-updates[sick], kind="stable")]
        rescaled = observations.optimizer_description.kind in RESCALING_OPTIMIZERS
        worst, rate = float(updates[sick[0]]), float(observations.learning_rate[sick[0]])
        yield Diagnosis(
            rule="exploding.update",
            symptom=Symptom.EXPLODING,
            optimizer=observations.optimizer,
            layers=observations.names(sick),
            step=observations.step,
            message="this step overwrites weights instead of adjusting them",
            measured=f"with a learning rate of {rate:.3g} the step moves {observations.layers[sick[0]].name} by "
            f"{worst:.3g} times its own weights; usual is 0.001 to 0.01",
            cause="the learning rate is too high"
            if rescaled
            else "the gradient grew on its way back through the layers or through time, or the learning rate is too "
            "high for it",
            evidence={
                "update_ratio": worst,
                "learning_rate": rate,
                "max_ratio": self.max_ratio,
                "rescaled": rescaled,
                "first_ratio": fastest_at_first(observations),
                "usual_norm": _usual_norm(observations),
            },
        )

    def _by_gradient(self, observations: Observations) -> tuple[FloatArray, IntArray] | None:
        """Return how far the step goes and which layers it overwrites, from the gradient and the learning rate."""
        updates = relative_updates(observations)
        if updates is None or not (updates > self.max_ratio).any() or observations.matrices.sum() < 2:
            return None
        updates = updates * shrunk_by_growth(observations)
        sick = self._judged(observations) & np.isfinite(updates) & (updates > self.max_ratio)
        return (updates, np.flatnonzero(sick)) if sick.any() else None

    def _by_measurement(self, observations: Observations) -> tuple[FloatArray, IntArray] | None:
        """Return the same from what the signal probe has measured of this very step."""
        probe = observations.probe
        if probe is None or observations.matrices.sum() < 2:
            return None
        judged = self._judged(observations) & np.isfinite(probe.update_ratio)
        limit = self.max_measured
        if (probe.update_ratio[judged] > self.large).any() and outcome_of(observations, self.horizon) is False:
            limit = self.large
        sick = judged & (probe.update_ratio > limit)
        if not sick.any() or 2 * sick.sum() < judged.sum():
            return None
        return probe.update_ratio, np.flatnonzero(sick)

    def _judged(self, observations: Observations) -> BoolArray:
        """Return the layers with a weight matrix that did not start near zero."""
        started = observations.gradients.weight_norms[-1] / np.sqrt(observations.sizes) > self.min_weight
        # A row of a table moves alone, and no signal of earlier layers is lost with it.
        tables = np.array([layer.kind.startswith("Embedding") for layer in observations.layers], dtype=np.bool_)
        judged: BoolArray = started & observations.matrices & ~tables
        return judged


def _usual_norm(observations: Observations) -> float | None:
    """Return the median norm of all gradients before this step, None where training has hardly begun."""
    before = observations.gradients.global_norms[:-1]
    before = before[np.isfinite(before) & (before > 0)]
    return float(np.median(before)) if len(before) >= _USUAL_AFTER else None
