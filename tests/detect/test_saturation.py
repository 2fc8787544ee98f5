"""Test ``lightning_gradwatch.detect.saturation``."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_gradwatch.detect.saturation import SaturationRule
from lightning_gradwatch.measure.snapshot import LayerDescription

RULE = SaturationRule()
FLAT, FALLING = np.full(150, 2.3), np.linspace(2.3, 0.5, 150)


def layers(*activations: str | None) -> list[LayerDescription]:
    """Describe layers that these activations follow."""
    return [
        LayerDescription(f"fc{i}", "Linear", num_parameters=100, activation=name) for i, name in enumerate(activations)
    ]


@pytest.fixture
def seen(observe, probe):
    """Return a function that makes observations of two probes with shares of saturated units, ``[num_layers]``."""

    def make(newest, before=None, *, activations=("tanh",) * 4, loss=FLAT):
        shares = [newest if before is None else before, newest]
        signals = [probe(np.ones(len(activations)), saturated=share) for share in shares]
        return observe(np.ones(len(activations)), signals=signals, loss=loss, layers=layers(*activations))

    return make


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_flat_units_in_most_layers_are_named_the_worst_first(seen, activation: str) -> None:
    """Where nothing comes back through most units and the loss stays, the layers are warned of."""
    (finding,) = RULE(seen([0.6, 0.2, 0.98, 0.7], activations=(activation,) * 4))
    assert (finding.rule, finding.severity) == ("exploding.saturation", "warning")
    assert finding.layers == ("fc2", "fc3", "fc0")
    assert "98% of the units behind fc2" in finding.measured
    assert f"3 of the 4 layers with a {activation}" in finding.measured


@pytest.mark.parametrize(("loss", "severity"), [(FLAT, "warning"), (FALLING, "notice"), (FLAT[:20], "notice")])
def test_the_loss_decides_whether_it_is_a_fault(seen, loss: np.ndarray, severity: str) -> None:
    """A network that learns in spite of it, or whose loss is not judged yet, gets a notice."""
    (finding,) = RULE(seen(0.9, loss=loss))
    assert finding.severity == severity


@pytest.mark.parametrize(
    "activations",
    [("relu", "relu", "output"), ("gate", "gate", "output"), ("tanh", "relu", "output"), (None, None, None)],
    ids=["outputs", "gates", "one layer", "unknown"],
)
def test_outputs_gates_and_single_layers_are_meant_to_be_decided(seen, activations: tuple[str, ...]) -> None:
    """A classifier that is sure of every sample, an LSTM's gates and one squashed layer are well."""
    assert list(RULE(seen(1.0, activations=activations))) == []


def test_both_probes_have_to_agree_and_half_of_the_layers(seen, observe, probe) -> None:
    """One probe, one odd layer, and units that have a slope for some sample are silent."""
    assert list(RULE(seen(0.9, before=0.1))) == []
    assert list(RULE(seen(0.1, before=0.9))) == []
    assert list(RULE(seen([0.9, 0.0, 0.0, 0.0]))) == []
    assert list(RULE(seen(RULE.share))) == []
    assert list(RULE(seen(np.nan))) == []
    assert list(RULE(observe(np.ones(4), signals=[probe(np.ones(4), saturated=0.9)], loss=FLAT))) == []
