"""The rules for a start: a few readings, and no loss history that anybody will see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lightning_gradwatch.detect.diagnosis import Diagnosis, Observations, Rule, Symptom
from lightning_gradwatch.detect.disconnected import DisconnectedRule
from lightning_gradwatch.detect.rules import default_rules

# As many as the rules ask for that judge a start (``DeadRule.first_readings``).
NUM_READINGS = 3
# Six orders of magnitude no optimizer makes up for soon enough; as in ``DepthRule.severe``.
_SEVERE = 6.0


@dataclass(frozen=True)
class Firm:
    """A rule whose findings are judged without waiting for a loss history, which nobody will see.

    Attributes:
        rule: The rule.
        rescaled: Whether the optimizer is known to rescale each step, so that training may cope.
        steps: Whether steps are made between the readings, so that what starts at zero leaves it.

    Example:
        >>> Firm(DisconnectedRule(), rescaled=False, steps=True).rule.first_readings
        3
    """

    rule: Rule
    rescaled: bool
    steps: bool

    def __call__(self, observations: Observations) -> Iterator[Diagnosis]:
        """Yield what the rule finds, as a warning where the start itself is poor."""
        for finding in self.rule(observations):
            yield self._judged(finding)

    def _judged(self, finding: Diagnosis) -> Diagnosis:
        if finding.rule in ("vanishing.depth", "exploding.depth") and finding.severity == "notice":
            if self.rescaled and abs(finding.evidence["attenuation"]) < _SEVERE:
                return finding
            few = "the first layers get almost no gradient"
            message = few if finding.symptom is Symptom.VANISHING else finding.message
            return replace(finding, severity="warning", message=message)
        if finding.rule in ("exploding.time", "exploding.saturation"):
            return replace(finding, severity="warning")
        if finding.rule == "dead" and not self.steps and not finding.evidence["everywhere"]:
            # LoRA, ReZero and Fixup start so.
            return replace(finding, severity="notice")
        return finding


def start_rules(*, rescaled: bool, steps: bool) -> tuple[Rule, ...]:
    """Return the default rules as they judge a start.

    Args:
        rescaled: Whether the optimizer is known to rescale each step.
        steps: Whether steps are made between the readings.

    Example:
        >>> len(start_rules(rescaled=False, steps=True)) == len(default_rules())
        True
    """
    # What no pass has used is told at once: there will be no more of them.
    rules = (
        DisconnectedRule(num_readings=NUM_READINGS) if isinstance(r, DisconnectedRule) else r for r in default_rules()
    )
    return tuple(Firm(rule, rescaled=rescaled, steps=steps) for rule in rules)
