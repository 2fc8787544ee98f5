"""Ways out where the gradient fades: along depth, along time, or because the steps are too small."""

from __future__ import annotations

import math

import torch

from lightning_gradwatch.remedy.case import Case
from lightning_gradwatch.remedy.explanation import memory_of, num_steps_of
from lightning_gradwatch.remedy.recurrent import chrono, gated, orthogonal
from lightning_gradwatch.remedy.reinitialize import reinitialize, replace_activation
from lightning_gradwatch.remedy.remedy import Remedy

# Slope at most 0.25: no initialization lets a gradient through many of them.
_SATURATING = ("sigmoid",)
# Karpathy, CS231n (Stanford, 2016): a step should move the weights by about a thousandth.
USUAL_UPDATE = 1e-3
# A gradient below this share of its weights would ask for a learning rate of 10 and more.
_TINY_GRADIENT = 1e-4


def against_vanishing(case: Case) -> list[Remedy]:
    """Return the ways out of a vanishing gradient, best first."""
    if case.diagnosis.rule == "vanishing.time":
        return _against_forgetting(case)
    if case.diagnosis.rule == "vanishing.update":
        return _against_stalling(case)
    return against_small_weights(case)


def against_small_weights(case: Case) -> list[Remedy]:
    """Return what lets a signal through many layers: another activation, or larger weights."""
    saturating = [s for s in case.standings if case.activations[s.layer] in _SATURATING]
    if len(saturating) > len(case.standings) / 2:
        return [replace_activation(case, saturating)]
    return reinitialize(case, too_small=True)


def _against_forgetting(case: Case) -> list[Remedy]:
    memory, steps = memory_of(case), num_steps_of(case)
    if memory is None:
        return []
    if memory.gate_bias is not None:
        return [chrono(case, memory, steps)] if memory.biased and steps else []
    return [orthogonal(case, memory), gated(case, memory)]


def _against_stalling(case: Case) -> list[Remedy]:
    rounded = _rounding(case)
    rate, relative = _positive(case, "learning_rate"), _positive(case, "relative_gradient")
    # What the step would be without rounding; what it was where that is not known.
    ratio = _positive(case, "expected_ratio") or _positive(case, "update_ratio")
    if relative and relative < _TINY_GRADIENT:
        return [*rounded, _scale_loss(case, relative)]
    if not rate:
        return rounded
    if not ratio:
        return [*rounded, _raise_rate(case, f"a learning rate well above {rate:g}", {})]
    higher = float(f"{rate * USUAL_UPDATE / ratio:.1g}")
    return [*rounded, _raise_rate(case, f"learning rate {higher:g} instead of {rate:g}", {"lr": higher})]


def _positive(case: Case, name: str) -> float | None:
    """Return a number out of the evidence, None where it is missing, 0 or not finite."""
    value = case.diagnosis.evidence.get(name)
    return float(value) if value is not None and math.isfinite(value) and value > 0 else None


def _raise_rate(case: Case, title: str, changes: dict[str, float]) -> Remedy:
    return Remedy(
        title=title,
        reason=f"a step would then move the weights by about {USUAL_UPDATE:g} of their size (Karpathy, CS231n)",
        diagnosis=case.diagnosis,
        optimizer_changes=changes,
    )


def _scale_loss(case: Case, relative: float) -> Remedy:
    factor = 10.0 ** round(math.log10(1e-2 / relative))
    return Remedy(
        title=f"look for what makes the loss so small (a weight, a mean over too much), or multiply it by {factor:.0e}",
        reason="the gradient would then be about a hundredth of the weights; no learning rate in use makes up for less",
        diagnosis=case.diagnosis,
    )


def _rounding(case: Case) -> list[Remedy]:
    """Advise float32 weights where small steps are rounded away."""
    dtypes = {p.dtype for layer in case.sick for p in layer.parameters.values()}
    half = next((dtype for dtype in (torch.bfloat16, torch.float16) if dtype in dtypes), None)
    if half is None:
        return []
    mixed = "bf16-mixed" if half is torch.bfloat16 else "16-mixed"
    return [
        Remedy(
            title=f'Trainer(precision="{mixed}"), which keeps the weights in float32',
            reason=f"{str(half).removeprefix('torch.')} numbers are {torch.finfo(half).eps:.1g} of themselves apart, "
            "and smaller steps are rounded away (Micikevicius et al., 2018)",
            diagnosis=case.diagnosis,
            code=f'Trainer(precision="{mixed}")',
            trainer_kwargs={"precision": mixed},
        )
    ]
