"""Alerts of Weights & Biases, which reach a person by mail or chat."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from lightning_gradwatch.report.log import onset_text
from lightning_gradwatch.report.step_report import StepReport

# wandb's documentation of `Run.alert`: "must be less than 64 characters long".
_MAX_TITLE = 63
# Seconds. wandb drops a second alert with the same title within a minute by default, and takes 0 for the default.
_WAIT = 0.001


class WandbAlert:
    """Send an alert for each fault that begins, through the Weights & Biases run under way.

    Once an onset, not once a step: a fault that flaps is told as often as in the log. Whether it becomes a mail or a
    message in a chat is set in Weights & Biases (User Settings, Alerts).

    Args:
        notices: Whether notices are sent as well, at level INFO; warnings are sent at level WARN.

    Raises:
        ImportError: If wandb is not installed.

    Example:
        >>> from lightning_gradwatch import GradWatch
        >>> watch = GradWatch(sinks=[WandbAlert()])
        >>> [type(sink).__name__ for sink in watch.settings.sinks]
        ['WandbAlert']
    """

    def __init__(self, *, notices: bool = False) -> None:
        if importlib.util.find_spec("wandb") is None:
            raise ImportError("`WandbAlert` needs Weights & Biases: pip install wandb")
        self._notices = notices

    def write(self, report: StepReport) -> None:
        """Send what begins with this reading.

        Raises:
            RuntimeError: If no run is under way. That is asked at the first reading: on the day of the fault it would
                be too late.
        """
        run = _run()
        for diagnosis in report.onsets:
            if diagnosis.severity == "warning" or self._notices:
                text = onset_text(diagnosis, int(report.snapshot.present.sum()), report.optimizer_label)
                # The log's first line without our name, which is what a phone shows.
                title = text.partition("\n")[0].removeprefix("GradWatch  ")
                level = "WARN" if diagnosis.severity == "warning" else "INFO"
                run.alert(title=shortened(title), text=f"```\n{text}\n```", level=level, wait_duration=_WAIT)

    def close(self) -> None:
        """Do nothing: the run is not ours to finish."""


def shortened(title: str) -> str:
    """Cut a title to what wandb takes.

    Example:
        >>> len(shortened("x" * 100)), shortened("step 3  VANISHING")
        (63, 'step 3  VANISHING')
    """
    return title if len(title) <= _MAX_TITLE else title[: _MAX_TITLE - 3] + "..."


def _run() -> Any:
    # Only here: it takes a second to import.
    run = importlib.import_module("wandb").run
    if run is None:
        raise RuntimeError(
            "no run of Weights & Biases is under way, so nobody would hear of a fault: call wandb.init() before "
            "training, or give the Trainer a WandbLogger"
        )
    return run
