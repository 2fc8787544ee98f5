"""What is done to the gradients of a step: measured, clipped, and dropped where that is asked."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import numpy as np
from torch import Tensor

from lightning_gradwatch.measure.finite import gradients_finite
from lightning_gradwatch.measure.norms import GradientNorms
from lightning_gradwatch.measure.reader import Reader
from lightning_gradwatch.measure.reading import Reading
from lightning_gradwatch.measure.snapshot import GradientSnapshot
from lightning_gradwatch.poisoned import Poison, PoisonedSteps
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
        in_step: Whether all processes come to each step of an optimizer together.
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
        in_step: bool = False,
    ) -> None:
        self.reader = reader
        self.clips_elsewhere = clips_elsewhere
        self._poisoned = poisoned
        self._settings = settings
        self._warn = warn
        self._anywhere = anywhere
        self._in_step = in_step
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
        if not self._looks_again(about, reading):
            reading.release()
        elif not self.clips_elsewhere:
            reading.send()
        return reading

    def _looks_again(self, about: OptimizerStep, reading: Reading) -> bool:
        """Tell whether it can be known after the step what others made of the gradients before it.

        A fused optimizer writes to the gradients itself; and where they are sharded, all processes have to look
        again, or none.
        """
        fused = any(group.get("fused") for group in about.optimizer.param_groups)
        return self.clips_elsewhere or not (fused or reading.sharded)

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
            reading.clip_(lambda norms: clipper.clip_(self._told(norms)))
        except Exception as error:
            self._clips = False
            self.clipper_failure = f"{type(clipper).__name__}: {type(error).__name__}: {error}"
            self._warn(f"clipper failed, training goes on unclipped: {self.clipper_failure}")

    def _told(self, norms: GradientNorms) -> GradientNorms:
        """Tell a clipper which layer is which."""
        return replace(norms, layers=self.reader.layers, descriptions=self.reader.descriptions)

    def stop_clipping(self) -> None:
        """End clipping because the clipper of another process failed: each would train on other gradients."""
        if self._clips:
            self._clips = False
            self._warn("clipper failed in another process, training goes on unclipped in all")

    def read_unwatched(
        self, about: OptimizerStep, loss: Tensor | None = None, *, together: bool, failed_now: bool
    ) -> Reading | None:
        """Go on after GradWatch had to switch itself off.

        A clipper, and dropping steps, were asked for by name. And where gradients are sharded, other processes measure
        theirs together with this one, until all of them know.

        Args:
            about: The step.
            loss: Its loss.
            together: Whether other processes may still measure.
            failed_now: Whether it was reading this very step that failed.

        Returns:
            The reading; None where nothing is to be done, or can be.
        """
        acts = self._settings.acts
        try:
            sharded = self.reader.sharded(about.number, about.optimizer)
            if not sharded:
                return self.read(about, loss) if acts and not self._helpless else None
            # Measuring together happens once a step, whatever failed after it, and never stops in one process alone.
            measured = failed_now and self.reader.num_measured > self._measured_before
            return self.read(about, loss) if (acts or together) and not measured else None
        except Exception as error:
            if acts and not self._helpless:
                lost = "clip any more" if self._settings.clipper is not None else "measure any more"
                drops = self._settings.on_nonfinite != "warn"
                still = ", steps that are not finite are still dropped" if drops else ""
                self._warn(f"cannot {lost}, training goes on without{still}: {type(error).__name__}: {error}")
            self._helpless = True
            return None

    def drop_(self, about: OptimizerStep, reading: Reading | None, *, excused: bool = False) -> Poison | None:
        """Drop a poisoned step where that is asked; it waits for the numbers, since the decision is needed now.

        Args:
            about: The step.
            reading: Its numbers; None where they could not be measured, and then the gradients are looked at plainly.
            excused: Whether a loss scaler drops a poisoned step by itself, and may yet find its scale.

        Returns:
            What was wrong; None where the step is not poisoned, or is nobody's business.
        """
        if self._settings.on_nonfinite == "warn":
            return None
        snapshot = None if reading is None else self.numbers(reading)
        finite = self._plainly_finite(about) if snapshot is None else snapshot.finite
        poisoned = not finite and not excused
        anywhere = self._anywhere if self._come_together(about) else None
        if anywhere is not None:
            poisoned = anywhere(poisoned)
        if not poisoned:
            self._poisoned.clean(about.number)
            return None
        # From here on nothing may fail in one process alone: the others do as was agreed.
        if reading is not None:
            with suppress(Exception):
                # What follows is ours: nobody else changes these gradients any more.
                reading.release()
        sick = () if snapshot is None else self.sick(snapshot)
        ends = self._poisoned.handle_(about.optimizer, about.number, about.step, sick)
        reason = self._poisoned.reason(about.number, about.step, sick) if ends else ""
        return Poison(sick, reason, agreed=anywhere is not None)

    def decide_alone(self) -> None:
        """Agree with nobody: one of the processes could not even begin, and would be waited for."""
        self._anywhere, self._in_step = None, False

    def _come_together(self, about: OptimizerStep) -> bool:
        """Tell whether all processes come to a step, and so agree on it.

        Also where the strategy averages the gradients, or puts the norms of shards together: a layer that was frozen
        when DDP began is not averaged, a hook of the person's own may average at other times, and one process alone
        may fail to see what the others see. What all of them do must not hang on that. An optimizer that a person
        steps by hand may step in one process only, and then nobody can be waited for, unless its gradients are
        sharded: those are made by all together.
        """
        return self._in_step or self.reader.sharded(about.number, about.optimizer)

    @staticmethod
    def numbers(reading: Reading) -> GradientSnapshot | None:
        """Return the numbers of a reading; None where they do not arrive."""
        try:
            return reading.snapshot()
        except Exception:
            # The person is told where it fails again, when the step is settled.
            return None

    @staticmethod
    def _plainly_finite(about: OptimizerStep) -> bool:
        try:
            return gradients_finite(about.optimizer)
        except Exception:
            # Nothing can be known of it, and a step is not dropped on a suspicion.
            return True

    def sick(self, snapshot: GradientSnapshot) -> tuple[str, ...]:
        """Return the names of the layers whose gradient is not finite as the optimizer would use it.

        Args:
            snapshot: A reading.
        """
        columns = np.flatnonzero(snapshot.present & ~np.isfinite(snapshot.clipped_norms))
        return tuple(self.reader.layers[column].name for column in columns)
