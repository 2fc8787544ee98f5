"""The cases, a family of networks a file."""

from __future__ import annotations

from itertools import chain

from benchmarks.ward.case import Case
from benchmarks.ward.cases import (
    convolutional,
    dense,
    disconnected,
    generative,
    published,
    recurrent,
    rest,
    training,
    transformers,
)

FAMILIES = (dense, published, training, convolutional, recurrent, transformers, generative, rest, disconnected)


def all_cases() -> tuple[Case, ...]:
    """Return every case, in a fixed order; their names are unique."""
    return tuple(chain.from_iterable(family.cases() for family in FAMILIES))
