"""How an error inside GradWatch is kept from ending a training run."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from lightning_gradwatch.fault import GradientFault

P = ParamSpec("P")
R = TypeVar("R")


class Core(Protocol):
    """What can be switched off."""

    disabled_reason: str | None

    def guarded(self) -> AbstractContextManager[None]:
        """Switch off, and say so, where the code inside fails; what is raised on purpose goes through."""
        ...


class HasCore(Protocol):
    """The core itself, or whoever drives it."""

    @property
    def core(self) -> Core:
        """What is switched off after an error."""
        ...


S = TypeVar("S", bound=HasCore)


class Stopwatch:
    """Adds up the time spent in blocks; of those inside each other the outermost counts.

    A class, as a generator with ``contextmanager`` costs several times as much, and a step passes twenty blocks.

    Attributes:
        seconds: So far, of blocks that are over.

    Example:
        >>> stopwatch = Stopwatch()
        >>> with stopwatch, stopwatch:
        ...     pass
        >>> 0 < stopwatch.seconds < 1
        True
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0
        self._start = 0.0

    def __getstate__(self) -> dict[str, float]:
        """Leave the blocks that are open to the original."""
        return {"seconds": self.seconds, "_depth": 0, "_start": 0.0}

    def __enter__(self) -> None:
        """Begin, unless a block around this one has."""
        if self._depth == 0:
            self._start = time.perf_counter()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        """Add what the outermost block took."""
        self._depth -= 1
        if self._depth == 0:
            self.seconds += time.perf_counter() - self._start


class Guard:
    """Blocks whose errors end in ``fail`` and go no further; what is raised on purpose goes through.

    Args:
        stopwatch: Adds up the time spent in them.
        fail: Takes an error.

    Example:
        >>> with Guard(Stopwatch(), print):
        ...     raise KeyError("lost")
        'lost'
    """

    def __init__(self, stopwatch: Stopwatch, fail: Callable[[Exception], None]) -> None:
        self._stopwatch = stopwatch
        self._fail = fail

    def __enter__(self) -> None:
        """Begin."""
        self._stopwatch.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Hand over an error."""
        try:
            if not isinstance(error, Exception) or isinstance(error, GradientFault):
                return False
            self._fail(error)
            return True
        finally:
            self._stopwatch.__exit__()


def harmless(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R | None]:
    """Make a method that never raises an error of its own: GradWatch is switched off instead, and says so once.

    What is raised on purpose (``GradientFault``) goes through. Once switched off, the method does nothing.

    Args:
        method: A method of an object that has a ``core``.

    Returns:
        The guarded method; None where it failed or was not called.
    """

    @functools.wraps(method)
    def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R | None:
        core = self.core
        if core.disabled_reason is None:
            with core.guarded():
                return method(self, *args, **kwargs)
        return None

    return guarded
