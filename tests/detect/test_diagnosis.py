"""Test ``lightning_gradwatch.detect.diagnosis``."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.measure.snapshot import LayerDescription

FULL = Diagnosis(
    "vanishing.depth",
    Symptom.VANISHING,
    severity="notice",
    optimizer=1,
    layers=("net.0", "net.2"),
    step=7,
    message="little",
    measured="1e-9",
    cause="sigmoid",
    evidence={"factor": 0.25, "r2": 1.0},
    count=2,
    recovered_at=9,
)


def test_a_diagnosis_survives_json() -> None:
    """Written as JSON and read again a diagnosis is the same, but for its remedies."""
    assert Diagnosis.from_dict(json.loads(json.dumps(FULL.to_dict(), allow_nan=False))) == FULL


def test_remedies_are_written_as_words() -> None:
    """Of a remedy the title, the reason and the code are written, and none comes back without its model."""
    remedy = SimpleNamespace(effect=None, title="clip", reason="keeps the direction", code="x = 1", change=print)
    written = Diagnosis("dead", Symptom.DEAD, remedies=(remedy,)).to_dict()
    assert written["remedies"] == [{"title": "clip", "reason": "keeps the direction", "code": "x = 1"}]
    assert Diagnosis.from_dict(written).remedies == ()


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (np.float32("inf"), "inf"),
        (np.float64(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array([1.0, np.nan]), [1.0, "nan"]),
        ({1: (2.0, [np.inf])}, {"1": [2.0, ["inf"]]}),
        (Symptom.DEAD, "Symptom.DEAD"),
        (None, None),
        ("words", "words"),
    ],
)
def test_evidence_of_any_kind_becomes_plain(value: object, plain: object) -> None:
    """Whatever a rule puts into its evidence can be written as JSON and into a checkpoint."""
    written = Diagnosis("my.rule", Symptom.SPIKE, evidence={"x": value}).to_dict()["evidence"]["x"]
    assert written == plain
    assert type(written) is type(plain)
    json.dumps(written, allow_nan=False)


@pytest.mark.parametrize(
    ("outlets", "chains"),
    [
        ([(), (), ()], ["111"]),
        ([(1,), (1,), (2,)], ["110", "001"]),
        ([(1, 2), (1,), (2,)], ["110", "101"]),
        ([(2,), (), (2,)], ["111"]),
        ([(1,), (1,), ()], ["111"]),
        ([], [""]),
    ],
)
def test_a_chain_is_what_one_outlet_depends_on(observe, outlets: list[tuple[int, ...]], chains: list[str]) -> None:
    """A layer whose outlets are not known belongs to every chain."""
    layers = [LayerDescription(f"fc{n}", "Linear", outlets=ends) for n, ends in enumerate(outlets)]
    found = observe(np.ones((2, len(layers))), layers=layers).chains
    assert ["".join(str(int(here)) for here in row) for row in found] == chains


def test_observations_read_the_layers(observe) -> None:
    """Sizes count at least one parameter, a bias that feeds a batch normalization counts as none."""
    layers = (
        LayerDescription("a", "Linear", num_parameters=12, num_biases=4),
        LayerDescription("b", "Linear", num_parameters=12, num_biases=4, feeds_batch_norm=True),
        LayerDescription("c", "LayerNorm", has_matrix=False),
    )
    observations = observe(np.ones((2, 3)), layers=layers, learning_rate=[[1.0, 1, 1], [0.5, 0.25, np.nan]])
    assert observations.sizes.tolist() == [12, 12, 1]
    assert observations.bias_sizes.tolist() == [4, 0, 0]
    assert observations.matrices.tolist() == [True, True, False]
    assert observations.learning_rate[:2].tolist() == [0.5, 0.25]
    assert observations.names([2, 0]) == ("c", "a")
