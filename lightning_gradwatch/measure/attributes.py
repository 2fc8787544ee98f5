"""Everything that a model holds: what its attributes lead to, however deep."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType

import numpy as np
import torch
from torch import Tensor, nn

# Never looked into: they hold nothing that a model could change, or nobody owns them.
_ATOMS = (
    type(None), bool, int, float, complex, str, bytes, type, ModuleType, BuiltinFunctionType, Enum, np.generic,
    np.ndarray, np.dtype, Tensor, torch.dtype, torch.device, torch.Generator, logging.Logger,
)  # fmt: skip
# Lightning's modules leave these out of their own copies.
_NOT_THE_MODELS = frozenset({"_trainer"})


def attributes_of(model: object) -> Iterator[tuple[str, object]]:
    """Yield what a model holds, each object once, with the path that leads to it.

    Goes through attributes, lists, dictionaries, sets and what functions have closed over, or find under a global name;
    not into classes, Python modules, loggers of the standard library, the Trainer of a LightningModule, mappings that
    are no dictionaries (reading a database may fail, or take an hour), or what is only weakly referred to.

    Args:
        model: A module, or any object.

    Yields:
        The path, such as ``"net.0.weight"``, and the object.

    Example:
        >>> model = torch.nn.Linear(1, 1)
        >>> model.kept = {"last": [torch.zeros(1)]}
        >>> [path for path, value in attributes_of(model) if isinstance(value, Tensor)]
        ['weight', 'bias', "kept['last'][0]"]
    """
    waiting: deque[tuple[str, object]] = deque([("", model)])
    seen: set[int] = set()
    while waiting:
        path, value = waiting.popleft()
        if value is None or isinstance(value, (bool, int, float, str)) or id(value) in seen:
            continue
        seen.add(id(value))
        yield path, value
        if not isinstance(value, _ATOMS):
            waiting.extend(_inside(path, value))


def _inside(path: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"{path}[{key!r}]", key
            yield f"{path}[{key!r}]", item
    elif isinstance(value, (list, tuple, deque, set, frozenset)):
        for number, item in enumerate(value):
            yield f"{path}[{number}]", item
    elif isinstance(value, FunctionType):
        yield from ((path, content) for content in _closed_over(value))
    elif isinstance(value, MethodType):
        yield path, value.__self__
    elif isinstance(value, partial):
        yield from ((path, part) for part in (value.func, *value.args, *value.keywords.values()))
    yield from _own(path, value)


def _own(path: str, value: object) -> Iterator[tuple[str, object]]:
    """Yield attributes, those of a module without the dictionaries in which it keeps its parts."""
    before = f"{path}." if path else ""
    for name, item in getattr(value, "__dict__", {}).items():
        if name in ("_parameters", "_buffers", "_modules") and isinstance(item, dict):
            yield from ((f"{before}{inner}", part) for inner, part in item.items())
        elif name not in _NOT_THE_MODELS and not isinstance(value, FunctionType):
            yield f"{before}{name}", item
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name) and name not in ("__dict__", "__weakref__"):
                yield f"{before}{name}", getattr(value, name)


def _closed_over(function: FunctionType) -> Iterator[object]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:
            # Not filled yet.
            continue
    # In a notebook a hook's list is a global name.
    wanted = (nn.Module, Tensor, list, dict, set) if function.__module__ == "__main__" else (nn.Module, Tensor)
    names = (function.__globals__.get(name) for name in function.__code__.co_names)
    yield from (value for value in names if isinstance(value, wanted))
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
