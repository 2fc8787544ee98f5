"""Test ``lightning_gradwatch.detect.collapse``."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_gradwatch.detect.collapse import CollapseRule
from lightning_gradwatch.detect.diagnosis import Symptom
from lightning_gradwatch.measure.snapshot import LayerDescription

RULE = CollapseRule()
FLAT = 2.3 + 0.01 * np.random.default_rng(0).normal(size=150)
FALLING = np.linspace(2.3, 0.3, 150)
DEAD = np.where(np.arange(10) < 8, 0.0, 1.0)


def steep(decades: float) -> np.ndarray:
    """Return levels of ten layers that lose so many decades from the last to the first."""
    return 10 ** np.linspace(-decades, 0, 10)


@pytest.fixture
def history(observe, probe):
    """Return a function that makes observations from the levels that each probe saw."""

    def make(*levels, loss=FLAT, **more):
        return observe(np.ones(10), signals=[probe(each) for each in levels], loss=loss, **more)

    return make


def test_a_network_that_vanished_and_then_died_is_called_by_its_cause(history) -> None:
    """The first profile is told, its poorest layers first, as a warning."""
    relus = [LayerDescription(f"fc{i}", "Linear", num_parameters=100, activation="relu") for i in range(10)]
    (finding,) = RULE(history(steep(12), steep(11), DEAD, layers=relus))
    assert (finding.rule, finding.symptom, finding.severity) == ("vanishing.depth", Symptom.VANISHING, "warning")
    assert finding.layers[:2] == ("fc0", "fc1")
    assert finding.evidence["attenuation"] == pytest.approx(12)
    assert finding.evidence["first_over_last"] == pytest.approx(1e-12)
    assert "multiplied the gradient by 0.046 (R2 1.00): fc0 got 1e-12 of what fc9 got" in finding.measured
    assert finding.cause == "10 x relu"


@pytest.mark.parametrize(
    "levels",
    [
        (steep(12), DEAD, DEAD),
        (steep(12), steep(11)),
        (steep(5), steep(5), DEAD),
        (steep(-12), steep(-12), DEAD),
        (np.zeros(10), np.zeros(10), DEAD),
        (steep(12), steep(11), steep(9)),
        (steep(12), steep(11), np.ones(10)),
    ],
    ids=["one probe", "not dead", "mild", "exploding", "dead at once", "still vanishing", "mended"],
)
def test_nothing_is_said_without_two_severe_probes_and_a_dead_one(history, levels: tuple[np.ndarray, ...]) -> None:
    """What never vanished, vanished a little, once or the other way, or still lives, is for other rules."""
    assert list(RULE(history(*levels))) == []


def test_the_outcome_decides(history) -> None:
    """A loss that falls, or of which it is too early to tell, is no collapse."""
    for loss in (FALLING, FLAT[:59], np.full(150, np.nan)):
        assert list(RULE(history(steep(12), steep(11), DEAD, loss=loss))) == []
