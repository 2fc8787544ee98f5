"""A copy of a model that shares nothing with it, or the reason why there can be none."""

from __future__ import annotations

import copy
import io
import logging
import random
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from types import FunctionType, ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from lightning_gradwatch.measure.attributes import attributes_of
from lightning_gradwatch.measure.compiled import is_compiled
from lightning_gradwatch.measure.room import bytes_free, bytes_needed

# Share of the free memory that a copy may take, its gradients and Adam's moments counted. Ours: what the forward pass
# keeps is not known before it runs, and training needs its room as well.
FREE_SHARE = 0.5
_MIB = 2**20
# What a model could change; everything else may be shared.
_MUTABLE = (
    Tensor, nn.Module, list, Mapping, set, bytearray, deque, np.ndarray, random.Random, np.random.Generator,
    np.random.RandomState, torch.Generator, io.IOBase, weakref.ReferenceType, *weakref.ProxyTypes,
)  # fmt: skip
# Shared in any case: classes, Python modules and the loggers of the standard library are not the model's own.
_SHARED = (type, ModuleType, FunctionType, Enum, logging.Logger, torch.dtype, torch.device)


class NotCopiedError(Exception):
    """Says in words why a model cannot be copied."""


def copy_of(model: nn.Module, *, free_share: float = FREE_SHARE) -> nn.Module:
    """Copy a model with everything that it holds.

    Args:
        model: The model.
        free_share: Share of the free memory that may be used.

    Returns:
        The copy, without gradients; it shares nothing that either of them could change.

    Raises:
        NotCopiedError: With the reason: what cannot be copied, would be shared, or does not fit.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> copied = copy_of(model)
        >>> bool((copied.weight == model.weight).all()), copied.weight is model.weight
        (True, False)
    """
    with _gone_through():
        reason = _refused(model) or _too_large(model, free_share)
    if reason:
        raise NotCopiedError(reason)
    try:
        copied = copy.deepcopy(model)
    except Exception as error:
        with _gone_through():
            reason = _why(model, error)
        raise NotCopiedError(reason) from error
    with _gone_through():
        shared = shared_between(model, copied)
    if shared:
        raise NotCopiedError(f"a copy would share {shared} with the model, and change it")
    for parameter in copied.parameters():
        parameter.grad = None
    return copied


@contextmanager
def _gone_through() -> Iterator[None]:
    """A person's own object may do anything when it is looked at."""
    try:
        yield
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise NotCopiedError(f"what the model holds cannot be gone through: {what}") from error


def _refused(model: nn.Module) -> str:
    if is_compiled(model):
        return "the model is compiled (torch.compile): a copy would have to be compiled again"
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "full_tensor"):
            return f"{name} is spread over processes (FSDP2, DTensor)"
        if parameter.device.type == "meta":
            return f"{name} has no numbers (device meta)"
    for module in model.modules():
        kind = type(module).__name__
        if kind in ("DistributedDataParallel", "FullyShardedDataParallel"):
            return f"the model is wrapped in {kind}, whose processes have to run together"
        if isinstance(module, torch.jit.ScriptModule):
            return "the model is scripted (torch.jit)"
    return ""


def _too_large(model: nn.Module, free_share: float) -> str:
    for device, needed in bytes_needed(model).items():
        free = bytes_free(device)
        if free is not None and needed > free_share * free:
            return (
                f"a copy with its gradients would take {needed / _MIB:,.0f} MiB on {device}, more than "
                f"{free_share:.0%} of the {free / _MIB:,.0f} MiB that are free"
            )
    return ""


def _why(model: nn.Module, error: Exception) -> str:
    """Name the attribute that deepcopy rejects: its own message has only the type."""
    what = f"{type(error).__name__}: {error}".rstrip(".")
    for path, value in attributes_of(model):
        if isinstance(value, Tensor) and value.grad_fn is not None:
            return f"{path} is a tensor with a graph, which cannot be copied (keep {path}.detach() instead)"
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers", "_modules", "_trainer"):
                continue
            try:
                copy.deepcopy(value, {id(module): module})
            except Exception:
                path = f"{prefix}.{name}" if prefix else name
                return f"{path} ({type(value).__name__}) cannot be copied: {what}"
    return f"the model cannot be copied: {what}"


def shared_between(model: nn.Module, copied: nn.Module) -> str:
    """Return the path of something that both could change; empty where they share nothing.

    ``deepcopy`` keeps functions as they are, with what they have closed over, and obeys an object that calls itself
    its own copy.

    Args:
        model: A model.
        copied: Its copy.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> model.peek = lambda: model.weight
        >>> shared_between(model, copy.deepcopy(model))
        'peek'
    """
    ours = {id(value) for _, value in attributes_of(model)}
    for path, value in attributes_of(copied):
        if id(value) in ours and _could_change(value):
            return path
    return ""


def _could_change(value: object) -> bool:
    if isinstance(value, _SHARED) or type(value).__module__ == "typing":
        return False
    if isinstance(value, (weakref.ReferenceType, *weakref.ProxyTypes)):
        return _leads_somewhere(value)
    return isinstance(value, _MUTABLE) or bool(getattr(value, "__dict__", None))


def _leads_somewhere(value: object) -> bool:
    return not isinstance(value, weakref.ReferenceType) or value() is not None
