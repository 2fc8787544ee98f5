"""The processes that train one model together, where no Trainer knows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from lightning_gradwatch.surroundings import Surroundings

_WRAPPERS = {"DistributedDataParallel", "FullyShardedDataParallel"}


@dataclass(frozen=True)
class Processes:
    """This process among those that train the same model.

    Attributes:
        rank: Its number.
        size: How many there are.
        device: Where the model is.

    Example:
        >>> Processes.of(nn.Linear(1, 1))
        Processes(rank=0, size=1, device=device(type='cpu'))
    """

    rank: int
    size: int
    device: torch.device

    @staticmethod
    def of(model: nn.Module) -> Processes:
        """Tell by what a model is wrapped in: processes that only run side by side train a model each.

        Args:
            model: As the person calls it: wrapped in DistributedDataParallel, with DTensor parameters, or neither.
        """
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        if not (dist.is_available() and dist.is_initialized() and _together(model)):
            return Processes(0, 1, device)
        return Processes(dist.get_rank(), dist.get_world_size(), device)

    @property
    def alone(self) -> bool:
        """Whether no other process trains the model."""
        return self.size == 1

    def mean(self, values: Sequence[float]) -> list[float]:
        """Return the mean of each number over all processes; all have to call it."""
        mine = torch.tensor(values, device=self.device)
        dist.all_reduce(mine)
        mean: list[float] = (mine / self.size).tolist()
        return mean

    def anywhere(self, flag: bool) -> bool:
        """Tell whether something is true in any process; all have to call it."""
        return self.mean([float(flag)])[0] > 0

    def surroundings(self, directory: Path | None) -> Surroundings:
        """Return where this process stands, for what it tells of a poisoned step."""
        if self.alone:
            return Surroundings(device=str(self.device), directory=directory)
        return Surroundings(self.rank, self.size, str(self.device), directory, self._gather)

    def _gather(self, line: bytes) -> list[bytes]:
        mine = torch.tensor(list(line), dtype=torch.uint8, device=self.device)
        together = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(together, mine)
        return [row.cpu().numpy().tobytes() for row in together]


def _together(model: nn.Module) -> bool:
    seen: Any = model
    while isinstance(seen, nn.Module):
        if {cls.__name__ for cls in type(seen).__mro__} & _WRAPPERS:
            return True
        # Fabric keeps what it calls beside the model itself.
        seen = getattr(seen, "_forward_module", None)
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())
