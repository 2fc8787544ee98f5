"""Weights that miss what He, Xavier or LeCun would give them are initialized anew; sigmoids may have to go."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from lightning_gradwatch.measure.layers import ROOT, find_layers
from lightning_gradwatch.remedy.case import Case, count_layers
from lightning_gradwatch.remedy.initialization import HE, SCHEMES, TOLERANCE, Scheme, WeightStanding
from lightning_gradwatch.remedy.remedy import Remedy

_SATURATING_MODULES = (nn.Sigmoid, nn.Hardsigmoid)
_CODE_WIDTH = 90


def reinitialize(case: Case, *, too_small: bool) -> list[Remedy]:
    """Advise to initialize anew the weights that are off to one side.

    Args:
        case: What is known.
        too_small: Which side.

    Returns:
        One remedy; none where no weight is off.
    """
    chosen: dict[str, Scheme] = {}
    for standing in case.standings:
        scheme = SCHEMES.get(case.activations[standing.layer] or "")
        if scheme is None or standing.refusal:
            continue
        target = standing.of(scheme)
        if standing.std * TOLERANCE < target if too_small else standing.std > target * TOLERANCE:
            chosen[standing.layer] = scheme
    if not chosen:
        return []
    main = _most_frequent(chosen)
    worst = (min if too_small else max)(
        (s for s in case.standings if chosen.get(s.layer) is main), key=lambda s: s.std / s.of(main)
    )
    side = "small" if too_small else "large"
    return [
        Remedy(
            title=f"{main.name} initialization of {count_layers(len(chosen))}, then start again",
            reason=f"the weights are too {side}: std {worst.std:.2g} in {worst.layer}, {main.name} gives "
            f"{worst.of(main):.2g} ({main.source})",
            diagnosis=case.diagnosis,
            code=_code(chosen, case.standings),
            needs_restart=True,
            change=_Reinitialization(chosen),
        )
    ]


def start_afresh(case: Case, reason: str) -> list[Remedy]:
    """Advise to initialize all layers with a known activation, whatever their weights are: biases become zero.

    Args:
        case: What is known.
        reason: Why it should help, with its source.

    Returns:
        One remedy; none where no layer may be initialized.
    """
    chosen = {
        s.layer: scheme
        for s in case.standings
        if not s.refusal and (scheme := SCHEMES.get(case.activations[s.layer] or "")) is not None
    }
    if not chosen:
        return []
    return [
        Remedy(
            title=f"{_most_frequent(chosen).name} initialization of {count_layers(len(chosen))} and biases of zero, "
            "then start again",
            reason=reason,
            diagnosis=case.diagnosis,
            code=_code(chosen, case.standings),
            needs_restart=True,
            change=_Reinitialization(chosen),
        )
    ]


def replace_activation(case: Case, saturating: Sequence[WeightStanding]) -> Remedy:
    """Advise ReLU in the place of sigmoids.

    Args:
        case: What is known.
        saturating: The layers that a sigmoid follows.

    Returns:
        The remedy.
    """
    schemes = {standing.layer: HE for standing in saturating if not standing.refusal}
    initialized = ", with He initialization" if schemes else ""
    return Remedy(
        title=f"ReLU instead of sigmoid after {count_layers(len(saturating))}{initialized}, then start again",
        reason="a sigmoid passes back at most a quarter of the gradient; no initialization makes up for that over many "
        "layers (Glorot and Bengio, 2010; He et al., 2015)",
        diagnosis=case.diagnosis,
        code="# where the model is built: nn.Sigmoid() -> nn.ReLU(), torch.sigmoid(...) -> torch.relu(...)\n"
        + _code(schemes, saturating),
        needs_restart=True,
        change=_Reinitialization(schemes, frozenset(standing.layer for standing in saturating)),
    )


def _most_frequent(chosen: Mapping[str, Scheme]) -> Scheme:
    counts = Counter(scheme.name for scheme in chosen.values())
    return next(s for s in chosen.values() if s.name == counts.most_common(1)[0][0])


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
