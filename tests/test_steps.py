"""Test ``lightning_gradwatch.steps``."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_gradwatch.measure.snapshot import GradientSnapshot, OptimizerDescription
from lightning_gradwatch.steps import PendingStep, Steps


def step_of(norm: float, *, stepped: bool, scaled: bool = True, unscales: bool = False) -> PendingStep:
    """Return an open step of one layer."""
    row, present = np.array([norm]), np.array([True])
    snapshot = GradientSnapshot(0, 0, row, row, row, row, present, row)
    return PendingStep(snapshot, OptimizerDescription("SGD"), 1.0, scaled, unscales, True, None, stepped)


@pytest.mark.parametrize(("every", "wanted"), [(1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 4]), (4, [0, 4])])
def test_every_nth_step_is_wanted(every, wanted):
    """The first step of an optimizer is wanted, and every n-th after it."""
    steps = Steps(every)
    found = []
    for step in range(6):
        steps.begin(0, step)
        found += [step] if steps.wanted(0) else []
    assert found == wanted


def test_optimizers_are_counted_apart():
    """Each optimizer has its own every n-th step."""
    steps = Steps(2)
    steps.begin(0, 0)
    steps.begin(1, 1)
    steps.begin(0, 2)
    assert (steps.wanted(0), steps.wanted(1)) == (False, True)


def test_evaluations_of_one_closure_are_one_step():
    """A second call with the same step is not a new one."""
    steps = Steps(1)
    assert steps.is_new(0, 7)
    steps.begin(0, 7)
    assert not steps.is_new(0, 7)
    assert steps.is_new(0, 8)
    assert steps.is_new(1, 7)


@pytest.mark.parametrize(
    ("step", "overflows"),
    [
        (step_of(np.inf, stepped=False), True),
        (step_of(1.0, stepped=True), False),
        (step_of(np.nan, stepped=True, unscales=True), True),
        (step_of(np.nan, stepped=True), False),
        (step_of(np.nan, stepped=False, scaled=False), False),
    ],
)
def test_a_step_that_the_scaler_dropped_is_an_overflow(step, overflows):
    """Dropped is what did not step, and what a fused optimizer stepped in name only."""
    steps = Steps(1)
    assert steps.overflows(0, step) is overflows
    assert steps.num_overflows == int(overflows)


def test_a_scaler_that_never_finds_its_scale_is_no_excuse():
    """After 24 overflows in a row a step counts like any other; one clean step starts the count anew."""
    steps = Steps(1)
    dropped, clean = step_of(np.nan, stepped=False), step_of(1.0, stepped=True)
    assert [steps.overflows(0, dropped) for _ in range(26)] == [True] * 24 + [False] * 2
    assert steps.overflows(0, clean) is False
    assert steps.overflows(0, dropped) is True


def test_counts_survive_a_checkpoint():
    """After a round trip the next wanted step is the same."""
    steps, fresh = Steps(3), Steps(3)
    for step in range(4):
        steps.begin(0, step)
    fresh.load_state_dict(**steps.state_dict())
    for each in (steps, fresh):
        each.begin(0, 4)
    assert fresh.wanted(0) is steps.wanted(0) is False
