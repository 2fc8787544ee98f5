"""Which layers' weights still stand where PyTorch drew them, so that nothing has ever trained them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from lightning_gradwatch.measure.layers import Layer

# These draw uniformly from +- 1 / sqrt(fan_in), torch.nn.init.kaiming_uniform_ with a = sqrt(5).
DRAWN_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Trained weights are not uniform: some few lie far out. Ours: one step of Adam with lr 1e-3 may go that far.
_TOLERANCE, _BOUND = 0.03, 1.1
# Of fewer numbers nothing can be said: the standard deviation of n uniform numbers varies by sqrt(0.2 / n) of itself.
_MIN_NUMBERS = 16


def find_drawn(layers: Iterable[Layer]) -> frozenset[str]:
    """Find the layers whose weights stand as ``nn.Linear`` and ``nn.Conv*d`` draw them.

    ``max |w| <= 1 / sqrt(fan_in)`` and ``rms(w) = 1 / sqrt(3 fan_in)``, both within the tolerance. A pretrained layer
    meets neither. One transfer to the host.

    Args:
        layers: Any layers; those of another kind, and those whose weight cannot be read, are not among what is found.

    Returns:
        Their names.

    Example:
        >>> from lightning_gradwatch.measure.layers import find_layers
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        >>> _ = nn.init.normal_(model[1].weight)
        >>> find_drawn(find_layers(model))
        frozenset({'0'})
    """
    readable = [(layer.name, weight) for layer in layers if (weight := _weight(layer)) is not None]
    if not readable:
        return frozenset()
    sizes = torch.stack([_size(weight).to(readable[0][1].device) for _, weight in readable]).tolist()
    return frozenset(
        name for (name, weight), (rms, peak) in zip(readable, sizes, strict=True) if _as_drawn(weight, rms, peak)
    )


def _weight(layer: Layer) -> Tensor | None:
    weight = layer.parameters.get("weight")
    usable = (
        isinstance(layer.module, DRAWN_KINDS) and weight is not None and not isinstance(weight, UninitializedParameter)
    )
    if not usable or weight is None or weight.is_meta or hasattr(weight, "full_tensor"):
        return None
    return weight if weight.is_floating_point() and weight.numel() >= _MIN_NUMBERS else None


@torch.no_grad()
def _size(weight: Tensor) -> Tensor:
    weight = weight.double() if weight.device.type != "mps" else weight.float()
    return torch.stack([weight.square().mean().sqrt(), weight.abs().max()])


def _as_drawn(weight: Tensor, rms: float, peak: float) -> bool:
    return stands_as_drawn(rms, peak, weight[0].numel(), weight.numel())


def stands_as_drawn(rms: float, peak: float, fan_in: int, numel: int) -> bool:
    """Tell whether a weight of that size may be uniform in ``+- 1 / sqrt(fan_in)``.

    Args:
        rms: Root mean square of its numbers.
        peak: The largest absolute one.
        fan_in: What enters a unit.
        numel: How many numbers it has.

    Example:
        >>> stands_as_drawn(0.072, 0.125, 64, 64 * 64), stands_as_drawn(0.125, 0.5, 64, 64 * 64)
        (True, False)
    """
    bound = 1 / math.sqrt(fan_in)
    tolerance = _TOLERANCE + 3 * math.sqrt(0.2 / max(numel, 1))
    return abs(rms * math.sqrt(3) / bound - 1) < tolerance and peak < _BOUND * bound
