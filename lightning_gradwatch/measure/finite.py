"""Which weights and gradients are not finite, looked at only where something is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_gradwatch.measure.layers import Layer, num_elements


def layers_not_finite(layers: Sequence[Layer]) -> list[str]:
    """Return the names of the layers that have a NaN or infinite weight, in their order.

    Of a sharded weight only this process's part is looked at. One transfer to the host.

    Args:
        layers: The layers.

    Returns:
        Their names; empty where every weight is finite.

    Example:
        >>> net = torch.nn.Linear(2, 1)
        >>> sick = Layer("net", net, {"bias": torch.tensor([float("nan")])})
        >>> layers_not_finite([Layer("fine", net, dict(net.named_parameters())), sick])
        ['net']
    """
    pairs = [(layer.name, p) for layer in layers for p in layer.parameters.values() if num_elements(p)]
    flags = _finite([parameter for _, parameter in pairs])
    return list(dict.fromkeys(name for (name, _), fine in zip(pairs, flags, strict=True) if not fine))


def gradients_finite(optimizer: Optimizer) -> bool:
    """Tell whether all gradients of an optimizer are finite, in the plainest way: for when measuring them failed.

    Args:
        optimizer: The optimizer.

    Returns:
        Whether they are, in this process's part.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> weight.grad = torch.tensor([1.0, float("inf")])
        >>> gradients_finite(torch.optim.SGD([weight], lr=0.1))
        False
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return all(_finite(parameter.grad for parameter in parameters if parameter.grad is not None))


@torch.no_grad()
def _finite(tensors: Iterable[Tensor]) -> list[bool]:
    """Tell of each tensor whether all of its numbers are finite; one without numbers is."""
    parts = [_local(tensor) for tensor in tensors]
    # The largest magnitude is NaN where any number is, and cannot overflow as a sum of squares could.
    largest = [torch.linalg.vector_norm(part, float("inf")) for part in parts if part.numel()]
    flags = torch.stack([torch.isfinite(one).to(largest[0].device) for one in largest]).tolist() if largest else []
    found = iter(flags)
    return [next(found) if part.numel() else True for part in parts]


def _local(tensor: Tensor) -> Tensor:
    """Return this process's numbers of a tensor, those that a sparse one holds."""
    part: Tensor = tensor.detach()
    if hasattr(part, "to_local"):
        part = part.to_local()
    return part.coalesce().values() if part.layout is torch.sparse_coo else part
