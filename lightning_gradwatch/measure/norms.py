"""How large tensors are: one fused pass over each device, and float64 where float32 cannot hold the answer."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_gradwatch.measure.layers import Layer, ParameterIndex
from lightning_gradwatch.measure.snapshot import BoolArray, FloatArray, IntArray, LayerDescription

# float32 squares of elements below about 1e-19 fall among the subnormal numbers and lose digits, then vanish.
_SMALLEST_EXACT = 1e-19
# A sum of more float32 squares loses digits on a CPU (ours: 7e-5 of the norm at 2^22 numbers, 4e-3 at 2^26).
_CHUNK = 2**16
# Larger tensors are read in rows of so many numbers. Ours, 29 million numbers in 48 tensors: the norms of all rows of a
# tensor in one call take 1.05 times as long as one norm of the whole, those of pieces of 2^16 one by one 1.29 times.
_ROW = 2**12
# The same for float64: its squares lose digits below about 1e-154.
_SMALLEST_DOUBLE = 1e-150
_PLAIN = frozenset({Tensor, torch.nn.Parameter})
_HALF_PRECISION = {torch.float16, torch.bfloat16}
DOUBLE = {torch.float64, torch.complex128}


def sums_in_double(device: torch.device) -> bool:
    """Tell whether norms are summed in float64 from the start.

    CUDA's fused norm reads each number once in its own dtype and adds in the dtype asked for, so float64 costs no
    memory and no second look, which would have to wait for the first. On a CPU it copies the tensor and takes six
    times as long; MPS has no float64.

    Example:
        >>> sums_in_double(torch.device("cpu"))
        False
    """
    return device.type == "cuda"


@dataclass(frozen=True, eq=False)
class GradientNorms:
    """The norms of one optimizer's gradients, still on the device.

    It lives for one optimizer step: it refers to the gradients and keeps no copy of them.

    Attributes:
        index: Which layer each parameter belongs to.
        optimizer: Number of the optimizer in the training run; an adaptive clipper keeps one state for each.
        gradients: The gradients as the optimizer holds them, those that are None left out, ``[num_gradients]``.
        members: Position of each gradient's parameter in ``index.parameters``, ``[num_gradients]``.
        norms: L2 norm of each gradient, ``[num_gradients]``.
        alike: Whether all gradients are plain dense real tensors of one dtype on one device, so that one call changes
            all of them.
        layers: The model's layers, to which ``index.layer`` refers; empty where nobody has told.
        descriptions: What is known of them, such as which layer follows which; empty likewise.

    Example:
        >>> from lightning_gradwatch.measure.layers import find_layers, index_parameters
        >>> model = torch.nn.Linear(2, 1)
        >>> model(torch.tensor([[3.0, 4.0]])).sum().backward()
        >>> norms = measure_gradients(index_parameters(find_layers(model), [model.parameters()]))
        >>> norms.norms.tolist(), round(norms.global_norm().item(), 3)
        ([5.0, 1.0], 5.099)
    """

    index: ParameterIndex
    optimizer: int
    gradients: Sequence[Tensor]
    members: npt.NDArray[np.int64]
    norms: Tensor
    alike: bool = False
    layers: Sequence[Layer] = ()
    descriptions: Sequence[LayerDescription] = ()

    def global_norm(self) -> Tensor:
        """Compute the norm of all gradients seen as one vector, on the device, without overflow of the squares.

        ``global_norm = scale * sqrt(sum((norms / scale)^2))`` with ``scale = max(norms)``.
        """
        if not self.gradients:
            return self.norms.new_zeros(())
        if self.norms.dtype == torch.float32 and self.norms.device.type == "cpu":
            # No square of a float32 overflows or vanishes in float64.
            exact: Tensor = torch.linalg.vector_norm(self.norms, dtype=torch.float64)
            return exact
        tiny = torch.finfo(self.norms.dtype).tiny
        scale = self.norms.amax().clamp(min=tiny)
        norm: Tensor = scale * torch.linalg.vector_norm(self.norms / scale)
        return norm


def measure_gradients(index: ParameterIndex, optimizer: int = 0) -> GradientNorms:
    """Measure the norm of every gradient in one fused pass.

    ``norms[i] = ||g_i||_2``, half precision summed and returned in float32, a sparse gradient by its coalesced values.

    Args:
        index: The optimizer's parameters; those whose gradient is None are left out.
        optimizer: Number of the optimizer in the training run.

    Returns:
        The norms on the device, shape ``[num_gradients]``.

    Example:
        >>> from lightning_gradwatch.measure.layers import find_layers, index_parameters
        >>> model = torch.nn.Linear(2, 1)
        >>> model(torch.tensor([[3.0, 4.0]])).sum().backward()
        >>> measure_gradients(index_parameters(find_layers(model), [model.parameters()])).norms
        tensor([5., 1.])
    """
    return measure_with_weights(index, optimizer, weights=False)[0]


def measure_with_weights(
    index: ParameterIndex, optimizer: int = 0, weights: bool = True
) -> tuple[GradientNorms, Tensor | None]:
    """Measure gradients, and the parameters themselves where that is asked, together.

    Args:
        index: The optimizer's parameters.
        optimizer: Number of the optimizer in the training run.
        weights: Whether the parameters are measured, too. In one go: sharded tensors need a collective for each.

    Returns:
        The gradients' norms, and the norms of ``index.filled``, ``[num_filled]``, or None.
    """
    gradients = [parameter.grad for parameter in index.parameters]
    present = [gradient for gradient in gradients if gradient is not None]
    members = np.arange(len(gradients))
    if len(present) < len(gradients):
        members = np.array([i for i in members.tolist() if gradients[i] is not None], dtype=np.int64)
    if not weights:
        norms, alike = _norms_and_whether_alike(present, index)
        return GradientNorms(index, optimizer, present, members, norms, alike), None
    alike = are_alike(present)
    norms = norms_of(present + [index.parameters[i] for i in index.filled])
    return GradientNorms(index, optimizer, present, members, norms[: len(present)], alike), norms[len(present) :]


def _norms_and_whether_alike(gradients: Sequence[Tensor], index: ParameterIndex) -> tuple[Tensor, bool]:
    """Measure gradients and tell whether they are alike, without a question to each of them where that can be."""
    if gradients and _plainly_alike(index, gradients) and gradients[0].dtype.itemsize > 1:
        try:
            return _norms_of_alike(gradients, None, index.largest), True
        except RuntimeError:
            # Some may have changed their place since; any other failure a second try would only repeat.
            if are_alike(gradients):
                raise
    alike = are_alike(gradients)
    return _norms_of(gradients, None, alike), alike


def _plainly_alike(index: ParameterIndex, gradients: Sequence[Tensor]) -> bool:
    """Tell the same as ``are_alike`` of gradients, asking each for its layout alone.

    Autograd keeps a gradient to the dtype and the device of its parameter. Where a person has set ``grad_dtype`` the
    fused call measures one by one, and what half precision cannot hold is found by the second look.
    """
    if not index.alike or not _PLAIN.issuperset(map(type, gradients)):
        return False
    # Only where a layer asks for sparse gradients are there two layouts.
    return {gradient.layout for gradient in gradients} == {torch.strided}


def are_alike(tensors: Sequence[Tensor]) -> bool:
    """Tell whether all tensors are plain dense real ones of one dtype on one device; most models have no others.

    Example:
        >>> are_alike([torch.ones(2), torch.ones(3)]), are_alike([torch.ones(2), torch.ones(3).half()])
        (True, False)
    """
    if not _PLAIN.issuperset(map(type, tensors)):
        return False
    kinds = {(tensor.dtype, tensor.device, tensor.layout) for tensor in tensors}
    return len(kinds) == 1 and tensors[0].layout == torch.strided and not tensors[0].is_complex()


def norms_of(tensors: Sequence[Tensor], dtype: torch.dtype | None = None) -> Tensor:
    """Measure the L2 norm of each tensor in one fused pass a device.

    Args:
        tensors: Any floating or complex dtypes, devices and layouts, plain or sharded (DTensor).
        dtype: In which precision to sum. By default float64 where that is free (see ``sums_in_double``), elsewhere
            that of each tensor, float32 at least.

    Returns:
        The norms on the device of the first tensor, ``[num_tensors]``.

    Example:
        >>> norms_of([torch.tensor([3.0, 4.0]), torch.zeros(2, 2)])
        tensor([5., 0.])
    """
    return _norms_of(tensors, dtype, are_alike(tensors))


@torch.no_grad()
def _norms_of_alike(tensors: Sequence[Tensor], dtype: torch.dtype | None, largest: int | None = None) -> Tensor:
    """Do the same, knowing that they are alike, and perhaps how many numbers the largest has."""
    return torch.stack(_norms_of_a_kind(list(tensors), _sums_of(tensors[0], dtype), largest))


def _norms_of(tensors: Sequence[Tensor], dtype: torch.dtype | None, alike: bool) -> Tensor:
    """Do the same, knowing whether they are alike."""
    if not tensors:
        return torch.zeros(0)
    if alike and tensors[0].dtype.itemsize > 1:
        return _norms_of_alike(tensors, dtype)
    with torch.no_grad():
        places = [_place(tensor) for tensor in tensors]
        if places.count(places[0]) == len(places):
            return _norms_at_one_place(tensors, dtype)
        groups = _positions(places)
        parts = [_norms_at_one_place([tensors[i] for i in group], dtype) for group in groups]
        kind = torch.float64 if any(part.dtype == torch.float64 for part in parts) else torch.float32
        scalars = [scalar for part in parts for scalar in part.to(parts[0].device, kind).unbind()]
        order = np.argsort(np.concatenate(groups)).tolist()
        # Not by an index tensor: bringing that to the device would wait for it.
        return torch.stack([scalars[place] for place in order])


def _place(tensor: Tensor) -> tuple[torch.device, Hashable]:
    """Return what keeps tensors from going into one pass: their device, and the mesh over which they are sharded."""
    return tensor.device, None if _is_plain(tensor) else getattr(tensor, "device_mesh", None)


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in _PLAIN


def _positions(kinds: Sequence[Hashable]) -> list[IntArray]:
    """Return the positions of each kind, in the order in which the kinds first come."""
    found: dict[Hashable, list[int]] = {}
    for position, kind in enumerate(kinds):
        found.setdefault(kind, []).append(position)
    return [np.array(positions, dtype=np.int64) for positions in found.values()]


def _norms_at_one_place(tensors: Sequence[Tensor], dtype: torch.dtype | None) -> Tensor:
    norms = torch.stack(_fused_norms(tensors, _sums_of(tensors[0], dtype)))
    # Of a sharded tensor each process has measured its part: one collective puts all of them together.
    whole: Tensor = norms.full_tensor() if hasattr(norms, "full_tensor") else norms
    return whole


def _sums_of(first: Tensor, dtype: torch.dtype | None) -> torch.dtype | None:
    return torch.float64 if dtype is None and sums_in_double(first.device) else dtype


def _fused_norms(tensors: Sequence[Tensor], dtype: torch.dtype | None) -> list[Tensor]:
    values = list(tensors)
    if any(value.layout != torch.strided for value in values):
        values = [_dense(value) for value in values]
    if dtype is not None:
        values = [_real(value) for value in values]
    if any(value.dtype.itemsize == 1 for value in values):
        # No norm is implemented for 8-bit floating point.
        values = [value.to(torch.float32) if value.dtype.itemsize == 1 else value for value in values]
    # A call for each kind of numbers: of mixed ones CUDA would make a call for each tensor.
    kinds = [value.dtype for value in values]
    norms = {
        kind: iter(_norms_of_a_kind([v for v, k in zip(values, kinds, strict=True) if k == kind], dtype))
        for kind in set(kinds)
    }
    return [next(norms[kind]) for kind in kinds]


def _norms_of_a_kind(values: list[Tensor], dtype: torch.dtype | None, largest: int | None = None) -> list[Tensor]:
    """Measure tensors of one dtype in one call."""
    if dtype is None:
        dtype = _sums_in(values[0].dtype)
        if values[0].device.type == "cpu" and (largest or max(value.numel() for value in values)) > _CHUNK:
            values = [_folded(value, dtype) if _is_large(value) else value for value in values]
    return list(torch._foreach_norm(values, 2, dtype=dtype))


def _is_large(value: Tensor) -> bool:
    return value.numel() > _CHUNK and _is_plain(value) and value.is_contiguous()


def _folded(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return a short vector with the norm of a large tensor: a CPU adds the squares of one tensor up in float32.

    A norm of a few thousand norms loses nothing.
    """
    if dtype is not None or value.is_complex():
        # Piece by piece: half precision is copied to float32 while it is read.
        return torch.stack(torch._foreach_norm(list(torch.split(value.view(-1), _CHUNK)), 2, dtype=dtype))
    rows, rest = divmod(value.numel(), _ROW)
    whole = value.view(-1)[:-rest] if rest else value
    norms: Tensor = torch.linalg.vector_norm(whole.view(rows, _ROW), dim=1)
    return torch.cat([norms, value.view(-1)[-rest:]]) if rest else norms


