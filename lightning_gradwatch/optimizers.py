"""The Trainer's optimizers: the number of each, and which of them tell of their steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer


class Optimizers:
    """Knows each optimizer by its place in the Trainer, and hears of its steps while a fit lasts.

    Example:
        >>> from torch import nn, optim
        >>> first, second = (optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1) for _ in range(2))
        >>> optimizers, stepped = Optimizers(), []
        >>> optimizers.begin([first, second], stepped.append)
        >>> second.step()
        >>> optimizers.number([first, second], second), stepped
        (1, [1])
        >>> optimizers.end()
    """

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._hooks: list[Any] = []
        # Optimizers whose steps are heard of, and those that tell of none.
        self._heard: list[Optimizer] = []
        self._silent: set[int] = set()
        self._stepped: Callable[[int], None] | None = None

    def begin(self, optimizers: Sequence[Optimizer], stepped: Callable[[int], None]) -> None:
        """Begin a fit.

        Args:
            optimizers: The Trainer's.
            stepped: Takes the number of each that has stepped; -1 for one that nobody knows.
        """
        self._numbers = {id(optimizer): number for number, optimizer in enumerate(optimizers)}
        self._stepped = stepped
        for optimizer in optimizers:
            self._listen(optimizer)

    def _listen(self, optimizer: Optimizer) -> None:
        """Hear of an optimizer's steps where it tells of them.

        One that only meets Lightning's protocol does not; nor one that was never initialized as one of torch's
        (Lookahead), although it has the method.
        """
        try:
            self._hooks.append(optimizer.register_step_post_hook(self._after_step))
        except Exception:
            self._silent.add(id(optimizer))
        self._heard.append(optimizer)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._stepped is not None:
            self._stepped(self._numbers.get(id(optimizer), -1))

    def number(self, optimizers: Sequence[Optimizer], optimizer: Optimizer) -> int:
        """Return an optimizer's place, also when it was made anew during training.

        Args:
            optimizers: The Trainer's by now.
            optimizer: One of them, or one that it does not know.
        """
        if not any(optimizer is known for known in self._heard):
            self._listen(optimizer)
        places = [place for place, each in enumerate(optimizers) if each is optimizer]
        number = places[0] if places else self._numbers.setdefault(id(optimizer), len(self._numbers))
        self._numbers[id(optimizer)] = number
        return number

    def silent(self, optimizers: Sequence[Optimizer]) -> list[int]:
        """Return the numbers of those that tell of no step.

        Args:
            optimizers: The Trainer's by now.
        """
        if not self._silent:
            return []
        return [self._numbers[id(optimizer)] for optimizer in optimizers if id(optimizer) in self._silent]

    def end(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._heard.clear()
        self._silent.clear()
        self._stepped = None
