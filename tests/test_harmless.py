"""Test ``lightning_gradwatch.harmless``."""

from __future__ import annotations

import pytest

from lightning_gradwatch import GradientFault
from lightning_gradwatch.harmless import harmless
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
