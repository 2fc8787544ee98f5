"""One process's voice in the training log."""

from __future__ import annotations

from lightning_gradwatch.report.log import training_logger


class Teller:
    """Writes sentences into the training log, from the one process that is to be heard.

    Attributes:
        logger: The training log itself.
        speaks: Whether this process is heard: rank zero only.
    """

    def __init__(self) -> None:
        self.logger = training_logger()
        self.speaks = True
        self._told_once: set[str] = set()

    def say(self, text: str) -> None:
        """Write a line as it is."""
        if self.speaks:
            self.logger.info(text)

    def warn(self, text: str) -> None:
        """Write a warning that begins with our name."""
        if self.speaks:
            self.logger.warning("GradWatch  %s", text)

    def warn_from_here(self, text: str) -> None:
        """Write a warning once, heard or not: only this process knows of it."""
        if text not in self._told_once:
            self._told_once.add(text)
            self.logger.warning("GradWatch  %s", text)
