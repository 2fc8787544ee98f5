"""Which rules run, and which of their findings the person does not want to hear."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from lightning_gradwatch.detect.collapse import CollapseRule
from lightning_gradwatch.detect.dead import DeadRule
from lightning_gradwatch.detect.depth import DepthRule
from lightning_gradwatch.detect.diagnosis import Diagnosis, Rule
from lightning_gradwatch.detect.disconnected import DisconnectedRule
from lightning_gradwatch.detect.nonfinite import NonFiniteRule
from lightning_gradwatch.detect.saturation import SaturationRule
from lightning_gradwatch.detect.spike import SpikeRule
from lightning_gradwatch.detect.stall import StallRule
from lightning_gradwatch.detect.time import TimeRule
from lightning_gradwatch.detect.update import UpdateRule

RULE_IDS = (
    "non_finite",
    "vanishing.depth",
    "vanishing.time",
    "vanishing.update",
    "vanishing.threshold",
    "exploding.depth",
    "exploding.time",
    "exploding.update",
    "exploding.saturation",
    "exploding.threshold",
    "dead",
    "disconnected",
    "spike",
)


def default_rules() -> tuple[Rule, ...]:
    """Return the rules that run when none are given; the person's own thresholds come on top.

    Example:
        >>> for rule in default_rules():
        ...     print(type(rule).__name__.removesuffix("Rule"), end=" ")
        NonFinite Update Depth Collapse Time Saturation Stall Dead Disconnected Spike
    """
    return (
        NonFiniteRule(),
        UpdateRule(),
        DepthRule(),
        CollapseRule(),
        TimeRule(),
        SaturationRule(),
        StallRule(),
        DeadRule(),
        DisconnectedRule(),
        SpikeRule(),
    )


def check_ignored(ignore: Sequence[str], own_rules: bool) -> None:
    """Refuse entries that can mute nothing.

    Args:
        ignore: Entries ``RULE`` or ``RULE:LAYERS``: a rule's id or its family (``vanishing`` for all that begin with
            ``vanishing.``), and a pattern of layer names with ``*``.
        own_rules: Whether the person has rules of their own, whose ids are not known.

    Raises:
        ValueError: Naming the entry and the ids that exist.
    """
    for entry in ignore:
        rule = entry.partition(":")[0]
        if not own_rules and not any(_covers(rule, known) for known in RULE_IDS):
            raise ValueError(f"`ignore` must name rules out of {', '.join(RULE_IDS)} or their families. Got {entry!r}")


def heard(findings: Iterable[Diagnosis], ignore: Sequence[str]) -> list[Diagnosis]:
    """Leave out what the person has muted.

    Args:
        findings: What the rules say.
        ignore: See ``check_ignored``.

    Returns:
        The findings without muted rules, and without muted layers in the others.

    Example:
        >>> from lightning_gradwatch.detect.diagnosis import Symptom
        >>> finding = Diagnosis("vanishing.depth", Symptom.VANISHING, layers=("encoder.0", "head"))
        >>> [kept.layers for kept in heard([finding], ["vanishing:encoder.*"])], heard([finding], ["vanishing"])
        ([('head',)], [])
    """
    return _sifted(findings, ignore, muted=False)


def muted(findings: Iterable[Diagnosis], ignore: Sequence[str]) -> list[Diagnosis]:
    """Leave what the person has muted, and nothing else: the other part of ``heard``.

    Args:
        findings: What the rules say.
        ignore: See ``check_ignored``.

    Returns:
        The findings of muted rules, and of muted layers.

    Example:
        >>> from lightning_gradwatch.detect.diagnosis import Symptom
        >>> finding = Diagnosis("vanishing.depth", Symptom.VANISHING, layers=("encoder.0", "head"))
        >>> [kept.layers for kept in muted([finding], ["vanishing:encoder.*"])]
        [('encoder.0',)]
    """
    return _sifted(findings, ignore, muted=True)


def _sifted(findings: Iterable[Diagnosis], ignore: Sequence[str], *, muted: bool) -> list[Diagnosis]:
    kept = []
    for finding in findings:
        patterns = [
            layers or "*" for rule, _, layers in (e.partition(":") for e in ignore) if _covers(rule, finding.rule)
        ]
        layers = tuple(name for name in finding.layers if any(fnmatchcase(name, p) for p in patterns) is muted)
        if layers:
            kept.append(finding if layers == finding.layers else replace(finding, layers=layers))
    return kept


def _covers(entry: str, rule: str) -> bool:
    return rule == entry or rule.startswith(f"{entry}.")
