"""Which layers get a gradient that is exactly zero, step after step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lightning_gradwatch.detect.diagnosis import Diagnosis, Observations, Symptom
from lightning_gradwatch.detect.progress import outcome_of
from lightning_gradwatch.measure.snapshot import BoolArray, LayerDescription

_SIGMOIDS = ("sigmoid", "tanh")
_UNDERFLOW = (
    "gradients below 6e-8, the least number of float16, become 0 on their way back, and no loss scaler is known; or "
    "an operation has slope 0 (round, sign, a comparison)"
)


@dataclass(frozen=True)
class DeadRule:
    """Name the layers whose gradient is exactly zero, reading after reading.

    A zero is not a small number: no loss scale and no optimizer makes up for it. Layers that never had another
    gradient are named after ``first_readings``, those that had one after ``num_readings`` in a row. A LoRA pair starts
    with one zero gradient and a residual branch with a zero scale with one or two, so fewer decide nothing; nor do
    steps with a learning rate of zero, which cannot end such a start. A loss of exactly zero has nothing left to teach
    and is no fault; one that was never anything else is a notice.

    It is a warning where the gradient is cut, so that from some layer back to the input everything is zero, and that is
    half of the layers or the loss does not fall. Otherwise (an expert that no sample chose, a branch that is multiplied
    by zero) it is a notice.

    Attributes:
        first_readings: How many readings from the first one on. Ours: zero starts (LoRA, ReZero, Fixup) end within 2.
        num_readings: How many readings in a row later. Ours.
        horizon: How many readings it takes to tell that the loss does not fall; as in ``DepthRule``.

    Raises:
        ValueError: If a number of readings is below 1.

    Example:
        >>> DeadRule().num_readings
        10
    """

    first_readings: int = 3
    num_readings: int = 10
    horizon: int = 100

    def __post_init__(self) -> None:
        """Refuse a number of readings that is no number."""
        for name in ("first_readings", "num_readings"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be a positive integer. Got {getattr(self, name)!r}")

    def __call__(self, observations: Observations) -> Iterator[Diagnosis]:
        """Yield one diagnosis for all dead layers, in forward order."""
        if self._idle(observations):
            yield _nothing_to_learn(observations)
            return
        dead, ever = self._dead(observations)
        if not dead.any():
            return
        readings = observations.gradients
        filled = np.array([layer.num_parameters > 0 for layer in observations.layers])
        ever_present: BoolArray = np.logical_or.reduce(readings.present[-self.num_readings :], axis=0) & filled
        living = observations.order[ever_present[observations.order]]
        layers = living[dead[living]]
        cut = bool(dead[living[: len(layers)]].all())
        everywhere = len(layers) == len(living)
        harms = 2 * len(layers) >= len(living) or outcome_of(observations, self.horizon) is False
        off, last = _dead_units(observations), observations.layers[living[-1]]
        alive = bool(ever[layers].any())
        one_unit = last.name if everywhere and not off and not alive and _softmax_over_one(last) else ""
        flat = everywhere and not off and (alive or last.activation in _SIGMOIDS)
        beyond = everywhere and bool(observations.signals)
        half = (cut or everywhere) and not (off or one_unit or alive) and _in_unscaled_float16(observations)
        yield Diagnosis(
            rule="dead",
            symptom=Symptom.DEAD,
            severity="warning" if cut and harms else "notice",
            optimizer=observations.optimizer,
            layers=observations.names(layers[::-1] if cut else layers),
            step=observations.step,
            message=_message(everywhere, cut),
            measured=f"exactly 0 in {len(layers)} of {len(living)} layers, reading after reading; "
            + ("it was not 0 before" if alive else "it was never anything else")
            + (f"; all units behind {off} are 0 for every sample" if off else ""),
            cause=_UNDERFLOW
            if half
            else _saturated(last.name, beyond=beyond)
            if flat
            else _cause(off, one_unit, cut=cut, beyond=beyond),
            evidence={
                "everywhere": everywhere,
                "ever_alive": alive,
                "dead_units": off,
                "one_unit": one_unit,
                "saturated": last.name if flat and not half else "",
                "float16": half,
                "flat_operation": cut
                and bool(observations.signals)
                and not (off or one_unit or flat or everywhere or alive or half),
                "next_layer": observations.layers[living[len(layers)]].name if cut and not everywhere else "",
                "learning_rate": float(np.nanmax(readings.learning_rates[-1], initial=0.0)),
            },
        )

    def _idle(self, observations: Observations) -> bool:
        """Tell whether the loss has been exactly 0 since the first reading, and every gradient with it."""
        readings = observations.gradients
        if readings.losses[-1] != 0 or len(readings) < self.first_readings:
            return False
        norms = readings.norms[readings.present]
        return bool(norms.size and not norms.any() and (observations.loss == 0).all())

    def _dead(self, observations: Observations) -> tuple[BoolArray, BoolArray]:
        """Return which layers are dead, and which of all layers ever had a gradient that was not zero."""
        readings = observations.gradients
        nothing = np.zeros(len(observations.layers), dtype=np.bool_)
        # Most readings end here; all that follows looks at every reading that is kept.
        if not (readings.present[-1] & (readings.norms[-1] == 0)).any():
            return nothing, nothing
        ever: BoolArray = np.logical_or.reduce(readings.norms > 0, axis=0)
        ever |= np.logical_and.reduce(np.isnan(readings.norms), axis=0)
        # Where several processes train, the newest losses are not known yet: nothing is dead before they are.
        known = np.flatnonzero(~np.isnan(readings.losses))
        newest = int(known[-1]) if known.size else len(readings) - 1
        if newest + 1 < self.first_readings or (known.size and readings.losses[newest] == 0):
            return nothing, ever
        filled = np.array([layer.num_parameters > 0 for layer in observations.layers])
        # A step with a learning rate of zero leaves everything as it was, and a loss of zero asks for nothing.
        zero = readings.present & (readings.norms == 0) & (readings.learning_rates != 0)
        zero &= (readings.losses != 0)[:, None]
        first: BoolArray = ~ever & (zero.sum(axis=0) >= self.first_readings) & readings.present[-1]
        later = zero[newest + 1 - self.num_readings :].all(axis=0) & (newest + 1 >= self.num_readings)
        return (first | later) & filled, ever


def _nothing_to_learn(observations: Observations) -> Diagnosis:
    present = observations.order[observations.gradients.present[-1][observations.order]]
    last = observations.layers[present[-1]]
    return Diagnosis(
        rule="dead",
        symptom=Symptom.DEAD,
        severity="notice",
        optimizer=observations.optimizer,
        layers=observations.names(present[::-1]),
        step=observations.step,
        message="the loss is exactly 0 since the first step, so there is nothing to learn from it",
        measured=f"loss and gradient are exactly 0 in each of {len(observations.loss)} readings",
        cause=f"the last layer, {last.name}, has one unit: a softmax over one unit is 1 whatever the weights"
        if _softmax_over_one(last)
        else "a loss of something with itself, a mask that hides everything, or targets that the output always meets",
        evidence={"everywhere": True, "ever_alive": False, "one_unit": last.name if _softmax_over_one(last) else ""},
    )


def _dead_units(observations: Observations) -> str:
    """Return the layer whose units are all off for every sample, empty where none is."""
    probe = observations.signals[-1] if observations.signals else None
    if probe is None:
        return ""
    judged = [int(column) for column in probe.order if not np.isnan(probe.dead[column])]
    off = [probe.dead[column] == 1 for column in judged]
    if not any(off):
        return ""
    # What lies behind a layer that is off may be off as well, or live on its biases: of the last row of such layers
    # the first one is the culprit.
    first = len(off) - 1 - off[::-1].index(True)
    while first and off[first - 1]:
        first -= 1
    return observations.layers[judged[first]].name


def _in_unscaled_float16(observations: Observations) -> bool:
    """Tell whether gradients go back through float16 and no loss scaler has brought them above its least number."""
    return bool(observations.signals) and observations.signals[-1].unscaled_float16


def _softmax_over_one(last: LayerDescription) -> bool:
    """Tell whether a softmax over the last layer's one unit may be what gives zeros: something else may follow it."""
    return last.num_biases == 1 and last.activation not in _SIGMOIDS


