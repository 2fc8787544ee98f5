"""The interactive page, once, when training is over, for a logger that can show HTML."""

from __future__ import annotations

from collections.abc import Callable

from lightning_gradwatch.report.step_report import StepReport


class PageSink:
    """Hand over the page at the end of training, and not more often: it is as large as all pictures together.

    Args:
        show: Takes the page and the step.
        page: Makes the page, of everything that is remembered then.

    Example:
        >>> pages = []
        >>> PageSink(lambda page, step: pages.append(page), lambda: "<html>").close()
        >>> pages
        []
    """

    def __init__(self, show: Callable[[str, int], None], page: Callable[[], str]) -> None:
        self._show = show
        self._page = page
        self._log_step: int | None = None

    def write(self, report: StepReport) -> None:
        """Note that there is something to show, and where it belongs."""
        self._log_step = report.log_step

    def close(self) -> None:
        """Show the page, where there was a reading."""
        step, self._log_step = self._log_step, None
        if step is not None:
            self._show(self._page(), step)
