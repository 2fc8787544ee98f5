"""Ways out where the gradient fades: along depth, along time, or because the steps are too small."""

from __future__ import annotations

import math

import torch

from lightning_gradwatch.remedy.activation import TO_RELU, TO_SELU, with_activation
from lightning_gradwatch.remedy.case import Case
from lightning_gradwatch.remedy.explanation import memory_of, num_steps_of
from lightning_gradwatch.remedy.narrow import may_die
from lightning_gradwatch.remedy.normalization import convolutional, together, with_normalization
from lightning_gradwatch.remedy.recurrent import chrono, gated, orthogonal, upright
from lightning_gradwatch.remedy.reinitialize import reinitialize
from lightning_gradwatch.remedy.remedy import Remedy
from lightning_gradwatch.remedy.residual import with_residuals
from lightning_gradwatch.remedy.transformer import for_transformers

# What may follow the layer of a recurrent cell that is written by hand.
_OF_A_CELL = ("sigmoid", "tanh", "relu")
# Slope at most 0.25: no initialization lets a gradient through many of them.
_SATURATING = ("sigmoid",)
# Karpathy, CS231n (Stanford, 2016), has a thousandth as the middle of a training run. At its start, and for the layer
# that moves most, it is a hundredth. Ours: in the first 5 steps of healthy runs the middle of that was 1.0% under SGD
# (34 runs), 2.0% with momentum (16), 1.6% under Adam (89).
_USUAL_UPDATE = 1e-2
# A gradient below this share of its weights would ask for a learning rate of 10 and more.
_TINY_GRADIENT = 1e-4


def usual_rate(rate: float, ratio: float) -> float:
    """Return the learning rate with which the layer that moves most moves as far as in healthy networks at the start.

    ``rate * 0.01 / ratio``, to one digit.

    Args:
        rate: The learning rate.
        ratio: What its step moved that layer by, as a share of its weights.

    Example:
        >>> usual_rate(100.0, 20.0)
        0.05
    """
    return float(f"{rate * _USUAL_UPDATE / ratio:.1g}")


def rate_in_code(rate: float) -> str:
    """Return the lines that give an optimizer another learning rate.

    Example:
        >>> print(rate_in_code(0.05))
        for group in optimizer.param_groups:
            group["lr"] = 0.05  # a scheduler overwrites it: there, change its rates by the same factor
    """
    comment = "a scheduler overwrites it: there, change its rates by the same factor"
    return f'for group in optimizer.param_groups:\n    group["lr"] = {rate:g}  # {comment}'


REASON_FOR_RATE = (
    f"a step would then move the layer that moves most by about {_USUAL_UPDATE:g} of its weights, as the first steps "
    "of healthy networks do"
)


def against_vanishing(case: Case) -> list[Remedy]:
    """Return the ways out of a vanishing gradient, best first."""
    if case.diagnosis.rule == "vanishing.time":
        return _against_forgetting(case)
    if case.diagnosis.rule == "vanishing.update":
        return _against_stalling(case)
    return against_small_weights(case)


def against_small_weights(case: Case) -> list[Remedy]:
    """Return what lets a signal through many layers: another activation, other weights, norms, ways around."""
    norms = with_normalization(case, case.hidden)
    structural = [*norms, *with_residuals(case, case.hidden), *for_transformers(case)]
    saturating = [s.layer for s in case.standings if case.activations[s.layer] in _SATURATING]
    if len(saturating) <= len(case.standings) / 2:
        fresh = reinitialize(case)
        # Since 2015 a stack of convolutions has norms; He's weights alone start it, and slowly.
        return [*together(fresh, norms), *structural, *fresh] if convolutional(case) else [*fresh, *structural]
    relu, selu = (with_activation(case, exchange, saturating) for exchange in (TO_RELU, TO_SELU))
    if may_die(case, saturating):
        # A narrow stack of ReLU layers is likely born dead, and a norm has few units to lean on.
        return [*selu, *structural]
    # Ours: in 18 runs of sigmoid stacks batch norms cured more than ReLU did (docs/repair.md); other norms less.
    batch = any("BatchNorm" in remedy.title for remedy in norms)
    return [*structural[:1], *relu, *structural[1:], *selu] if batch else [*relu, *structural, *selu]


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
    if (smaller := _smaller_eps(case)) is not None:
        return [*rounded, smaller]
    # What rescales the gradient does not mind how small it is.
    if relative and relative < _TINY_GRADIENT and not case.diagnosis.evidence.get("rescaled"):
        return [*rounded, _scale_loss(case, relative, rate)]
    if not rate:
        return rounded
    if not ratio:
        return [*rounded, _raise_rate(case, f"a learning rate well above {rate:g}", {})]
    higher = usual_rate(rate, ratio)
    return [*rounded, _raise_rate(case, f"learning rate {higher:g} instead of {rate:g}", {"lr": higher})]


def _smaller_eps(case: Case) -> Remedy | None:
    """Advise a smaller eps where it outweighs the gradient, so that an optimizer that rescales does not.

    ``step = lr * m / (sqrt(v) + eps)``: with ``eps`` far above ``sqrt(v)`` it is plain gradient descent with the rate
    ``lr / eps``.
    """
    eps, rms = _positive(case, "eps"), _positive(case, "gradient_rms")
    if not case.diagnosis.evidence.get("rescaled") or eps is None or rms is None or eps < rms:
        return None
    lower = float(f"{rms / 100:.0e}")
    return Remedy(
        title=f"eps {lower:g} instead of {eps:g}: it outweighs the gradients, whose numbers are about {rms:.0e}; or "
        "a loss that is as much larger",
        reason="an optimizer that divides by the size of the gradient divides by eps where that is larger (Kingma and "
        "Ba, 2015)",
        diagnosis=case.diagnosis,
        code=f'for group in optimizer.param_groups:\n    group["eps"] = {lower:g}',
        optimizer_changes={"eps": lower},
    )


def _positive(case: Case, name: str) -> float | None:
    """Return a number out of the evidence, None where it is missing, 0 or not finite."""
    value = case.diagnosis.evidence.get(name)
    return float(value) if value is not None and math.isfinite(value) and value > 0 else None


def _raise_rate(case: Case, title: str, changes: dict[str, float]) -> Remedy:
    return Remedy(
        title=title,
        reason=REASON_FOR_RATE,
        diagnosis=case.diagnosis,
        code=rate_in_code(changes["lr"]) if changes else "",
        optimizer_changes=changes,
    )


def _scale_loss(case: Case, relative: float, rate: float | None) -> Remedy:
    factor = 10.0 ** round(math.log10(_USUAL_UPDATE / (relative * (rate or 1.0))))
    # Where a step is the learning rate times the gradient, either may be multiplied.
    same = f"; a learning rate of {rate * factor:g} does the same" if rate else ""
    return Remedy(
        title=f"look for what makes the loss so small (a weight, a mean over too much), or multiply it by "
        f"{factor:.0e}{same}",
        reason=REASON_FOR_RATE,
        diagnosis=case.diagnosis,
        optimizer_changes={"lr": rate * factor} if rate else {},
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
