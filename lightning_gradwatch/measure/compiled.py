"""Whether a model is compiled, so that hooks would make it compile again."""

from __future__ import annotations

from collections.abc import Iterator
from types import FunctionType

from torch import nn

# What torch.compile leaves on a function that it has made; one that it was told to leave alone has no such mark.
_MARK = "_torchdynamo_inline"


def is_compiled(model: nn.Module) -> bool:
    """Tell whether torch.compile has compiled the model, one of its modules or one of their methods.

    A function that the model calls, compiled by itself, leaves no trace before it runs; see ``Topology.opaque``.

    Args:
        model: The model.

    Example:
        >>> import torch
        >>> is_compiled(nn.Linear(1, 1)), is_compiled(torch.compile(nn.Linear(1, 1), backend="eager"))
        (False, True)
    """
    return any(map(_compiled, model.modules()))


def _compiled(module: nn.Module) -> bool:
    if getattr(module, "_compiled_call_impl", None) is not None:
        return True
    methods = [value for kind in type(module).__mro__ if kind is not nn.Module for value in vars(kind).values()]
    return any(map(_marked, [module, *methods, *_kept(module)]))


def _kept(module: nn.Module) -> Iterator[object]:
    """Yield what a module holds without having registered it, also in plain lists and dictionaries."""
    for value in vars(module).values():
        yield value
        if isinstance(value, (list, tuple)):
            yield from value
        elif isinstance(value, dict):
            yield from value.values()


def _marked(value: object) -> bool:
    function = isinstance(value, FunctionType) and _MARK in vars(value)
    return function or type(value).__name__ == "OptimizedModule"
