"""Test ``lightning_gradwatch.settings``."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import pytest

from lightning_gradwatch.detect.diagnosis import Symptom
from lightning_gradwatch.detect.rules import default_rules
from lightning_gradwatch.detect.thresholds import ThresholdRule
from lightning_gradwatch.remedy.clipping import ClipByGlobalNorm
from lightning_gradwatch.report.jsonl_sink import JsonlSink
from lightning_gradwatch.settings import Settings


def my_rule(observations: object) -> list[object]:
    """Find nothing."""
    return []


def test_the_defaults_are_fine_and_frozen() -> None:
    """Settings need no argument, run the default rules and act on nothing."""
    settings = Settings()
    assert settings.all_rules == default_rules()
    assert not settings.acts
    with pytest.raises(FrozenInstanceError):
        settings.patience = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    "more",
    [
        {"vanishing_threshold": 1e-7, "exploding_threshold": 1e3},
        {"patience": 1, "warmup_steps": 0, "max_consecutive_skips": 1, "every_n_steps": 1},
        {"stop_on": [symptom.value for symptom in Symptom]},
        {"ignore": ["vanishing:encoder.*", "dead"]},
        {"rules": [my_rule], "ignore": ["my.rule"]},
        {"rules": []},
        {"clipper": ClipByGlobalNorm(max_norm=1.0)},
        {"sinks": (JsonlSink("."),)},
    ],
)
def test_what_is_documented_is_accepted(more: dict[str, object]) -> None:
    """Values at the edge of what is allowed are allowed."""
    Settings(**more)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"vanishing_threshold": 0.0}, r"`vanishing_threshold` must be a positive finite number or None\. Got 0\.0"),
        ({"exploding_threshold": math.inf}, r"`exploding_threshold` must be a positive finite number"),
        (
            {"vanishing_threshold": 1.0, "exploding_threshold": 0.1},
            r"`vanishing_threshold` must be below `exploding_threshold`\. Got 1\.0 and 0\.1",
        ),
        ({"patience": 0}, r"`patience` must be an integer of at least 1\. Got 0"),
        ({"patience": 2.0}, r"`patience` must be an integer of at least 1\. Got 2\.0"),
        ({"patience": True}, r"`patience` must be an integer of at least 1\. Got True"),
        ({"warmup_steps": -1}, r"`warmup_steps` must be an integer of at least 0\. Got -1"),
        ({"max_consecutive_skips": 0}, r"`max_consecutive_skips` must be an integer of at least 1\. Got 0"),
        ({"every_n_steps": None}, r"`every_n_steps` must be an integer of at least 1\. Got None"),
        ({"on_nonfinite": "ignore"}, r"`on_nonfinite` must be \"warn\", \"skip\" or \"raise\"\. Got 'ignore'"),
        ({"stop_on": ["nan"]}, r"`stop_on` must name symptoms out of vanishing, .*\. Got 'nan'"),
        ({"ignore": ["vanish"]}, r"`ignore` must name rules out of .*\. Got 'vanish'"),
    ],
)
def test_a_value_out_of_range_is_refused(more: dict[str, object], message: str) -> None:
    """The message names the argument, what is expected and what came."""
    with pytest.raises(ValueError, match=message):
        Settings(**more)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"ignore": "dead"}, r"`ignore` must be a list, not a single string\. Got 'dead'"),
        ({"stop_on": "dead"}, r"`stop_on` must be a list, not a single string\. Got 'dead'"),
        ({"sinks": "csv"}, r"`sinks` must be a list, not a single string\. Got 'csv'"),
        ({"sinks": [print]}, r"`sinks` must hold objects with write\(report\) and close\(\)\. Got"),
        ({"rules": ["dead"]}, r"`rules` must hold callables that take observations\. Got 'dead'"),
        ({"rules": "dead"}, r"`rules` must be a list, not a single string\. Got 'dead'"),
        ({"clipper": 1.0}, r"`clipper` must have a method clip_\(norms\)\. Got 1\.0"),
    ],
)
def test_a_part_that_cannot_be_called_is_refused(more: dict[str, object], message: str) -> None:
    """A sink, rule or clipper without its method is a TypeError before training starts."""
    with pytest.raises(TypeError, match=message):
        Settings(**more)


@pytest.mark.parametrize("name", ["rules", "sinks", "ignore", "stop_on"])
def test_one_thing_where_a_list_belongs_is_refused_by_name(name: str) -> None:
    """A rule or sink outside of a list is refused in words, not by an error of Python's."""
    with pytest.raises(TypeError, match=f"`{name}` must be a list"):
        Settings(**{name: my_rule})


def test_thresholds_come_on_top_of_the_rules() -> None:
    """Thresholds stay active beside the default rules and beside a person's own."""
    limit = ThresholdRule(1e-7, None)
    assert Settings(vanishing_threshold=1e-7).all_rules == (*default_rules(), limit)
    assert Settings(rules=[my_rule], vanishing_threshold=1e-7).all_rules == (my_rule, limit)
    assert Settings(rules=[my_rule]).all_rules == (my_rule,)
    assert Settings(rules=[], exploding_threshold=5.0).all_rules == (ThresholdRule(None, 5.0),)


@pytest.mark.parametrize(
    ("more", "acts"),
    [
        ({"clipper": ClipByGlobalNorm(max_norm=1.0)}, True),
        ({"on_nonfinite": "skip"}, True),
        ({"on_nonfinite": "raise"}, True),
        ({"on_nonfinite": "warn", "stop_on": ["dead"]}, False),
    ],
)
def test_acting_asks_for_every_step(more: dict[str, object], acts: bool) -> None:
    """A clipper, skip and raise act on gradients; watching and stopping do not."""
    assert Settings(**more).acts is acts
