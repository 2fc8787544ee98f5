"""What several processes send each other because of GradWatch, counted and not timed: messages and bytes."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gradwatch import GradWatch

PROCESSES = (1, 2, 4)
STRATEGIES = ("DDP", "FSDP2")
LAYERS = 50
# Losses are exchanged every 20 batches.
STEPS = 20
_WIDTH = 8
# They send nothing.
_QUIET = ("wait_tensor", "_wrap_tensor_autograd")


@dataclass(frozen=True)
class Sent:
    """What one process gives away in 20 steps more than without GradWatch.

    Attributes:
        strategy: DDP or FSDP2.
        processes: How many.
        messages: Number of collectives, by name.
        bytes: What it puts into them.
    """

    strategy: str
    processes: int
    messages: dict[str, int]
    bytes: int


def by_processes() -> list[Sent]:
    """Count for each strategy and number of processes, all of them on this machine."""
    return [_counted(strategy, number) for strategy in STRATEGIES for number in PROCESSES]


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.messages: Counter[str] = Counter()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            # It becomes plain tensors and collectives first.
            return NotImplemented
        if func.namespace in {"c10d", "_c10d_functional"} and not func.name().endswith(_QUIET):
            self.messages[func.name().partition("::")[2].rstrip("_")] += 1
            self.bytes += sum(tensor.nbytes for tensor in _tensors(args[0]))
        return func(*args, **(kwargs or {}))


def _tensors(argument: Any) -> list[torch.Tensor]:
    parts = argument if isinstance(argument, (list, tuple)) else [argument]
    return [part for part in parts if isinstance(part, torch.Tensor)]


def _counted(strategy: str, number: int) -> Sent:
    with tempfile.TemporaryDirectory() as directory:
        spawn(_work, (strategy, number, directory), number)  # type: ignore[no-untyped-call]
        found: Sent = torch.load(Path(directory) / "sent", weights_only=False)
    return found


def _work(rank: int, strategy: str, number: int, directory: str) -> None:
    logging.getLogger("lightning_gradwatch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{directory}/meeting", rank=rank, world_size=number)
    bare, watched = _train(strategy, number, None), _train(strategy, number, GradWatch(heatmap=False))
    if rank == 0:
        more = watched.messages - bare.messages
        torch.save(Sent(strategy, number, dict(more), watched.bytes - bare.bytes), Path(directory) / "sent")
    dist.destroy_process_group()


def _train(strategy: str, number: int, watch: GradWatch | None) -> _Counting:
    torch.manual_seed(0)
    net: nn.Module = nn.Sequential(*(nn.Linear(_WIDTH, _WIDTH) for _ in range(LAYERS)))
    if strategy == "DDP":
        net = DistributedDataParallel(net)
    else:
        fully_shard(net, mesh=init_device_mesh("cpu", (number,)))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    inputs = torch.randn(4, _WIDTH)
    counting = _Counting()
    with counting, nullcontext() if watch is None else watch.attach(net, optimizer):
        for _ in range(STEPS):
            net(inputs).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return counting
