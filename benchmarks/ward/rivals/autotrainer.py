"""AUTOTRAINER's rules on the gradients."""

from __future__ import annotations

import math

import numpy as np

from benchmarks.ward.rivals.look import Flag, Look
from lightning_gradwatch import Symptom


class AutoTrainer:
    """AUTOTRAINER's rules, without or with its gate on the accuracy.

    Vanishing: norm of the first weight's gradient over that of the last below 1e-3 and the first below 1e-4.
    Exploding: the ratio above 70, or the loss not below 1e5 (1e3 in its paper). Dying ReLU: 70% of all numbers in the
    gradients are exactly zero. NaN, which it calls exploding, is called non-finite here. It names no layer. Its rules
    for oscillating, overfitted and improper data do not look at gradients and are left out.

    With the gate only NaN and the large loss are told at once. The others are remembered and told, the first that holds
    of dying, exploding and vanishing, from 30% of the training on while the best accuracy of a check is below 0.7; and
    if none of them holds and no check was better than the one before by 0.01, slow convergence, which is called
    vanishing here. Its code lets them through as well where slow convergence comes with a good accuracy; that reading
    gives it false alarms only, and is not followed. Where there is no accuracy, the loss of a check that is below 60%
    of the first one's stands for 0.7 of accuracy.

    Args:
        gate: Whether the gate counts.
        every_n_steps: How often it looks; its own is every third epoch.

    References:
        Zhang et al., AUTOTRAINER: An Automatic DNN Training Problem Detection and Repair System, ICSE 2021; code:
        AutoTrainer/utils/monitor.py.
    """

    low_ratio, low_norm, high_ratio, zero_share = 1e-3, 1e-4, 70.0, 0.7
    high_loss, satisfied, judgment_point, least_gain = 1e5, 0.7, 0.3, 0.01

    def __init__(self, *, gate: bool, every_n_steps: int = 30) -> None:
        self.name = "AUTOTRAINER" if gate else "AUTOTRAINER, raw rules"
        self.every_n_steps = every_n_steps
        self._gate = gate
        self._remembered: set[Symptom] = set()
        self._since: list[tuple[float, float]] = []
        self._checks: list[tuple[float, float]] = []

    def observe(self, look: Look) -> list[Flag]:
        """Say what it finds at a check; between checks only losses and accuracies are gathered."""
        self._since.append((look.loss, look.accuracy))
        if (look.number + 1) % self.every_n_steps:
            return []
        self._checks.append((float(np.mean([s[0] for s in self._since])), float(np.mean([s[1] for s in self._since]))))
        self._since = []
        if not look.finite.all() or not math.isfinite(look.loss):
            return [look.flag(Symptom.NON_FINITE)]
        found = self._found(look)
        if not self._gate:
            return [look.flag(symptom) for symptom in found]
        if look.loss >= self.high_loss:
            return [look.flag(Symptom.EXPLODING)]
        self._remembered |= set(found)
        return [look.flag(symptom) for symptom in self._let_through(look)]

    def _found(self, look: Look) -> list[Symptom]:
        first, last = float(look.norms[0]), float(look.norms[-1])
        # 0 / 0 is NaN in its code, which is neither large nor small.
        ratio = first / last if last > 0 else math.nan if first == 0 else math.inf
        zeros = sum(int((each == 0).sum()) for each in look.gradients)
        dying = zeros >= self.zero_share * sum(each.size for each in look.gradients)
        marks = (
            (Symptom.DEAD, dying),
            (Symptom.EXPLODING, ratio > self.high_ratio or look.loss >= self.high_loss),
            (Symptom.VANISHING, ratio < self.low_ratio and first < self.low_norm),
        )
        return [symptom for symptom, held in marks if held]

    def _let_through(self, look: Look) -> list[Symptom]:
        if look.progress < self.judgment_point or not self._failing():
            return []
        for symptom in (Symptom.DEAD, Symptom.EXPLODING, Symptom.VANISHING):
            if symptom in self._remembered:
                return [symptom]
        return [Symptom.VANISHING] if self._slow() else []

    def _failing(self) -> bool:
        losses, accuracies = zip(*self._checks, strict=True)
        if any(map(math.isfinite, accuracies)):
            return bool(np.nanmax(accuracies) < self.satisfied)
        return bool(min(losses) >= 0.6 * losses[0])

    def _slow(self) -> bool:
        accuracies = [accuracy for _, accuracy in self._checks if math.isfinite(accuracy)]
        return len(accuracies) > 1 and bool(max(np.diff(accuracies)) < self.least_gain)
