"""Test ``lightning_gradwatch.detect.rules``."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_gradwatch.detect.depth import DepthRule
from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.detect.rules import RULE_IDS, check_ignored, default_rules, heard
from lightning_gradwatch.detect.thresholds import ThresholdRule

DEPTH = Diagnosis("vanishing.depth", Symptom.VANISHING, layers=("encoder.0", "encoder.1", "head"))
LIMIT = Diagnosis("vanishing.threshold", Symptom.VANISHING, layers=("encoder.0",))
DEAD = Diagnosis("dead", Symptom.DEAD, layers=("encoder.0", "head"))


@pytest.mark.parametrize(
    ("ignore", "left"),
    [
        ([], [DEPTH, LIMIT, DEAD]),
        (["vanishing.depth"], [LIMIT, DEAD]),
        (["vanishing"], [DEAD]),
        (["dead", "vanishing.threshold"], [DEPTH]),
        (["exploding", "non_finite"], [DEPTH, LIMIT, DEAD]),
    ],
)
def test_rules_are_muted_by_id_and_by_family(ignore: list[str], left: list[Diagnosis]) -> None:
    """An id mutes one rule, a family all whose ids begin with it and a dot, and no other."""
    assert heard([DEPTH, LIMIT, DEAD], ignore) == left


def test_layers_are_muted_by_pattern() -> None:
    """A pattern takes layers out of a finding, and the finding out where none is left."""
    kept = heard([DEPTH, LIMIT, DEAD], ["vanishing:encoder.*", "dead:head"])
    assert [(d.rule, d.layers) for d in kept] == [("vanishing.depth", ("head",)), ("dead", ("encoder.0",))]
    assert heard([DEPTH], ["vanishing.depth:encoder.1"])[0].layers == ("encoder.0", "head")
    assert heard([DEPTH], ["vanishing:*"]) == []
    assert heard([DEPTH], ["vanishing:Encoder.*"]) == [DEPTH]


@pytest.mark.parametrize("rule", [*RULE_IDS, "vanishing", "exploding"])
def test_known_rules_and_families_may_be_muted(rule: str) -> None:
    """Every id and every family is accepted, with and without a pattern."""
    check_ignored([rule, f"{rule}:encoder.*"], own_rules=False)


@pytest.mark.parametrize("entry", ["vanish", "vanishing.", "", "depth", ":encoder.*", "dead.units", "NON_FINITE"])
def test_an_entry_that_mutes_nothing_is_refused(entry: str) -> None:
    """An unknown id is an error that names it and the ids that exist."""
    with pytest.raises(ValueError, match=r"`ignore` must name rules out of non_finite, .* or their families") as raised:
        check_ignored(["dead", entry], own_rules=False)
    assert repr(entry) in str(raised.value)


def test_with_rules_of_ones_own_any_id_is_accepted() -> None:
    """The ids of a person's own rules are not known and cannot be checked."""
    check_ignored(["my.rule"], own_rules=True)


def test_every_id_belongs_to_a_rule_that_can_speak(observe, profile_of) -> None:
    """Shown a sick reading each, the default rules and the thresholds speak under exactly the known ids."""
    steep = np.logspace(-8, 0, 8)
    flat_loss = np.full(120, 2.3)
    sick = [
        observe([np.nan, 1.0]),
        profile_of(steep, loss=flat_loss),
        profile_of(steep[::-1], loss=flat_loss),
        observe([1e9, 1e9]),
        observe(np.zeros((10, 2))),
        observe([1e-9, 1e9]),
    ]
    rules = (*default_rules(), ThresholdRule(1e-7, 1e7))
    spoken = {finding.rule for observations in sick for rule in rules for finding in rule(observations)}
    assert spoken == set(RULE_IDS)


def test_default_rules_take_no_setting_from_one_another() -> None:
    """Two calls give equal rules: they are settings without a memory."""
    assert default_rules() == default_rules()
    assert DepthRule() in default_rules()
