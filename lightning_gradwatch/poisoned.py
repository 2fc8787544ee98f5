"""What happens to a step whose gradients are not finite."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch.optim import Optimizer

from lightning_gradwatch.measure.snapshot import GradientSnapshot
from lightning_gradwatch.settings import OnNonFinite


class PoisonedSteps:
    """Drops poisoned steps and counts them.

    Args:
        on_nonfinite: ``"warn"`` leaves them, ``"skip"`` drops them, ``"raise"`` ends training.
        max_consecutive: So many may be dropped in a row.
    """

    def __init__(self, on_nonfinite: OnNonFinite, max_consecutive: int) -> None:
        self.num_skipped = 0
        self._on_nonfinite = on_nonfinite
        self._max_consecutive = max_consecutive
        self._consecutive = 0

    def clean(self) -> None:
        """Note a step whose gradients are finite."""
        self._consecutive = 0

    def handle_(self, optimizer: Optimizer) -> bool:
        """Drop a poisoned step where that is asked.

        Args:
            optimizer: Its gradients become None. With zeros, momentum and weight decay would still move the weights.

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
        self.num_skipped += 1
        self._consecutive += 1
        return self._consecutive > self._max_consecutive

    def reason(self, snapshot: GradientSnapshot, layers: Sequence[str]) -> str:
        """Say why training ends.

        Args:
            snapshot: The poisoned step.
            layers: Names of the layers, ``[num_layers]``.

        Returns:
            One sentence with the step and the layers.
        """
        sick = np.flatnonzero(snapshot.present & ~np.isfinite(snapshot.norms))
        names = ", ".join(layers[column] for column in sick[:3])
        names += f" and {len(sick) - 3} more" if len(sick) > 3 else ""
        if self._on_nonfinite == "raise":
            return f'step {snapshot.step}: gradients are not finite in {names} (on_nonfinite="raise")'
        return (
            f"{self._consecutive} steps in a row had gradients that are not finite, since about step "
            f"{snapshot.step - self._consecutive + 1}, now in {names}; more than "
            f"`max_consecutive_skips`={self._max_consecutive}"
        )

    def state_dict(self) -> dict[str, int]:
        """Return the counts as plain values."""
        return {"num_skipped": self.num_skipped, "consecutive": self._consecutive}

    def load_state_dict(self, num_skipped: int, consecutive: int) -> None:
        """Take back the counts."""
        self.num_skipped, self._consecutive = num_skipped, consecutive
