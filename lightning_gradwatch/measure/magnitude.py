"""How large an activation or its gradient is, and which units are dead or saturated, without a copy of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# A piece in float64 takes half a megabyte: less than 1% of what a training step of any size to speak of keeps.
_PIECE = 2**16
# Share of its greatest slope below which a sigmoid or tanh counts as flat. Ours; |x| above 6.0 and 3.0, between
# DeepDiagnosis (5 for both) and Amazon SageMaker Debugger (9.5 for tanh).
_FLAT = 0.01
# Values of the output beyond which the slope is below that share: 4 y (1 - y) for a sigmoid, 1 - y^2 for a tanh.
_SIGMOID_MARGIN = (1 - (1 - _FLAT) ** 0.5) / 2
_TANH_LIMIT = (1 - _FLAT) ** 0.5
_BOUNDS = {"sigmoid": (_SIGMOID_MARGIN, 1 - _SIGMOID_MARGIN), "tanh": (-_TANH_LIMIT, _TANH_LIMIT)}


def measurable(value: object) -> bool:
    """Tell whether a value is a tensor of real numbers that can be read where it is.

    Example:
        >>> measurable(torch.ones(2)), measurable(torch.ones(2).long()), measurable("text")
        (True, False, False)
    """
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.layout is not torch.strided:
        return False
    # Torch has no arithmetic for numbers of 8 bits.
    readable = not value.is_nested and value.device.type != "meta" and value.dtype.itemsize > 1
    return readable and value.numel() > 0 and not _is_wrapped(value)


def _is_wrapped(tensor: Tensor) -> bool:
    """Tell whether torch.func looks at the tensor from inside: what is computed from it may not leave."""
    # No public function tells.
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def norm_in_pieces(tensor: Tensor) -> Tensor:
    """Return the L2 norm of a tensor, summed in float64, without a copy of it.

    Args:
        tensor: Any measurable tensor; of a sharded one (DTensor) this process's part counts.

    Returns:
        The norm on the tensor's device, ``[]``.

    Example:
        >>> float(norm_in_pieces(torch.tensor([[3.0, 4.0]])))
        5.0
    """
    value = local(tensor.detach())
    norms = [torch.linalg.vector_norm(piece, dtype=precise(piece)) for piece in pieces_of(value)]
    whole: Tensor = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    return whole


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a sharded tensor, and any other as it is."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def precise(tensor: Tensor) -> torch.dtype:
    """Return in which precision a tensor is summed: MPS has no float64."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def pieces_of(tensor: Tensor) -> Iterator[Tensor]:
    """Yield views that together are the tensor, each of at most 65,536 numbers; on a GPU the tensor itself.

    A CPU copies a tensor that it sums in another precision; CUDA converts while it reads.
    """
    if tensor.numel() <= _PIECE or tensor.device.type == "cuda":
        yield tensor
        return
    longest = max(range(tensor.ndim), key=lambda dim: tensor.shape[dim])
    length = max(1, _PIECE * tensor.shape[longest] // tensor.numel())
    for piece in torch.split(tensor, length, longest):
        yield from pieces_of(piece)


def norms_along(tensor: Tensor, dim: int) -> Tensor:
    """Return the L2 norm of each slice along a dimension, summed in float64.

    Example:
        >>> norms_along(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), dim=0).tolist()
        [5.0, 1.0]
    """
    value = local(tensor.detach()).movedim(dim, 0)
    length = max(1, _PIECE * value.shape[0] // max(value.numel(), 1))
    parts = torch.split(value, length) if value.device.type != "cuda" else (value,)
    return torch.cat([torch.linalg.vector_norm(part.flatten(1), dim=1, dtype=precise(part)) for part in parts])


def norms_of_segments(rows: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return the L2 norm of each group of neighboring rows, such as the time steps of a packed sequence.

    Example:
        >>> norms_of_segments(torch.tensor([[3.0], [4.0], [2.0]]), [2, 1]).tolist()
        [5.0, 2.0]
    """
    norms = norms_along(rows, 0)
    return torch.stack([torch.linalg.vector_norm(part) for part in torch.split(norms, list(lengths))])


def alive_units(output: Tensor, unit_dim: int) -> Tensor:
    """Tell which units are not zero for some sample of the batch, at some place.

    Args:
        output: What an activation returned.
        unit_dim: The dimension of the units.

    Returns:
        One value a unit, ``[num_units]``.

    Example:
        >>> alive_units(torch.tensor([[0.0, 1.0, 0.0], [0.0, 2.0, 3.0]]), unit_dim=1).tolist()
        [False, True, True]
    """
    value = local(output.detach()).movedim(unit_dim, -1)
    # Reads the numbers as they are, with no mask of the tensor's size.
    return value.any(dim=tuple(range(value.ndim - 1)))


def steep_units(output: Tensor, unit_dim: int, activation: str) -> Tensor:
    """Tell of which units a sigmoid or tanh has a slope to speak of for some sample of the batch.

    Args:
        output: What the activation returned.
        unit_dim: The dimension of the units.
        activation: ``"sigmoid"`` or ``"tanh"``.

    Returns:
        One value a unit, ``[num_units]``.

    Example:
        >>> steep_units(torch.tensor([[10.0, 0.0], [-10.0, 9.0]]).tanh(), 1, "tanh").tolist()
        [False, True]
    """
    low, high = _BOUNDS[activation]
    value = local(output.detach()).movedim(unit_dim, 0)
    steep = torch.zeros(value.shape[0], dtype=torch.bool, device=value.device)
    # On a GPU each piece costs some launches: masks of half a percent of the tensor are small enough.
    limit = max(_PIECE, value.numel() // 200) if value.device.type == "cuda" else _PIECE
    for piece, first in _pieces_with_units(value, limit):
        found = (piece > low) & (piece < high)
        steep[first : first + piece.shape[0]] |= found.flatten(1).any(dim=1) if found.ndim > 1 else found
    return steep


def _pieces_with_units(value: Tensor, limit: int, first: int = 0) -> Iterator[tuple[Tensor, int]]:
    """Yield views that together are the tensor, and with each the number of its first unit, dimension 0."""
    if value.numel() <= limit:
        yield value, first
        return
    longest = max(range(value.ndim), key=lambda dim: value.shape[dim])
    length = max(1, limit * value.shape[longest] // value.numel())
    for number, piece in enumerate(torch.split(value, length, longest)):
        yield from _pieces_with_units(piece, limit, first + (number * length if longest == 0 else 0))


def has_slopes(activation: str) -> bool:
    """Tell whether an activation is one that saturates on both sides."""
    return activation in _BOUNDS
