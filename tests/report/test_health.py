"""Test ``lightning_gradwatch.report.health``."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.report.health import assert_healthy

SICK = Diagnosis("vanishing.depth", Symptom.VANISHING, layers=("net.0",), step=5, message="almost no gradient")


def test_a_run_without_warnings_passes():
    """Notices are no failure."""
    assert_healthy([replace(SICK, severity="notice")], num_readings=10, num_layers=2)


def test_a_warning_fails_and_explains():
    """The message is the one of the log."""
    with pytest.raises(AssertionError, match=r"step 5  VANISHING: almost no gradient \(1 of 2 layers: net\.0\)"):
        assert_healthy([SICK], num_readings=10, num_layers=2)


def test_nothing_measured_proves_nothing():
    """Without a reading the assertion fails and asks the right questions."""
    with pytest.raises(AssertionError, match=r"saw no gradient.*ddp_spawn"):
        assert_healthy([], num_readings=0, num_layers=2)


@pytest.mark.parametrize(
    ("diagnosis", "after_step", "passes"),
    [(SICK, 100, False), (replace(SICK, recovered_at=20), 100, True), (replace(SICK, recovered_at=20), 10, False)],
)
def test_what_was_over_before_does_not_count(diagnosis, after_step, passes):
    """Only what began or lasted after the step fails."""
    if passes:
        assert_healthy([diagnosis], 200, 2, after_step=after_step)
    else:
        with pytest.raises(AssertionError, match="VANISHING"):
            assert_healthy([diagnosis], 200, 2, after_step=after_step)


def test_only_the_symptoms_that_were_named_count():
    """A symptom that does not exist is refused."""
    assert_healthy([SICK], 10, 2, symptoms=["exploding"])
    with pytest.raises(ValueError, match="vanished"):
        assert_healthy([SICK], 10, 2, symptoms=["vanished"])
