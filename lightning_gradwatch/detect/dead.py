"""Which layers get a gradient that is exactly zero, step after step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lightning_gradwatch.detect.diagnosis import Diagnosis, Observations, Symptom
from lightning_gradwatch.detect.progress import outcome_of
from lightning_gradwatch.measure.snapshot import BoolArray


@dataclass(frozen=True)
class DeadRule:
    """Name the layers whose gradient was exactly zero in each of the last ``num_readings`` readings.

    A zero is not a small number: no loss scale and no optimizer makes up for it. A LoRA pair starts with one zero
    gradient and a residual branch with a zero scale with one or two, so a few readings decide nothing. A loss of
    exactly zero has nothing left to teach and is no fault. It is a warning where the gradient is cut, so that from some
    layer back to the input everything is zero, and that is half of the layers or the loss does not fall. Otherwise (an
    expert that no sample chose, a branch that is multiplied by zero) it is a notice.

    Attributes:
        num_readings: How many readings in a row. Ours: zero starts (LoRA, ReZero, Fixup) end within 2 readings.
        horizon: How many readings it takes to tell that the loss does not fall; as in ``DepthRule``.

    Example:
        >>> DeadRule().num_readings
        10
    """

    num_readings: int = 10
    horizon: int = 100

    def __post_init__(self) -> None:
        """Refuse a number of readings that is no number."""
        if self.num_readings < 1:
            raise ValueError(f"`num_readings` must be a positive integer. Got {self.num_readings!r}")

    def __call__(self, observations: Observations) -> Iterator[Diagnosis]:
        """Yield one diagnosis for all dead layers, in forward order."""
        readings = observations.gradients
        # Where several processes train, the newest losses are not known yet: nothing is dead before they are.
        known = np.flatnonzero(~np.isnan(readings.losses))
        newest = int(known[-1]) if known.size else len(readings) - 1
        if newest + 1 < self.num_readings or (known.size and readings.losses[newest] == 0):
            return
        recent = slice(newest + 1 - self.num_readings, None)
        present = readings.present[recent]
        dead: BoolArray = np.logical_and.reduce(present & (readings.norms[recent] == 0), axis=0)
        filled = np.array([layer.num_parameters > 0 for layer in observations.layers])
        dead &= filled
        if not dead.any():
            return
        ever_present: BoolArray = np.logical_or.reduce(present, axis=0) & filled
        living = observations.order[ever_present[observations.order]]
        layers = living[dead[living]]
        cut = bool(dead[living[: len(layers)]].all())
        ever = bool((readings.norms[:, layers] > 0).any())
        everywhere = len(layers) == len(living)
        harms = 2 * len(layers) >= len(living) or outcome_of(observations, self.horizon) is False
        yield Diagnosis(
            rule="dead",
            symptom=Symptom.DEAD,
            severity="warning" if cut and harms else "notice",
            optimizer=observations.optimizer,
            layers=observations.names(layers),
            step=observations.step,
            message=_message(everywhere, cut),
            measured=f"exactly 0 in the last {self.num_readings} readings in {len(layers)} of {len(living)} layers; "
            + ("it was not 0 before" if ever else "it was never anything else"),
            cause="units that are off for every sample (dead ReLU), a detached graph, or an output that the loss "
            "cannot move, such as a softmax over one unit",
            evidence={"num_readings": self.num_readings, "everywhere": everywhere, "ever_alive": ever},
        )


def _message(everywhere: bool, cut: bool) -> str:
    if everywhere:
        return "no gradient at all reaches any layer"
    return "no gradient at all reaches the first layers" if cut else "some layers get no gradient at all"
