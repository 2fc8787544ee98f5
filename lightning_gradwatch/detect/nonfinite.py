"""Which layers have a gradient that is NaN or infinite, and where that began."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lightning_gradwatch.detect.diagnosis import Diagnosis, Observations, Symptom
from lightning_gradwatch.detect.progress import RESCALING_OPTIMIZERS, fastest_at_first, relative_updates
from lightning_gradwatch.measure.snapshot import FloatArray, IntArray

# A step that moves a layer by more than its own weights leaves nothing of them (ours: healthy runs stay below 1.5,
# and seldom above 0.5).
_OVERWRITES = 2.0
# How many readings back the explosion may lie: the step, the loss that it broke, and one in between.
_LOOK_BACK = 4
# Weights that have grown by more than this were blown up by training. Ours.
_GROWN = 10.0
# Root mean square of weights below which a layer started near zero and has nothing to lose; see UpdateRule.
_NEAR_ZERO = 1e-3


@dataclass(frozen=True)
class NonFiniteRule:
    """Name the layers whose newest gradient is not finite.

    Backward runs from the loss to the input, so the sick layer nearest the output is where it began. Where the loss
    itself is not finite, the forward pass had broken before; a signal probe of the same step tells in which layer.

    Example:
        >>> NonFiniteRule()
        NonFiniteRule()
    """

    def __call__(self, observations: Observations) -> Iterator[Diagnosis]:
        """Yield one diagnosis, the layer nearest the output first."""
        readings = observations.gradients
        # After clipping: what someone has repaired before the optimizer used it does no harm.
        norms = readings.clipped_norms[-1]
        sick = readings.present[-1] & ~np.isfinite(norms)
        if not sick.any():
            return
        backward = observations.order[::-1]
        indices = backward[sick[backward]]
        loss = float(readings.losses[-1])
        values = norms[indices]
        exploded = _overwritten(observations)
        began, broken = _origin(observations, loss)
        if broken is not None:
            indices = np.concatenate([[broken], indices[indices != broken]]) if sick[broken] else indices
        yield Diagnosis(
            rule="non_finite",
            symptom=Symptom.NON_FINITE,
            optimizer=observations.optimizer,
            layers=observations.names(indices),
            step=observations.step,
            message="gradients are NaN" if np.isnan(values).any() else "gradients are infinite",
            measured=_counts(values, int(readings.present[-1].sum())) + f"; loss {_loss_in_words(observations)}",
            cause=exploded or _cause(observations, began, indices, broken),
            evidence={
                "loss": loss,
                "began_in": began,
                "num_nan": int(np.isnan(values).sum()),
                "num_inf": int(np.isinf(values).sum()),
                "exploded_before": bool(exploded),
                "in_the_loss": not exploded and _in_the_loss(observations, began, indices),
                "num_clean": int(np.isfinite(readings.global_norms[:-1]).sum()),
                "first_ratio": fastest_at_first(observations),
                "learning_rate": float(np.nanmax(readings.learning_rates[-1], initial=0.0)),
                "rescaled": observations.optimizer_description.kind in RESCALING_OPTIMIZERS,
            },
        )


def _counts(values: FloatArray, num_present: int) -> str:
    counts = {"NaN": np.isnan(values).sum(), "infinite": np.isinf(values).sum(), "finite": num_present - len(values)}
    return f"of {num_present} layer{'s' if num_present > 1 else ''} " + ", ".join(
        f"{int(count)} {word}" for word, count in counts.items() if count
    )


def _overwritten(observations: Observations) -> str:
    """Say which step shortly before had overwritten weights, empty where none had."""
    for back in range(2, min(_LOOK_BACK, len(observations.gradients)) + 1):
        updates = relative_updates(observations, back)
        if updates is None:
            return ""
        started = observations.gradients.weight_norms[-back] / np.sqrt(observations.sizes) > _NEAR_ZERO
        updates = np.where(np.isfinite(updates) & started, updates, 0.0)
        worst = int(np.argmax(updates))
        if updates[worst] > _OVERWRITES:
            name, step = observations.layers[worst].name, int(observations.gradients.steps[-back])
            return f"step {step} had moved {name} by {updates[worst]:.2g} times its weights: an explosion came before"
    return ""


def _origin(observations: Observations, loss: float) -> tuple[str, int | None]:
    """Tell what was the first thing that was not finite, and the layer whose output it was where a probe saw that."""
    probe = observations.probe
    if probe is not None:
        broken = probe.order[~np.isfinite(probe.signal[probe.order])]
        if broken.size:
            return "activation", int(broken[0])
    if math.isfinite(loss):
        return "gradient", None
    # Where the loss is not known, gradients that are all sick tell no more than that.
    sick = ~np.isfinite(observations.gradients.clipped_norms[-1][observations.gradients.present[-1]])
    return ("loss", None) if not math.isnan(loss) or bool(sick.all()) else ("gradient", None)


def _loss_in_words(observations: Observations) -> str:
    """Say what the loss is: NaN may be its value, or that nobody knows it, and then nobody ever knew it."""
    losses = observations.gradients.losses
    if not np.isnan(losses[-1]):
        return f"{losses[-1]:.4g}"
    return "NaN or not known" if np.isnan(losses).all() else "NaN"


def _in_the_loss(observations: Observations, began: str, indices: IntArray) -> bool:
    """Tell whether it was the loss function that gave NaN, or its slope, and neither the weights nor a layer."""
    if began == "loss":
        return math.isnan(observations.gradients.losses[-1]) and _weights_kept(observations)
    present = observations.order[observations.gradients.present[-1][observations.order]]
    # A gradient that is broken before it reaches the last layer breaks those before that one too. Infinity alone may
    # be numbers that are too large for their type.
    broken = bool(np.isnan(observations.gradients.clipped_norms[-1][indices[0]]))
    return began == "gradient" and broken and indices[0] == present[-1] and len(indices) >= min(2, len(present))


def _weights_kept(observations: Observations) -> bool:
    """Tell whether the weights are still of the size that they had at the first reading that is kept."""
    weights = observations.gradients.weight_norms
    first, newest = weights[0], weights[-1]
    known = ~np.isnan(first)
    return bool(known.any()) and bool(
        (newest[known] <= _GROWN * np.maximum(first[known], _least(observations)[known])).all()
    )


def _least(observations: Observations) -> FloatArray:
    least: FloatArray = _NEAR_ZERO * np.sqrt(observations.sizes)
    return least


def _cause(observations: Observations, began: str, indices: IntArray, broken: int | None) -> str:
    loss, culprit = float(observations.gradients.losses[-1]), observations.layers[indices[0]].name
    if broken is not None:
        name = observations.layers[broken].name
        return f"it began in the forward pass: the output of {name} was the first that was not finite"
    if began == "loss" and not math.isnan(loss):
        return "the loss itself is infinite: the forward pass overflowed"
    inside = _in_the_loss(observations, began, indices)
    if began == "loss" and inside:
        known = "is NaN" if _loss_in_words(observations) == "NaN" else "is NaN, or not known"
        return f"the loss {known}: log(0), the root of a negative number or 0 / 0 in it, or NaN in the batch"
    if began == "loss":
        return "the loss is NaN, or not known: look at the batch, and at weights that an earlier step blew up"
    if inside:
        return "it began in the loss: the slope of log, sqrt, norm or a division at 0"
    return f"it began in the backward pass at {culprit}, the sick layer nearest the loss"
