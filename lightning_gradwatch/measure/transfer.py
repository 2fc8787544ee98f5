"""Numbers on their way from a device to the host."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from lightning_gradwatch.measure.snapshot import FloatArray


class Transfer:
    """One copy of several vectors to the host; on CUDA it runs beside training and nothing waits for it here.

    Args:
        parts: Real vectors on any devices, at least one.

    Example:
        >>> [part.tolist() for part in Transfer([torch.tensor([1.0, 2.0]), torch.tensor([3.0])]).numbers()]
        [[1.0, 2.0], [3.0]]
    """

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self._sizes = [part.numel() for part in parts]
        device, kind = parts[0].device, torch.float32
        kinds = {(part.dtype, part.device) for part in parts}
        for dtype, _ in kinds:
            kind = torch.promote_types(kind, dtype)
        alike = parts if kinds == {(kind, device)} else [part.to(device, kind) for part in parts]
        flat = torch.cat(list(alike)) if len(alike) > 1 else alike[0]
        self._arrived: torch.cuda.Event | None = None
        if flat.device.type == "cuda":
            # Only a copy into pinned memory is one that the host need not wait for.
            self._host = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
            self._host.copy_(flat, non_blocking=True)
            self._arrived = torch.cuda.current_stream(flat.device).record_event()
        else:
            self._host = flat.cpu()

    def numbers(self) -> list[FloatArray]:
        """Return the vectors as float64, one a part; waits for what has not arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        numbers = self._host.numpy().astype(np.float64)
        ends = list(accumulate(self._sizes))
        return [numbers[end - size : end] for size, end in zip(self._sizes, ends, strict=True)]
