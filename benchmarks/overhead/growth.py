"""How the cost of a step grows with the number of layers, and with the number of parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.overhead.abba import Seconds
from benchmarks.overhead.bare import steps_of
from benchmarks.overhead.works import Work

LAYERS = (10, 100, 1000, 10_000)
# In 20 layers each.
PARAMETERS = (10**5, 10**6, 10**7, 10**8, 3 * 10**8)
_DEPTH = 20


@dataclass(frozen=True)
class Size:
    """A model of some size and what a step costs.

    Attributes:
        layers: How many it has.
        parameters: How many numbers.
        seconds: Medians by name.
    """

    layers: int
    parameters: int
    seconds: dict[str, Seconds]


def by_layers(rounds: int) -> Iterator[Size]:
    """Time more and more layers of width 4.

    Args:
        rounds: How many times forwards and backwards; fewer for the largest.
    """
    for number in LAYERS:
        yield _timed(number, 4, max(rounds * 100 // (number + 100), 4))


def by_parameters(rounds: int) -> Iterator[Size]:
    """Time wider and wider layers.

    Args:
        rounds: How many times forwards and backwards; fewer for the largest.
    """
    for number in PARAMETERS:
        yield _timed(_DEPTH, round((number / _DEPTH) ** 0.5), max(rounds * 10**7 // (number + 10**7), 4))


def _timed(layers: int, width: int, rounds: int) -> Size:
    def make() -> nn.Module:
        net = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
        for part in net:
            assert isinstance(part, nn.Linear)
            nn.init.eye_(part.weight)
        return net

    work = Work("", make, lambda: (torch.randn(4, width), torch.randn(4, width)), F.mse_loss, 0, 0.0)
    return Size(layers, layers * width * (width + 1), steps_of(work, rounds))
