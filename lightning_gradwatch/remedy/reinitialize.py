"""Weights that miss what He, Xavier or LeCun would give them are initialized anew; sigmoids may have to go."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from lightning_gradwatch.remedy.case import Case, count_layers
from lightning_gradwatch.remedy.edits import Edits
from lightning_gradwatch.remedy.fresh_weights import FreshWeights
from lightning_gradwatch.remedy.initialization import TOLERANCE, XAVIER, Scheme, scheme_for
from lightning_gradwatch.remedy.remedy import Remedy
from lightning_gradwatch.remedy.standing import WeightStanding


def reinitialize(case: Case, *, too_small: bool | None = None) -> list[Remedy]:
    """Advise to initialize anew the weights that stood off to one side when training began.

    An output layer at PyTorch's default, whose gain of ``1 / sqrt(3)`` weakens what goes back through it, is
    initialized with them (Xavier); one that somebody has made otherwise is left alone.

    Args:
        case: What is known.
        too_small: Which side; None for both.

    Returns:
        One remedy; none where no weight is off.
    """
    chosen: dict[str, Scheme] = {}
    for standing in case.standings_at_first:
        scheme = scheme_for(case.activations[standing.layer], standing.slope)
        if scheme is None or standing.refusal or not standing.std > 0 or standing.layer in case.feed_batch_norm:
            # Behind a batch norm the size of a weight does not reach the signal.
            continue
        if too_small is False and _at_default(standing):
            # PyTorch's gain of 1 / sqrt(3) is too large only where fan_out is far above fan_in, and explodes nowhere.
            continue
        share = standing.std / standing.of(scheme)
        sides = {True: share * TOLERANCE < 1, False: share > TOLERANCE}
        if any(sides.values()) if too_small is None else sides[too_small]:
            chosen[standing.layer] = scheme
    if not chosen:
        return []
    main = _most_frequent(chosen)
    offs = {s.layer: s for s in case.standings_at_first if chosen.get(s.layer) == main}
    worst = max(offs.values(), key=lambda s: abs(math.log(s.std / s.of(main))))
    side = "small" if worst.std < worst.of(main) else "large"
    outputs = {s.layer: XAVIER for s in case.outputs if s.at_default and not s.refusal}
    edits = _fresh_weights({**chosen, **outputs}, case.standings)
    return [
        Remedy(
            title=f"{main.name} initialization of {count_layers(len(chosen) + len(outputs))}, then start again",
            reason=f"the weights are too {side}: std {worst.std:.2g} in {worst.layer}, {main.name} gives "
            f"{worst.of(main):.2g} ({main.source})",
            diagnosis=case.diagnosis,
            code=edits.code,
            needs_restart=True,
            change=edits,
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
        if not s.refusal
        and s.layer not in case.feed_batch_norm
        and (scheme := scheme_for(case.activations[s.layer], s.slope)) is not None
    }
    if not chosen:
        return []
    edits = _fresh_weights(chosen, case.standings)
    return [
        Remedy(
            title=f"{_most_frequent(chosen).name} initialization of {count_layers(len(chosen))} and biases of zero, "
            "then start again",
            reason=reason,
            diagnosis=case.diagnosis,
            code=edits.code,
            needs_restart=True,
            change=edits,
        )
    ]


def _at_default(standing: WeightStanding) -> bool:
    """Tell whether a weight's size is that of PyTorch's default, ``1 / sqrt(3 fan_in)``, also after some steps."""
    return abs(standing.std * math.sqrt(3) / standing.lecun - 1) < TOLERANCE - 1


def _most_frequent(chosen: Mapping[str, Scheme]) -> Scheme:
    counts = Counter(scheme.name for scheme in chosen.values())
    return next(s for s in chosen.values() if s.name == counts.most_common(1)[0][0])


def _fresh_weights(chosen: Mapping[str, Scheme], standings: Sequence[WeightStanding]) -> Edits:
    return Edits((FreshWeights(chosen, {s.layer: s.refusal for s in standings if s.refusal}),))
