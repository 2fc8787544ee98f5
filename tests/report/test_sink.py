"""Test ``lightning_gradwatch.report.sink``."""

from __future__ import annotations

import logging

import pytest

from lightning_gradwatch.report.sink import Sink, SinkRow

LOGGER = logging.getLogger("test.sink")


class Recorder:
    """A sink that keeps what it is called with, and fails in one method."""

    def __init__(self, fails_in: str = "") -> None:
        self.calls: list[str] = []
        self.fails_in = fails_in

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.fails_in:
            raise OSError("disk full")

    def write(self, report: object) -> None:
        """Take a report."""
        self._call("write")

    def close(self) -> None:
        """End."""
        self._call("close")


class Careful(Recorder):
    """A sink that wants to know when a batch is over, and when watching ends early."""

    def flush(self) -> None:
        """Take the end of a batch."""
        self._call("flush")

    def deactivate(self, log_step: int) -> None:
        """Take the step."""
        self._call(f"deactivate {log_step}")


def test_every_sink_gets_every_call(report_of) -> None:
    """Sinks are called in turn; only those that have flush and deactivate are told of these."""
    sinks = [Recorder(), Careful()]
    row = SinkRow(sinks, LOGGER)
    row.write(report_of([[1.0]]))
    row.flush()
    row.deactivate(7)
    row.close()
    assert [sink.calls for sink in sinks] == [["write", "close"], ["write", "flush", "deactivate 7", "close"]]


@pytest.mark.parametrize("method", ["write", "deactivate 7", "close"])
def test_a_sink_that_raises_is_named_and_switched_off(report_of, method: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is told once, never called again, and the others go on."""
    sick, well = Careful(method), Careful()
    row = SinkRow([sick, well], LOGGER)
    for _ in range(2):
        row.write(report_of([[1.0]]))
        row.deactivate(7)
        row.close()
    assert sick.calls.count(method) == 1
    assert sick.calls[-1] == method
    assert well.calls == ["write", "deactivate 7", "close"] * 2
    assert caplog.messages == [
        "GradWatch  sink Careful failed and is switched off, training goes on: OSError: disk full"
    ]


def test_an_interrupt_is_not_a_failure(report_of) -> None:
    """A person who presses Ctrl-C in a sink is obeyed."""

    class Interrupted(Recorder):
        def write(self, report: object) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SinkRow([Interrupted()], LOGGER).write(report_of([[1.0]]))


def test_sinks_are_told_by_their_methods() -> None:
    """Anything with write and close is a sink."""
    assert isinstance(Recorder(), Sink)
    assert not isinstance(print, Sink)
