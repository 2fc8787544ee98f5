"""Why it came to a diagnosis, in words: from how the weights, biases and gates of the sick layers stand."""

from __future__ import annotations

import math

import torch

from lightning_gradwatch.detect.diagnosis import Symptom
from lightning_gradwatch.measure.layers import Layer
from lightning_gradwatch.remedy.case import Case
from lightning_gradwatch.remedy.initialization import SCHEMES, TOLERANCE
from lightning_gradwatch.remedy.memory import Memory, measure_memory, memory_in_words
from lightning_gradwatch.remedy.standing import WeightStanding

# A bias below minus two of what usually enters a unit (about 1) keeps it off for nearly every sample. Ours.
_LOW_BIAS = -2.0
# Of these the weights tell nothing.
_NOT_BY_WEIGHTS = (Symptom.SPIKE, Symptom.DISCONNECTED)
# Weights that are so many times as large as at first: training did that, not the initialization. Ours.
_MOVED = 2.0


def explain(case: Case) -> str:
    """Say what made the fault likely, beside what the rule itself has said.

    Args:
        case: What is known.

    Returns:
        A sentence, empty where nothing follows from the model.
    """
    diagnosis = case.diagnosis
    if diagnosis.rule.endswith(".time"):
        return "; ".join(part for part in (_activation_in_words(case), _memory_in_words(case)) if part)
    left_out = diagnosis.evidence.get("left_out")
    if diagnosis.symptom is Symptom.DISCONNECTED and diagnosis.evidence.get("cut") is False and not left_out:
        return "a branch that is not used, an expert that is rarely routed to, or detach() behind them"
    if diagnosis.rule == "vanishing.update" or diagnosis.symptom in _NOT_BY_WEIGHTS:
        return ""
    if diagnosis.symptom is Symptom.DEAD:
        return _why_dead(case)
    return _growth_in_words(case) if grown_by(case) else weights_in_words(case)


def grown_by(case: Case) -> float | None:
    """Return by how much training has made the weights of the layer larger that it has changed most.

    Args:
        case: What is known.

    Returns:
        The factor; None where no layer has grown to twice its size, where nothing explodes, or where that is not known.
    """
    growth = _growth(case)
    return growth[1] if growth else None


def _growth(case: Case) -> tuple[str, float] | None:
    if not _grows(case):
        return None
    born = {s.layer for s in case.standings if _born_too_large(case, s)}
    pairs = [(layer.name, case.growth(layer.name)) for layer in case.sick]
    grown = [] if born else [(name, factor) for name, factor in pairs if factor > _MOVED]
    return max(grown, key=lambda pair: pair[1]) if grown else None


def _born_too_large(case: Case, standing: WeightStanding) -> bool:
    first = standing.before(case.weights_at_first.get(standing.layer))
    return _off(first, case.activations.get(standing.layer)) > math.log(TOLERANCE)


def _growth_in_words(case: Case) -> str:
    growth = _growth(case)
    assert growth is not None
    if not math.isfinite(growth[1]):
        return f"training has made the weights of {growth[0]} infinite or NaN"
    return f"training has made the weights of {growth[0]} {growth[1]:.2g} times as large as they were at first"


def _activation_in_words(case: Case) -> str:
    """Say what a cell made by hand multiplies the gradient by at most, where it is a sigmoid."""
    name = next((layer.name for layer in case.sick if case.activations.get(layer.name) == "sigmoid"), None)
    if name is None or case.diagnosis.symptom is not Symptom.VANISHING:
        return ""
    return f"a sigmoid follows {name}, whose slope is at most 0.25"


def _memory_in_words(case: Case) -> str:
    memory = memory_of(case)
    fades = case.diagnosis.symptom is Symptom.VANISHING
    # What stretches the state from step to step is not what makes the gradient fade.
    if memory is None or (fades and memory.radius is not None and memory.radius > 1):
        return ""
    return memory_in_words(memory, num_steps_of(case))


def memory_of(case: Case) -> Memory | None:
    """Return what the first recurrent one of the sick layers keeps from step to step, None where there is none."""
    measured = (measure_memory(layer) for layer in case.sick)
    return next((memory for memory in measured if memory is not None), None)


def num_steps_of(case: Case) -> int | None:
    """Return over how many time steps the sick layer was used, where the rule has told."""
    steps = case.diagnosis.evidence.get("num_steps")
    return int(steps) if steps else None


