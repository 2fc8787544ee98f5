"""What the tests of the rivals share: a step as they see it, made of a few numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from benchmarks.ward.rivals.look import Look, Units

NAN = float("nan")


def make_look(
    gradients: Sequence[Sequence[float]],
    weights: Sequence[Sequence[float]] = (),
    *,
    number: int = 0,
    loss: float = 1.0,
    accuracy: float = NAN,
    progress: float = 0.1,
    units: Mapping[str, Units] | None = None,
) -> Look:
    """Make a look at layers ``a``, ``b``, ...; without weights each weight is 1."""
    return Look(
        step=number,
        number=number,
        progress=progress,
        names=tuple("abcdefgh"[: len(gradients)]),
        read_gradients=lambda: [np.array(each, dtype=np.float64) for each in gradients],
        read_weights=lambda: [np.array(each, dtype=np.float64) for each in weights or [[1.0]] * len(gradients)],
        loss=loss,
        accuracy=accuracy,
        units=units or {},
    )


@pytest.fixture
def look() -> Callable[..., Look]:
    """Return what makes a look."""
    return make_look
