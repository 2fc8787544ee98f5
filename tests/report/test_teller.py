"""Test ``lightning_gradwatch.report.teller``."""

from __future__ import annotations

import logging

from lightning_gradwatch.report.teller import Teller


def test_one_process_is_heard(caplog):
    """What all processes know is said by one of them, with our name before a warning."""
    first, second = Teller(), Teller()
    second.speaks = False
    with caplog.at_level(logging.INFO):
        for teller in (first, second):
            teller.say("GradWatch  begins")
            teller.warn("careful")
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("INFO", "GradWatch  begins"),
        ("WARNING", "GradWatch  careful"),
    ]


def test_what_only_one_process_knows_is_said_by_it_once(caplog):
    """A failure of a process that is not heard otherwise."""
    teller = Teller()
    teller.speaks = False
    for _ in range(3):
        teller.warn_from_here("mine")
    assert [r.getMessage() for r in caplog.records] == ["GradWatch  mine"]
