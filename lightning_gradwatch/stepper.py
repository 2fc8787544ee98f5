"""What is done to the gradients of a step: measured, clipped, and dropped where that is asked."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lightning_gradwatch.measure.reader import Reader
from lightning_gradwatch.measure.reading import Reading
from lightning_gradwatch.poisoned import PoisonedSteps
from lightning_gradwatch.settings import Settings
from lightning_gradwatch.steps import OptimizerStep


class Stepper:
    """Reads each step and acts on it, also after GradWatch had to switch itself off.

    Args:
        settings: What the person has set.
        reader: Knows the layers.
        poisoned: Drops steps and counts them.
        warn: Takes the sentence that says that nothing can be done any more.
        clips_elsewhere: Whether someone else clips between the reading and the step.
        anywhere: Tells whether something is true in any of several processes; None in one process alone.
    """

    def __init__(
        self,
        settings: Settings,
        reader: Reader,
        poisoned: PoisonedSteps,
        warn: Callable[[str], None],
        *,
        clips_elsewhere: bool,
        anywhere: Callable[[bool], bool] | None = None,
    ) -> None:
        self.reader = reader
        self.clips_elsewhere = clips_elsewhere
        self._poisoned = poisoned
        self._settings = settings
        self._warn = warn
        self._alone = anywhere is None
        self._anywhere = anywhere or bool
        self._helpless = False
        # How often had been measured when the newest step began.
        self._measured_before = 0
        self._clips = settings.clipper is not None
        self.clipper_failure = ""

    def read(self, about: OptimizerStep, loss: Tensor | None = None) -> Reading:
        """Measure the gradients that an optimizer is about to use, and clip them.

        Args:
            about: The step.
            loss: Its loss.

        Returns:
            The reading, its transfer started unless someone else has yet to clip.
        """
        self._measured_before = self.reader.num_measured
        reading = self.reader.read(about.number, about.optimizer, about.step, loss, about.scale(), about.unscales)
        self._clip_(reading)
        if not self._looks_again(about):
            reading.release()
        elif not self.clips_elsewhere:
            reading.send()
        return reading

    def _looks_again(self, about: OptimizerStep) -> bool:
        """Tell whether it can be known after the step what others made of the gradients before it.

        A fused optimizer writes to the gradients itself; and where they are sharded, all processes have to look
        again, or none.
        """
        fused = any(group.get("fused") for group in about.optimizer.param_groups)
        return self.clips_elsewhere or not (fused or self.reader.sharded(about.number, about.optimizer))

    def look_again(self, reading: Reading) -> None:
        """After the step: measure the gradients once more where others have changed them."""
        if self.clips_elsewhere or reading.changed:
            reading.measure_again()
        reading.release()

    def _clip_(self, reading: Reading) -> None:
        clipper = self._settings.clipper
        if clipper is None or not self._clips:
            return
        try:
            reading.clip_(clipper.clip_)
        except Exception as error:
            self._clips = False
            self.clipper_failure = f"{type(clipper).__name__}: {type(error).__name__}: {error}"
            self._warn(f"clipper failed, training goes on unclipped: {self.clipper_failure}")

    def stop_clipping(self) -> None:
        """End clipping because the clipper of another process failed: each would train on other gradients."""
        if self._clips:
            self._clips = False
            self._warn("clipper failed in another process, training goes on unclipped in all")

    def read_unwatched(self, about: OptimizerStep, *, together: bool, failed_now: bool) -> Reading | None:
        """Go on after GradWatch had to switch itself off.

        A clipper, and dropping steps, were asked for by name. And where gradients are sharded, other processes measure
        theirs together with this one, until all of them know.

        Args:
            about: The step.
            together: Whether other processes may still measure.
            failed_now: Whether it was reading this very step that failed.

        Returns:
            The reading; None where nothing is to be done, or can be.
        """
        acts = self._settings.acts
        try:
            sharded = self.reader.sharded(about.number, about.optimizer)
            if not sharded:
                return self.read(about) if acts and not self._helpless else None
            # Measuring together happens once a step, whatever failed after it, and never stops in one process alone.
            measured = failed_now and self.reader.num_measured > self._measured_before
            return self.read(about) if (acts or together) and not measured else None
        except Exception as error:
            if acts and not self._helpless:
                what = f"{type(error).__name__}: {error}"
                self._warn(f"cannot clip or drop steps any more, training goes on without: {what}")
            self._helpless = True
            return None

    def drop_(self, about: OptimizerStep, reading: Reading, *, excused: bool = False) -> str:
        """Drop a poisoned step where that is asked; it waits for the numbers, since the decision is needed now.

        Args:
            about: The step.
            reading: Its numbers.
            excused: Whether a loss scaler drops a poisoned step by itself, and may yet find its scale.

        Returns:
            Why training has to end, empty where it goes on.
        """
        if self._settings.on_nonfinite == "warn":
            return ""
        snapshot = reading.snapshot()
        finite = snapshot.finite
        if not self._alone and self.reader.partly_sharded(about.number, about.optimizer):
            # What is not sharded is each process's own: they have to agree.
            finite = not self._anywhere(not finite)
        if finite or excused:
            self._poisoned.clean()
            return ""
        # What follows is ours: nobody else changes these gradients any more.
        reading.release()
        if self._poisoned.handle_(about.optimizer):
            return self._poisoned.reason(snapshot, [layer.name for layer in self.reader.layers])
        return ""
