"""How an error inside GradWatch is kept from ending a training run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Concatenate, ParamSpec, Protocol, TypeVar

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
