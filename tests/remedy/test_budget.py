"""Test ``lightning_gradwatch.remedy.budget``; what a rehearsal makes of it is in ``test_rehearsal``."""

from __future__ import annotations

import pytest

from lightning_gradwatch.remedy import budget
from lightning_gradwatch.remedy.budget import Budget


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """Return a clock that stands still until it is set."""
    time = [0.0]
    monkeypatch.setattr(budget, "perf_counter", lambda: time[0])
    return time


def test_a_first_pass_that_warms_up_does_not_decide(clock):
    """One that takes as long as a whole share is followed by another, which tells what a step really takes."""
    share = Budget(4.0, num_copies=4)
    clock[0] = 0.9
    assert share.another_step(1, 10)
    clock[0] = 0.91
    assert share.another_step(2, 10)
    clock[0] = 0.995
    assert not share.another_step(3, 10)


def test_copies_that_make_no_step_take_one_pass(clock):
    """What went into finding out that steps do not fit is not counted for them."""
    found = Budget(10.0, num_copies=3)
    clock[0] = 2.4
    assert found.another_step(1, 10)
    clock[0] = 4.8
    assert not found.another_step(2, 10)
    found.untreated_done(0)
    clock[0] = 7.5
    assert found.another_copy()
    clock[0] = 7.7
    assert not found.another_copy()


def test_a_short_wait_is_not_announced_and_a_long_one_once(clock):
    """What is expected is told before most of it has gone by."""
    heard: list[str] = []
    short = Budget(10.0, num_copies=2, say=heard.append)
    clock[0] = 0.05
    assert short.another_step(1, 10)
    clock[0] = 0.1
    assert short.another_step(2, 10)
    short.untreated_done(10)
    assert heard == []
    clock[0] = 0.0
    slow = Budget(100.0, num_copies=2, say=heard.append)
    clock[0] = 0.5
    assert slow.another_step(1, 10)
    clock[0] = 1.0
    assert slow.another_step(2, 10)
    clock[0] = 1.5
    assert slow.another_step(3, 10)
    # Ten steps and a look at the loss, 0.5 s each, twice.
    assert heard == ["GradWatch  trying 1 way out on copies, about 11 s"]
