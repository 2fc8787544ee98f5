"""Whether the steps move any weight at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lightning_gradwatch.detect.diagnosis import Diagnosis, Observations, Severity, Symptom
from lightning_gradwatch.detect.progress import RESCALING_OPTIMIZERS, outcome_of, relative_updates, steady_rate
from lightning_gradwatch.measure.snapshot import BoolArray, FloatArray, SignalSnapshot

# Fine-tuning with Adam at learning rates of 5e-7 to 1e-6 moves weights by 3e-6 to 7e-6 a step, with a loss that is flat
# by nature (ours: from their usual weights of about 0.03).
_MEANT = 1e-6


@dataclass(frozen=True)
class StallRule:
    """Call a gradient vanishing when the steps made from it move no layer.

    ``update_ratio = |dW| / |W|``, as two probes in a row have measured it after the optimizer's own step, in every
    layer with a weight matrix. Below ``unmoved`` it is told at once, below ``min_update`` when the loss has not
    fallen after ``horizon`` readings. A network that has learned and has come to rest is no fault, nor is a learning
    rate that is 0, still rises (warm-up) or is at the end of its schedule; exact zeros of the gradient are dead.

    Attributes:
        unmoved: float32 numbers are 6e-8 of themselves apart: smaller steps change nothing.
        min_update: DeepDiagnosis takes a learning rate x gradient / weights below 1e-5 for too small.
        horizon: How many readings it takes to tell that the loss does not fall; as in ``DepthRule``.

    Example:
        >>> StallRule().unmoved
        1e-07

    References:
        Wardat et al., DeepDiagnosis: Automatically Diagnosing Faults and Recommending Actionable Fixes in Deep
        Learning Programs, ICSE 2022.
    """

    unmoved: float = 1e-7
    min_update: float = 1e-5
    horizon: int = 100

    def __post_init__(self) -> None:
        """Refuse bounds that contradict each other."""
        if not 0 < self.unmoved <= self.min_update:
            raise ValueError(
                f"`unmoved` must be positive and at most `min_update`. Got {self.unmoved} and {self.min_update}"
            )

    def __call__(self, observations: Observations) -> Iterator[Diagnosis]:
        """Yield at most one diagnosis, with the layers that a gradient reached, the slowest first."""
        if len(observations.signals) < 2:
            return
        judged = _judged(observations, -1)
        newest = _moved(observations, judged, observations.signals[-1])
        most = _largest(newest)
        if most >= self.min_update:
            # Nearly always.
            return
        most = float(np.maximum(most, _largest(_moved(observations, judged, observations.signals[-2]))))
        # NaN: nothing was measured.
        if not most < self.min_update:
            return
        outcome = outcome_of(observations, self.horizon)
        expected = relative_updates(observations)
        # Optimizers that find their own learning rate begin with next to none on purpose.
        early = most < self.unmoved and outcome is None and steady_rate(observations) and expected is not None
        if outcome is not False and not early:
            return
        layers = np.flatnonzero(judged & np.isfinite(newest))
        layers = layers[np.argsort(newest[layers], kind="stable")]
        rate = float(observations.learning_rate[layers[0]])
        relative = float(np.median(_relative_gradients(observations)[layers]))
        far = f"each of the {len(layers)} layers by at most {most:.1g} of its weights"
        if most == 0:
            far = f"none of the {len(layers)} layers, it is lost in rounding"
        yield Diagnosis(
            rule="vanishing.update",
            symptom=Symptom.VANISHING,
            severity=self._severity(observations, most),
            optimizer=observations.optimizer,
            layers=observations.names(layers),
            step=observations.step,
            message="the steps move no weight" + (", and the loss does not fall" if outcome is False else ""),
            measured=f"a step moves {far}; usual is 0.001 to 0.01 of the weights; "
            f"learning rate {rate:.3g}, the gradient is {relative:.1g} of the weights",
            cause=_cause(rate, relative),
            evidence={
                "update_ratio": most,
                "expected_ratio": None if expected is None else _largest(expected[layers]),
                "relative_gradient": relative,
                "learning_rate": rate,
                "rescaled": observations.optimizer_description.kind in RESCALING_OPTIMIZERS,
                "eps": observations.optimizer_description.eps,
                "gradient_rms": float(
                    np.median(observations.gradients.norms[-1][layers] / np.sqrt(observations.sizes[layers]))
                ),
                "loss_has_fallen": outcome,
            },
        )

    @staticmethod
    def _severity(observations: Observations, most: float) -> Severity:
        """Call it a notice where the learning rate alone decides the step and may be meant to be so small."""
        meant = observations.optimizer_description.kind in RESCALING_OPTIMIZERS and most > _MEANT
        return "notice" if meant else "warning"


def _judged(observations: Observations, row: int) -> BoolArray:
    """Return the layers with a weight matrix, a gradient and a learning rate that are not zero, in one reading."""
    readings = observations.gradients
    moving = readings.present[row] & (readings.norms[row] > 0) & (readings.learning_rates[row] != 0)
    judged: BoolArray = moving & observations.matrices
    return judged


def _moved(observations: Observations, judged: BoolArray, snapshot: SignalSnapshot) -> FloatArray:
    """Return how far a probed step moved the layers that had a gradient in it as well, NaN elsewhere."""
    rows = np.flatnonzero(observations.gradients.steps == snapshot.step)
    # A layer that is trained in turns was at rest then. Of a step that is not kept any more nothing is known.
    also = _judged(observations, int(rows[-1])) if rows.size else np.zeros_like(judged)
    moved: FloatArray = np.where(judged & also, snapshot.update_ratio, np.nan)
    return moved


def _largest(updates: FloatArray) -> float:
    return float(np.nanmax(updates)) if not np.isnan(updates).all() else float("nan")


def _relative_gradients(observations: Observations) -> FloatArray:
    relative: FloatArray = observations.gradients.norms[-1] / observations.gradients.weight_norms[-1]
    return relative


def _cause(rate: float, relative: float) -> str:
    # With a learning rate of 0.1 such a gradient would move the weights by 1e-5 of themselves and more.
    if relative > 1e-4:
        return f"the learning rate of {rate:.3g} is too small for these gradients"
    return "the gradient itself is next to nothing, in every layer"
