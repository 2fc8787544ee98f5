"""Times that can be compared: everything in one process, in the order A B ... B A, medians, one thread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Seconds:
    """Median times of a call.

    Attributes:
        process: Of the processor, which other programs disturb least.
        wall: On the clock.
    """

    process: float
    wall: float


def compare(calls: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 8) -> dict[str, Seconds]:
    """Time several calls in turn, forwards and backwards.

    Args:
        calls: What is timed, by name.
        rounds: How many times forwards and backwards.
        warm_up: Calls of each before it.

    Returns:
        The medians by name.
    """
    for call in calls.values():
        for _ in range(warm_up):
            call()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name in (*calls, *reversed(list(calls))):
            process, wall = time.process_time(), time.perf_counter()
            calls[name]()
            times[name].append((time.process_time() - process, time.perf_counter() - wall))
    return {name: Seconds(*map(statistics.median, zip(*pairs, strict=True))) for name, pairs in times.items()}
