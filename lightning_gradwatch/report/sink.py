"""Where reports go, and how one sink that fails is kept from harming the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from lightning_gradwatch.report.step_report import StepReport


@runtime_checkable
class Sink(Protocol):
    """Anything that takes reports; called on rank zero only.

    A sink may also have ``flush()``, called after each batch, in which several optimizers may have stepped,
    ``deactivate(log_step)``, called when GradWatch had to switch itself off, and ``end(reason, detail)``, called before
    ``close()`` with ``"completed"``, ``"error"`` or ``"switched off"``.

    Example:
        >>> class Onsets:
        ...     def __init__(self):
        ...         self.told = []
        ...     def write(self, report):
        ...         self.told += report.onsets
        ...     def close(self):
        ...         pass
        >>> isinstance(Onsets(), Sink)
        True
    """

    def write(self, report: StepReport) -> None:
        """Take one reading."""
        ...

    def close(self) -> None:
        """Write what is pending; training is over or has failed."""
        ...


class SinkRow:
    """Several sinks behind one; a sink that raises is named, switched off and not called again.

    Args:
        sinks: The sinks, in the order in which they are called.
        logger: Where a failure is told.
    """

    def __init__(self, sinks: Sequence[Sink], logger: logging.Logger) -> None:
        self.failed: list[Sink] = []
        self._sinks = list(sinks)
        self._logger = logger

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the sinks: they hold loggers and files of a fit under way."""
        return self.__dict__ | {"_sinks": [], "failed": []}

    def write(self, report: StepReport) -> None:
        """Give a report to every sink."""
        self._each(lambda sink: sink.write(report))

    def flush(self) -> None:
        """Tell the sinks that care that the batch is over."""
        self._each(lambda sink: getattr(sink, "flush", lambda: None)())

    def deactivate(self, log_step: int) -> None:
        """Tell the sinks that care that GradWatch is switched off."""
        self._each(lambda sink: getattr(sink, "deactivate", lambda _: None)(log_step))

    def end(self, reason: str, detail: str) -> None:
        """Tell the sinks that care how the run has ended."""
        self._each(lambda sink: getattr(sink, "end", lambda *_: None)(reason, detail))

    def close(self) -> None:
        """Close every sink."""
        self._each(lambda sink: sink.close())

    def _each(self, call: Callable[[Sink], None]) -> None:
        for sink in list(self._sinks):
            try:
                call(sink)
            except Exception as error:
                self._sinks.remove(sink)
                self.failed.append(sink)
                self._logger.warning(
                    "GradWatch  sink %s failed and is switched off, training goes on: %s: %s",
                    type(sink).__name__,
                    type(error).__name__,
                    error,
                )
