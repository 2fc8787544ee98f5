"""Fixed thresholds on gradient norms, as tutorials and small monitors have them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.ward.rivals.look import Flag, Look
from lightning_gradwatch import Symptom


@dataclass(frozen=True)
class LayerThresholds:
    """Fixed thresholds on the norm of each layer.

    Attributes:
        vanishing: A smaller norm has vanished. The number of SageMaker, gradglass and torchdiag; others have 1e-8
            (gradscope) and 1e-12 (traintools).
        exploding: A larger one explodes. gradscope and traintools; others have 100 (gradglass, torchdiag).
        name: What it is called in the table.
    """

    vanishing: float = 1e-7
    exploding: float = 1e3
    name: str = "thresholds on each layer's norm"

    def observe(self, look: Look) -> list[Flag]:
        """Say which norms are too small, too large or no number; one that is exactly zero is called dead as well."""
        marks = (
            (Symptom.NON_FINITE, ~look.finite),
            (Symptom.DEAD, look.norms == 0),
            (Symptom.VANISHING, look.norms < self.vanishing),
            (Symptom.EXPLODING, look.finite & (look.norms > self.exploding)),
        )
        return [look.flag(symptom, which) for symptom, which in marks if which.any()]


@dataclass(frozen=True)
class GlobalThresholds:
    """Fixed thresholds on the norm of all gradients.

    Attributes:
        vanishing: A smaller norm has vanished; the number of trainpulse. 0 for none.
        exploding: A larger one explodes; with 1e3 as for layers, kinder than trainpulse's 100.
        name: What it is called in the table.
    """

    vanishing: float = 1e-7
    exploding: float = 1e3
    name: str = "thresholds on the global norm"

    def observe(self, look: Look) -> list[Flag]:
        """Say whether the norm is too small, too large or no number; it cannot tell where."""
        norm = look.global_norm
        marks = (
            (Symptom.NON_FINITE, not np.isfinite(norm)),
            (Symptom.DEAD, norm == 0 and self.vanishing > 0),
            (Symptom.VANISHING, norm < self.vanishing),
            (Symptom.EXPLODING, np.isfinite(norm) and norm > self.exploding),
        )
        return [look.flag(symptom) for symptom, held in marks if held]


def lightning_proposal() -> GlobalThresholds:
    """Return the rule proposed for Lightning, ``GradientStatsMonitor``: the global norm above 1e4.

    Its comparison lets NaN pass; here NaN counts as found. It has no rule for small norms.

    References:
        Lightning-AI/pytorch-lightning, pull requests 21596 and 21720, open in 2026.
    """
    return GlobalThresholds(vanishing=0.0, exploding=1e4, name="global norm (proposed for Lightning)")
