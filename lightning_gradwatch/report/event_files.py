"""Event files of a loop without Lightning: what the sinks ask of a TensorBoard logger, and no more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class TensorBoardLogger:
    """A directory of TensorBoard's event files, made when something is written.

    It has the name and those members of Lightning's logger that the sinks use; they tell loggers by name.

    Args:
        log_dir: The directory.
    """

    def __init__(self, log_dir: str | Path) -> None:
        self.log_dir = str(log_dir)
        self._writer: Any = None

    @property
    def experiment(self) -> Any:
        """The writer: ``torch.utils.tensorboard.SummaryWriter``."""
        if self._writer is None:
            # Only here: it takes a second to import.
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

            self._writer = SummaryWriter(self.log_dir)
        return self._writer

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Write numbers."""
        for name, value in metrics.items():
            self.experiment.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is pending."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
