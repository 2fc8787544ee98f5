"""How a loss is heard of in a loop that tells nobody: ``Tensor.backward`` tells, while anybody listens."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from torch import Tensor


class Listener(Protocol):
    """Who wants to hear of losses."""

    def before_backward(self, loss: Tensor) -> None:
        """Take a loss before its gradients are computed."""
        ...

    def after_backward(self) -> None:
        """Note that they are."""
        ...


class Backward:
    """Hears of losses: while anybody listens, ``Tensor.backward`` is a function that tells of the call and makes it.

    PyTorch has no hook for it, and a loss that is not known leaves the rules without a word on whether a network
    learns. When nobody listens any more the method is what it was.
    """

    listeners: ClassVar[list[Listener]] = []
    inside: ClassVar[bool] = False
    original: ClassVar[Callable[..., None]] = Tensor.backward

    @classmethod
    def listen(cls, listener: Listener) -> None:
        """Tell a listener of each call from now on."""
        if not cls.listeners:
            cls.original = Tensor.backward
            Tensor.backward = cls._wrapped(cls.original)  # type: ignore[method-assign]
        cls.listeners.append(listener)

    @classmethod
    def leave(cls, listener: Listener) -> None:
        """Tell a listener of nothing any more; of one that does not listen there is nothing to forget."""
        if listener in cls.listeners:
            cls.listeners.remove(listener)
        # Somebody who has put a function of their own around ours keeps it; ours then only passes calls on.
        if not cls.listeners and getattr(Tensor.backward, "_gradwatch", False):
            Tensor.backward = cls.original  # type: ignore[method-assign]

    @classmethod
    def _wrapped(cls, original: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(original)
        def backward(self: Tensor, *args: Any, **kwargs: Any) -> None:
            # Under a mode or of a subclass, torch calls its method a second time from inside.
            listeners = [] if cls.inside else list(cls.listeners)
            for listener in listeners:
                listener.before_backward(self)
            outer, cls.inside = cls.inside, True
            try:
                original(self, *args, **kwargs)
            finally:
                cls.inside = outer
            for listener in listeners:
                listener.after_backward()

        backward._gradwatch = True  # type: ignore[attr-defined]
        return backward
