"""Where the time of a step goes that reading gradients does not take: here they are so small that they cost nothing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lightning_gradwatch.judging import Judge
from lightning_gradwatch.measure.reader import Reader
from lightning_gradwatch.record import Record
from lightning_gradwatch.settings import Settings
from lightning_gradwatch.watching import Watch

LAYERS = 38
_STEPS, _WARM_UP = 1500, 300
# Of each what its inner parts take is taken away, so that they add up.
_INSIDE = {
    "measure: one fused call, norms side by side, to the host": (Reader, "read"),
    "ask ten rules": (Judge, "_ask"),
    "make plain numbers, remember, report": (Record, "settle"),
}


def by_parts() -> dict[str, float]:
    """Return the median microseconds of each part of a step, the whole first; and of the floor for so many layers."""
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(LAYERS)))
    loss = net(torch.randn(8, 4)).square().mean()
    loss.backward()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    watch = Watch(Settings(probe_every_n_steps=None))
    watch.start(net, num_optimizers=1)
    found: dict[str, list[float]] = {name: [] for name in ("a step", *_INSIDE)}
    with _timed(found):
        for step in range(_STEPS):
            start = time.perf_counter()
            watch.begin_batch(step, due=False)
            watch.before_backward(loss.detach())
            watch.after_backward()
            watch.before_step(0, optimizer, step)
            watch.after_step(0)
            watch.end_batch()
            found["a step"].append(time.perf_counter() - start)
    medians = {name: statistics.median(times[_WARM_UP:]) * 1e6 for name, times in found.items()}
    medians["make plain numbers, remember, report"] -= medians["ask ten rules"]
    rest = medians["a step"] - sum(medians[name] for name in _INSIDE)
    gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    floor = [_seconds(lambda: nn.utils.get_total_norm(gradients)) for _ in range(_STEPS)]
    return {
        "the floor: `get_total_norm`": statistics.median(floor) * 1e6,
        **medians,
        "hooks, the loss, whether others changed gradients, guards": rest,
    }


@contextmanager
def _timed(found: dict[str, list[float]]) -> Iterator[None]:
    before = {name: getattr(owner, method) for name, (owner, method) in _INSIDE.items()}
    for name, (owner, method) in _INSIDE.items():
        setattr(owner, method, _timing(before[name], found[name]))
    try:
        yield
    finally:
        for name, (owner, method) in _INSIDE.items():
            setattr(owner, method, before[name])


def _timing(call: Callable[..., Any], times: list[float]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = call(*args, **kwargs)
        times.append(time.perf_counter() - start)
        return result

    return timed


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
