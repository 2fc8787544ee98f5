"""Test ``lightning_gradwatch.detect.start``; whole networks are in ``tests/test_examining.py``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lightning_gradwatch import Diagnosis, Symptom
from lightning_gradwatch.detect.disconnected import DisconnectedRule
from lightning_gradwatch.detect.start import NUM_READINGS, Firm, start_rules

POOR = Diagnosis(
    "vanishing.depth", Symptom.VANISHING, "notice", message="the loss will tell", evidence={"attenuation": 4.0}
)
GROWS = Diagnosis(
    "exploding.depth", Symptom.EXPLODING, "notice", message="the gradient grows", evidence={"attenuation": -4.0}
)
DEAD = Diagnosis("dead", Symptom.DEAD, evidence={"everywhere": False})


def judged(finding: Diagnosis, *, rescaled: bool = False, steps: bool = True) -> Diagnosis:
    """Return what becomes of a finding."""

    def rule(_: Any) -> Any:
        yield finding

    (told,) = Firm(rule, rescaled=rescaled, steps=steps)(None)  # type: ignore[arg-type]
    return told


def test_a_poor_profile_is_a_warning_and_says_nothing_of_a_loss():
    """Nobody will see whether the loss falls."""
    assert judged(POOR) == replace(POOR, severity="warning", message="the first layers get almost no gradient")
    assert judged(GROWS) == replace(GROWS, severity="warning")


@pytest.mark.parametrize("finding", [POOR, GROWS])
def test_an_optimizer_that_rescales_may_cope_with_less_than_six_orders(finding):
    """Its notice stands; what no optimizer makes up for is a warning."""
    assert judged(finding, rescaled=True) is finding
    severe = replace(finding, evidence={"attenuation": 1.6 * finding.evidence["attenuation"]})
    assert judged(severe, rescaled=True).severity == "warning"


def test_what_grows_in_time_or_is_saturated_is_a_warning_and_what_fades_in_time_is_not():
    """A network that forgets is sick only where the answer lies far back."""
    for rule, severity in (
        ("exploding.time", "warning"),
        ("exploding.saturation", "warning"),
        ("vanishing.time", "notice"),
    ):
        assert judged(Diagnosis(rule, Symptom.EXPLODING, "notice")).severity == severity


def test_without_a_step_a_zero_may_be_how_layers_start():
    """LoRA, ReZero and Fixup; a network in which everything is zero starts nowhere."""
    assert judged(DEAD).severity == "warning"
    assert judged(DEAD, steps=False).severity == "notice"
    assert judged(replace(DEAD, evidence={"everywhere": True}), steps=False).severity == "warning"


def test_unused_layers_are_told_after_the_readings_that_there_are():
    """There will be no more of them."""
    rules = [firm.rule for firm in start_rules(rescaled=False, steps=True)]
    assert [rule.num_readings for rule in rules if isinstance(rule, DisconnectedRule)] == [NUM_READINGS]
