"""What a remedy does to a model: edits that are written down as lines to paste, and done in place just so."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from lightning_gradwatch.remedy.function_swap import swapped_functions

# A card in TensorBoard shows so many characters of a line.
CODE_WIDTH = 90


class Edit(Protocol):
    """One thing that is done to a model, planned on one of its class."""

    @property
    def code(self) -> str:
        """Lines to paste behind the making of ``model``; they do what ``apply_`` does."""
        ...

    def apply_(self, model: nn.Module) -> None:
        """Do it in place."""
        ...


@dataclass(frozen=True)
class FunctionCalls:
    """Activations that the model calls as functions: only an edit of its source can replace them.

    Attributes:
        functions: The activation to put in the place of each, by name, as ``swapped_functions`` takes them.
        layers: The layers behind which they are called.
        lines: Where they are called (``"model.py:31"``), as far as that is known.
        says: What to write instead: ``"torch.sigmoid(...) -> torch.relu(...)"``.
        shared: Whether they are modules, of which one makes the output as well.
    """

    functions: Mapping[str, str]
    layers: tuple[str, ...]
    lines: tuple[str, ...] = ()
    says: str = ""
    shared: bool = False

    def refusal(self, then: str) -> ValueError:
        """Return the error that says what has to be edited where, and what to do afterwards."""
        if self.shared:
            return ValueError(
                f"the module that is the {', '.join(self.functions)} of the hidden layers makes the output as well, so "
                f"it cannot be replaced. Give the hidden layers modules of their own: {self.says}{then}"
            )
        who = f"{', '.join(self.lines)} calls" if self.lines else "the model calls"
        names = ", ".join(self.functions)
        return ValueError(
            f"{who} {names} as a function, so it cannot be replaced from outside. Edit the source: {self.says}{then}"
        )


@dataclass(frozen=True)
class Edits:
    """Several edits, one after another: what ``Remedy.change`` does and ``Remedy.code`` says.

    Attributes:
        edits: In the order in which they are done.
        calls: What only the source can change; None where there is nothing of the kind.

    Example:
        >>> Edits().code
        ''
    """

    edits: tuple[Edit, ...] = ()
    calls: FunctionCalls | None = None

    @property
    def code(self) -> str:
        """The lines of all edits; what is imported, is imported once."""
        lines: list[str] = []
        if self.calls is not None:
            lines += [f"# in {line}: {self.calls.says}" for line in self.calls.lines or ("the source",)]
        for edit in self.edits:
            lines += [line for line in edit.code.split("\n") if not (line in lines and line.startswith("from "))]
        return "\n".join(lines)

    def apply_(self, model: nn.Module) -> None:
        """Edit a model in place.

        Args:
            model: A fresh model of the class that the edits were planned on.

        Raises:
            ValueError: If the source has to be edited; nothing has been done then.
        """
        if self.calls is not None:
            raise self.calls.refusal(", then initialize with the lines of `Remedy.code`" if self.edits else "")
        self._do(model)

    def __call__(self, model: nn.Module) -> None:
        """Do what ``apply_`` does."""
        self.apply_(model)

    @contextmanager
    def tried(self, model: nn.Module) -> Iterator[None]:
        """Edit a copy of a model in place, and swap what it calls as functions for as long as the context lasts.

        Args:
            model: A copy that is thrown away.

        Example:
            >>> import torch
            >>> class Net(nn.Linear):
            ...     def forward(self, x):
            ...         return torch.sigmoid(super().forward(x))
            >>> calls = FunctionCalls({"sigmoid": "relu"}, ("(root)",))
            >>> with Edits(calls=calls).tried(model := Net(2, 2)):
            ...     zero = model(torch.zeros(1, 2) - 1e9 * model.weight.sign()[:1]).min().item()
            >>> zero
            0.0
        """
        self._do(model)
        if self.calls is None:
            yield
            return
        with swapped_functions(model, self.calls.functions, self.calls.layers):
            yield

    def _do(self, model: nn.Module) -> None:
        for edit in self.edits:
            edit.apply_(model)


def loop_over(variable: str, values: Sequence[object]) -> list[str]:
    """Write the head of a loop, broken where a card in TensorBoard would have to be scrolled.

    Example:
        >>> loop_over("number", [0, 2, 4])
        ['for number in [0, 2, 4]:']
    """
    head = f"for {variable} in {list(values)!r}:"
    if len(head) <= CODE_WIDTH:
        return [head]
    rows = textwrap.wrap(", ".join(map(repr, values)), CODE_WIDTH, break_long_words=False, break_on_hyphens=False)
    return [f"for {variable} in [", *(f"    {row}" for row in rows), "]:"]
