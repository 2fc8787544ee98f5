"""What a treatment was worth: the score after it, beside the sick run, the healthy twin and chance."""

from __future__ import annotations

from typing import Literal

import torch

from benchmarks.ward.case import Case, Lesson

Grade = Literal["cured", "helped", "not helped", "no advice", "needs an edit", "kept", "worse", ""]

# The share of the twin's gain over chance from which on a run is cured, and half of it: our issue's own numbers; 95% of
# the healthy score is what AUTOTRAINER's repairs are held against as well.
_CURED, _HELPED = 0.95, 0.5
# What the mean picture explains of the digits: an autoencoder that looks at nothing (measured: 0.474).
MEAN_PICTURE = 0.474


def chance(case: Case, lesson: Lesson) -> float:
    """Return the score of what looks at nothing: ``1 / num_classes`` of an accuracy, 0 of an R2.

    An autoencoder's score is an R2 over all pixels, and the mean picture explains half of them.

    Args:
        case: The case.
        lesson: Any of its lessons; the classes are counted in its batches.
    """
    if case.name.startswith("generative/autoencoder"):
        return MEAN_PICTURE
    targets = torch.cat([batch[1] for batch in lesson.batches])
    return 0.0 if targets.is_floating_point() else 1 / len(set(targets.tolist()))


def grade(score: float, after: float, twin: float, by_chance: float) -> Grade:
    """Say what a treatment did to a sick run.

    ``gain = twin - chance``. Cured: ``after - chance >= 0.95 gain``. Helped, where it is not cured:
    ``after - max(score, chance) >= 0.5 gain``; a sick run that ended in NaN has a score of 0, and is given chance's.

    Args:
        score: Of the sick run.
        after: Of the treated one.
        twin: Of the healthy twin.
        by_chance: What chance gives.
    """
    gain = twin - by_chance
    # Scores are shares of 300 samples in float32.
    if after - by_chance >= _CURED * gain - 1e-6:
        return "cured"
    return "helped" if after - max(score, by_chance) >= _HELPED * gain - 1e-6 else "not helped"
