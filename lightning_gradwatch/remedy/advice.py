"""Which ways out a diagnosis has, computed from the model that is sick."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.measure.layers import Layer
from lightning_gradwatch.measure.snapshot import LayerDescription
from lightning_gradwatch.remedy.case import NO_ACTIVATIONS, Case
from lightning_gradwatch.remedy.cut import against_dead, against_disconnected
from lightning_gradwatch.remedy.explanation import explain
from lightning_gradwatch.remedy.exploding import SKIP, against_exploding, against_non_finite, against_spike
from lightning_gradwatch.remedy.remedy import Remedy
from lightning_gradwatch.remedy.standing import WeightStanding, measure_standing, tied_parameters
from lightning_gradwatch.remedy.vanishing import against_vanishing

_MAKERS: Mapping[Symptom, Callable[[Case], list[Remedy]]] = {
    Symptom.VANISHING: against_vanishing,
    Symptom.EXPLODING: against_exploding,
    Symptom.NON_FINITE: against_non_finite,
    Symptom.SPIKE: against_spike,
    Symptom.DEAD: against_dead,
    Symptom.DISCONNECTED: against_disconnected,
}
_GROWING = (Symptom.EXPLODING, Symptom.NON_FINITE)


@dataclass(frozen=True)
class Advice:
    """What is known of the sick layers, and the ways out.

    Attributes:
        weights: What made the fault likely, in words: how weights, biases and gates stand; empty where nothing can be
            said.
        remedies: Ways out, best first.
        standings: By layer, the measured standard deviation of its weights, what He, Xavier and LeCun would give,
            whether it stands at PyTorch's default, and why it cannot be initialized anew (empty where it can).
    """

    weights: str = ""
    remedies: tuple[Remedy, ...] = ()
    standings: Mapping[str, Mapping[str, float | str]] = field(default_factory=dict)


def advise(
    diagnosis: Diagnosis,
    model: nn.Module,
    layers: Sequence[Layer],
    descriptions: Sequence[LayerDescription],
    weights_before: Mapping[str, float] | None = None,
    clips: bool = False,
    skips: bool = False,
    weights_at_first: Mapping[str, float] | None = None,
) -> Advice:
    """Compute the ways out of a diagnosis.

    Args:
        diagnosis: What is wrong.
        model: The model.
        layers: Its layers.
        descriptions: What is known of each of them, ``[num_layers]``.
        weights_before: Root mean square of each layer's parameters before the step. A step that overwrites weights
            is diagnosed when it has been done; what they were tells more than what they are.
        clips: Whether gradients are clipped already.
        skips: Whether poisoned steps are dropped already.
        weights_at_first: Root mean square of each layer's parameters at the first reading: what training has blown up
            no initialization cures.

    Returns:
        Why it came to it and the remedies; without remedies where none follows from what is known.
    """
    by_name = {layer.name: layer for layer in layers}
    sick = tuple(by_name[name] for name in diagnosis.layers if name in by_name)
    activations = {about.name: about.activation for about in descriptions}
    # After an overflow the weights themselves tell nothing any more.
    sizes = weights_at_first if diagnosis.symptom is Symptom.NON_FINITE else weights_before
    # What grows may begin anywhere in the network.
    all_layers = layers if diagnosis.symptom in _GROWING else _alike(diagnosis, by_name, descriptions)
    outputs = [by_name[about.name] for about in descriptions if about.activation == "output"]
    standings = _standings(diagnosis, model, [*sick, *all_layers, *outputs], sizes or {})
    slopes = _slopes(descriptions)
    standings = tuple(s.leaking(slopes.get(s.layer, 0.0)) for s in standings)
    case = Case(
        diagnosis,
        sick,
        # The size of an output layer's weights is the task's business.
        tuple(s for s in standings if activations[s.layer] != "output"),
        activations,
        weights_before or {},
        weights_at_first or {},
        model=model,
        called_at={about.name: about.where for about in descriptions if about.where},
        feed_batch_norm=frozenset(about.name for about in descriptions if about.feeds_batch_norm),
        shapes={about.name: about.shape for about in descriptions if about.shape},
        at_output=frozenset(
            about.curve.operation for about in descriptions if about.activation == "output" and about.curve is not None
        ),
        outputs=tuple(s for s in standings if activations[s.layer] == "output"),
    )
    remedies = [
        _if_needed(r)
        for r in _MAKERS[diagnosis.symptom](case)
        if not (clips and r.clipper) and not (skips and r.code == SKIP)
    ]
    if diagnosis.severity == "notice" and diagnosis.evidence.get("loss_has_fallen"):
        # A network that learns is not thrown away.
        remedies.sort(key=lambda remedy: remedy.needs_restart)
    about = {s.layer: {k: v for k, v in vars(s).items() if k != "layer"} for s in case.standings}
    return Advice(explain(case), tuple(remedies), about)


def _if_needed(remedy: Remedy) -> Remedy:
    """A network that copes need not start again, whatever its profile looks like."""
    if remedy.diagnosis.severity != "notice" or not remedy.needs_restart or remedy.title.startswith("if "):
        return remedy
    return replace(remedy, title=f"if the loss stays flat: {remedy.title}")


def _alike(diagnosis: Diagnosis, by_name: Mapping[str, Layer], descriptions: Sequence[LayerDescription]) -> list[Layer]:
    """Return the layers that the same activations follow as the sick ones: one stack has one cure."""
    kinds = {about.activation for about in descriptions if about.name in diagnosis.layers} - NO_ACTIVATIONS
    return [by_name[about.name] for about in descriptions if about.activation in kinds and about.trainable]


def _slopes(descriptions: Sequence[LayerDescription]) -> dict[str, float]:
    """Return the negative slope of the leaky ReLU behind each layer, to three digits: that of a PReLU is learned."""
    leaky = {about.name: about.curve for about in descriptions if about.activation == "leaky_relu"}
    return {name: float(f"{curve.parameter:.3g}") for name, curve in leaky.items() if curve is not None}


def _standings(
    diagnosis: Diagnosis, model: nn.Module, layers: Sequence[Layer], sizes: Mapping[str, float]
) -> tuple[WeightStanding, ...]:
    standings = measure_standing(list(dict.fromkeys(layers)), tied_parameters(model))
    if diagnosis.symptom in _GROWING:
        standings = tuple(s.before(sizes.get(s.layer)) for s in standings)
    # Nothing can be said of weights that are not finite; that they are not is the message itself.
    return tuple(s for s in standings if s.refusal or math.isfinite(s.std))
