"""Whether most units lie on the flat ends of their activation, so that nothing comes back through them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lightning_gradwatch.detect.diagnosis import Diagnosis, Observations, Symptom
from lightning_gradwatch.detect.progress import outcome_of
from lightning_gradwatch.measure.snapshot import FloatArray, SignalSnapshot

# Outputs and gates are meant to be decided: a classifier that is sure of every sample is well.
_JUDGED = ("sigmoid", "tanh")


@dataclass(frozen=True)
class SaturationRule:
    """Call a network exploding when what its layers give has outgrown their sigmoid or tanh.

    The share of a layer's units that are flat for every sample of the batch must be above ``share`` in half of the
    hidden layers that a sigmoid or tanh follows, of which there must be ``min_layers``, in two probes in a row. It is a
    warning when the loss has not fallen after ``horizon`` readings, otherwise a notice.

    Attributes:
        share: DeepDiagnosis calls an activation saturated when more than half of its inputs are. Ours: no healthy run
            had a unit that was flat for every sample in half of its layers, sick ones had 83% of all units.
        min_layers: Ours: a single layer may be a gate.
        horizon: How many readings it takes to tell that the loss does not fall; as in ``DepthRule``.

    Example:
        >>> SaturationRule().share
        0.5

    References:
        Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks, AISTATS 2010.
        Wardat et al., DeepDiagnosis, ICSE 2022.
    """

    share: float = 0.5
    min_layers: int = 2
    horizon: int = 100

    def __call__(self, observations: Observations) -> Iterator[Diagnosis]:
        """Yield at most one diagnosis, the layer with most saturated units first."""
        probes = observations.signals[:-3:-1]
        # Most readings end here; what follows asks every layer.
        if len(probes) < 2 or not all((snapshot.saturated > self.share).any() for snapshot in probes):
            return
        newest, before = (self._shares(observations, snapshot) for snapshot in probes)
        known = np.isfinite(newest) & np.isfinite(before)
        flat = known & (np.minimum(newest, before) > self.share)
        if known.sum() < self.min_layers or 2 * flat.sum() < known.sum() or not flat.any():
            return
        layers = np.flatnonzero(flat)
        layers = layers[np.argsort(-newest[layers], kind="stable")]
        outcome = outcome_of(observations, self.horizon)
        worst = observations.layers[layers[0]]
        yield Diagnosis(
            rule="exploding.saturation",
            symptom=Symptom.EXPLODING,
            severity="warning" if outcome is False else "notice",
            optimizer=observations.optimizer,
            layers=observations.names(layers),
            step=observations.step,
            message="what the layers give has outgrown their activations, through which nothing comes back"
            + (", and the loss does not fall" if outcome is False else ""),
            measured=f"{newest[layers[0]]:.0%} of the units behind {worst.name} are flat for every sample; more than "
            f"{self.share:.0%} in {len(layers)} of the {int(known.sum())} layers with a {worst.activation}",
            cause="weights or inputs that are too large, or a step that made them so",
            evidence={"saturated": float(newest[layers[0]]), "share": self.share, "loss_has_fallen": outcome},
        )

    @staticmethod
    def _shares(observations: Observations, snapshot: SignalSnapshot) -> FloatArray:
        """Return the share of saturated units of the hidden layers that are judged, NaN elsewhere."""
        hidden = np.array([layer.activation in _JUDGED for layer in observations.layers], dtype=np.bool_)
        shares: FloatArray = np.where(hidden, snapshot.saturated, np.nan)
        return shares
