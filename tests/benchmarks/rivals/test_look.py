"""Test ``benchmarks.ward.rivals.look``."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.ward.rivals.look import Flag, Look
from lightning_gradwatch import Symptom


def test_norms_and_sizes_are_those_of_the_definition(look) -> None:
    """A norm is the root of the sum of squares, a size the mean of absolute values, the global norm that of all."""
    one = look([[3.0, -4.0], [0.0, 12.0]])
    assert one.norms.tolist() == [5.0, 12.0]
    assert one.sizes.tolist() == [3.5, 6.0]
    assert one.global_norm == 13.0
    assert one.finite.tolist() == [True, True]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_number_that_is_not_finite_is_enough(look, value: float) -> None:
    """A gradient with a single NaN or infinity is not finite, and a large one is."""
    assert look([[1.0, value], [1e150, 1e150]]).finite.tolist() == [False, True]


def test_a_flag_names_the_first_three(look) -> None:
    """A flag holds the step and at most three names in registration order, or none."""
    one = look([[1.0]] * 5, number=7)
    every = np.array([False, True, True, True, True])
    assert one.flag(Symptom.DEAD, every) == Flag(7, Symptom.DEAD, ("b", "c", "d"))
    assert one.flag(Symptom.SPIKE) == Flag(7, Symptom.SPIKE, ())


def test_what_nobody_asks_for_is_not_read() -> None:
    """Weights and gradients are read once, and only when a rule asks."""
    calls: list[str] = []

    def read(what: str) -> list[np.ndarray]:
        calls.append(what)
        return [np.ones(2)]

    one = Look(0, 0, 0.0, ("a",), lambda: read("gradients"), lambda: read("weights"), 1.0)
    assert calls == []
    assert one.norms[0] == one.sizes[0] * 2**0.5
    assert calls == ["gradients"]
