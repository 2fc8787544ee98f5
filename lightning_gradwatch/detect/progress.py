"""Whether training moves: how far a step moves each layer, and whether the loss has fallen.

The numbers named "ours" in this package were measured on 1,120 recorded runs of 203 small networks, sick and healthy,
each labeled by whether it learned, or on the cases of the ward (docs/ward.md) that are not held back.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lightning_gradwatch.detect.diagnosis import Observations
from lightning_gradwatch.measure.snapshot import FloatArray

# Optimizers whose step is the learning rate times the gradient (times momentum's gain).
PLAIN_OPTIMIZERS = frozenset({"SGD", "ASGD"})
# Optimizers that divide each number's step by the size of its own gradient, so that a small one moves as far.
RESCALING_OPTIMIZERS = frozenset(
    {"Adam", "AdamW", "NAdam", "RAdam", "Adamax", "SparseAdam", "Adagrad", "Adadelta", "RMSprop", "Adafactor"}
)
# The first readings hold the jump in which the output layer learns the mean of the targets; a loss that only fell
# there has not learned from its inputs (ours: sigmoid networks that never learn fall by up to 6% in them).
_SETTLING = 10
# Ours: after settling, sick runs fell by at most 4% in 100 readings and healthy ones by 10% or more.
_FALL = 0.05
# Ours: sick runs reached 3.4 standard errors, healthy ones at least 4.1 beside a fall of 17%.
_STANDARD_ERRORS = 6.0
# Ours: a learning rate that grew by more than this within a horizon is warming up.
_RISE = 1.02
# Root mean square of weights that began near zero: they move by many times themselves, and that is well. Ours.
_NEAR_ZERO = 1e-3
_TINY = float(np.finfo(np.float64).tiny)


def relative_updates(observations: Observations, back: int = 1) -> FloatArray | None:
    """Estimate how far a step moves each layer, as a share of its weights.

    ``updates = learning_rate * |g| / |w|`` for SGD (one step's own share, momentum not counted), and
    ``learning_rate * r / (r + eps) / rms(w)`` with ``r = rms(g)`` for Adam and its kin, after clipping.

    Args:
        observations: Readings of one optimizer.
        back: Which reading: 1 is the newest, 2 the one before.

    Returns:
        One value a layer, ``[num_layers]``, NaN where it is absent; None for an optimizer whose step is not known.
    """
    readings, optimizer = observations.gradients, observations.optimizer_description
    norms: FloatArray = readings.clipped_norms[-back]
    weights: FloatArray = np.maximum(readings.weight_norms[-back], _TINY)
    rates: FloatArray = readings.learning_rates[-back]
    if optimizer.kind in PLAIN_OPTIMIZERS:
        return rates * norms / weights
    if optimizer.kind in RESCALING_OPTIMIZERS:
        roots = np.sqrt(observations.sizes)
        rms = norms / roots
        return rates * rms / np.maximum(rms + optimizer.eps, _TINY) / (weights / roots)
    return None


def shrunk_by_growth(observations: Observations) -> FloatArray:
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


def fastest_at_first(observations: Observations) -> float | None:
    """Return what the first probed step moved the layer by that moved most, as a share of its weights.

    Of layers with a weight matrix that did not begin near zero.

    Args:
        observations: Readings of one optimizer.

    Returns:
        The share; None without a probe, or where the optimizer's first step is not kept any more.
    """
    if not observations.signals:
        return None
    first, weights = observations.signals[0], observations.gradients.weight_norms[0] / np.sqrt(observations.sizes)
    judged = observations.matrices & np.isfinite(first.update_ratio) & (weights > _NEAR_ZERO)
    return float(first.update_ratio[judged].max()) if judged.any() else None


def loss_has_fallen(losses: FloatArray, horizon: int, by: float | None = None) -> bool | None:
    """Tell whether the loss is clearly below where it stood after the first jump.

    Fallen is: by 5% of its size, or by six standard errors.

    Args:
        losses: The loss of each reading since the start of training, old ones perhaps thinned, ``[n]``.
        horizon: How many readings it takes to tell that it has not fallen.
        by: The share of its size by which it has to have fallen instead.

    Returns:
        True or False; None while that is open, or where the loss is not known. A loss so noisy that it may be falling
        is given twice the time.

    Example:
        >>> flat, falling = np.full(200, 2.3), np.linspace(2.3, 1.0, 200)
        >>> loss_has_fallen(flat, 100), loss_has_fallen(falling, 100), loss_has_fallen(flat[:50], 100)
        (False, True, None)
    """
    known = losses[np.isfinite(losses)]
    if len(known) < 3 * _SETTLING:
        return None
    early, late = known[_SETTLING : 2 * _SETTLING], known[-_SETTLING:]
    fall = float(np.median(early) - np.median(late))
    error = float(np.sqrt((early.var(ddof=1) + late.var(ddof=1)) / _SETTLING))
    if fall > (_FALL if by is None else by) * abs(float(np.median(early))):
        return True
    if by is None and fall > _STANDARD_ERRORS * max(error, _TINY):
        return True
    if len(known) < horizon:
        return None
    if by is not None or len(known) >= 2 * horizon:
        return False
    # Noise that could hide a fall, and a fall that has begun, decide nothing yet. What was decided before stays.
    stages = [*range(horizon, len(known), _SETTLING), len(known)]
    return None if all(_may_be_falling(known[_SETTLING:stage]) for stage in stages) else False


def _may_be_falling(losses: FloatArray) -> bool:
    """Tell whether a line through the losses falls by two standard errors, or could fall by 5% within them."""
    places = np.arange(len(losses)) - (len(losses) - 1) / 2
    slope = float(places @ losses / (places @ places))
    rest = losses - losses.mean() - slope * places
    error = float(rest.std(ddof=2) * np.sqrt(12 / len(losses)))
    fall = -slope * (len(losses) - 1)
    return fall > 2 * error or fall + 2 * error > _FALL * abs(float(np.median(losses[:_SETTLING])))


def outcome_of(observations: Observations, horizon: int, by: float | None = None) -> bool | None:
    """Tell whether training shows in the loss, as far as that can be asked.

    While the learning rate still rises (warm-up), a loss that has not fallen decides nothing.

    Args:
        observations: Readings of one optimizer.
        horizon: How many readings it takes to tell that the loss has not fallen.
        by: As in ``loss_has_fallen``.

    Returns:
        True or False; None while that is open.
    """
    fallen = loss_has_fallen(observations.loss, horizon, by)
    rates = observations.gradients.learning_rates[-horizon:]
    known = rates[:, ~np.isnan(rates).all(axis=0)]
    rises = known.size > 0 and float(np.nanmax(known[-1])) > _RISE * float(np.nanmax(known[0]))
    return None if fallen is False and rises else fallen


def loss_rests(observations: Observations, horizon: int, by: float) -> bool:
    """Tell whether the loss has fallen by less than a share of its size, and over the newest readings not at all.

    Args:
        observations: Readings of one optimizer.
        horizon: How many readings it takes to tell; nothing rests before twice as many.
        by: The share.

    Returns:
        Whether it rests.
    """
    known = observations.loss[np.isfinite(observations.loss)]
    if len(known) < 2 * horizon or loss_has_fallen(known, horizon, by):
        return False
    newest = replace(observations, loss=known[-horizon - _SETTLING :])
    return outcome_of(newest, horizon) is False


def steady_rate(observations: Observations) -> bool:
    """Tell whether the learning rate is what it was: neither warming up nor at the end of a schedule."""
    rates = observations.gradients.learning_rates
    known = rates[:, ~np.isnan(rates).all(axis=0)]
    return known.size == 0 or float(np.nanmax(known[-1])) == float(np.nanmax(known[0]))
