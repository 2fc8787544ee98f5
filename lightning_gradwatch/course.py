"""The course of an optimizer's step: read before it is made, looked at again after it, settled when it is known."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from lightning_gradwatch.coroner import Coroner
from lightning_gradwatch.exchanges import Exchanges
from lightning_gradwatch.harmless import Core, harmless
from lightning_gradwatch.losses import LossWindow
from lightning_gradwatch.measure.probing import ProbeReading
from lightning_gradwatch.measure.reader import Reader, describe_optimizer
from lightning_gradwatch.measure.reading import Reading
from lightning_gradwatch.poisoned import Poison
from lightning_gradwatch.prober import Prober
from lightning_gradwatch.record import Record
from lightning_gradwatch.settings import Settings
from lightning_gradwatch.stepper import Stepper
from lightning_gradwatch.steps import OptimizerStep, PendingStep, Steps


class HasPlace(Core, Protocol):
    """What knows which batch it is."""

    settings: Settings
    place: tuple[int, int] | None

    @property
    def skipped_steps(self) -> int:
        """How many poisoned steps were dropped."""
        ...


class Course:
    """Takes each step of each optimizer from the moment before it is made to the one when it is settled.

    Args:
        core: What is switched off after an error.
        steps: Those that are open.
        losses: The losses whose gradients they use.
        prober: Runs the signal probe.
        record: Gets what is settled.
        coroner: Looks into what is not finite.
        exchanges: Tells the other processes.

    Attributes:
        stepper: Acts on gradients; None while nothing is watched.
        log_step: Where the batch stands on the loggers' axis.
    """

    def __init__(
        self,
        core: HasPlace,
        steps: Steps,
        losses: LossWindow,
        prober: Prober,
        record: Record,
        coroner: Coroner,
        exchanges: Exchanges,
    ) -> None:
        self.core = core
        self.stepper: Stepper | None = None
        self.log_step = 0
        self._settings = core.settings
        self._steps = steps
        self._losses = losses
        self._prober = prober
        self._record = record
        self._coroner = coroner
        self._exchanges = exchanges
        # How often the logging interval has asked for values, by now and before this batch.
        self._due = 0
        self._due_before = 0

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the model of a fit under way."""
        return self.__dict__ | {"stepper": None}

    def begin_batch(self, log_step: int, due: bool) -> None:
        """Note where the next readings belong, and probe the batch where an optimizer's next step asks for it.

        Args:
            log_step: Where the batch stands on the loggers' axis.
            due: Whether the logging interval asks for values.
        """
        self.log_step = log_step
        self._due_before, self._due = self._due, self._due + due
        if self.stepper is not None:
            known = self._prober.schedule.known
            probes = not known or any(self._prober.schedule.wants(n) and self._steps.next_wanted(n) for n in known)
            self._prober.begin_batch(self.stepper.reader.layers, due=probes)

    def before_step(self, about: OptimizerStep, loss: Tensor | None) -> None:
        """Read the gradients that an optimizer is about to use, clip them, and drop the step where that is asked.

        Args:
            about: The step.
            loss: Its loss.

        Raises:
            GradientFault: If ``on_nonfinite`` says so.
        """
        number, stepper = about.number, self.stepper
        self._steps.announce(number)
        if stepper is None:
            return
        new = self._steps.is_new(number, about.step)
        if new:
            self._settle_open(number)
            self._steps.begin(number, about.step)
        # Of a step that nobody wants to see there is still to know whether a loss scaler drops it.
        seen = self._steps.wanted(number) or self._settings.acts or (about.scaled and about.unscales)
        reading = self._read(stepper, about, loss) if seen else None
        if reading is not None or (about.scaled and not seen):
            with self.core.guarded():
                self._open(stepper, about, reading)
        elif new:
            self._prober.schedule.stepped(number, probed=False)
        if self._settings.on_nonfinite != "warn":
            # By itself: other processes may wait here, whatever failed in this one.
            with self.core.guarded():
                self._drop(stepper, about, reading)

    def _read(self, stepper: Stepper, about: OptimizerStep, loss: Tensor | None) -> Reading | None:
        on = self.core.disabled_reason is None
        if on:
            with self.core.guarded(), self._prober.at_rest():
                return stepper.read(about, loss)
        return stepper.read_unwatched(about, loss, together=self._exchanges.agreement is not None, failed_now=on)

    def _open(self, stepper: Stepper, about: OptimizerStep, reading: Reading | None) -> None:
        described = describe_optimizer(about.optimizer)
        self._record.expects(about.number, described.kind, self._due_before)
        again = self._steps.pending.get(about.number)
        self._steps.pending[about.number] = PendingStep(
            about.step,
            reading,
            described,
            scaled=about.scaled,
            unscales=about.unscales,
            wanted=self._steps.wanted(about.number),
            log_step=self.log_step,
            due=self._due,
            # Of several evaluations of a closure (LBFGS) the first one is probed.
            probe=again.probe if again is not None else self._probe(stepper.reader, about),
            losses=self._losses.taken,
        )

    def _probe(self, reader: Reader, about: OptimizerStep) -> ProbeReading | None:
        if self.core.disabled_reason is not None:
            return None
        reading = self._prober.take(about, reader, wanted=self._steps.wanted(about.number))
        if reading is not None:
            # Only a probe learns of calls; in other steps there is nothing to compare.
            reader.note_calls(self._prober.places, self._prober.shapes)
        return reading

    def _drop(self, stepper: Stepper, about: OptimizerStep, reading: Reading | None) -> None:
        excused = about.scaled and self._steps.excuses(about.number)
        poison = stepper.drop_(about, reading, excused=excused)
        if poison is None:
            self._coroner.clear(about.number)
            return
        with self.core.guarded():
            self._look_into(stepper, about, reading, poison)
        if poison.reason:
            # Whatever failed before it: the other processes end here as well.
            raise self._coroner.fault(about, poison)

    def _look_into(self, stepper: Stepper, about: OptimizerStep, reading: Reading | None, poison: Poison) -> None:
        self._coroner.open(stepper, about, reading, poison, self._losses.taken, self.core.place)
        if poison.reason:
            self._settle_open(about.number)
        if self.core.disabled_reason is not None:
            # Nobody settles the step then.
            self._coroner.close(stepper, about.number)

    def after_step(self, pending: PendingStep, *, certain: bool) -> None:
        """Note that an optimizer has really stepped, and what its gradients were after someone else's clipping.

        Args:
            pending: The step, which was open.
            certain: False for an optimizer that tells nothing: a loss scaler may have dropped the step.
        """
        pending.stepped = True
        pending.unscales |= not certain
        if pending.reading is not None and self.stepper is not None:
            with self.core.guarded():
                self.stepper.look_again(pending.reading)
                if pending.probe is not None:
                    pending.probe.measure_updates()
                self._prober.after_step()

    @harmless
    def _settle_open(self, number: int) -> None:
        """Settle an optimizer's open step, and before it those of other optimizers that are older."""
        if number in self._steps.pending:
            for each in self._steps.in_order(self._steps.pending[number].step):
                self._settle(each)

    @harmless
    def settle_batch(self, *, wait: bool) -> None:
        """Settle what is open, those whose numbers are still on their way at the optimizer's next step.

        Args:
            wait: Whether those are waited for.
        """
        if self._steps.pending:
            self._losses.take()
        for number in self._steps.in_order():
            reading = self._steps.pending[number].reading
            if wait or reading is None or not reading.under_way:
                self._settle(number)
            else:
                # Where no step came after the reading, its gradients are still held.
                reading.release()
        self._record.sinks.flush()

    def _settle(self, number: int) -> None:
        """Note whether a pending step was dropped, and have it recorded."""
        pending = self._steps.pending.pop(number)
        assert self.stepper is not None, "a step is pending only while watching"
        if pending.reading is None:
            self._steps.overflows(number, pending, finite=True)
            return
        overflow = self._steps.overflows(number, pending, finite=pending.reading.snapshot().finite)
        if overflow and pending.probe is not None:
            self._prober.schedule.again(number)
        self._record.settle(
            pending,
            self.stepper.reader,
            overflow=overflow,
            agreement=self._exchanges.agreement,
            skipped_steps=self.core.skipped_steps,
        )
        if not overflow:
            self._coroner.settled(self.stepper, pending, pending.reading, self.core.place)
