"""The gradient that reaches each time step of torch's recurrent modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_hooks
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from lightning_gradwatch.measure.magnitude import measurable, norms_along, norms_of_segments

# From a gradient to the norm of each time step and how many numbers each is made of.
NormsOfSteps = Callable[[Tensor], tuple[Tensor, list[int]]]
_FORWARDS = (nn.RNN.forward, nn.LSTM.forward, nn.GRU.forward)


class Tap:
    """A hook before a recurrent module's forward pass; where the module is copied or pickled, the copy's does nothing.

    Args:
        call: Is called with the module, its arguments and its named arguments.
    """

    def __init__(self, call: Callable[..., Any] | None = None) -> None:
        self._call = call

    def __call__(self, module: nn.Module, args: Any, kwargs: Any = None) -> Any:
        """Call what it was made for; without named arguments torch calls one that was removed a moment ago."""
        return None if self._call is None or kwargs is None else self._call(module, args, kwargs)

    def __reduce__(self) -> tuple[type[Tap], tuple[()]]:
        """Copy and pickle nothing of the probe."""
        return Tap, ()


@dataclass(frozen=True, eq=False)
class Tapped:
    """An input that is listened to.

    Attributes:
        arguments: The arguments to be used instead, None where they can stay as they are.
        handle: Removes the hook.
    """

    arguments: tuple[tuple[Any, ...], dict[str, Any]] | None
    handle: RemovableHandle


def tap_input(
    module: nn.RNNBase,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    tell: Callable[[NormsOfSteps, Tensor], None],
) -> Tapped | None:
    """Ask for the gradient with respect to the input of a recurrent module, for this one call.

    An input that needs no gradient is replaced by the same numbers that do, where nobody can notice; nothing keeps
    its gradient. The gradient of an input that others use too is the sum of all uses.

    Args:
        module: The module that is about to be called.
        args: Its arguments.
        kwargs: Its named arguments.
        tell: Is told when the gradient comes: how to read it, and the gradient.

    Returns:
        What was done; None where there is nothing to be had.
    """
    given = args[0] if args else kwargs.get("input")
    data = given.data if isinstance(given, PackedSequence) else given
    if not measurable(data):
        return None
    assert isinstance(data, Tensor), "measurable says so"
    read = partial(tell, _norms_of(given, module))
    if data.requires_grad:
        return Tapped(None, data.register_hook(read))  # type: ignore[no-untyped-call]
    if data.is_inference() or _saved_elsewhere() or _noticed(module):
        return None
    fresh = data.detach().requires_grad_()
    handle = fresh.register_hook(read)  # type: ignore[no-untyped-call]
    fresh.register_post_accumulate_grad_hook(_drop)  # type: ignore[no-untyped-call]
    new = _like(given, fresh)
    return Tapped(((new, *args[1:]), dict(kwargs)) if args else (args, {**kwargs, "input": new}), handle)


def _drop(leaf: Tensor) -> None:
    leaf.grad = None


def _like(given: Any, data: Tensor) -> Any:
    if isinstance(given, PackedSequence):
        return PackedSequence(data, given.batch_sizes, given.sorted_indices, given.unsorted_indices)
    return data


def _noticed(module: nn.RNNBase) -> bool:
    """Tell whether somebody would notice an input that suddenly needs a gradient.

    A frozen module would build a graph that nobody else asked for; a person's own hook, or their own ``forward``, may
    write to the input or turn it into numpy, which torch refuses where a gradient is needed.
    """
    own = type(module).forward not in _FORWARDS or "forward" in vars(module)
    hooks = (module._forward_hooks, module._backward_hooks, module._backward_pre_hooks)
    # No public function tells of hooks for all modules.
    everywhere = (torch_hooks._global_backward_hooks, torch_hooks._global_backward_pre_hooks)
    frozen = not any(parameter.requires_grad for parameter in module.parameters())
    return own or frozen or any(hooks) or any(everywhere)


def _norms_of(given: Any, module: nn.RNNBase) -> NormsOfSteps:
    if isinstance(given, PackedSequence):
        lengths = given.batch_sizes.tolist()

        def of_packed(gradient: Tensor) -> tuple[Tensor, list[int]]:
            return norms_of_segments(gradient, lengths), [length * gradient.shape[1] for length in lengths]

        return of_packed
    dim = 1 if module.batch_first and given.ndim == 3 else 0

    def of_steps(gradient: Tensor) -> tuple[Tensor, list[int]]:
        steps = gradient.shape[dim]
        return norms_along(gradient, dim), [gradient.numel() // steps] * steps

    return of_steps


def _saved_elsewhere() -> bool:
    """Tell whether somebody packs what autograd saves, as activation checkpointing does.

    Checkpointing compares what is saved with what it saves when it computes the same again: an input that needs a
    gradient only the first time would end training. No public function tells; where it is gone, nothing is replaced.
    """
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is None or top(False) is not None
