"""What is remembered of runs that no benchmark could train: fed with readings, and measured in bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightning_gradwatch.measure.history import GradientHistory
from lightning_gradwatch.measure.snapshot import GradientSnapshot
from lightning_gradwatch.report.pyramid import Pyramid

# Layers and readings: a long run, a usual one, a wide one.
RUNS = ((10, 10_000_000), (1_000, 100_000), (100_000, 100))


@dataclass(frozen=True)
class Held:
    """What is in memory at the end of a run, and at its most.

    Attributes:
        layers: How many the model has.
        readings: How many there were.
        rows: How many the history has kept.
        history: Its bytes, at most.
        columns: How many a series of the picture has.
        picture: Bytes of a series of the picture, at most; there are two, and three more of probes.
    """

    layers: int
    readings: int
    rows: int
    history: int
    columns: int
    picture: int


def by_length() -> list[Held]:
    """Feed one history and one series of the picture for each of the runs."""
    return [_fed(layers, readings) for layers, readings in RUNS]


def _fed(layers: int, readings: int) -> Held:
    history, pyramid = GradientHistory([str(number) for number in range(layers)]), Pyramid(layers)
    row, present = np.random.default_rng(0).uniform(1e-4, 1.0, layers), np.ones(layers, dtype=np.bool_)
    largest = picture = 0
    for step in range(readings):
        history.append(GradientSnapshot(step, 0, row, row, row, row, present, row, 1.0))
        pyramid.add(step, row, present)
        if step % max(readings // 200, 1) == 0:
            largest, picture = max(largest, _bytes(history)), max(picture, _bytes_drawn(pyramid))
    largest, picture = max(largest, _bytes(history)), max(picture, _bytes_drawn(pyramid))
    return Held(layers, readings, len(history), largest, len(pyramid.records), picture)


def _bytes(history: GradientHistory) -> int:
    parts = [
        part for value in vars(history).values() for part in (value.values() if isinstance(value, dict) else [value])
    ]
    return sum(part.nbytes for part in parts if isinstance(part, np.ndarray))


def _bytes_drawn(pyramid: Pyramid) -> int:
    return sum(record.table.nbytes for record in pyramid.records)
