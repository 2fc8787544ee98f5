"""Which ways out a diagnosis has, computed from the model that is sick."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.measure.layers import ROOT, Layer, find_layers
from lightning_gradwatch.measure.snapshot import LayerDescription
from lightning_gradwatch.remedy.clipping import ClipByGlobalNorm
from lightning_gradwatch.remedy.initialization import (
    HE,
    SCHEMES,
    Scheme,
    WeightStanding,
    measure_standing,
    tied_parameters,
)
from lightning_gradwatch.remedy.remedy import Remedy

# Slope at most 0.25: no initialization lets a gradient through many of them.
_SATURATING = ("sigmoid",)
_SATURATING_MODULES = (nn.Sigmoid, nn.Hardsigmoid)
# The share by which weights may miss their scheme before it is worth saying. Ours: a sample of 32 x 32 normal numbers
# misses its own standard deviation by 2%, and two schemes differ by at least 1.4.
_TOLERANCE = 1.2
# The usual bound for language models (torchtitan, OLMo); the log tells what norms a run has.
_USUAL_MAX_NORM = 1.0
_USUAL_UPDATE = 1e-3
_CODE_WIDTH = 90
_SKIP = 'GradWatch(on_nonfinite="skip")'


@dataclass(frozen=True)
class Advice:
    """What is known of the sick layers' weights, and the ways out.

    Attributes:
        weights: How the weights stand, in words; empty where nothing can be said.
        remedies: Ways out, best first.
        standings: By layer, the measured standard deviation of its weights, what He, Xavier and LeCun would give, and
            why it cannot be initialized anew (empty where it can).
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

    Returns:
        How the weights stand and the remedies; without remedies where none follows from what is known.
    """
    chosen = _sick_and_alike(diagnosis, layers, descriptions)
    activations = {about.name: about.activation for about in descriptions}
    standings = measure_standing(chosen, tied_parameters(model))
    if weights_before is not None and diagnosis.symptom is Symptom.EXPLODING:
        standings = tuple(replace(s, std=weights_before.get(s.layer, s.std)) for s in standings)
    # After an overflow nothing can be said of the weights; that they are not finite is the message itself.
    standings = tuple(s for s in standings if s.refusal or math.isfinite(s.std))
    # The size of an output layer's weights is the task's business.
    standings = tuple(s for s in standings if activations[s.layer] != "output")
    makers: dict[Symptom, Callable[[Diagnosis, Sequence[WeightStanding], Mapping[str, str | None]], list[Remedy]]] = {
        Symptom.VANISHING: _against_vanishing,
        Symptom.DEAD: _against_vanishing,
        Symptom.EXPLODING: _against_exploding,
        Symptom.NON_FINITE: _against_non_finite,
    }
    make = makers.get(diagnosis.symptom)
    remedies = make(diagnosis, standings, activations) if make else []
    remedies = [r for r in remedies if not (clips and r.clipper) and not (skips and r.code == _SKIP)]
    about = {s.layer: {k: v for k, v in vars(s).items() if k != "layer"} for s in standings}
    return Advice(_weights_in_words(standings), tuple(remedies), about)


def _sick_and_alike(
    diagnosis: Diagnosis, layers: Sequence[Layer], descriptions: Sequence[LayerDescription]
) -> list[Layer]:
    """Return the sick layers, worst first, and those that the same activations follow: one stack has one cure."""
    by_name = {layer.name: layer for layer in layers}
    sick = [by_name[name] for name in diagnosis.layers if name in by_name]
    kinds = {about.activation for about in descriptions if about.name in diagnosis.layers} - {
        "linear",
        "output",
        "gate",
        None,
    }
    alike = [by_name[about.name] for about in descriptions if about.activation in kinds and about.trainable]
    return list(dict.fromkeys([*sick, *alike]))


def _against_vanishing(
    diagnosis: Diagnosis, standings: Sequence[WeightStanding], activations: Mapping[str, str | None]
) -> list[Remedy]:
    if diagnosis.symptom is Symptom.DEAD and diagnosis.severity == "notice":
        # A branch that nothing chose is not cured by other weights.
        return []
    saturating = [s for s in standings if activations[s.layer] in _SATURATING]
    if len(saturating) > len(standings) / 2:
        return [_replace_activation(diagnosis, saturating)]
    return _reinitialize(diagnosis, standings, activations, too_small=True)


def _against_exploding(
    diagnosis: Diagnosis, standings: Sequence[WeightStanding], activations: Mapping[str, str | None]
) -> list[Remedy]:
    remedies = _reinitialize(diagnosis, standings, activations, too_small=False)
    clipper = ClipByGlobalNorm(_USUAL_MAX_NORM)
    clip = Remedy(
        title=f"clip by global norm {_USUAL_MAX_NORM:g}: GradWatch(clipper=ClipByGlobalNorm({_USUAL_MAX_NORM:g}))",
        reason="bounds the step and keeps its direction (Pascanu et al., 2013)",
        diagnosis=diagnosis,
        code=f"GradWatch(clipper=ClipByGlobalNorm(max_norm={_USUAL_MAX_NORM:g}))",
        clipper=clipper,
    )
    ratio, rate = diagnosis.evidence.get("update_ratio"), diagnosis.evidence.get("learning_rate")
    if ratio and rate:
        lower = float(f"{rate * _USUAL_UPDATE / ratio:.1g}")
        lower_rate = Remedy(
            title=f"learning rate {lower:g} instead of {rate:g}",
            reason=f"a step would then move the weights by about {_USUAL_UPDATE:g} of their size",
            diagnosis=diagnosis,
            optimizer_changes={"lr": lower},
        )
        return [*remedies, clip, lower_rate]
    return [*remedies, clip]


def _against_non_finite(
    diagnosis: Diagnosis, standings: Sequence[WeightStanding], activations: Mapping[str, str | None]
) -> list[Remedy]:
    skip = Remedy(
        title=f"{_SKIP} drops such steps while you look for the batch",
        reason="one NaN in a step makes weights NaN for ever",
        diagnosis=diagnosis,
        code=_SKIP,
    )
    find = Remedy(
        title="Trainer(detect_anomaly=True) names the operation (slow; for one short run)",
        reason="autograd's anomaly mode checks every operation of the backward pass",
        diagnosis=diagnosis,
        code="Trainer(detect_anomaly=True)",
        trainer_kwargs={"detect_anomaly": True},
    )
    if diagnosis.evidence.get("exploded_before"):
        return [*_against_exploding(diagnosis, standings, activations), skip]
    return [*_reinitialize(diagnosis, standings, activations, too_small=False), skip, find]


def _reinitialize(
    diagnosis: Diagnosis,
    standings: Sequence[WeightStanding],
    activations: Mapping[str, str | None],
    too_small: bool,
) -> list[Remedy]:
    chosen: dict[str, Scheme] = {}
    for standing in standings:
        scheme = SCHEMES.get(activations[standing.layer] or "")
        if scheme is None:
            continue
        target = standing.of(scheme)
        off = standing.std * _TOLERANCE < target if too_small else standing.std > target * _TOLERANCE
        if off and not standing.refusal:
            chosen[standing.layer] = scheme
    if not chosen:
        return []
    counts = Counter(scheme.name for scheme in chosen.values())
    main = next(s for s in chosen.values() if s.name == counts.most_common(1)[0][0])
    example = next(s for s in standings if chosen.get(s.layer) is main)
    side = "small" if too_small else "large"
    return [
        Remedy(
            title=f"{main.name} initialization of {_count(len(chosen))}, then start again",
            reason=f"the weights are too {side}: std {example.std:.2g} in {example.layer}, {main.name} gives "
            f"{example.of(main):.2g} ({main.source})",
            diagnosis=diagnosis,
            code=_code(chosen, standings),
            needs_restart=True,
            change=_Reinitialization(chosen),
        )
    ]


def _replace_activation(diagnosis: Diagnosis, standings: Sequence[WeightStanding]) -> Remedy:
    schemes = {standing.layer: HE for standing in standings if not standing.refusal}
    initialized = ", with He initialization" if schemes else ""
    return Remedy(
        title=f"ReLU instead of sigmoid after {_count(len(standings))}{initialized}, then start again",
        reason="a sigmoid passes back at most a quarter of the gradient; no initialization makes up for that over many "
        "layers (Glorot and Bengio, 2010; He et al., 2015)",
        diagnosis=diagnosis,
        code="# where the model is built: nn.Sigmoid() -> nn.ReLU(), torch.sigmoid(...) -> torch.relu(...)\n"
        + _code(schemes, standings),
        needs_restart=True,
        change=_Reinitialization(schemes, frozenset(standing.layer for standing in standings)),
    )


def _code(schemes: Mapping[str, Scheme], standings: Sequence[WeightStanding]) -> str:
    lines = [f"# left out: {s.layer}, {s.refusal}" for s in standings if s.refusal]
    lines.append("from torch import nn")
    for scheme in dict.fromkeys(schemes.values()):
        # get_submodule("") is the model itself.
        names = ["" if name == ROOT else name for name, chosen in schemes.items() if chosen is scheme]
        lines += [
            *_loop_over(names),
            "    layer = model.get_submodule(name)",
            "    " + scheme.call.format(weight="layer.weight"),
            '    if getattr(layer, "bias", None) is not None:',
            "        nn.init.zeros_(layer.bias)",
        ]
    return "\n".join(lines)


def _loop_over(names: Sequence[str]) -> list[str]:
    """Write the head of a loop, broken where a card in TensorBoard would have to be scrolled."""
    head = f"for name in {list(names)!r}:"
    if len(head) <= _CODE_WIDTH:
        return [head]
    rows = textwrap.wrap(", ".join(map(repr, names)), _CODE_WIDTH, break_long_words=False, break_on_hyphens=False)
    return ["for name in [", *(f"    {row}" for row in rows), "]:"]


@dataclass(frozen=True)
class _Reinitialization:
    schemes: Mapping[str, Scheme]
    without_sigmoid: frozenset[str] = frozenset()

    def __call__(self, model: nn.Module) -> None:
        if self.without_sigmoid:
            _replace_sigmoid_(model, self.without_sigmoid)
        for layer in find_layers(model):
            scheme = self.schemes.get(layer.name)
            if scheme is None:
                continue
            scheme.apply_(layer.parameters["weight"])
            if "bias" in layer.parameters:
                nn.init.zeros_(layer.parameters["bias"])


def _replace_sigmoid_(model: nn.Module, layers: frozenset[str]) -> None:
    """Replace the sigmoid modules that are registered behind one of the layers; all where none is."""
    owners = {id(layer.module): layer.name for layer in find_layers(model)}
    behind, anywhere, last = [], [], ""
    for parent in model.modules():
        last = owners.get(id(parent), last)
        previous = last
        # Not named_children(), which leaves out the second place of a module that is used twice.
        for name, child in parent._modules.items():
            previous = owners.get(id(child), previous)
            if isinstance(child, _SATURATING_MODULES):
                anywhere.append((parent, name))
                behind += [(parent, name)] if previous in layers else []
    if not anywhere:
        raise ValueError(
            "the model calls its sigmoid as a function, so it cannot be replaced from outside. Edit the source: "
            "torch.sigmoid(...) -> torch.relu(...), then initialize with the lines of `Remedy.code`"
        )
    for parent, name in behind or anywhere:
        setattr(parent, name, nn.ReLU())


def _weights_in_words(standings: Iterable[WeightStanding]) -> str:
    first = next(iter(standings), None)
    if first is None:
        return ""
    if math.isnan(first.he):
        return f"weights of {first.layer} cannot be judged or initialized anew: {first.refusal}"
    schemes = f"He {first.he:.2g}, Xavier {first.xavier:.2g}, LeCun {first.lecun:.2g}"
    text = f"weights of {first.layer} have std {first.std:.2g} ({schemes})"
    if math.isnan(first.std):
        text = f"weights of {first.layer} are spread over processes, their std is not known ({schemes})"
    return f"{text}; not to be initialized anew: {first.refusal}" if first.refusal else text


def _count(number: int) -> str:
    return "1 layer" if number == 1 else f"{number} layers"
