"""Ways out where the gradient fades: along depth, along time, or because the steps are too small."""

from __future__ import annotations

import math

import torch

from lightning_gradwatch.remedy.case import Case
from lightning_gradwatch.remedy.explanation import memory_of, num_steps_of
from lightning_gradwatch.remedy.recurrent import chrono, gated, orthogonal, upright
from lightning_gradwatch.remedy.reinitialize import reinitialize, replace_activation
from lightning_gradwatch.remedy.remedy import Remedy

# What may follow the layer of a recurrent cell that is written by hand.
_OF_A_CELL = ("sigmoid", "tanh", "relu")
# Slope at most 0.25: no initialization lets a gradient through many of them.
_SATURATING = ("sigmoid",)
# Karpathy, CS231n (Stanford, 2016): a step should move the weights by about a thousandth.
_USUAL_UPDATE = 1e-3
# Ours: optimizers that rescale move the weights of healthy networks by 0.4% to 4% in their first steps.
_USUAL_RESCALED = 1e-2
# A gradient below this share of its weights would ask for a learning rate of 10 and more.
_TINY_GRADIENT = 1e-4


def usual_update(case: Case) -> tuple[float, str]:
    """Return the share of its weights that a step should move, and whose number that is.

    Example:
        >>> from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
        >>> adam = Diagnosis("exploding.update", Symptom.EXPLODING, evidence={"rescaled": True})
        >>> usual_update(Case(adam))[0]
        0.01
    """
    if case.diagnosis.evidence.get("rescaled"):
        return _USUAL_RESCALED, "what Adam moves in healthy networks"
    return _USUAL_UPDATE, "Karpathy, CS231n"


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
        return _against_forgetting_by_hand(case)
    if memory.gate_bias is not None:
        return [chrono(case, memory, steps)] if memory.biased and steps else []
    if case.activations.get(memory.layer) == "sigmoid":
        return [upright(case, memory.layer), gated(case, memory.layer)]
    return [orthogonal(case, memory), gated(case, memory.layer)]


def _against_forgetting_by_hand(case: Case) -> list[Remedy]:
    """Advise on a cell written as one layer whose input holds the state; one that has gates is left as it is."""
    followed = {layer.name: case.activations.get(layer.name) for layer in case.sick}
    cell = next((name for name, activation in followed.items() if activation in _OF_A_CELL), None)
    if cell is None or "gate" in followed.values():
        return []
    return [*([upright(case, cell)] if followed[cell] == "sigmoid" else []), gated(case, cell)]


def _against_stalling(case: Case) -> list[Remedy]:
    rounded = _rounding(case)
    rate, relative = _positive(case, "learning_rate"), _positive(case, "relative_gradient")
    # What the step would be without rounding; what it was where that is not known.
    ratio = _positive(case, "expected_ratio") or _positive(case, "update_ratio")
    # What rescales the gradient does not mind how small it is.
    if relative and relative < _TINY_GRADIENT and not case.diagnosis.evidence.get("rescaled"):
        return [*rounded, _scale_loss(case, relative)]
    if not rate:
        return rounded
    if not ratio:
        return [*rounded, _raise_rate(case, f"a learning rate well above {rate:g}", {})]
    higher = float(f"{rate * usual_update(case)[0] / ratio:.1g}")
    return [*rounded, _raise_rate(case, f"learning rate {higher:g} instead of {rate:g}", {"lr": higher})]


def _positive(case: Case, name: str) -> float | None:
    """Return a number out of the evidence, None where it is missing, 0 or not finite."""
    value = case.diagnosis.evidence.get(name)
    return float(value) if value is not None and math.isfinite(value) and value > 0 else None


def _raise_rate(case: Case, title: str, changes: dict[str, float]) -> Remedy:
    usual, source = usual_update(case)
    return Remedy(
        title=title,
        reason=f"a step would then move the weights by about {usual:g} of their size ({source})",
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
