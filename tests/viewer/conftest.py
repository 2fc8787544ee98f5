"""What the tests of the viewer share: a real browser and what it looks at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from viewer.browser import browser, visit, witness
from viewer.hosts import Stand, TensorBoard

__all__ = ["browser", "stand", "tensorboard", "visit", "witness"]


@pytest.fixture
def stand() -> Iterator[Callable[..., Stand]]:
    """Return a function that serves runs until the test is over: ``stand(runs, dark=False).url``."""
    with ExitStack() as open_ones:
        yield lambda runs, **settings: open_ones.enter_context(Stand(runs, **settings))


@pytest.fixture
def tensorboard() -> Iterator[Callable[..., TensorBoard]]:
    """Return a function that starts a real TensorBoard until the test is over: ``tensorboard(logdir, fast=False)``."""
    with ExitStack() as open_ones:
        yield lambda logdir, **settings: open_ones.enter_context(TensorBoard(logdir, **settings))
