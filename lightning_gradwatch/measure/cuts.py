"""Tensors that were made of something trainable and have lost the way back to it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

Columns = frozenset[int]

NOWHERE: Final[Columns] = frozenset()
# A graph in which no layer lies nearer is a person's own code: it stems from nobody knows where. Ours.
MAX_NODES: Final = 512
_PLAIN: Final = {int, float, bool, str, type(None)}


def _leaves(value: Any) -> Sequence[Any]:
    """Return what a nested value consists of.

    Most are a tensor or a few in a row; pytree, which knows every container, takes ten times as long for them.
    """
    if isinstance(value, Tensor):
        return (value,)
    if type(value) in (tuple, list) and all(isinstance(part, Tensor) or type(part) in _PLAIN for part in value):
        return tuple(value)
    return tree_leaves(value)


class CutTensors:
    """Follows, from operation to operation, what no gradient will come back through, and which layers it stems from.

    A result is cut where it does not ask for a gradient although one of the arguments does (``detach()``, ``.data``,
    everything under ``torch.no_grad()``, ``argmax``) or was cut itself. It stems from the layers that the graph of its
    arguments meets first, or that made them without a graph; where no layer is known, it is not followed. What goes to
    numpy and back is found again by its memory; what numpy has computed lies elsewhere, and is not. No tensor and no
    array is kept alive.

    Example:
        >>> import torch
        >>> cuts, hidden = CutTensors(), torch.ones(1, requires_grad=True) * 2
        >>> cuts.mark((), hidden, 3)
        >>> value = hidden.relu().detach()
        >>> cuts.note((hidden.relu(),), {}, value)
        >>> cuts.origins(value), cuts.origins(torch.ones(1))
        (frozenset({3}), frozenset())
    """

    def __init__(self) -> None:
        # Made when it is needed: most probes never ask.
        self._cut: WeakIdKeyDictionary | None = None
        # An array's memory may be another tensor's as soon as the array is gone.
        self._arrays: list[tuple[weakref.ref[np.ndarray[Any, Any]], Columns]] = []

    def __reduce__(self) -> tuple[type[CutTensors], tuple[()]]:
        """Copy to an empty one: the copy of a tensor is another tensor, and weak references cannot be pickled."""
        return CutTensors, ()

    def mark(self, args: Any, output: Any, column: int) -> None:
        """Tell that a layer which can be trained has made an output.

        Args:
            args: What it was given; what it passes on as it is stems from elsewhere.
            output: What it has returned.
            column: Index of the layer.
        """
        given = {id(leaf) for leaf in _leaves(args)}
        for leaf in _leaves(output):
            if not isinstance(leaf, Tensor) or id(leaf) in given:
                continue
            node = node_of(leaf)
            if node is not None:
                node.metadata[self] = column
            elif not leaf.requires_grad and leaf.is_floating_point():
                # Whole numbers and flags are masks and lengths more often than what a layer has learned.
                self._keep(leaf, frozenset((column,)))

    def note(self, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """Note what an operation has made; a result that asks for a gradient need not be told of.

        Args:
            args: The operation's arguments.
            kwargs: The named ones.
            result: What it has returned; where that is None, it may have written to its first argument.
        """
        if isinstance(result, (bool, int, float, str)):
            return
        origins = _joined(map(self._origins_of, (*_leaves(args), *_leaves(tuple(kwargs.values())))))
        if not origins:
            return
        # ``x[:, 0] = y`` returns nothing.
        for leaf in _leaves(args[:1] if result is None else result):
            if isinstance(leaf, Tensor) and not leaf.requires_grad:
                self._keep(leaf, origins)
            elif isinstance(leaf, np.ndarray):
                alive = [(array, columns) for array, columns in self._arrays if array() is not None]
                self._arrays = [*alive, (weakref.ref(leaf), origins)]

    def origins(self, value: Any) -> Columns:
        """Return the layers that the cut tensors in a value stem from; none where nothing was cut."""
        leaves = (leaf for leaf in _leaves(value) if isinstance(leaf, Tensor) and not leaf.requires_grad)
        return _joined(map(self._origins_of, leaves))

    def _keep(self, tensor: Tensor, origins: Columns) -> None:
        self._cut = self._cut if self._cut is not None else WeakIdKeyDictionary()
        self._cut[tensor] = origins

    def _origins_of(self, leaf: Any) -> Columns:
        """Return the layers behind what still has its graph, or was cut."""
        if isinstance(leaf, np.ndarray):
            return self._origins_at(_address(leaf))
        if not isinstance(leaf, Tensor):
            return NOWHERE
        if leaf.requires_grad:
            return self._nearest(node_of(leaf))
        known: Columns = self._cut[leaf] if self._cut is not None and leaf in self._cut else NOWHERE
        return known or (self._origins_at(_address(leaf)) if self._arrays else NOWHERE)

    def _origins_at(self, address: int) -> Columns:
        arrays = ((reference(), columns) for reference, columns in self._arrays)
        return _joined(
            columns
            for array, columns in arrays
            if array is not None and _address(array) <= address < _address(array) + _extent(array)
        )

    def _nearest(self, node: Any) -> Columns:
        """Walk back through a graph as far as the first layer on each way."""
        found: set[int] = set()
        seen: set[Any] = set()
        waiting = [node]
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            if len(seen) == MAX_NODES:
                return NOWHERE
            seen.add(node)
            column = node.metadata.get(self)
            if column is None:
                waiting.extend(before for before, _ in node.next_functions)
            else:
                found.add(column)
        return frozenset(found)


def node_of(value: object) -> Any:
    """Return the node of the graph that made a tensor; None for anything else, and where torch refuses to tell."""
    try:
        return value.grad_fn if isinstance(value, Tensor) else None
    except RuntimeError:
        # A view that was made without gradients and has been written to since.
        return None


def _joined(several: Iterable[Columns]) -> Columns:
    return NOWHERE.union(*several)


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
