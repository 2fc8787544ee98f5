"""Runs a module on an example and leaves no trace of it: buffers, attributes, modes and random states are put back."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_gradwatch.measure.random_state import kept_random_state

# A module's own dictionaries of parameters, buffers, modules and hooks are among them.
_CONTAINERS = (list, dict, set, deque, OrderedDict)


def call(module: nn.Module, example_input: Any) -> Any:
    """Call a module on an example: a tuple holds its positional arguments, a mapping its named ones.

    Example:
        >>> call(nn.Bilinear(1, 2, 3), (torch.ones(4, 1), torch.ones(4, 2))).shape
        torch.Size([4, 3])
    """
    if isinstance(example_input, tuple):
        return module(*example_input)
    return module(**example_input) if isinstance(example_input, Mapping) else module(example_input)


@contextmanager
def traceless(module: nn.Module) -> Iterator[None]:
    """Put back, also after an error, what a forward pass may change in a module.

    These are buffers (running statistics), the attributes of each module, its mode among them, what is in a list,
    dictionary, set or tensor that an attribute names, and the states of torch's, numpy's and python's random number
    generators, also of one that an attribute names. Parameters are not put back. Not seen: what lies deeper, such as in
    an object that an attribute names.

    Args:
        module: The module that is run in the block.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> with traceless(norm):
        ...     _ = norm(torch.randn(8, 2)), norm.eval()
        >>> norm.running_mean.tolist(), norm.training
        ([0.0, 0.0], True)
    """
    kept = [_Kept(part) for part in module.modules()]
    with kept_random_state():
        try:
            yield
        finally:
            for part in kept:
                part.restore()


class _Kept:
    """One module as it was."""

    def __init__(self, module: nn.Module) -> None:
        self._module, self._training = module, module.training
        # A scripted module keeps everything but its buffers and mode out of python's reach.
        self._scripted = isinstance(module, torch.jit.ScriptModule)
        self._attributes = {} if self._scripted else dict(vars(module))
        held = [value for value in self._attributes.values() if type(value) in _CONTAINERS]
        self._containers = [(value, copy.copy(value)) for value in held]
        tensors = [value for value in self._attributes.values() if isinstance(value, Tensor)]
        self._rewinds = [rewind for value in self._attributes.values() if (rewind := _rewind_of(value)) is not None]
        self._tensors = [(t, t.detach().clone()) for t in (*module.buffers(recurse=False), *tensors) if _has_numbers(t)]

    @torch.no_grad()
    def restore(self) -> None:
        for tensor, before in self._tensors:
            # A write counts as a change even where it changes nothing, and a graph that still waits refuses to go back.
            if tensor.layout is not torch.strided or not torch.equal(tensor, before):
                tensor.copy_(before)
        for rewind in self._rewinds:
            rewind()
        if self._scripted:
            self._module.train(self._training)
            return
        # Past __setattr__ and __delattr__, which would sort parameters and modules anew.
        attributes = vars(self._module)
        attributes.clear()
        attributes.update(self._attributes)
        for container, content in self._containers:
            container.clear()
            (container.extend if isinstance(container, (list, deque)) else container.update)(content)


def _rewind_of(value: object) -> Callable[[], object] | None:
    """Return what puts a generator of random numbers back to where it stands now; None for anything else."""
    if isinstance(value, torch.Generator):
        return partial(value.set_state, value.get_state())
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return partial(value.setstate, value.getstate())
    if isinstance(value, np.random.RandomState):
        return partial(value.set_state, value.get_state())
    if isinstance(value, np.random.Generator):
        return partial(setattr, value.bit_generator, "state", copy.deepcopy(value.bit_generator.state))
    return None


def _has_numbers(tensor: Tensor) -> bool:
    """A lazy tensor has none before its first use."""
    return tensor.device.type != "meta" and not is_lazy(tensor)
