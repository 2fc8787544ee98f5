"""Which optimizer steps are open, and which of them count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_gradwatch.measure.probing import ProbeReading
from lightning_gradwatch.measure.reading import Reading
from lightning_gradwatch.measure.snapshot import OptimizerDescription

# A loss scale starts at 2^16 and halves at each overflow: after 16 of them in a row the scale is 1 and not the cause;
# the rest is for a scaler that was told to start higher.
_MAX_OVERFLOWS = 24


class LossScaler(Protocol):
    """What multiplies the loss so that half precision holds its gradients: ``torch.amp.GradScaler``."""

    def scale(self, outputs: Tensor) -> Any:
        """Return outputs times the factor, on their device."""
        ...


@dataclass(frozen=True, eq=False)
class OptimizerStep:
    """A step that an optimizer is about to make.

    Attributes:
        number: Number of the optimizer in the training run.
        optimizer: The optimizer.
        step: ``global_step`` before the step.
        scaler: What scales the loss and drops steps that overflow, None where nothing does.
        unscales: Whether the optimizer unscales its gradients itself, inside ``step``.
    """

    number: int
    optimizer: Optimizer
    step: int
    scaler: LossScaler | None = None
    unscales: bool = False

    @property
    def scaled(self) -> bool:
        """Whether a loss scaler is at work."""
        return self.scaler is not None

    def scale(self) -> Tensor | None:
        """Return what the loss scaler multiplies the loss by, without a wait for the device as in ``get_scale()``."""
        if self.scaler is None:
            return None
        devices = (parameter.device for group in self.optimizer.param_groups for parameter in group["params"])
        factor: Tensor = self.scaler.scale(torch.ones((), device=next(devices, torch.device("cpu"))))
        return factor


@dataclass
class PendingStep:
    """A step whose gradients were measured and which is not yet settled.

    Attributes:
        step: ``global_step`` before it.
        reading: The numbers, perhaps still on their way; None for a step of which nobody wants to know more than
            whether a loss scaler drops it.
        optimizer: What is known of the optimizer.
        scaled: Whether a loss scaler is at work, which drops a step that overflows.
        unscales: Whether the optimizer unscales by itself.
        wanted: Whether ``every_n_steps`` asks for this step.
        log_step: Where it belongs on the loggers' axis.
        due: How many times the logging interval has asked for values by then.
        stepped: Whether the optimizer has really stepped.
        probe: What the signal probe recorded of the step, None without one.
        losses: The losses whose gradients it uses, each with the index of its batch.
    """

    step: int
    reading: Reading | None
    optimizer: OptimizerDescription
    scaled: bool
    unscales: bool
    wanted: bool
    log_step: int
    due: int
    stepped: bool = False
    probe: ProbeReading | None = None
    losses: Sequence[tuple[int | None, Tensor]] = ()


class Steps:
    """Counts the steps of each optimizer and keeps those that are not yet settled.

    Args:
        every_n_steps: Every n-th step of an optimizer is wanted.
    """

    def __init__(self, every_n_steps: int) -> None:
        self._every_n_steps = every_n_steps
        self.forget()

    def forget(self) -> None:
        """Forget everything: another model is trained."""
        self.pending: dict[int, PendingStep] = {}
        self.num_overflows = 0
        self._counts: dict[int, int] = {}
        self._newest: dict[int, int] = {}
        self._announced: set[int] = set()
        self._surprising: set[int] = set()
        self._overflows_in_a_row: dict[int, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is open: it belongs to a fit under way."""
        return self.__dict__ | {"pending": {}}

    def is_new(self, number: int, step: int) -> bool:
        """Tell whether this is another step, and not one more evaluation of a closure (LBFGS) in the same one."""
        return self._newest.get(number) != step

    def announce(self, number: int) -> None:
        """Note that a step of an optimizer is to come."""
        self._announced.add(number)

    def surprises(self, number: int) -> bool:
        """Tell, once for each optimizer, that it has stepped although no step was announced."""
        surprise = number not in self._announced and number not in self._surprising
        self._announced.discard(number)
        if surprise:
            self._surprising.add(number)
        return surprise

    def begin(self, number: int, step: int) -> None:
        """Note that an optimizer is about to do another step."""
        self._newest[number] = step
        self._counts[number] = self._counts.get(number, 0) + 1

    def restart(self) -> None:
        """Forget what is open: a fit begins, perhaps at a step that was made before."""
        self.pending.clear()
        self._newest.clear()
        self._announced.clear()

    def excuses(self, number: int) -> bool:
        """Tell whether one more overflow in a row would still be the loss scaler's business."""
        return self._overflows_in_a_row.get(number, 0) < _MAX_OVERFLOWS

    def in_order(self, until: int | None = None) -> list[int]:
        """Return the optimizers that have an open step, the oldest step first.

        Args:
            until: Only steps that are not after this one.
        """
        numbers = [n for n, pending in self.pending.items() if until is None or pending.step <= until]
        return sorted(numbers, key=lambda n: self.pending[n].step)

    def next_wanted(self, number: int) -> bool:
        """Tell whether the next step of an optimizer is one to judge and remember."""
        return self._counts.get(number, 0) % self._every_n_steps == 0

    def wanted(self, number: int) -> bool:
        """Tell whether the newest step of an optimizer is one to judge and remember."""
        return (self._counts[number] - 1) % self._every_n_steps == 0

    def overflows(self, number: int, step: PendingStep, *, finite: bool) -> bool:
        """Tell whether a loss scaler dropped a step, and may yet find its scale.

        Args:
            number: Number of the optimizer.
            step: The step.
            finite: Whether all of its gradients are finite.
        """
        # An optimizer that unscales by itself steps in name even where it leaves the weights alone.
        dropped = not step.stepped or (step.unscales and not finite)
        if not step.scaled or not dropped:
            self._overflows_in_a_row[number] = 0
            return False
        self.num_overflows += 1
        self._overflows_in_a_row[number] = self._overflows_in_a_row.get(number, 0) + 1
        return self._overflows_in_a_row[number] <= _MAX_OVERFLOWS

    def state_dict(self) -> dict[str, object]:
        """Return the counts as plain values."""
        return {
            "counts": [[n, count] for n, count in self._counts.items()],
            "num_overflows": self.num_overflows,
            "overflows_in_a_row": [[n, count] for n, count in self._overflows_in_a_row.items()],
        }

    def load_state_dict(
        self,
        counts: Sequence[tuple[int, int]],
        num_overflows: int,
        overflows_in_a_row: Sequence[tuple[int, int]],
    ) -> None:
        """Take back the counts."""
        self._counts = dict(counts)
        self.num_overflows = num_overflows
        self._overflows_in_a_row = dict(overflows_in_a_row)
