"""Which layers are below or above the person's own thresholds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real

import numpy as np

from lightning_gradwatch.detect.diagnosis import Diagnosis, Observations, Symptom
from lightning_gradwatch.measure.snapshot import BoolArray, FloatArray


@dataclass(frozen=True)
class ThresholdRule:
    """Hold each layer's gradient norm, before clipping, against two thresholds in the gradient's own unit.

    ``0 < norm < vanishing`` is vanishing, ``exploding < norm < inf`` is exploding. An exact zero is dead and a value
    that is not finite is non_finite; other rules speak of those.

    Attributes:
        vanishing: Lower threshold, None for none. There is no default: norms depend on loss, batch and width.
        exploding: Upper threshold, None for none.

    Raises:
        ValueError: If a threshold is not a positive number, or vanishing is not below exploding.

    Example:
        >>> ThresholdRule(vanishing=1e-7, exploding=1e3).vanishing
        1e-07
    """

    vanishing: float | None = None
    exploding: float | None = None

    def __post_init__(self) -> None:
        """Refuse thresholds that nothing or everything could cross."""
        check_thresholds(self.vanishing, self.exploding, "vanishing", "exploding")

    def __call__(self, observations: Observations) -> Iterator[Diagnosis]:
        """Yield a diagnosis for the layers below and one for the layers above."""
        readings = observations.gradients
        norms, present = readings.norms[-1], readings.present[-1]
        if self.vanishing is not None:
            low = present & (norms > 0) & (norms < self.vanishing)
            if low.any():
                yield self._diagnose(observations, Symptom.VANISHING, self.vanishing, low, norms)
        if self.exploding is not None:
            high = present & np.isfinite(norms) & (norms > self.exploding)
            if high.any():
                yield self._diagnose(observations, Symptom.EXPLODING, self.exploding, high, -norms)

    def _diagnose(
        self, observations: Observations, symptom: Symptom, threshold: float, sick: BoolArray, badness: FloatArray
    ) -> Diagnosis:
        indices = np.flatnonzero(sick)
        indices = indices[np.argsort(badness[indices], kind="stable")]
        worst = float(observations.gradients.norms[-1][indices[0]])
        side = "below" if symptom is Symptom.VANISHING else "above"
        name = observations.layers[indices[0]].name
        return Diagnosis(
            rule=f"{symptom.value}.threshold",
            symptom=symptom,
            optimizer=observations.optimizer,
            layers=observations.names(indices),
            step=observations.step,
            message=f"the gradient norm is {side} your threshold",
            measured=f"{name} has {worst:.3g}; {symptom.value}_threshold is {threshold:.3g}",
            evidence={"threshold": threshold, "worst": worst},
        )


def check_thresholds(vanishing: float | None, exploding: float | None, low_name: str, high_name: str) -> None:
    """Refuse thresholds that are not positive numbers in rising order.

    Args:
        vanishing: Lower threshold.
        exploding: Upper threshold.
        low_name: Name of the lower one, for the message.
        high_name: Name of the upper one, for the message.

    Raises:
        ValueError: Naming the argument, what is expected and what came.
    """
    for name, value in ((low_name, vanishing), (high_name, exploding)):
        if value is not None and not (_is_number(value) and math.isfinite(value) and value > 0):
            raise ValueError(f"`{name}` must be a positive finite number or None. Got {value!r}")
    if vanishing is not None and exploding is not None and vanishing >= exploding:
        raise ValueError(f"`{low_name}` must be below `{high_name}`. Got {vanishing!r} and {exploding!r}")


def _is_number(value: object) -> bool:
    # numpy registers its scalars as Real; they come from sweeps and config files.
    return isinstance(value, Real) and not isinstance(value, bool)
