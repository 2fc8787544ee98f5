"""Test ``lightning_gradwatch.detect.rules``."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import numpy as np
import pytest

from lightning_gradwatch.detect.depth import DepthRule
from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.detect.rules import RULE_IDS, check_ignored, default_rules, heard
from lightning_gradwatch.detect.thresholds import ThresholdRule
from lightning_gradwatch.measure.snapshot import LayerDescription

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


FLAT = np.full(150, 2.3)
STEEP = np.logspace(-8, 0, 8)
TANH = [LayerDescription(f"fc{i}", "Linear", num_parameters=100, activation="tanh") for i in range(4)]


@pytest.fixture(scope="session")
def sick(observe, probe, probed):
    """Return observations by the id of the rule that has to speak of them."""
    spike = np.ones((60, 4))
    spike[-1] = 1e3
    cut = np.broadcast_to([False, False, True, True], (5, 4))
    rising = np.logspace(-8, 0, 30)
    return {
        "non_finite": observe([np.nan, 1.0]),
        "vanishing.depth": probed(STEEP, loss=FLAT),
        "exploding.depth": probed(STEEP[::-1], loss=FLAT),
        "vanishing.time": probed(np.ones(2), time={0: rising}, loss=FLAT),
        "exploding.time": probed(np.ones(2), time={0: rising[::-1]}, loss=FLAT),
        "vanishing.update": probed(np.ones(4), update_ratio=1e-9, loss=FLAT),
        "exploding.update": observe([1e4, 1e4]),
        "exploding.saturation": observe(
            np.ones(4), layers=TANH, signals=[probe(np.ones(4), saturated=0.9)] * 2, loss=np.full(20, 2.3)
        ),
        "vanishing.threshold": observe([1e-9, 1.0]),
        "exploding.threshold": observe([1e9, 1.0], weights=1e12),
        "dead": observe(np.zeros((10, 2))),
        "disconnected": observe(
            np.where(cut, 1.0, np.nan), present=cut, signals=[probe(np.ones(4), fed_by_cut=[0, 0, 1, 0])]
        ),
        "spike": observe(spike, learning_rate=1e-6),
    }


ALL_RULES = (*default_rules(), ThresholdRule(1e-7, 1e7))


@pytest.mark.parametrize("rule_id", RULE_IDS)
def test_every_sick_reading_is_named_by_its_rule_alone(sick, rule_id: str) -> None:
    """Each id is spoken of its own fault, with layers and numbers, and no rule takes it for another symptom."""
    findings = [finding for rule in ALL_RULES for finding in rule(sick[rule_id])]
    assert [finding.rule for finding in findings] == [rule_id]
    assert findings[0].layers
    assert findings[0].message
    assert findings[0].measured
    assert findings[0].evidence


def test_every_id_has_a_reading(sick) -> None:
    """No rule can speak that this file does not know."""
    assert set(sick) == set(RULE_IDS)


@pytest.fixture(scope="session")
def healthy(observe, probe):
    """Return a function that makes a healthy run of a network of many layers, with every kind of measurement."""

    def make(num_layers: int, num_readings: int = 256, num_probes: int = 16) -> Any:
        rng = np.random.default_rng(0)
        signals = [
            probe(10 ** rng.normal(0, 0.1, num_layers), time={0: 10 ** rng.normal(0, 0.1, 50)}, dead=0.5)
            for _ in range(num_probes)
        ]
        norms = 10 ** rng.normal(0, 0.1, (num_readings, num_layers))
        loss = np.linspace(2.3, 0.3, num_readings)
        return observe(norms, weights=100.0, learning_rate=1e-3, signals=signals, loss=loss)

    return make


class Work:
    """Counts, while it is open, the functions that Python calls and the instructions that it runs.

    What numpy does inside of a call is no instruction of Python: a loop over layers is.
    """

    def __enter__(self) -> Any:
        self.calls = self.instructions = 0
        self._before = sys.gettrace(), sys.getprofile()
        sys.settrace(self._trace)
        sys.setprofile(self._profile)
        return self

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        self.calls += event in {"call", "c_call"}

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        frame.f_trace_opcodes = True
        self.instructions += event == "opcode"
        return self._trace

    def __exit__(self, *error: object) -> None:
        sys.settrace(self._before[0])
        sys.setprofile(self._before[1])


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: type(rule).__name__)
def test_a_healthy_reading_costs_the_same_whatever_the_number_of_layers(healthy, rule: Any) -> None:
    """Rules work on whole arrays: 2,000 layers take as many calls and instructions as 20, give or take a few."""
    costs = []
    for num_layers in (20, 2000):
        observations = healthy(num_layers)
        # What the layers are is asked once and known from then on; see the test of observations.
        list(rule(observations))
        with Work() as work:
            assert list(rule(observations)) == []
        costs.append((work.calls, work.instructions))
    (few_calls, few_instructions), (many_calls, many_instructions) = costs
    assert few_calls > 1
    assert many_calls - few_calls < 20
    assert many_instructions - few_instructions < 200


def test_the_counter_sees_a_loop_over_layers() -> None:
    """Otherwise the test above would hold for anything."""
    names = [str(number) for number in range(2000)]
    with Work() as work:
        lengths = [len(name) for name in names]
    assert len(lengths) == 2000
    assert work.calls > 2000
    with Work() as work:
        digits = _digits(names)
    assert digits
    assert work.calls < 10
    assert work.instructions > 2000


def _digits(names: list[str]) -> list[bool]:
    """Loop without a call."""
    return [name < ":" for name in names]


def test_default_rules_take_no_setting_from_one_another() -> None:
    """Two calls give equal rules: they are settings without a memory."""
    assert default_rules() == default_rules()
    assert DepthRule() in default_rules()