def _saturated(last: str, *, beyond: bool) -> str:
    """Say what made zeros of every gradient where there were others before, or where a sigmoid follows the output."""
    # Without a probe nobody has looked at the units.
    units = "" if beyond else ", or units that are off for every sample (dead ReLU)"
    return f"a saturated output: a sigmoid or softmax behind {last} whose slope has underflowed to 0{units}"


def _cause(off: str, one_unit: str, *, cut: bool, beyond: bool) -> str:
    """Say what makes exact zeros, from what the probe saw and how the last layer is made."""
    if off:
        return "dead ReLU: units that are off for every sample pass nothing back"
    if one_unit:
        return f"the last layer, {one_unit}, has one unit: a softmax over one unit is 1 whatever the weights"
    if beyond:
        return "an operation whose slope is 0 (round, sign, a comparison), or an output that the loss cannot move"
    if not cut:
        return "no sample reaches them (an expert that is rarely routed to?), or what they give is multiplied by 0"
    return (
        "units that are off for every sample (dead ReLU), a detached graph, or an output that the loss cannot move, "
        "such as a softmax over one unit"
    )


def _message(everywhere: bool, cut: bool) -> str:
    if everywhere:
        return "no gradient at all reaches any layer"
    return "no gradient at all reaches the first layers" if cut else "some layers get no gradient at all"
