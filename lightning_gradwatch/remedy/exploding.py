"""Ways out where gradients are too large: for good, for a step, or beyond what a number can hold."""

from __future__ import annotations

import math

from lightning_gradwatch.detect.diagnosis import Symptom
from lightning_gradwatch.measure.layers import find_layers
from lightning_gradwatch.remedy.activation import FROM_EXP, with_activation
from lightning_gradwatch.remedy.case import Case
from lightning_gradwatch.remedy.clipping import ClipByGlobalNorm
from lightning_gradwatch.remedy.explanation import grown_by
from lightning_gradwatch.remedy.memory import measure_memory
from lightning_gradwatch.remedy.narrow import may_die
from lightning_gradwatch.remedy.normalization import convolutional, together, with_normalization
from lightning_gradwatch.remedy.recurrent import orthogonal
from lightning_gradwatch.remedy.reinitialize import reinitialize
from lightning_gradwatch.remedy.remedy import Remedy
from lightning_gradwatch.remedy.transformer import for_transformers
from lightning_gradwatch.remedy.vanishing import REASON_FOR_RATE, rate_in_code, usual_rate

# The usual bound for language models (torchtitan, OLMo); the log tells what norms a run has.
_USUAL_MAX_NORM = 1.0
# Pascanu et al., 2013: a bound of half to ten times the average norm works.
_TIMES_USUAL_NORM = 2.0
# Ours: mean and variance, or a rate and a scale, are two.
_MANY_EXPONENTIALS = 3
# Ours: a step of a million times the weights comes of an exponential or of inputs nobody has scaled.
_LEAST_SHARE = 1e-8
# So many steps had gone well before a poisoned one: it is the batch, not the model. Ours.
_WENT_WELL = 10
SKIP = 'GradWatch(on_nonfinite="skip")'


def against_exploding(case: Case) -> list[Remedy]:
    """Return the ways out of an exploding gradient, best first.

    What was too large when training began is made anew. Otherwise the steps are: a jump in a run that went well is
    clipped, and a learning rate that was too high from the start is lowered.
    """
    fresh = reinitialize(case, too_small=False)
    if fresh and convolutional(case):
        fresh = [*together(fresh, with_normalization(case, case.hidden)), *fresh]
    born = [*_steady_state(case), *_without_exp(case), *fresh]
    clip, slower = _clip(case, _bound(case)), _slower(case)
    rescaled = case.diagnosis.evidence.get("rescaled")
    # Adam and its kin divide by the size of the gradient: clipping changes nothing.
    tamed = slower if rescaled else [clip, *slower] if case.diagnosis.evidence.get("usual_norm") else [*slower, clip]
    if born:
        return [*born, *([*slower] if rescaled else [clip, *slower])]
    if slower:
        return tamed
    if grown_by(case):
        return [_tame_training(case), clip]
    return [*for_transformers(case), *with_normalization(case, case.hidden), *tamed]


def _steady_state(case: Case) -> list[Remedy]:
    """Advise orthogonal weights from state to state, where a layer without gates stretches its state or did so."""
    by_time = case.diagnosis.rule == "exploding.time"
    elsewhere = find_layers(case.model) if case.model is not None and not by_time else ()
    measured = (measure_memory(layer) for layer in (*case.sick, *elsewhere) if layer.module is not None)
    # Any square weight could be a cell; only a profile along time tells that it is one.
    kinds = ("RNN", "cell") if by_time else ("RNN",)
    memory = next((each for each in measured if each is not None and each.kind in kinds), None)
    if memory is None:
        return []
    stretches = memory.radius is not None and memory.radius > 1
    return [orthogonal(case, memory)] if by_time or stretches else []


def _bound(case: Case) -> float:
    """Return twice the usual norm where training had one before."""
    usual = case.diagnosis.evidence.get("usual_norm")
    return float(f"{_TIMES_USUAL_NORM * usual:.1g}") if usual else _USUAL_MAX_NORM


def _slower(case: Case) -> list[Remedy]:
    evidence = case.diagnosis.evidence
    # How far the first step went: of weights that training has blown up nothing else can be said.
    ratio = evidence.get("first_ratio") or (None if grown_by(case) else evidence.get("update_ratio"))
    rate = evidence.get("learning_rate")
    if not (ratio and rate) or not math.isfinite(ratio) or not math.isfinite(rate):
        return []
    lower = usual_rate(rate, ratio)
    if not rate * _LEAST_SHARE <= lower < rate:
        # So large a step is no matter of the learning rate.
        return []
    return [
        Remedy(
            title=f"learning rate {lower:g} instead of {rate:g}",
            reason=REASON_FOR_RATE,
            diagnosis=case.diagnosis,
            needs_restart=True,
            code=rate_in_code(lower),
            optimizer_changes={"lr": lower},
        )
    ]


def _tame_training(case: Case) -> Remedy:
    """Advise on steps: the weights were of another size when training began, so another start changes nothing."""
    return Remedy(
        title="a lower learning rate, optimizer.zero_grad() before each backward pass where you call it yourself, or "
        "clipping; then start again",
        reason="the weights were small at first, and the steps made them large",
        diagnosis=case.diagnosis,
        needs_restart=True,
    )


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
    went_well = case.diagnosis.evidence.get("num_clean", 0) >= _WENT_WELL
    if case.diagnosis.evidence.get("exploded_before"):
        return [*against_exploding(case), skip]
    if case.diagnosis.evidence.get("in_the_loss"):
        if went_well:
            return [skip, _keep_off_zero(case), find]
        # A loss that is NaN may have overflowed on its way forward.
        smaller = reinitialize(case, too_small=False) if case.diagnosis.evidence.get("began_in") == "loss" else []
        return [*smaller, _keep_off_zero(case), find, skip]
    if grown_by(case):
        return [*(_slower(case) or [_tame_training(case)]), skip, find]
    born = [*_without_exp(case), *reinitialize(case, too_small=False)]
    return [*born, skip, find] if born or went_well else [*_slower(case), skip, find]


def _without_exp(case: Case) -> list[Remedy]:
    """Advise another activation where an exponential follows several layers; a single one makes a variance or rate."""
    followed = [layer for layer, activation in case.activations.items() if activation == "exp"]
    if len(followed) < _MANY_EXPONENTIALS:
        return [_bounded(case, followed)] if followed else []
    relu, selu = FROM_EXP
    return with_activation(case, selu if may_die(case, followed) else relu, followed)


def _bounded(case: Case, layers: list[str]) -> Remedy:
    lines = [case.called_at[name] for name in layers if name in case.called_at]
    return Remedy(
        title=f"bound what goes into the exponential behind {' and '.join(layers)}: x.clamp(-10, 10).exp(), or a "
        "softplus in its place",
        reason="exp(89) is infinite in float32, and its slope is as large as itself",
        diagnosis=case.diagnosis,
        where=lines[0] if lines else None,
        needs_restart=True,
    )


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
