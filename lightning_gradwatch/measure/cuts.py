"""Tensors that were made of something trainable and have lost the way back to it."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class CutTensors:
    """Follows, from operation to operation, what no gradient will come back through.

    A result is cut where it does not ask for a gradient although one of the arguments does (``detach()``, ``.data``,
    everything under ``torch.no_grad()``, ``argmax``) or was cut itself. What goes to numpy and back is found again by
    its memory; what numpy has computed lies elsewhere, and is not. No tensor and no array is kept alive.

    Example:
        >>> import torch
        >>> cuts, weight = CutTensors(), torch.ones(1, requires_grad=True)
        >>> value = weight.detach()
        >>> cuts.note((weight,), {}, value)
        >>> cuts.has(value), cuts.has(torch.ones(1))
        (True, False)
    """

    def __init__(self) -> None:
        # Made when it is needed: most probes never ask.
        self._cut: WeakIdKeyDictionary | None = None
        # An array's memory may be another tensor's as soon as the array is gone.
        self._arrays: list[weakref.ref[np.ndarray[Any, Any]]] = []

    def __reduce__(self) -> tuple[type[CutTensors], tuple[()]]:
        """Copy to an empty one: the copy of a tensor is another tensor, and weak references cannot be pickled."""
        return CutTensors, ()

    def note(self, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """Note what an operation has made; a result that asks for a gradient need not be told of.

        Args:
            args: The operation's arguments.
            kwargs: The named ones.
            result: What it has returned; where that is None, it may have written to its first argument.
        """
        if isinstance(result, (bool, int, float, str)):
            return
        if not any(map(self._lost, tree_leaves((args, dict(kwargs))))):
            return
        # ``x[:, 0] = y`` returns nothing.
        for leaf in tree_leaves(args[:1] if result is None else result):
            if isinstance(leaf, Tensor) and not leaf.requires_grad:
                self._cut = self._cut if self._cut is not None else WeakIdKeyDictionary()
                self._cut[leaf] = True
            elif isinstance(leaf, np.ndarray):
                self._arrays = [*filter(_is_alive, self._arrays), weakref.ref(leaf)]

    def has(self, value: Any) -> bool:
        """Tell whether any tensor in a value was cut."""
        return any(
            isinstance(leaf, Tensor) and not leaf.requires_grad and self._lost(leaf) for leaf in tree_leaves(value)
        )

    def _lost(self, leaf: Any) -> bool:
        """Tell whether it asks for a gradient, or no longer can."""
        if isinstance(leaf, np.ndarray):
            return self._is_ours(_address(leaf))
        if not isinstance(leaf, Tensor):
            return False
        known = leaf.requires_grad or (self._cut is not None and leaf in self._cut)
        return known or (bool(self._arrays) and self._is_ours(_address(leaf)))

    def _is_ours(self, address: int) -> bool:
        arrays = (reference() for reference in self._arrays)
        return any(
            _address(array) <= address < _address(array) + _extent(array) for array in arrays if array is not None
        )


def _is_alive(reference: weakref.ref[Any]) -> bool:
    return reference() is not None


def _address(value: Tensor | np.ndarray[Any, Any]) -> int:
    if isinstance(value, np.ndarray):
        return int(value.ctypes.data)
    try:
        return int(value.data_ptr())
    except RuntimeError:
        # Sparse tensors and those without storage have none.
        return 0


def _extent(array: np.ndarray[Any, Any]) -> int:
    """Return how many bytes lie between an array's first number and the end of its last; torch has no steps back."""
    if not array.size:
        return 0
    last = sum((length - 1) * stride for length, stride in zip(array.shape, array.strides, strict=True))
    return int(last) + array.itemsize
