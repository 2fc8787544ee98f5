"""What is remembered of a run, as a person is shown it: with the names of layers and optimizers, and where it goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_gradwatch.measure.snapshot import LayerDescription
from lightning_gradwatch.record import Record
from lightning_gradwatch.report.recorded import Caption, recorded_run
from lightning_gradwatch.report.show import show_run
from lightning_gradwatch.report.teller import Teller
from lightning_gradwatch.settings import Settings
from lightning_gradwatch.viewer.run import Run


class Display:
    """Knows what stands beside the numbers, also when the fit is over and the model is gone.

    Args:
        settings: What the person has set.
        record: The numbers.
        teller: Writes the training log.

    Attributes:
        directory: The log directory, where the page goes; None where there is none.
    """

    def __init__(self, settings: Settings, record: Record, teller: Teller) -> None:
        self.directory: Path | None = None
        self._settings = settings
        self._record = record
        self._teller = teller
        self._kinds: dict[str, str] = {}

    def describe(self, descriptions: Sequence[LayerDescription]) -> None:
        """Note of what class the layers are."""
        self._kinds = {about.name: about.kind for about in descriptions}

    def run(self, disabled: str | None) -> Run:
        """Return what is remembered, as the page shows it.

        Args:
            disabled: Why GradWatch switched itself off, None where it did not.
        """
        caption = Caption(
            self._record.optimizer_kinds,
            self._kinds,
            self._settings.vanishing_threshold,
            self._settings.exploding_threshold,
            disabled,
        )
        name = "this run" if self.directory is None else self.directory.name
        record = self._record
        return recorded_run(name, record.history, record.probes, record.diagnoses, caption)

    def show(self, run: Run) -> Path | None:
        """Display a run in a notebook, else write its page and say where."""
        path = show_run(run, self.directory)
        if path is not None:
            self._teller.say(f"GradWatch  page       {path}")
        return path
