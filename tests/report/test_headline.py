"""Test ``lightning_gradwatch.report.headline``."""

from __future__ import annotations

from dataclasses import replace

from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.report.headline import headline_of

SICK = Diagnosis("a", Symptom.NON_FINITE, step=3)


def test_what_lasts_is_named_and_what_is_over_counted() -> None:
    """Each lasting warning is a part of its own, oldest first; the rest follows."""
    notice = replace(SICK, severity="notice")
    over = replace(SICK, recovered_at=9)
    faults = [over, SICK, notice, replace(SICK, symptom=Symptom.DEAD, step=8), over, notice]
    assert headline_of(faults) == (
        "NON-FINITE since step 3",
        "DEAD since step 8",
        "2 warnings recovered",
        "2 notices",
    )


def test_a_run_in_which_nothing_lasts_is_not_called_clean() -> None:
    """A warning that is over is told; a notice alone is no warning."""
    assert headline_of([replace(SICK, recovered_at=9)]) == ("no warning now", "1 warning recovered")
    assert headline_of([replace(SICK, severity="notice")]) == ("no warning", "1 notice")
