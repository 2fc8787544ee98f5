"""Test ``lightning_gradwatch.viewer.values``."""

from __future__ import annotations

import json

import pytest
from viewer.planted import planted_run

from lightning_gradwatch.viewer.page import finite
from lightning_gradwatch.viewer.run import Run
from lightning_gradwatch.viewer.values import run_values


def test_every_layer_has_its_newest_norm() -> None:
    """By name, as a number and not as its logarithm, of the last step."""
    run = planted_run("a", kind="relu")
    (norms,) = run_values(run)["norms"]
    windows = run.series[0].windows
    assert (norms["optimizer"], norms["step"]) == (0, windows.steps[-1])
    assert list(norms["layers"]) == list(run.series[0].layers)
    assert norms["layers"]["head"] == pytest.approx(10.0 ** float(windows.median[-1, -1]))


def test_a_run_that_was_not_measured_is_told_from_a_healthy_one() -> None:
    """In a flag for a program, and in words."""
    values = run_values(Run("a"))
    assert (values["measured"], values["verdict"], values["norms"]) == (False, "a: nothing was measured", [])
    assert run_values(planted_run("a", kind="relu"))["measured"]


def test_it_is_json_once_numbers_that_json_has_no_word_for_are_texts() -> None:
    """The sick runs have NaN, zeros and infinities."""
    values = finite(run_values(planted_run("a", kind="mixed")))
    assert json.loads(json.dumps(values, allow_nan=False)) == values
