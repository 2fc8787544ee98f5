"""What clippers that remember norms have in common: which norms count, and how they are kept."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def in_full(norm: Tensor) -> Tensor:
    """Return a norm in float64, so that what is remembered loses nothing; MPS has no float64.

    Example:
        >>> in_full(torch.tensor(1.0)).dtype
        torch.float64
    """
    return norm if norm.device.type == "mps" else norm.to(torch.float64)


def counts(norm: Tensor) -> Tensor:
    """Tell, on the device, whether a norm says how large gradients usually are: it is finite and not zero.

    Example:
        >>> [bool(counts(torch.tensor(norm))) for norm in (1.0, 0.0, float("nan"), float("inf"))]
        [True, False, False, False]
    """
    return torch.isfinite(norm) & (norm > 0)


def restored(state: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Check what a checkpoint remembers of each optimizer, and return it.

    Args:
        state: Numbers by the optimizer's number.

    Returns:
        The same.

    Raises:
        TypeError: If it is of another kind.

    Example:
        >>> restored({0: torch.zeros(3)})
        {0: tensor([0., 0., 0.])}
    """
    for number, values in state.items():
        if not isinstance(number, int) or not isinstance(values, Tensor) or values.ndim != 1:
            raise TypeError(f"what is remembered must be a vector for each optimizer. Got {values!r} for {number!r}")
    return dict(state)
