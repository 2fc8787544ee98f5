"""How many bytes a model holds, and how many are free where it lives."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lightning_gradwatch.measure.attributes import attributes_of

_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
# Bound and use of a container, and what of it is cache of files that nobody uses now, which the kernel gives back as
# soon as memory is asked for (as in Kubernetes' working set): of cgroup v2, then of v1.
_BOUNDS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file",
    ),
)  # fmt: skip
# cgroup v1 writes no bound as the largest multiple of a page below 2^63; no machine has so much.
_NO_BOUND = 2**60
# A gradient and Adam's two moments for each number that is trained.
_WHILE_TRAINING = 3


def bytes_needed(model: nn.Module) -> dict[torch.device, int]:
    """Return what a copy of a model takes that is trained for a few steps, by device.

    ``bytes = all tensors and arrays in all attributes + 3 * trainable parameters`` (their gradients and the two
    moments of Adam); what the forward pass keeps is not known before it runs.

    Args:
        model: The model.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> model.table = torch.zeros(100)
        >>> bytes_needed(model)
        {device(type='cpu'): 432}
    """
    found: dict[torch.device, int] = {}
    storages: set[tuple[torch.device, int]] = set()
    for _, value in attributes_of(model):
        if isinstance(value, np.ndarray):
            found[torch.device("cpu")] = found.get(torch.device("cpu"), 0) + value.nbytes
        elif isinstance(value, Tensor):
            size = _size(value, storages) + _WHILE_TRAINING * (_plain_size(value) if _trained(value) else 0)
            found[value.device] = found.get(value.device, 0) + size
    return found


def _trained(value: Tensor) -> bool:
    return isinstance(value, nn.Parameter) and value.requires_grad


def _plain_size(value: Tensor) -> int:
    return int(value.numel() * value.element_size())


def _size(value: Tensor, storages: set[tuple[torch.device, int]]) -> int:
    """Return the bytes of the storage behind a tensor, which deepcopy copies whole; 0 for one that was counted."""
    try:
        storage = value.untyped_storage()
        key, size = (value.device, storage.data_ptr()), storage.nbytes()
    except (NotImplementedError, RuntimeError):
        # Sparse, or of a kind that has no storage of its own.
        return _plain_size(value)
    if size and key in storages:
        return 0
    storages.add(key)
    return size


def bytes_free(device: torch.device) -> int | None:
    """Return how many bytes can still be allocated on a device, None where nobody tells.

    Args:
        device: ``cpu`` or ``cuda:0``.

    Example:
        >>> bytes_free(torch.device("meta")) is None
        True
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    if device.type != "cpu":
        return None
    known = [number for number in (_available(), _left_in_container()) if number is not None]
    return min(known, default=None)


def _available() -> int | None:
    try:
        line = next(row for row in _MEMINFO.read_text().splitlines() if row.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration, ValueError, IndexError):
        # Not Linux.
        return _pages()


def _pages() -> int | None:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _left_in_container() -> int | None:
    for bound, used, stat, cache in _BOUNDS:
        try:
            most = int((_CGROUP / bound).read_text())
            taken = max(int((_CGROUP / used).read_text()) - _cached(_CGROUP / stat, cache), 0)
        except (OSError, ValueError):
            # No container of this kind, or one without a bound ("max").
            continue
        return max(most - taken, 0) if most < _NO_BOUND else None
    return None


def _cached(stat: Path, name: str) -> int:
    try:
        rows = (row.split() for row in stat.read_text().splitlines())
        return next((int(row[1]) for row in rows if row[:1] == [name]), 0)
    except (OSError, ValueError, IndexError):
        return 0
