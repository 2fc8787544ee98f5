"""Test ``benchmarks.ward.rivals.deepdiagnosis``."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.ward.rivals.deepdiagnosis import DeepDiagnosis
from benchmarks.ward.rivals.look import Units

NAN = float("nan")


def said(look, *looks, every: int = 1) -> list[tuple[int, str, tuple[str, ...]]]:
    """Let a fresh rule see looks; return step, symptom and layers of its flags."""
    rule = DeepDiagnosis(every_n_steps=every)
    return [(flag.step, flag.symptom.value, flag.layers) for one in looks for flag in rule.observe(one)]


@pytest.mark.parametrize(
    ("gradient", "flag"),
    [
        ([1.0, 2.0], None),
        ([NAN, 1.0], "non_finite"),
        # The mean is exactly 0, though nothing is wrong: its numerical error.
        ([1.0, -1.0], "dead"),
        ([1e-7, 1e-7], None),
        ([0.9e-7, 0.9e-7], "vanishing"),
    ],
)
def test_means_of_gradients_have_the_published_bounds(look, gradient: list[float], flag: str | None) -> None:
    """A mean of NaN or exactly 0 is a numerical error, and a mean absolute value below 1e-7 has vanished."""
    assert said(look, look([[1.0, 1.0], gradient])) == ([] if flag is None else [(0, flag, ("b",))])


def test_a_weight_that_is_no_number_is_a_numerical_error(look) -> None:
    """The means of weights are looked at as well."""
    assert said(look, look([[1.0], [2.0]], [[NAN], [1.0]])) == [(0, "non_finite", ("a",))]


def test_it_looks_every_so_many_steps_and_at_the_end(look) -> None:
    """A fault in every step is told at the looks alone, the last of which is the last step."""
    looks = [
        look([[0.0]], [[number + 1.0]], number=number, loss=number, progress=(number + 1) / 7) for number in range(7)
    ]
    assert {step for step, _, _ in said(look, *looks, every=3)} == {2, 5, 6}


def test_a_mean_that_is_the_same_in_five_looks_is_unchanged(look) -> None:
    """Four looks are not enough, and a change begins anew."""

    def run(values: list[float]) -> list[int]:
        looks = [look([[1.0 + n]], [[value]], number=n, loss=1.0 + n) for n, value in enumerate(values)]
        return [step for step, symptom, _ in said(look, *looks) if symptom == "vanishing"]

    assert run([2.0] * 4) == []
    assert run([2.0] * 6) == [4, 5]
    assert run([2.0] * 4 + [3.0] * 5) == [8]


def test_a_loss_that_is_the_same_in_five_looks_does_not_decrease(look) -> None:
    """The loss counts without a layer; one that is no number is told at once."""
    looks = [look([[1.0 + n]], [[1.0 + n]], number=n, loss=0.5) for n in range(5)]
    assert said(look, *looks[:4]) == []
    assert said(look, *looks) == [(4, "vanishing", ())]
    assert said(look, look([[1.0]], loss=NAN)) == [(0, "non_finite", ())]


def test_dead_nodes_are_judged_in_the_last_step_only(look) -> None:
    """Seven tenths of a ReLU's outputs that are not above 0 make its layer dead at the end of the training."""
    off = {"relu": Units("a", off=np.array([1.0, 0.4]))}
    alive = {"relu": Units("a", off=np.array([1.0, 0.39]))}
    assert said(look, look([[1.0]], units=off, progress=0.99)) == []
    assert said(look, look([[1.0]], units=off, progress=1.0)) == [(0, "dead", ("a",))]
    assert said(look, look([[1.0]], units=alive, progress=1.0)) == []


def test_more_than_half_of_the_inputs_beyond_five_are_saturated(look) -> None:
    """Half is not enough, and it is told in any look."""
    half, more = (Units("a", beyond_5=np.array([0.5, share])) for share in (0.5, 0.6))
    assert said(look, look([[1.0]], units={"tanh": half})) == []
    assert said(look, look([[1.0]], units={"tanh": more})) == [(0, "vanishing", ("a",))]
