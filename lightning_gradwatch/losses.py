"""The loss that belongs to a step."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

# A window that is longer than this keeps the sum of all and only its newest losses one by one.
_MAX_KEPT = 1024


class LossWindow:
    """Collects the losses whose gradients the next step will use; they stay on their device.

    Attributes:
        taken: The losses of the window that was taken last, each with the index of its batch.

    Example:
        >>> window = LossWindow()
        >>> for _ in range(3):
        ...     window.add(torch.tensor(0.5))
        >>> window.take(divided_by=4), window.take()
        (tensor(2.), None)
    """

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0
        self._before: Tensor | None = None
        self._each: deque[tuple[int | None, Tensor]] = deque(maxlen=_MAX_KEPT)
        self.taken: tuple[tuple[int | None, Tensor], ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the losses: they belong to a fit under way."""
        return vars(LossWindow())

    def add(self, loss: Tensor, batch: int | None = None) -> None:
        """Add a loss of one element, before its gradients are computed.

        Args:
            loss: The loss.
            batch: Index of its batch, None where it is not known.
        """
        # A copy of one number: the person may go on adding to theirs, and half precision adds up badly.
        value = loss.detach().to(torch.promote_types(loss.dtype, torch.float32), copy=True)
        value = value.reshape(()) if value.ndim else value
        self._before = self._sum
        self._sum = value if self._sum is None else self._sum + value
        self._count += 1
        self._each.append((batch, value))

    def take_back(self) -> None:
        """Forget the loss that was added last: its gradients went elsewhere."""
        if self._each:
            self._each.pop()
            self._sum, self._count = self._before, self._count - 1

    def take(self, divided_by: int = 1) -> Tensor | None:
        """Return the loss of the window and begin another.

        Args:
            divided_by: What each loss was divided by because so many are accumulated. The last window of an epoch may
                be shorter, and its losses were divided by the same number.

        Returns:
            The sum of the losses, their mean where they were divided; None where there was none.
        """
        total, count = self._sum, self._count
        self._sum, self._count = None, 0
        self.taken = tuple(self._each)
        self._each.clear()
        return total if total is None or divided_by in (1, count) else total * (divided_by / count)
