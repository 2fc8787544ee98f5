"""Which optimizer steps are open, and which of them count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lightning_gradwatch.measure.norms import GradientNorms
from lightning_gradwatch.measure.snapshot import GradientSnapshot, OptimizerDescription

# A loss scale starts at 2^16 and halves at each overflow: after 16 of them in a row the scale is 1 and not the cause;
# the rest is for a scaler that was told to start higher.
_MAX_OVERFLOWS = 24


class LossScaler(Protocol):
    """What multiplies the loss so that half precision holds its gradients: ``torch.amp.GradScaler``."""

    def get_scale(self) -> float:
        """Return the factor."""
        ...


@dataclass
class PendingStep:
    """A step whose gradients were read and which is not yet settled."""

    snapshot: GradientSnapshot
    optimizer: OptimizerDescription
    gradient_scale: float
    scaled: bool
    unscales: bool
    wanted: bool
    measured: GradientNorms | None
    stepped: bool = False


class Steps:
    """Counts the steps of each optimizer and keeps those that are not yet settled.

    Args:
        every_n_steps: Every n-th step of an optimizer is wanted.
    """

    def __init__(self, every_n_steps: int) -> None:
        self.pending: dict[int, PendingStep] = {}
        self.num_overflows = 0
        self._every_n_steps = every_n_steps
        self._counts: dict[int, int] = {}
        self._newest: dict[int, int] = {}
        self._overflows_in_a_row: dict[int, int] = {}

    def is_new(self, number: int, step: int) -> bool:
        """Tell whether this is another step, and not one more evaluation of a closure (LBFGS) in the same one."""
        return self._newest.get(number) != step

    def begin(self, number: int, step: int) -> None:
        """Note that an optimizer is about to do another step."""
        self._newest[number] = step
        self._counts[number] = self._counts.get(number, 0) + 1

    def wanted(self, number: int) -> bool:
        """Tell whether the newest step of an optimizer is one to judge and remember."""
        return (self._counts[number] - 1) % self._every_n_steps == 0

    def overflows(self, number: int, step: PendingStep) -> bool:
        """Tell whether a loss scaler dropped a step, and may yet find its scale."""
        # An optimizer that unscales by itself steps in name even where it leaves the weights alone.
        dropped = not step.stepped or (step.unscales and not step.snapshot.finite)
        if not step.scaled or not dropped:
            self._overflows_in_a_row[number] = 0
            return False
        self.num_overflows += 1
        self._overflows_in_a_row[number] = self._overflows_in_a_row.get(number, 0) + 1
        return self._overflows_in_a_row[number] <= _MAX_OVERFLOWS

    def state_dict(self) -> dict[str, object]:
        """Return the counts as plain values."""
        return {"counts": [[n, count] for n, count in self._counts.items()], "num_overflows": self.num_overflows}

    def load_state_dict(self, counts: Sequence[tuple[int, int]], num_overflows: int) -> None:
        """Take back the counts."""
        self._counts = dict(counts)
        self.num_overflows = num_overflows
