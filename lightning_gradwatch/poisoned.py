"""What happens to a step whose gradients are not finite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.optim import Optimizer

from lightning_gradwatch.report.log import named
from lightning_gradwatch.settings import OnNonFinite


@dataclass(frozen=True)
class Poison:
    """That a step was poisoned, and what follows from it.

    Attributes:
        sick: Names of the layers whose gradient is not finite; none where they could not be measured, or it was
            another process that saw them.
        reason: Why training has to end, empty where it goes on.
        agreed: Whether all processes have agreed on it, so that each of them is at this very place.
    """

    sick: tuple[str, ...] = ()
    reason: str = ""
    agreed: bool = False


@dataclass
class _Row:
    """Poisoned steps of one optimizer that follow each other.

    Attributes:
        began: ``global_step`` of the first.
        layers: Its layers.
        newest: ``global_step`` of the newest.
        length: How many there are.
    """

    began: int
    layers: tuple[str, ...]
    newest: int | None = None
    length: int = 0


class PoisonedSteps:
    """Drops poisoned steps and counts them, those in a row for each optimizer by itself.

    Args:
        on_nonfinite: ``"warn"`` leaves them, ``"skip"`` drops them, ``"raise"`` ends training.
        max_consecutive: So many steps of one optimizer may be dropped in a row.
    """

    def __init__(self, on_nonfinite: OnNonFinite, max_consecutive: int) -> None:
        self.num_skipped = 0
        self._on_nonfinite = on_nonfinite
        self._max_consecutive = max_consecutive
        self._rows: dict[int, _Row] = {}

    def clean(self, number: int = 0) -> None:
        """Note a step of an optimizer whose gradients are finite."""
        self._rows.pop(number, None)

    def handle_(self, optimizer: Optimizer, number: int = 0, step: int | None = None, sick: Sequence[str] = ()) -> bool:
        """Drop a poisoned step where that is asked.

        Args:
            optimizer: Its gradients become None. With zeros, momentum and weight decay would still move the weights.
            number: Its number.
            step: ``global_step`` before the step; one that evaluates its closure several times (LBFGS) is one step.
            sick: Names of the layers whose gradient is not finite.

        Returns:
            Whether training has to end.
        """
        if self._on_nonfinite == "warn":
            return False
        if self._on_nonfinite == "raise":
            return True
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        row = self._rows.setdefault(number, _Row(0 if step is None else step, tuple(sick)))
        if step is None or step != row.newest:
            self.num_skipped += 1
            row.length += 1
        row.newest = step
        return row.length > self._max_consecutive

    def reason(self, number: int, step: int, sick: Sequence[str]) -> str:
        """Say why training ends.

        Args:
            number: Number of the optimizer.
            step: ``global_step`` before the poisoned step.
            sick: Names of the layers whose gradient is not finite; none where this process does not see them.

        Returns:
            One sentence with the step and the layers.
        """
        now = named(sick) if sick else "a layer that this process does not see"
        row = self._rows.get(number)
        if row is None:
            return f'step {step}: gradients are not finite in {now} (on_nonfinite="{self._on_nonfinite}")'
        first = f", then in {named(row.layers)}" if row.layers else ""
        return (
            f"{row.length} steps in a row had gradients that are not finite, since step {row.began}{first}, now in "
            f"{now}; more than `max_consecutive_skips`={self._max_consecutive}"
        )

    def state_dict(self) -> dict[str, object]:
        """Return the counts as plain values."""
        rows = [[number, row.began, list(row.layers), row.length] for number, row in self._rows.items()]
        return {"num_skipped": self.num_skipped, "rows": rows}

    def load_state_dict(
        self,
        num_skipped: int,
        rows: Sequence[tuple[int, int, Sequence[str], int]] = (),
        consecutive: int = 0,
    ) -> None:
        """Take back the counts.

        Args:
            num_skipped: How many steps were dropped.
            rows: For each optimizer in the middle of a row its number, where the row began, in which layers, and its
                length.
            consecutive: The length of the row in checkpoints that knew of one for all optimizers.
        """
        self.num_skipped = num_skipped
        self._rows = {number: _Row(began, tuple(layers), None, length) for number, began, layers, length in rows}
        if consecutive:
            self._rows[0] = _Row(0, (), None, consecutive)
