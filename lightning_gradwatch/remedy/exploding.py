"""Ways out where gradients are too large: for good, for a step, or beyond what a number can hold."""

from __future__ import annotations

import math

from lightning_gradwatch.detect.diagnosis import Symptom
from lightning_gradwatch.remedy.case import Case
from lightning_gradwatch.remedy.clipping import ClipByGlobalNorm
from lightning_gradwatch.remedy.explanation import grown_by, memory_of
from lightning_gradwatch.remedy.recurrent import orthogonal
from lightning_gradwatch.remedy.reinitialize import reinitialize
from lightning_gradwatch.remedy.remedy import Remedy
from lightning_gradwatch.remedy.vanishing import usual_update

# The usual bound for language models (torchtitan, OLMo); the log tells what norms a run has.
_USUAL_MAX_NORM = 1.0
# Pascanu et al., 2013: a bound of half to ten times the average norm works.
_TIMES_USUAL_NORM = 2.0
# A step of more than this share of its weights is no adjustment. Ours: healthy runs moved no layer by more than 0.4.
_LARGE_UPDATE = 0.5
SKIP = 'GradWatch(on_nonfinite="skip")'


def against_exploding(case: Case) -> list[Remedy]:
    """Return the ways out of an exploding gradient, best first."""
    if grown_by(case):
        return [_tame_training(case), _clip(case, _USUAL_MAX_NORM)]
    remedies = [*reinitialize(case, too_small=False), _clip(case, _USUAL_MAX_NORM)]
    memory = memory_of(case) if case.diagnosis.rule == "exploding.time" else None
    if memory is not None and memory.radius is not None and memory.radius > 1:
        remedies.append(orthogonal(case, memory))
    ratio, rate = case.diagnosis.evidence.get("update_ratio"), case.diagnosis.evidence.get("learning_rate")
    if not (ratio and rate):
        return remedies
    usual, source = usual_update(case)
    lower = float(f"{rate * usual / ratio:.1g}")
    slower = Remedy(
        title=f"learning rate {lower:g} instead of {rate:g}",
        reason=f"a step would then move the weights by about {usual:g} of their size ({source})",
        diagnosis=case.diagnosis,
        optimizer_changes={"lr": lower},
    )
    if case.diagnosis.evidence.get("rescaled"):
        # Adam and its kin divide by the size of the gradient: clipping changes nothing.
        return [slower, *(remedy for remedy in remedies if not remedy.clipper)]
    return [slower, *remedies] if _too_fast(case, rate) else [*remedies, slower]


def _tame_training(case: Case) -> Remedy:
    """Advise on steps: the weights were of another size when training began, so another start changes nothing."""
    return Remedy(
        title="a lower learning rate, optimizer.zero_grad() before each backward pass where you call it yourself, or "
        "clipping; then start again",
        reason="the weights were small at first, and the steps made them large",
        diagnosis=case.diagnosis,
        needs_restart=True,
    )


def _too_fast(case: Case, rate: float) -> bool:
    """Tell whether a step would overwrite the worst layer even with a clipped gradient, all of it in that layer."""
    worst = case.sick[0] if case.sick else None
    before = case.weights_before.get(worst.name, math.nan) if worst else math.nan
    norm = before * math.sqrt(worst.num_parameters) if worst else math.nan
    return rate * _USUAL_MAX_NORM > _LARGE_UPDATE * norm


def against_spike(case: Case) -> list[Remedy]:
    """Return the ways out of a gradient that jumps, best first."""
    evidence = case.diagnosis.evidence
    usual, step = evidence.get("median"), evidence.get("step", case.diagnosis.step)
    bound = float(f"{_TIMES_USUAL_NORM * usual:.1g}") if usual else _USUAL_MAX_NORM
    look = Remedy(
        title=f"look at the batch of step {step}: an outlier, a wrong label, an empty or very long sample",
        reason="a step is as large as the oddest of its samples makes it",
        diagnosis=case.diagnosis,
    )
    slower = Remedy(
        title="a lower learning rate, or a longer warm-up",
        reason="spikes come where training is at the edge of stability (Cohen et al., 2021)",
        diagnosis=case.diagnosis,
    )
    return [_clip(case, bound), look, slower]


def against_non_finite(case: Case) -> list[Remedy]:
    """Return the ways out of NaN and infinite gradients, best first."""
    skip = Remedy(
        title=f"{SKIP} drops such steps while you look for the batch",
        reason="one NaN in a step makes weights NaN for ever",
        diagnosis=case.diagnosis,
        code=SKIP,
    )
    find = Remedy(
        title="Trainer(detect_anomaly=True) names the operation (slow; for one short run)",
        reason="autograd's anomaly mode checks every operation of the backward pass",
        diagnosis=case.diagnosis,
        code="Trainer(detect_anomaly=True)",
        trainer_kwargs={"detect_anomaly": True},
    )
    if case.diagnosis.evidence.get("exploded_before"):
        return [*against_exploding(case), skip]
    if case.diagnosis.evidence.get("in_the_loss"):
        # A loss that is NaN may have overflowed on its way forward.
        smaller = reinitialize(case, too_small=False) if case.diagnosis.evidence.get("began_in") == "loss" else []
        return [*smaller, _keep_off_zero(case), find, skip]
    if grown_by(case):
        return [_tame_training(case), skip, find]
    return [*reinitialize(case, too_small=False), skip, find]


def _keep_off_zero(case: Case) -> Remedy:
    look = "look for NaN in the batch; if there is none, " if case.diagnosis.evidence.get("began_in") == "loss" else ""
    return Remedy(
        title=f"{look}add an eps inside what the loss takes the log, the root, the norm of or divides by: "
        "log(x + 1e-8), sqrt(x + 1e-8), x / (y + 1e-8)",
        reason="at 0 their value or their slope is infinite, and infinity times 0 is NaN; an eps outside does not help",
        diagnosis=case.diagnosis,
    )


def _clip(case: Case, max_norm: float) -> Remedy:
    usual = " at twice its usual size" if case.diagnosis.symptom is Symptom.SPIKE else ""
    return Remedy(
        title=f"clip by global norm {max_norm:g}: GradWatch(clipper=ClipByGlobalNorm({max_norm:g}))",
        reason=f"bounds the step{usual} and keeps its direction (Pascanu et al., 2013)",
        diagnosis=case.diagnosis,
        code=f"GradWatch(clipper=ClipByGlobalNorm(max_norm={max_norm:g}))",
        clipper=ClipByGlobalNorm(max_norm),
    )
