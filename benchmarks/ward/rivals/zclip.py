"""ZClip's test for spikes of the global norm."""

from __future__ import annotations

import math
from statistics import fmean, pvariance

from benchmarks.ward.rivals.look import Flag, Look
from lightning_gradwatch import Symptom


class ZScore:
    """The global norm lies more than 2.5 standard deviations above its moving mean.

    Mean and variance come from 25 steps of warm-up, then from moving averages with 0.97; a norm that is too large
    enters them as what ZClip would clip it to. A norm that is not finite would make both NaN for ever: here it counts
    as found and enters nothing, and in the warm-up it is passed over.

    References:
        Kumar et al., ZClip: Adaptive Spike Mitigation for LLM Pre-Training, 2025; code: its defaults.
    """

    name = "ZClip's z-score"
    warmup_steps = 25
    decay = 0.97
    threshold = 2.5
    eps = 1e-6

    def __init__(self) -> None:
        self._warm: list[float] = []
        self._mean = self._variance = 0.0

    def observe(self, look: Look) -> list[Flag]:
        """Say whether the norm of this step is an outlier, or no number."""
        norm = look.global_norm
        warming = len(self._warm) < self.warmup_steps
        if not math.isfinite(norm):
            return [] if warming else [look.flag(Symptom.NON_FINITE)]
        if warming:
            self._warm.append(norm)
            self._mean, self._variance = fmean(self._warm), pvariance(self._warm)
            return []
        deviation = self._variance**0.5
        score = (norm - self._mean) / (deviation + self.eps)
        spike = score > self.threshold
        if spike:
            norm = self._mean + self.threshold * deviation / (score / self.threshold)
        self._mean = self.decay * self._mean + (1 - self.decay) * norm
        self._variance = self.decay * self._variance + (1 - self.decay) * (norm - self._mean) ** 2
        return [look.flag(Symptom.SPIKE)] if spike else []