def _sums_in(kind: torch.dtype) -> torch.dtype | None:
    # A norm of half-precision numbers can be above what half precision holds, 65504, although no element is.
    return torch.float32 if kind in _HALF_PRECISION else None


def _dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.layout == torch.strided else tensor.coalesce().values()


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def all_exact(norms: FloatArray, sizes: IntArray) -> bool:
    """Tell whether float32 holds all norms, at once; where it is not certain, ``inexact`` tells which.

    Args:
        norms: Norms that were summed in float32, ``[n]``.
        sizes: How many numbers the tensors have, and perhaps others, at least one.

    Example:
        >>> all_exact(np.array([1.0, 2.0]), np.array([4, 4])), all_exact(np.array([1.0, np.nan]), np.array([4, 4]))
        (True, False)
    """
    # NaN fails as well: no comparison with it holds.
    return norms.size > 0 and bool(norms.min() >= _SMALLEST_EXACT * sizes.max() ** 0.5 and norms.max() < np.inf)


def inexact(norms: FloatArray, sizes: IntArray) -> BoolArray:
    """Tell which norms float32 cannot hold: zero, not finite, or so small that the squares have lost digits.

    ``norms < 1e-19 * sqrt(sizes)`` or not finite.

    Args:
        norms: Norms that were summed in float32, ``[n]``.
        sizes: How many numbers each tensor has, ``[n]``.

    Returns:
        Which of them are to be measured again in float64, ``[n]``.

    Example:
        >>> inexact(np.array([1.0, 0.0, 1e-20, np.inf]), np.array([4, 4, 4, 4])).tolist()
        [False, True, True, True]
    """
    fine: BoolArray = np.isfinite(norms) & (norms >= _SMALLEST_EXACT * np.sqrt(sizes))
    return ~fine


