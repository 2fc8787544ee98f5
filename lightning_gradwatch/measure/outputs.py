"""Which tensor of what a module returns is its output, and where its units lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves

from lightning_gradwatch.measure.magnitude import measurable

# Units of what normalizes a convolution lie in dimension 1, as those of the convolution do.
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm)


def output_of(returned: Any) -> Tensor | None:
    """Return the tensor that stands for what a module has returned: a tensor, or tuples, dicts and dataclasses of them.

    It is the first one that asks for a gradient: what stands before it may be a statistic, or the module's own input.

    Args:
        returned: What the module returned.

    Returns:
        The first measurable tensor with a gradient; without one, the first measurable tensor; None without any.

    Example:
        >>> import torch
        >>> weight = torch.ones(2, requires_grad=True)
        >>> output_of({"mask": torch.zeros(3), "out": (weight * 2, weight * 3)}).tolist()
        [2.0, 2.0]
    """
    tensors = tensors_of(returned)
    first: Tensor | None = next((t for t in tensors if t.requires_grad), tensors[0] if tensors else None)
    return first


def tensors_of(returned: Any) -> list[Tensor]:
    """Return all measurable tensors of what a module has returned.

    Example:
        >>> import torch
        >>> len(tensors_of({"mask": torch.ones(2).bool(), "out": (torch.ones(2), [torch.ones(3)])}))
        2
    """
    return [leaf for leaf in _leaves(returned) if measurable(leaf)]


def _leaves(returned: Any) -> Iterator[Any]:
    if isinstance(returned, Tensor):
        # Most layers; to ask pytree takes as long as to measure it.
        yield returned
        return
    for leaf in tree_leaves(returned, is_leaf=lambda part: isinstance(part, PackedSequence)):
        if isinstance(leaf, PackedSequence):
            yield leaf.data
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            yield from tree_leaves([getattr(leaf, part.name) for part in fields(leaf)])
        else:
            yield leaf


def unit_dim(module: nn.Module, output: Tensor) -> int:
    """Return the dimension in which the units of a layer lie.

    Args:
        module: The layer's module.
        output: Its output, with or without a batch.

    Returns:
        The channels of a convolution and of what normalizes it; the last dimension elsewhere.

    Example:
        >>> import torch
        >>> unit_dim(nn.Conv2d(1, 2, 3), torch.ones(4, 2, 5, 5)), unit_dim(nn.Linear(1, 2), torch.ones(4, 3, 2))
        (1, 2)
    """
    if isinstance(module, nn.modules.conv._ConvNd):
        return output.ndim - 1 - len(module.kernel_size)
    return min(1, output.ndim - 1) if isinstance(module, _NORMS) else output.ndim - 1
