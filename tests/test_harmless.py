"""Test ``lightning_gradwatch.harmless``."""

from __future__ import annotations

import copy
import pickle

import pytest

from lightning_gradwatch import GradientFault
from lightning_gradwatch.harmless import Guard, Stopwatch, harmless
from lightning_gradwatch.settings import Settings
from lightning_gradwatch.watching import Watch


class Driver:
    """Has a core and fails as it is told."""

    def __init__(self) -> None:
        self.core = Watch(Settings())
        self.calls = 0

    @harmless
    def call(self, error: BaseException | None = None) -> int:
        """Count a call, or fail."""
        self.calls += 1
        if error is not None:
            raise error
        return self.calls


def test_an_error_switches_off_and_later_calls_do_nothing(caplog):
    """The first error is told with its kind; after it the method is not called again."""
    driver = Driver()
    assert driver.call() == 1
    assert driver.call(ValueError("ours")) is None
    assert driver.call() is None
    assert driver.calls == 2
    assert driver.core.disabled_reason == "ValueError: ours"
    assert caplog.text.count("ValueError: ours") == 1


@pytest.mark.parametrize("error", [GradientFault("on purpose", ()), KeyboardInterrupt(), SystemExit(1)])
def test_what_is_raised_on_purpose_goes_through(error):
    """Neither our own fault nor a wish to stop is swallowed."""
    driver = Driver()
    with pytest.raises(type(error)):
        driver.call(error)
    assert driver.core.disabled_reason is None


def test_the_time_is_added_up():
    """What the guarded methods take is what the closing line calls the cost."""
    driver = Driver()
    driver.call()
    assert driver.core.seconds > 0


def test_of_blocks_inside_each_other_the_outermost_is_timed(monkeypatch):
    """A clock that jumps by one at each look is looked at twice, however many blocks lie inside, also by an error."""
    looks = iter(range(10))
    monkeypatch.setattr("time.perf_counter", lambda: next(looks))
    stopwatch = Stopwatch()
    with pytest.raises(KeyError), stopwatch, stopwatch, stopwatch:
        raise KeyError
    assert stopwatch.seconds == 1
    with stopwatch:
        pass
    assert stopwatch.seconds == 2


def test_a_copy_made_inside_a_block_is_timed_from_its_own_first_block():
    """A checkpoint callback may copy GradWatch in the middle of its work."""
    stopwatch = Stopwatch()
    with stopwatch:
        copies = [copy.deepcopy(stopwatch), pickle.loads(pickle.dumps(stopwatch))]
    for copied in copies:
        assert copied.seconds == 0
        with copied:
            pass
        assert 0 < copied.seconds < 60


def test_a_copied_core_is_switched_off_alone():
    """The guard of a copy belongs to the copy."""
    core = Watch(Settings())
    copied = copy.deepcopy(core)
    with copied.guarded():
        raise ValueError("only here")
    assert (core.disabled_reason, copied.disabled_reason) == (None, "ValueError: only here")


def test_a_guard_inside_a_guard_hands_an_error_over_once():
    """The inner one ends it, and what follows in the outer one still runs."""
    failed, stopwatch, reached = [], Stopwatch(), []
    guard = Guard(stopwatch, failed.append)
    with guard:
        with guard:
            raise ValueError("inner")
        reached.append(True)
    assert [str(error) for error in failed] == ["inner"]
    assert reached == [True]
