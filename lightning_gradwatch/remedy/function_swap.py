"""Other activations where a model calls its own as functions: for a trial, since only the source can change that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from lightning_gradwatch.measure.layers import ROOT, find_layers

# The names under which torch calls each activation, without the underscore of those in place.
_CALLED: Final = {
    "sigmoid": "sigmoid", "special_expit": "sigmoid", "hardsigmoid": "sigmoid", "tanh": "tanh", "relu": "relu",
    "relu6": "relu", "leaky_relu": "leaky_relu", "prelu": "leaky_relu", "rrelu": "leaky_relu", "gelu": "gelu",
    "silu": "silu", "mish": "silu", "hardswish": "silu", "elu": "elu", "celu": "elu", "selu": "selu",
    "softplus": "softplus", "exp": "exp",
}  # fmt: skip
# What may be put in their place, out of place and in place.
_REPLACEMENTS: Final[Mapping[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]]] = {
    "relu": (torch.relu, torch.relu_),
    "leaky_relu": (functional.leaky_relu, functional.leaky_relu_),
    "selu": (torch.selu, torch.selu_),
    "elu": (functional.elu, functional.elu_),
    "tanh": (torch.tanh, torch.tanh_),
}
_NOBODY: Final[frozenset[str]] = frozenset()


class FunctionSwap(TorchFunctionMode):
    """Calls another activation than the model does; see ``swapped_functions``.

    Attributes:
        num_swapped: How many calls were answered by another function so far.
    """

    def __init__(self, model: nn.Module, functions: Mapping[str, str], layers: frozenset[str] | None) -> None:
        super().__init__()
        self.num_swapped = 0
        self._functions = functions
        self._layers = layers
        self._names = _sources(model, layers or _NOBODY)
        # By tensor, held weakly: the layers behind which no activation has been called yet.
        self._behind = WeakIdKeyDictionary()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function, or the one in its place."""
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        kind = _CALLED.get(name.strip("_"))
        behind = self._origins(args, kwargs)
        if kind is None:
            result = func(*args, **kwargs)
            self._mark(result, behind)
            return result
        if kind in self._functions and self._is_meant(behind) and kwargs.get("out") is None:
            in_place = name.endswith("_") or kwargs.get("inplace") is True
            signal: Tensor = args[0] if args else kwargs["input"]
            self.num_swapped += 1
            result = _REPLACEMENTS[self._functions[kind]][in_place](signal)
        else:
            result = func(*args, **kwargs)
        # The first activation behind a layer is its own; what comes later is not.
        self._mark(result, _NOBODY)
        return result

    def _is_meant(self, behind: frozenset[str]) -> bool:
        if self._layers is None:
            return True
        # The model's own parameters are used by its forward, not by a module that could be seen.
        return not self._layers.isdisjoint(behind or {ROOT})

    def _origins(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> frozenset[str]:
        tensors = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        return _NOBODY.union(*(self._behind[t] for t in tensors if t in self._behind))

    def _mark(self, result: Any, behind: frozenset[str]) -> None:
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and (behind or leaf in self._behind):
                self._behind[leaf] = behind

    def note_input(self, module: nn.Module, args: Any) -> None:
        """Make sure that the layer runs where activations are swapped; torch calls it for every module.

        Raises:
            RuntimeError: If it does not: torch asks a mode neither in a backward pass nor on another thread.
        """
        if torch.compiler.is_compiling():
            return
        name = self._names.get(id(module))
        if name is not None and self not in _modes():
            raise RuntimeError(
                f"{name} runs where its activation cannot be swapped: in a backward pass, as activation checkpointing "
                "does, or on another thread. Switch checkpointing off for the trial"
            )

    def note_output(self, module: nn.Module, args: Any, output: Any) -> None:
        """Remember which layer has put out a value; torch calls it for every module."""
        name = None if torch.compiler.is_compiling() else self._names.get(id(module))
        if name is not None:
            self._mark(output, frozenset({name}))


def _modes() -> list[TorchFunctionMode]:
    """Return the modes that are active on this thread; no public function tells."""
    modes: list[TorchFunctionMode] = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return modes


def _sources(model: nn.Module, named: frozenset[str]) -> dict[int, str]:
    """Name the layers that a signal can be said to come from, by ``id`` of the module.

    A container's output is that of its last layer, and a norm's that of the layer before it, unless the norm is named.
    """
    layers = {id(layer.module): layer for layer in find_layers(model) if layer.module is not None}
    return {
        number: layer.name
        for number, layer in layers.items()
        if layer.module is not None
        and sum(id(inner) in layers for inner in layer.module.modules()) == 1
        and (layer.name in named or any(parameter.ndim > 1 for parameter in layer.parameters.values()))
    }


@contextmanager
def swapped_functions(
    model: nn.Module, functions: Mapping[str, str], layers: Iterable[str] | None = None
) -> Iterator[FunctionSwap]:
    """Run a model with other activations than it calls: as functions, as methods of tensors or in modules.

    For a rehearsal on a copy, and for trials. The model is not changed and can be copied meanwhile; nothing stays
    behind, also after an error. With ``layers`` only the first activation behind one of them is swapped, through
    whatever lies between (a norm, a sum, a reshape), so that a sigmoid that is the gate of another layer, or that makes
    probabilities at the output, stays what it is. What ``torch.compile`` has compiled is not seen.

    Args:
        model: The model.
        functions: The activation to call in the place of each, by name: ``{"sigmoid": "relu"}``. A name stands for its
            kind, as in a diagnosis: ``"sigmoid"`` for ``hardsigmoid`` too. In place stays in place.
        layers: Names of layers; None for all calls, gates and outputs with them.

    Yields:
        The swap, whose ``num_swapped`` counts the calls.

    Raises:
        ValueError: If a name is none of an activation that can be swapped, or of a layer.

    Example:
        >>> class Net(nn.Linear):
        ...     def forward(self, x):
        ...         return torch.sigmoid(super().forward(x))
        >>> net = Net(3, 2)
        >>> with swapped_functions(net, {"sigmoid": "relu"}) as swap:
        ...     relu = net(torch.ones(3))
        >>> torch.equal(relu, nn.functional.linear(torch.ones(3), net.weight, net.bias).relu()), swap.num_swapped
        (True, 1)
    """
    chosen = None if layers is None else frozenset(layers)
    _check(model, functions, chosen)
    swap = FunctionSwap(model, dict(functions), chosen)
    # Hooks for all modules: those of the model's own would be copied with the model.
    handles = (register_module_forward_pre_hook(swap.note_input), register_module_forward_hook(swap.note_output))
    try:
        with swap:
            yield swap
    finally:
        for handle in handles:
            handle.remove()


def _check(model: nn.Module, functions: Mapping[str, str], layers: frozenset[str] | None) -> None:
    known = sorted(set(_CALLED.values()))
    for old, new in functions.items():
        if old not in known or new not in _REPLACEMENTS:
            raise ValueError(
                f"`functions` must map one of {known} to one of {sorted(_REPLACEMENTS)}. Got {old!r}: {new!r}"
            )
    unknown = sorted((layers or _NOBODY) - {layer.name for layer in find_layers(model)})
    if unknown:
        raise ValueError(f"`layers` must be names of layers of the model. Got {unknown}")
