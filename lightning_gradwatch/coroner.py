"""Which steps are looked into: an inquest opens where a row of steps that are not finite begins, and is closed here."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.fault import GradientFault
from lightning_gradwatch.inquest import Inquests
from lightning_gradwatch.measure.reader import describe_optimizer
from lightning_gradwatch.measure.reading import Reading
from lightning_gradwatch.poisoned import Poison
from lightning_gradwatch.record import Record
from lightning_gradwatch.stepper import Stepper
from lightning_gradwatch.steps import OptimizerStep, PendingStep
from lightning_gradwatch.testimony import PoisonedStep


class Coroner:
    """Opens an inquest with what this process knows of a step, and closes it with what the rules made of it.

    Where a step may be dropped that is known before the optimizer uses it, and the inquest opens then; elsewhere
    nobody waits for the numbers, and it opens when the step is settled.

    Args:
        inquests: The inquests.
        record: What is known of the run.
        before_steps: Whether steps may be dropped.
    """

    def __init__(self, inquests: Inquests, record: Record, *, before_steps: bool) -> None:
        self._inquests = inquests
        self._record = record
        self._before_steps = before_steps

    def clear(self, number: int) -> None:
        """Note that an optimizer is about to make a step that is finite.

        Args:
            number: Number of the optimizer.
        """
        self._inquests.finite(number)

    def open(
        self,
        stepper: Stepper,
        about: OptimizerStep,
        reading: Reading | None,
        poison: Poison,
        losses: Sequence[tuple[int | None, Tensor]],
        place: tuple[int, int] | None,
    ) -> None:
        """Look into a step before it is made, where a row of poisoned steps begins with it.

        Args:
            stepper: What acts on the steps.
            about: The step.
            reading: Its numbers, None where they could not be measured.
            poison: What is wrong with it.
            losses: The losses whose gradients it would use, each with the index of its batch.
            place: Epoch and index of the batch, None where nobody tells.
        """
        if self._inquests.begins(about.number):
            found = PoisonedStep(
                step=about.step,
                optimizer=about.number,
                optimizer_kind=describe_optimizer(about.optimizer).kind,
                snapshot=None if reading is None else stepper.numbers(reading),
                sick=poison.sick,
                losses=losses,
                place=place,
                before_step=True,
            )
            self._inquests.open(found, stepper.reader.layers, at_once=poison.agreed)

    def settled(self, stepper: Stepper, pending: PendingStep, reading: Reading, place: tuple[int, int] | None) -> None:
        """Look into a step that was recorded, unless that has begun before it was made.

        Args:
            stepper: What acts on the steps.
            pending: The step.
            reading: Its numbers.
            place: Epoch and index of the batch in which it is found, None where nobody tells.
        """
        snapshot = reading.snapshot()
        number = snapshot.optimizer
        if not self._before_steps:
            if snapshot.finite:
                self._inquests.finite(number)
            elif self._inquests.begins(number):
                found = PoisonedStep(
                    step=pending.step,
                    optimizer=number,
                    optimizer_kind=pending.optimizer.kind,
                    snapshot=snapshot,
                    sick=stepper.sick(snapshot),
                    losses=pending.losses,
                    place=place,
                )
                self._inquests.open(found, stepper.reader.layers, at_once=False)
        self.close(stepper, number)

    def close(self, stepper: Stepper, number: int) -> None:
        """Tell what came out, where an inquest is open.

        Args:
            stepper: What acts on the steps.
            number: Number of the optimizer.
        """
        if not self._inquests.is_open(number):
            return
        record = self._record
        faults = [d for d in record.diagnoses if d.symptom is Symptom.NON_FINITE and d.optimizer == number]
        diagnosis = next((d for d in reversed(faults) if d.recovered_at is None), None)
        names = [layer.name for layer in stepper.reader.layers]
        label = f"optimizer_{number}" if record.several else ""
        self._inquests.close(number, names, record.history, diagnosis, label)

    def fault(self, about: OptimizerStep, poison: Poison) -> GradientFault:
        """Return the error that ends training at a step.

        Args:
            about: The step.
            poison: What is wrong with it.
        """
        faults, origin = self._faults(about, poison), self._inquests.origin(about.number)
        first = f"; nearest the loss: {faults[-1].layers[0]}" if faults[-1].layers else ""
        began = f". Where it began: {origin}" if origin else ""
        return GradientFault(poison.reason + first + began, faults)

    def _faults(self, about: OptimizerStep, poison: Poison) -> list[Diagnosis]:
        faults = [d for d in self._record.diagnoses if d.symptom is Symptom.NON_FINITE and d.recovered_at is None]
        message = "gradients are not finite"
        # Where the rule was muted, or GradWatch is switched off, the error still says what it is about.
        bare = Diagnosis("non_finite", Symptom.NON_FINITE, "warning", about.number, poison.sick, about.step, message)
        return faults or [bare]
