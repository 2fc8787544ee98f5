"""Whether a gradient has suddenly jumped, and whether that did harm."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lightning_gradwatch.detect.diagnosis import Diagnosis, Observations, Symptom
from lightning_gradwatch.detect.progress import relative_updates, shrunk_by_growth
from lightning_gradwatch.measure.snapshot import FloatArray, IntArray

# What makes the median absolute deviation of a normal distribution its standard deviation.
_NORMAL = 1.4826
# Norms that hardly vary would make anything a spike. Ours: 12% either way.
_LEAST_DEVIATION = 0.05
# A step that moves a layer by this share of its weights leaves a mark. Ours: healthy runs stay below it after their
# first steps.
_MARK = 0.5
# So many readings after a spike tell whether the loss has come back.
_AFTERMATH = (5, 20)
# Harm is a loss that is again at this share of where training started. Ours.
_SET_BACK = 0.5
# Where half of so many readings stand as high, that is the new level. Ours.
_RECENT = 10
# Root mean square of weights below which a layer started near zero and has nothing to lose; see UpdateRule.
_NEAR_ZERO = 1e-3
_NONE: IntArray = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class SpikeRule:
    """Call a gradient norm a spike when it stands far above the readings before it.

    ``log10(norm)`` must lie ``deviations`` robust standard deviations (median absolute deviation) and a factor of
    ``factor`` above the median of the last ``window`` readings, of which there must be ``min_readings``. It is judged
    before it belongs to them; values that are zero or not finite never do. Where half of the last ten readings stand
    as high, that is the new level (a new learning rate, layers that were thawed) and no spike.

    The norm of all gradients together is judged so, and that of each layer. A spike of the whole is a notice; it is a
    warning where its step moved a layer by half of its weights, or where the loss has not come back after it. A spike
    of single layers that does not show in the whole is told only where its step has moved one of them so far.

    Attributes:
        window: OLMo-core's SkipStepOptimizer looks back on 128 steps.
        min_readings: Ours: by then the fast change of the first steps is over.
        deviations: OLMo-core takes 6 standard deviations.
        factor: Ours: healthy runs with one sample a batch jump by up to 15.

    Example:
        >>> SpikeRule().deviations
        6.0

    References:
        OLMo-core, SkipStepOptimizer and StabilityMonitor. Megatron-LM, SPIKY_LOSS_FACTOR = 10.
    """

    window: int = 128
    min_readings: int = 32
    deviations: float = 6.0
    factor: float = 20.0

    def __call__(self, observations: Observations) -> Iterator[Diagnosis]:
        """Yield the spike of the newest reading, or one of the last that turns out to have done harm."""
        norms = observations.gradients.global_norms
        newest = len(norms) - 1
        if newest < self.min_readings:
            return
        if self._spikes(norms, newest):
            yield self._diagnosis(observations, newest, self._jumped(observations, newest), _overwrites(observations))
            return
        alone = self._alone(observations)
        if alone.size:
            yield self._diagnosis(observations, newest, alone, _overwrites(observations))
            return
        for place in self._suspects(observations):
            if self._spikes(norms, place):
                layers = self._jumped(observations, place)
                yield self._diagnosis(observations, place, layers, "the loss has not come back since")
                return

    def _spikes(self, norms: FloatArray, place: int) -> bool:
        before = norms[max(0, place - self.window) : place]
        value = norms[place]
        # Most readings end here, for a few microseconds; NaN and zero among those before do not.
        if 0 < value <= self.factor * before.min():
            return False
        usable = before[np.isfinite(before) & (before > 0)]
        if len(usable) < self.min_readings or not (np.isfinite(value) and value > self.factor * usable.min()):
            return False
        logs = np.log10(usable)
        middle = float(np.median(logs))
        deviation = max(_NORMAL * float(np.median(np.abs(logs - middle))), _LEAST_DEVIATION)
        high = middle + max(self.deviations * deviation, float(np.log10(self.factor)))
        # Against the newest level as well: while a new level makes up the window, its middle lies between both.
        high = max(high, float(np.median(logs[-_RECENT:])) + float(np.log10(self.factor)))
        return bool(np.log10(value) > high)

    def _suspects(self, observations: Observations) -> IntArray:
        """Return the readings before which the loss was low, and since which it is not, the newest first."""
        losses, norms = observations.loss, observations.gradients.global_norms
        known = losses[np.isfinite(losses)]
        if len(known) < _AFTERMATH[1] + _RECENT:
            return _NONE
        # Most readings end here; the median of a few numbers, for which numpy's takes ten times as long.
        if known[-_AFTERMATH[0] :].min() <= _SET_BACK * statistics.median(known[:_RECENT].tolist()):
            return _NONE
        places = np.arange(len(norms) - 1 - _AFTERMATH[0], max(len(norms) - 2 - _AFTERMATH[1], self.min_readings), -1)
        # Seen from the end, as the losses may be more than the norms. One look at all places leaves few.
        last = len(losses) - len(norms) + places
        since = np.fmin.accumulate(losses[::-1])[::-1]
        # Not `>`: a loss that is not known excludes nothing.
        places = places[~(since[last + 1] <= losses[last - 1])]
        return np.array([p for p in places if _set_back(losses, len(norms) - 1 - p)], dtype=np.int64)

    def _jumped(self, observations: Observations, place: int) -> IntArray:
        """Return the layers that jumped with the whole, those that jumped most first."""
        jumps = self._jumps(observations, place)
        here = np.flatnonzero(np.isfinite(jumps))
        if not here.size:
            # None of them has a past.
            return np.flatnonzero(observations.gradients.present[place])
        here = here[np.argsort(-jumps[here], kind="stable")]
        high = here[jumps[here] > self.factor / 2]
        return high if high.size else here[:1]

    def _jumps(self, observations: Observations, place: int) -> FloatArray:
        """Return by how much each layer stands above its median, ``[num_layers]``; NaN where it is absent."""
        rows, present = observations.gradients.norms, observations.gradients.present[place]
        before = rows[max(0, place - self.window) : place]
        known = present & np.isfinite(before).any(axis=0)
        jumps = np.full(len(present), np.nan)
        if known.any():
            usual = np.nanmedian(before[:, known], axis=0)
            jumps[known] = rows[place, known] / np.maximum(usual, np.finfo(np.float64).tiny)
        return jumps

    def _alone(self, observations: Observations) -> IntArray:
        """Return the layers that spike although the whole does not, where the step has moved one of them far."""
        rows = observations.gradients.norms
        recent = rows[-1 - _RECENT : -1]
        # The least of the last ten readings lies below their median: one look at all layers leaves few. Nearly always
        # it leaves none, and only zeros and NaN ask for more than the plain minimum.
        if (rows[-1] <= self.factor * recent.min(axis=0)).all():
            return _NONE
        least = np.fmin.reduce(np.where(recent > 0, recent, np.nan), axis=0)
        high = np.flatnonzero(rows[-1] > self.factor * least)
        if not high.size:
            return high
        moved = _moved(observations)
        layers = [layer for layer in high if moved[layer] > _MARK and self._spikes(rows[:, layer], len(rows) - 1)]
        return np.array(layers, dtype=np.int64)

    def _diagnosis(self, observations: Observations, place: int, layers: IntArray, harm: str) -> Diagnosis:
        norms = observations.gradients.global_norms
        before = norms[max(0, place - self.window) : place]
        usual = float(np.median(before[np.isfinite(before) & (before > 0)]))
        step = int(observations.gradients.steps[place])
        jump = float(self._jumps(observations, place)[layers[0]])
        most = f"; most in {observations.layers[layers[0]].name}, {jump:.3g} times" if np.isfinite(jump) else ""
        return Diagnosis(
            rule="spike",
            symptom=Symptom.SPIKE,
            severity="warning" if harm else "notice",
            optimizer=observations.optimizer,
            layers=observations.names(layers),
            step=observations.step,
            message="the gradient suddenly jumped" + (f", and {harm}" if harm else ""),
            measured=f"at step {step} the norm of all gradients was {norms[place]:.3g}, {norms[place] / usual:.3g} "
            f"times its median of {usual:.3g}{most}",
            cause="an odd batch, a learning rate that is too high, or numbers that are close to overflow",
            evidence={"step": step, "norm": float(norms[place]), "median": usual, "harm": harm},
        )


def _moved(observations: Observations) -> FloatArray:
    """Return how far the newest step moves each layer that has something to lose, 0 elsewhere, ``[num_layers]``."""
    updates = relative_updates(observations)
    if updates is None:
        return np.zeros(len(observations.layers))
    updates = updates * shrunk_by_growth(observations)
    started = observations.gradients.weight_norms[-1] / np.sqrt(observations.sizes) > _NEAR_ZERO
    moved: FloatArray = np.where(np.isfinite(updates) & observations.matrices & started, updates, 0.0)
    return moved


def _overwrites(observations: Observations) -> str:
    moved = _moved(observations)
    worst = int(np.argmax(moved))
    if not moved[worst] > _MARK:
        return ""
    return f"its step moved {observations.layers[worst].name} by {moved[worst]:.1g} times its weights"


def _set_back(losses: FloatArray, back: int) -> bool:
    """Tell whether the loss has stayed, since a reading, far above where it was, near where training started."""
    own, since, before = float(losses[-back - 1]), losses[-back:], losses[: -back - 1]
    since, before = since[np.isfinite(since)], before[np.isfinite(before)]
    if len(since) < _AFTERMATH[0] or len(before) < _AFTERMATH[1]:
        return False
    # The loss stood there before the step, and comes down: the data have changed, and no weight is broken.
    if own >= since[0] > own / 2 and since[-1] < 0.9 * since[0]:
        return False
    start, usual = float(np.median(before[:_RECENT])), before[-_AFTERMATH[1] :]
    return bool(since.min() > usual.max() and since.min() > _SET_BACK * start and np.median(usual) < _SET_BACK * start)
