"""Which layers never get a gradient although an optimizer holds them: no gradient at all is not a zero."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lightning_gradwatch.detect.diagnosis import Diagnosis, Observations, Symptom
from lightning_gradwatch.detect.progress import outcome_of
from lightning_gradwatch.measure.snapshot import BoolArray, IntArray


@dataclass(frozen=True)
class DisconnectedRule:
    """Name the trainable layers that an optimizer holds and that never had a gradient.

    A layer that the loss does not use does no harm, so that is a notice, after ``num_readings``. It is a warning,
    after ``first_readings``, where the graph is cut: the forward pass calls these layers, in training mode, before any
    that has a gradient, and what they give is fed into one that has (``detach()``, ``torch.no_grad()``, numpy,
    ``argmax`` in between). A teacher, a target network or a momentum encoder feeds only the loss, and a trunk in
    evaluation mode is at rest on purpose. Only the signal probe knows what the forward pass called.

    And it is a warning where no optimizer at all holds layers that a gradient reaches and whose weights stand as
    PyTorch drew them, once the loss has fallen by less than ``min_fall`` after ``horizon`` readings: a trunk at random
    is enough for some tasks, and a pretrained one under a new head is meant to rest. Layers behind all that is trained
    are left alone: what is below a random head learns to suit it (Hoffer et al., Fix your classifier, ICLR 2018).

    And it is a warning, after ``idle_readings``, where none of an optimizer's layers ever had a gradient: a generator
    whose images are detached, parameters of another model. Steps of which neither a loss nor a gradient is known
    anywhere (``training_step`` returned None) do not count.

    Attributes:
        first_readings: As many as ``DeadRule`` asks for.
        num_readings: Ours: a head that is trained in turns has had its turn by then.
        idle_readings: Ours.
        min_fall: As in ``DepthRule``. Ours: heads on a random trunk that is enough had fallen by 75% by then, heads on
            one that is not by 14%.
        horizon: As in ``DepthRule``.

    Example:
        >>> DisconnectedRule().first_readings
        3
    """

    first_readings: int = 3
    num_readings: int = 20
    idle_readings: int = 10
    min_fall: float = 0.25
    horizon: int = 100

    def __call__(self, observations: Observations) -> Iterator[Diagnosis]:
        """Yield at most one diagnosis for layers behind a cut, for layers that are not used, and for ones left out."""
        yield from self._left_out(observations)
        readings = observations.gradients
        missing = self._missing(observations)
        if not missing.any() or len(readings) < self.first_readings:
            return
        if not readings.present[-1].any():
            if self._idle(observations, missing):
                held = observations.order[missing[observations.order]]
                yield _idle_diagnosis(observations, held[::-1])
            return
        cut = self._cut(observations, missing)
        if cut.size:
            yield _diagnosis(observations, cut[::-1], cut=True, next_layer=self._behind(observations, missing))
        rest = missing.copy()
        rest[cut] = False
        unused = observations.order[rest[observations.order]]
        if unused.size and len(observations.loss) >= self.num_readings:
            yield _diagnosis(observations, unused, cut=False)

    def _left_out(self, observations: Observations) -> Iterator[Diagnosis]:
        """Yield a diagnosis where the network is not trained because no optimizer holds layers that ask for it."""
        if len(observations.loss) < self.horizon or not observations.signals:
            return
        absent = np.isnan(observations.learning_rate)
        if not absent.any():
            return
        called = observations.signals[-1].order
        trained = np.flatnonzero(~absent[called])
        # Before the last one that is trained.
        called = called[: trained[-1]] if trained.size else called
        reached = called[absent[called] & (observations.signals[-1].delta[called] > 0)]
        layers = [int(column) for column in reached if observations.layers[column].left_out]
        if layers and outcome_of(observations, self.horizon, by=self.min_fall) is False:
            yield _left_out_diagnosis(observations, layers)

    def _missing(self, observations: Observations) -> BoolArray:
        """Return the layers that ask for a gradient, are in this optimizer, and never had one."""
        readings = observations.gradients
        # Most readings end here; what follows asks every layer.
        if not (~readings.present[-1] & ~np.isnan(readings.learning_rates[-1])).any():
            return np.zeros(len(observations.layers), dtype=np.bool_)
        trainable = np.array([layer.trainable and layer.num_parameters > 0 for layer in observations.layers])
        held = ~np.isnan(readings.learning_rates[-1])
        never = ~np.logical_or.reduce(readings.present, axis=0)
        if observations.num_present.size:
            # A backbone that was trained and is detached by now is no mistake of the start.
            never &= observations.num_present == 0
        missing: BoolArray = trainable & held & never
        return missing

    def _idle(self, observations: Observations, missing: BoolArray) -> bool:
        """Tell whether an optimizer steps in vain while the model is trained."""
        readings = observations.gradients
        trainable = np.array([layer.trainable and layer.num_parameters > 0 for layer in observations.layers])
        held = trainable & ~np.isnan(readings.learning_rates[-1])
        if observations.signals and np.isfinite(observations.signals[-1].delta[held]).any():
            # Whoever uses a gradient as soon as it is there (an optimizer in the backward pass) leaves none.
            return False
        # Of several optimizers the first one that steps is given the loss.
        trained = max(int(np.isfinite(readings.losses).sum()), observations.num_elsewhere)
        return bool((missing == held).all()) and min(len(readings), trained) >= self.idle_readings

    @staticmethod
    def _behind(observations: Observations, missing: BoolArray) -> str:
        """Return the first layer behind a cut."""
        called = observations.signals[-1].order
        alive = called[~np.isnan(observations.learning_rate[called]) & ~missing[called]]
        return observations.names(alive[:1])[0]

    @staticmethod
    def _cut(observations: Observations, missing: BoolArray) -> IntArray:
        """Return the layers that the forward pass calls before any that has a gradient, in that order."""
        if not observations.signals:
            return np.zeros(0, dtype=np.int64)
        called = observations.signals[-1].order
        # Frozen layers and those of another optimizer say nothing about a cut.
        held = called[~np.isnan(observations.learning_rate[called])]
        alive = np.flatnonzero(~missing[held])
        first: IntArray = held[: alive[0]] if alive.size else held[:0]
        probe = observations.signals[-1]
        used = (probe.fed_by_cut[held[~missing[held]]] == 1).any()
        return first if used and (probe.training[first] == 1).all() else held[:0]


def _left_out_diagnosis(observations: Observations, layers: Sequence[int]) -> Diagnosis:
    return Diagnosis(
        rule="disconnected",
        symptom=Symptom.DISCONNECTED,
        severity="warning",
        optimizer=observations.optimizer,
        layers=observations.names(layers),
        step=observations.step,
        message="no optimizer holds these layers: they stay as PyTorch drew them, and the loss hardly falls",
        measured=f"a gradient reaches all {len(layers)} of them, and no step has used it in "
        f"{len(observations.loss)} readings",
        cause="the optimizer was given the parameters of a part of the model",
        evidence={"num_readings": len(observations.loss), "cut": False, "left_out": True, "next_layer": ""},
    )


def _idle_diagnosis(observations: Observations, layers: IntArray) -> Diagnosis:
    number = len(observations.gradients)
    return Diagnosis(
        rule="disconnected",
        symptom=Symptom.DISCONNECTED,
        severity="warning",
        optimizer=observations.optimizer,
        layers=observations.names(layers),
        step=observations.step,
        message=f"optimizer {observations.optimizer} steps in vain: no gradient has ever reached what it holds",
        measured=f"none of its layers had a gradient in {number} readings (None, not 0)",
        cause="detach() or torch.no_grad() between them and every loss, or the optimizer holds parameters of another "
        "model",
        evidence={"num_readings": number, "cut": True, "next_layer": ""},
    )


def _diagnosis(observations: Observations, layers: IntArray, *, cut: bool, next_layer: str = "") -> Diagnosis:
    number = len(observations.gradients)
    names = observations.names(layers)
    return Diagnosis(
        rule="disconnected",
        symptom=Symptom.DISCONNECTED,
        severity="warning" if cut else "notice",
        optimizer=observations.optimizer,
        layers=names,
        step=observations.step,
        message="the graph is cut: what these layers give is used, but no gradient comes back to them"
        if cut
        else "no loss has used these layers so far",
        measured=f"none of them had a gradient in {number} readings (None, not 0)"
        + (f"; the forward pass calls {names[0]} before any layer that has one" if cut else ""),
        cause="detach(), torch.no_grad(), .data, .item(), numpy or argmax behind them" if cut else "",
        evidence={"num_readings": number, "cut": cut, "next_layer": next_layer},
    )
