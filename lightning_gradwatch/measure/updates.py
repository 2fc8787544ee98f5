"""How far an optimizer's step really moved each layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import gcd

import torch
from torch import Tensor

from lightning_gradwatch.measure.layers import Layer, num_elements
from lightning_gradwatch.measure.magnitude import local, precise
from lightning_gradwatch.measure.snapshot import IntArray

# A sample of 65,536 numbers tells a norm to a quarter of a percent, in 256 KB.
MAX_SAMPLE = 2**16
# One of 1,024 tells it to two percent. Together with one of every 64 numbers it is what weights and their gradients can
# spare: memory grows by less than 1%.
_MIN_SAMPLE = 2**10
_MIN_STRIDE = 64


class WeightSample:
    """Every n-th number of each layer's trainable parameters, kept over one optimizer step.

    ``update_ratio = |dW| / |W|`` of the sampled numbers: up to 1,024 of a layer all of them, of a larger one the 64th
    part, and never more than 65,536. No random number is drawn, and no parameter is cloned.

    Args:
        layers: The model's layers.
        columns: Which of them the optimizer holds.

    Example:
        >>> from torch import nn
        >>> from lightning_gradwatch.measure.layers import find_layers
        >>> model = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.constant_(model.weight, 2.0)
        >>> sample = WeightSample(find_layers(model), [0])
        >>> with torch.no_grad():
        ...     _ = model.weight.mul_(1.5)
        >>> before, moved = sample.measure()
        >>> float(moved[0] / before[0])
        0.5
    """

    def __init__(self, layers: Sequence[Layer], columns: Sequence[int] | IntArray) -> None:
        found = {int(c): [p for p in layers[c].parameters.values() if _moves(p)] for c in columns}
        self.columns = [column for column, parameters in found.items() if parameters]
        self._parameters = [found[column] for column in self.columns]
        self._strides = [_stride(parameters) for parameters in self._parameters]
        self._before = [self._sample(place) for place in range(len(self.columns))]

    def measure(self) -> tuple[Tensor, Tensor]:
        """Return the norm of each layer's sample before the step, and that of what the step added to it.

        Returns:
            Both norms, ``[num_columns]`` each.
        """
        if not self.columns:
            return torch.zeros(0), torch.zeros(0)
        device = self._before[0].device
        norms: list[Tensor] = []
        moved: list[Tensor] = []
        for places in self._groups():
            old, new = [self._before[place] for place in places], [self._sample(place) for place in places]
            torch._foreach_sub_(new, old)
            both = torch._foreach_norm([*old, *new], 2, dtype=precise(old[0]))
            norms += both[: len(old)]
            moved += both[len(old) :]
        together = torch.stack([norm.to(device) for norm in (*norms, *moved)])
        return together[: len(norms)], together[len(norms) :]

    def _groups(self) -> Iterator[list[int]]:
        """Yield places whose samples are looked at in one call: many small ones, large ones by themselves."""
        group: list[int] = []
        size = 0
        for place, sample in enumerate(self._before):
            if group and size + sample.numel() > MAX_SAMPLE:
                yield group
                group, size = [], 0
            group.append(place)
            size += sample.numel()
        yield group

    def _sample(self, place: int) -> Tensor:
        several, stride = self._parameters[place], self._strides[place]
        parts = [_every(stride, parameter) for parameter in several]
        if len({part.device for part in parts}) > 1:
            parts = [part.to(parts[0].device) for part in parts]
        # It copies, also where there is only one.
        return torch.cat(parts)


def _moves(parameter: Tensor) -> bool:
    # Of a process's empty shard there is nothing to read, and it still has its place.
    return parameter.requires_grad and num_elements(parameter) > 0


def _stride(parameters: Sequence[Tensor]) -> int:
    whole = sum(map(num_elements, parameters))
    size = min(MAX_SAMPLE, max(_MIN_SAMPLE, whole // _MIN_STRIDE))
    # Each parameter's last number is one more, wherever the stride ends.
    return 1 if whole <= size else -(-whole // max(size - len(parameters), 1))


def _every(stride: int, parameter: Tensor) -> Tensor:
    """Return about every n-th number, in float32 at least, as one vector that may be the parameter's own memory."""
    value = local(parameter.detach())
    if value.is_complex():
        value = torch.view_as_real(value)
    if not value.is_contiguous():
        # Transposed, or channels last: contiguous in another order.
        value = value.permute(sorted(range(value.ndim), key=value.stride, reverse=True))
    if not value.is_contiguous():
        # Flattening would copy all of it.
        longest = max(range(value.ndim), key=lambda dim: value.shape[dim])
        every = min(stride, value.shape[longest])
        flat = value[(slice(None),) * longest + (slice(None, None, every),)].reshape(-1)
    else:
        flat = value.reshape(-1)
        row = value.numel() // value.shape[0] if value.ndim > 1 and value.numel() else 1
        # With a common divisor it would read the same few columns of every row.
        while gcd(stride, row) > 1:
            stride += 1
        flat = flat[::stride]
    return flat.float() if flat.dtype.itemsize < 4 else flat
