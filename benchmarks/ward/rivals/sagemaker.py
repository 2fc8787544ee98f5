"""The built-in rules of Amazon SageMaker Debugger that concern gradients, weights and activations."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from benchmarks.ward.rivals.look import BoolArray, Flag, FloatArray, Look
from lightning_gradwatch import Symptom


class SageMaker:
    """Amazon SageMaker Debugger's rules with their defaults; it has flagged a run when one of them has.

    VanishingGradient: the mean absolute gradient is below 1e-7. AllZero: all of a gradient is zero. ExplodingTensor: a
    NaN or an infinite number. DeadRelu: more than half of a layer's units are active for less than 1% of the samples.
    SaturatedActivation: the same with inputs of a tanh beyond 9.4999, of a sigmoid outside -23 and 16.99999.
    WeightUpdateRatio: ``|dW| / |W|`` above 10 or below 1e-8. UnchangedTensor: ``numpy.allclose`` with rtol 1e-5 and
    atol 1e-8 over 3 looks, here for weights. PoorWeightInitialization: in the first 10 steps the variances of two
    layers' weights differ by more than 10 times, or 90% of a gradient lie within 1e-3, and the loss has not fallen for
    5 steps. LossNotDecreasing and Overfit are no rules about gradients. Symptoms: saturated and unchanged are called
    vanishing, unequal variances exploding.

    Args:
        every_n_steps: How often it looks.

    References:
        Amazon SageMaker Developer Guide, List of Debugger Built-in Rules.
    """

    name = "SageMaker Debugger"
    vanishing = 1e-7
    inactive = 0.99
    share_of_layer = 0.5
    ratios = (1e-8, 10.0)
    rtol, atol, num_unchanged = 1e-5, 1e-8, 3
    variance_ratio, distribution_range, patience, first_steps = 10.0, 1e-3, 5, 10

    # Its default save_interval is 500, which in most of these runs would mean the first step alone.
    def __init__(self, every_n_steps: int = 1) -> None:
        self.every_n_steps = every_n_steps
        self._losses: list[float] = []
        self._kept: deque[list[FloatArray]] = deque(maxlen=self.num_unchanged)

    def observe(self, look: Look) -> list[Flag]:
        """Say what the rules find in a step that is saved."""
        if look.number % self.every_n_steps:
            return []
        self._losses.append(look.loss)
        marks = [
            (Symptom.NON_FINITE, ~look.finite),
            (Symptom.VANISHING, look.sizes < self.vanishing),
            (Symptom.DEAD, look.sizes == 0),
            *self._initialization(look),
            *self._changes(look),
        ]
        flags = [look.flag(symptom, which) for symptom, which in marks if which.any()]
        if not math.isfinite(look.loss):
            flags.append(look.flag(Symptom.NON_FINITE))
        return flags + self._units(look)

    def _units(self, look: Look) -> list[Flag]:
        def names(kind: str) -> tuple[str, ...]:
            shares = [(units.layer, getattr(units, kind)) for units in look.units.values()]
            return tuple(
                layer for layer, share in shares if share.size and (share > self.inactive).mean() > self.share_of_layer
            )[:3]

        dead, saturated = names("off"), names("beyond_bounds")
        flags = [Flag(look.step, Symptom.DEAD, dead)] if dead else []
        return flags + ([Flag(look.step, Symptom.VANISHING, saturated)] if saturated else [])

    def _changes(self, look: Look) -> list[tuple[Symptom, BoolArray]]:
        """Return what WeightUpdateRatio and UnchangedTensor say of the steps since the last looks."""
        before, now = list(self._kept), look.weights
        self._kept.append(now)
        if not before or [each.size for each in before[-1]] != [each.size for each in now]:
            self._kept = deque([now], maxlen=self.num_unchanged)
            return []
        pairs = list(zip(now, before[-1], strict=True))
        ratios = np.array([np.linalg.norm(new - old) / (np.linalg.norm(old) + 1e-9) for new, old in pairs])
        low, high = self.ratios
        marks = [(Symptom.VANISHING, ratios < low), (Symptom.EXPLODING, np.isfinite(ratios) & (ratios > high))]
        if len(self._kept) == self.num_unchanged:
            same = [all(self._close(new, old[place]) for old in before[-2:]) for place, new in enumerate(now)]
            marks.append((Symptom.VANISHING, np.array(same)))
        return marks

    def _close(self, new: FloatArray, old: FloatArray) -> bool:
        # numpy.allclose, without its care for infinite numbers: for small arrays that takes ten times as long.
        return bool((np.abs(new - old) <= self.atol + self.rtol * np.abs(old)).all())

    def _initialization(self, look: Look) -> list[tuple[Symptom, BoolArray]]:
        """Return what PoorWeightInitialization says."""
        losses = self._losses
        if look.number >= self.first_steps or len(losses) <= self.patience:
            return []
        if min(losses[-self.patience :]) < losses[-self.patience - 1]:
            return []
        ranges = np.array([np.subtract(*np.percentile(each, [95, 5])) for each in look.gradients])
        variances = np.array([each.var() for each in look.weights])
        uneven = variances > self.variance_ratio * variances.min()
        return [(Symptom.VANISHING, ranges < self.distribution_range), (Symptom.EXPLODING, uneven)]