def _why_dead(case: Case) -> str:
    evidence = case.diagnosis.evidence
    name = evidence.get("dead_units")
    if case.diagnosis.severity == "notice" or (evidence.get("everywhere") and not name):
        # Weights of any size give some gradient; what is beyond them does not.
        return ""
    biases = next((_mean_bias(layer) for layer in case.sick if layer.name == name), None)
    low = f"the biases of {name} are {biases:.2g} on average" if biases is not None and biases < _LOW_BIAS else ""
    return low or weights_in_words(case)


def _mean_bias(layer: Layer) -> float | None:
    bias = layer.parameters.get("bias")
    if bias is None or hasattr(bias, "full_tensor") or not bias.is_floating_point():
        return None
    return float(bias.detach().mean(dtype=torch.promote_types(bias.dtype, torch.float32)))


def weights_in_words(case: Case) -> str:
    """Say how the weights of the layer stand that is furthest off, beside what its activation asks for.

    Args:
        case: What is known.

    Returns:
        A sentence, empty without a weight matrix.

    Example:
        >>> standing = WeightStanding("net.4", 0.02, he=0.18, xavier=0.12, lecun=0.12)
        >>> from lightning_gradwatch.detect.diagnosis import Diagnosis
        >>> sick = Diagnosis("vanishing.depth", Symptom.VANISHING, layers=("net.4",))
        >>> weights_in_words(Case(sick, standings=(standing,), activations={"net.4": "relu"}))
        'weights of net.4 have std 0.02, He would give 0.18'
    """
    standing = _furthest(case)
    if standing is None or (_grows(case) and not _too_large(standing, case.activations.get(standing.layer))):
        return ""
    if math.isnan(standing.he):
        return f"weights of {standing.layer} cannot be judged or initialized anew: {standing.refusal}"
    text = _standing_in_words(standing, case.activations.get(standing.layer))
    return f"{text}; not to be initialized anew: {standing.refusal}" if standing.refusal else text


def _furthest(case: Case) -> WeightStanding | None:
    """Return the standing that explains most: smallest where gradients vanish, largest where they grow."""
    # Of several that are about as far off, the first one: the layers stand in the order of their sickness.
    offs = [_off(standing, case.activations.get(standing.layer)) for standing in case.standings]
    signed = [off if _grows(case) else -off for off in offs]
    known = [off for off in signed if math.isfinite(off)]
    if not known:
        return next(iter(case.standings), None)
    near = max(known) - math.log(TOLERANCE)
    return next(s for s, off in zip(case.standings, signed, strict=True) if off >= near)


def _grows(case: Case) -> bool:
    return case.diagnosis.symptom in (Symptom.EXPLODING, Symptom.NON_FINITE)


def _too_large(standing: WeightStanding, activation: str | None) -> bool:
    """Tell whether the weights may be what makes a gradient grow; also where nobody knows what they should be."""
    off = _off(standing, activation)
    return math.isnan(off) or off > math.log(TOLERANCE)


def _off(standing: WeightStanding, activation: str | None) -> float:
    """Return the logarithm of what the weights are of what they should be, NaN where that is not known."""
    scheme = SCHEMES.get(activation or "")
    if scheme is None or not standing.std > 0:
        return math.nan
    return math.log(standing.std / standing.of(scheme))


def _standing_in_words(standing: WeightStanding, activation: str | None) -> str:
    schemes = f"He {standing.he:.2g}, Xavier {standing.xavier:.2g}, LeCun {standing.lecun:.2g}"
    if math.isnan(standing.std):
        return f"weights of {standing.layer} are spread over processes, their std is not known ({schemes})"
    scheme = SCHEMES.get(activation or "")
    has = "stand at PyTorch's default," if standing.at_default else "have"
    text = f"weights of {standing.layer} {has} std {standing.std:.2g}"
    if scheme is None:
        return f"{text} ({schemes})"
    target = standing.of(scheme)
    if 1 / TOLERANCE <= standing.std / target <= TOLERANCE:
        return f"{text}, as {scheme.name} gives"
    text = f"{text}, {scheme.name} would give {target:.2g}"
    if not standing.at_default or activation != "relu":
        return text
    # std / he = 1 / sqrt(3) * 1 / sqrt(2): what a layer and its ReLU leave of the signal's root mean square.
    return f"{text}: with this gain of 1/sqrt(3) a ReLU layer keeps {standing.std / standing.he:.2g} of the signal"
