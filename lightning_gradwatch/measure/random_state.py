"""The state of every random number generator that a forward pass may draw from, to be put back afterwards."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


class RandomState:
    """What torch (CPU, CUDA, MPS), numpy and python would draw next, as it was when this was made.

    Generators that a person has made (``torch.Generator``, ``numpy.random.default_rng``) are theirs: where they are an
    attribute of a model they are copied with it.

    Example:
        >>> state = RandomState()
        >>> first = torch.rand(())
        >>> state.restore()
        >>> bool(torch.rand(()) == first)
        True
    """

    def __init__(self) -> None:
        self._python = random.getstate()
        # The state that people's own calls share, whatever newer interfaces there are.
        self._numpy: Any = np.random.get_state()  # noqa: NPY002
        self._torch = torch.get_rng_state()
        # Asking for the state would start CUDA in a process that does not use it.
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
        self._mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None

    def restore(self) -> None:
        """Put everything back."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002
        torch.set_rng_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)
        if self._mps is not None:
            torch.mps.set_rng_state(self._mps)


@contextmanager
def kept_random_state() -> Iterator[RandomState]:
    """Put all random states back when the block is over, also after an error.

    Example:
        >>> before = torch.get_rng_state()
        >>> with kept_random_state():
        ...     _ = torch.rand(3)
        >>> bool((torch.get_rng_state() == before).all())
        True
    """
    state = RandomState()
    try:
        yield state
    finally:
        state.restore()