def measure_exactly(tensors: Sequence[Tensor]) -> FloatArray:
    """Measure tensors in float64 and bring the norms to the host.

    Args:
        tensors: A few: on a CPU each is copied while it is read.

    Returns:
        Their norms, ``[num_tensors]``.

    Example:
        >>> measure_exactly([torch.full((4,), 2.0**100), torch.full((4,), 2.0**-100)]).tolist() == [2.0**101, 2.0**-99]
        True
    """
    values = [_dense(tensor.detach()) for tensor in tensors]
    # MPS has no float64; everywhere else the pass stays on the device.
    values = [value.cpu() if value.device.type == "mps" else value for value in values]
    norms: FloatArray = norms_of(values, torch.float64).cpu().numpy()
    for i in np.flatnonzero(~(np.isfinite(norms) & (norms > _SMALLEST_DOUBLE))).tolist():
        if values[i].dtype in DOUBLE and values[i].numel() and _is_plain(values[i]):
            norms[i] = _scaled_norm(values[i])
    return norms


def _scaled_norm(tensor: Tensor) -> float:
    """Measure a tensor whose squares float64 cannot hold: above 1e154, or below 1e-154."""
    numbers = _real(tensor)
    largest = float(numbers.abs().amax())
    return largest * float(torch.linalg.vector_norm(numbers / largest)) if 0 < largest < np.inf else largest
