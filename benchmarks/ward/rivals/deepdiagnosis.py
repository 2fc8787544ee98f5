"""DeepDiagnosis's symptoms that concern gradients, weights, activations and the loss."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from benchmarks.ward.rivals.look import BoolArray, Flag, Look
from lightning_gradwatch import Symptom


class DeepDiagnosis:
    """DeepDiagnosis's symptoms, six of its eight; the other two compare outputs with labels and accuracies.

    Numerical error: the mean of a weight or of its gradient is NaN, infinite or exactly 0. Vanishing gradient: its mean
    absolute value is below 1e-7. Dead node: at least 70% of the outputs of a ReLU are not above 0, at the end of the
    training. Saturated activation: more than half of the inputs of a sigmoid or tanh are at least 5. Unchanged tensor:
    the mean of a weight or of its gradient is the same in 5 looks. Loss not decreasing: the same in 5 looks. Symptoms:
    a mean of exactly 0 is called dead; saturated, unchanged and not decreasing are called vanishing.

    Args:
        every_n_steps: How often it looks; its own is once an epoch.

    References:
        Wardat et al., DeepDiagnosis: Automatically Diagnosing Faults and Recommending Actionable Fixes in Deep
        Learning Programs, ICSE 2022; code: callback/callbacks.py.
    """

    name = "DeepDiagnosis"
    vanishing, dead_share, saturated_share, num_looks = 1e-7, 0.7, 0.5, 5

    def __init__(self, every_n_steps: int = 25) -> None:
        self.every_n_steps = every_n_steps
        self._means: deque[np.ndarray] = deque(maxlen=self.num_looks)
        self._losses: deque[float] = deque(maxlen=self.num_looks)

    def observe(self, look: Look) -> list[Flag]:
        """Say what it finds at a look."""
        last = look.progress >= 1
        if (look.number + 1) % self.every_n_steps and not last:
            return []
        of_gradients = np.array([each.mean() for each in look.gradients])
        of_weights = np.array([each.mean() for each in look.weights])
        marks: list[tuple[Symptom, BoolArray]] = [
            (Symptom.NON_FINITE, ~np.isfinite(of_gradients) | ~np.isfinite(of_weights)),
            (Symptom.DEAD, of_gradients == 0),
            (Symptom.VANISHING, look.sizes < self.vanishing),
            (Symptom.VANISHING, self._unchanged(np.stack([of_gradients, of_weights]).astype(np.float32))),
        ]
        flags = [look.flag(symptom, which) for symptom, which in marks if which.any()]
        return flags + self._of_loss(look) + self._of_units(look, last=last)

    def _unchanged(self, means: np.ndarray) -> BoolArray:
        if self._means and self._means[-1].shape != means.shape:
            self._means.clear()
        self._means.append(means)
        same: BoolArray = np.all([each == means for each in self._means], axis=0).any(axis=0)
        return same & (len(self._means) == self.num_looks)

    def _of_loss(self, look: Look) -> list[Flag]:
        self._losses.append(look.loss)
        if not math.isfinite(look.loss):
            return [look.flag(Symptom.NON_FINITE)]
        stuck = len(self._losses) == self.num_looks and len(set(self._losses)) == 1
        return [look.flag(Symptom.VANISHING)] if stuck else []

    def _of_units(self, look: Look, *, last: bool) -> list[Flag]:
        units = look.units.values()
        dead = [each.layer for each in units if each.off.size and each.off.mean() >= self.dead_share]
        saturated = [each.layer for each in units if each.beyond_5.size and each.beyond_5.mean() > self.saturated_share]
        flags = [Flag(look.step, Symptom.DEAD, tuple(dead[:3]))] if dead and last else []
        return flags + ([Flag(look.step, Symptom.VANISHING, tuple(saturated[:3]))] if saturated else [])
