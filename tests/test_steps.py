"""Test ``lightning_gradwatch.steps``."""

from __future__ import annotations

import copy
import pickle

import pytest

from lightning_gradwatch.measure.snapshot import OptimizerDescription
from lightning_gradwatch.steps import PendingStep, Steps


class NotAsked:
    """Stands for a reading; nobody may ask for its numbers here."""


def step_of(number: int = 0, *, stepped: bool = True, scaled: bool = True, unscales: bool = False) -> PendingStep:
    """Return an open step."""
    return PendingStep(
        number,
        NotAsked(),
        OptimizerDescription("SGD"),
        scaled,
        unscales,
        wanted=True,
        log_step=0,
        due=0,
        stepped=stepped,
    )


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
    ("step", "finite", "overflows"),
    [
        (step_of(stepped=False), False, True),
        (step_of(stepped=True), True, False),
        (step_of(stepped=True, unscales=True), False, True),
        (step_of(stepped=True), False, False),
        (step_of(stepped=False, scaled=False), False, False),
    ],
)
def test_a_step_that_the_scaler_dropped_is_an_overflow(step, finite, overflows):
    """Dropped is what did not step, and what a fused optimizer stepped in name only."""
    steps = Steps(1)
    assert steps.overflows(0, step, finite=finite) is overflows
    assert steps.num_overflows == int(overflows)


def test_a_scaler_that_never_finds_its_scale_is_no_excuse():
    """After 24 overflows in a row a step counts like any other; one clean step starts the count anew."""
    steps = Steps(1)
    dropped, clean = step_of(stepped=False), step_of(stepped=True)
    assert [steps.overflows(0, dropped, finite=False) for _ in range(26)] == [True] * 24 + [False] * 2
    assert steps.overflows(0, clean, finite=True) is False
    assert steps.overflows(0, dropped, finite=False) is True


def test_counts_survive_a_checkpoint():
    """After a round trip the next wanted step is the same."""
    steps, fresh = Steps(3), Steps(3)
    for step in range(4):
        steps.begin(0, step)
    fresh.load_state_dict(**steps.state_dict())
    for each in (steps, fresh):
        each.begin(0, 4)
    assert fresh.wanted(0) is steps.wanted(0) is False


def test_overflows_in_a_row_survive_a_checkpoint():
    """The excuse does not start anew with every resume."""
    steps, fresh = Steps(1), Steps(1)
    dropped = step_of(stepped=False)
    assert [steps.overflows(0, dropped, finite=False) for _ in range(20)] == [True] * 20
    fresh.load_state_dict(**steps.state_dict())
    assert [fresh.overflows(0, dropped, finite=False) for _ in range(5)] == [True] * 4 + [False]
    assert fresh.num_overflows == 25


def test_open_steps_come_oldest_first():
    """However often each optimizer steps, steps are settled in the order in which they were made."""
    steps = Steps(1)
    steps.pending |= {0: step_of(5), 1: step_of(3), 2: step_of(4)}
    assert steps.in_order(4) == [1, 2]
    assert steps.in_order() == [1, 2, 0]
    assert steps.in_order(2) == []


def test_a_fit_that_begins_at_a_known_step_makes_new_steps():
    """What was open is gone; how many steps an optimizer has made is not."""
    steps = Steps(2)
    steps.begin(0, 7)
    steps.pending[0] = step_of(7)
    steps.restart()
    assert steps.pending == {}
    assert steps.is_new(0, 7)
    steps.begin(0, 7)
    assert not steps.wanted(0)


def test_a_scaler_is_excused_as_long_as_it_may_find_its_scale():
    """After 24 overflows in a row it is not."""
    steps = Steps(1)
    excused = []
    for _ in range(26):
        excused.append(steps.excuses(0))
        steps.overflows(0, step_of(stepped=False), finite=False)
    assert excused == [True] * 24 + [False] * 2


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda steps: pickle.loads(pickle.dumps(steps))])
def test_a_copy_keeps_the_counts_and_no_open_step(duplicate):
    """What is open belongs to a fit under way, which goes on in the original."""
    steps = Steps(2)
    steps.begin(0, 0)
    steps.overflows(0, step_of(stepped=False), finite=False)
    steps.pending[0] = step_of()
    other = duplicate(steps)
    assert (other.pending, list(steps.pending)) == ({}, [0])
    assert other.state_dict() == steps.state_dict()


def test_what_was_counted_of_another_model_is_forgotten():
    """It is as it was at the beginning."""
    steps = Steps(3)
    steps.begin(0, 0)
    steps.overflows(0, step_of(stepped=False), finite=False)
    steps.pending[0] = step_of()
    steps.forget()
    assert vars(steps) == vars(Steps(3))
