"""How large the gradients are: one pass over them on the device, one transfer to the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_gradwatch.measure.layers import ParameterIndex

# float32 squares of elements below about 1e-19 fall among the subnormal numbers and lose digits, then vanish.
_SMALLEST_EXACT = 1e-19
_HALF_PRECISION = {torch.float16, torch.bfloat16}


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
    """

    index: ParameterIndex
    optimizer: int
    gradients: Sequence[Tensor]
    members: npt.NDArray[np.int64]
    norms: Tensor

    def global_norm(self) -> Tensor:
        """Compute the norm of all gradients seen as one vector, on the device, without overflow of the squares.

        ``global_norm = scale * sqrt(sum((norms / scale)^2))`` with ``scale = max(norms)``.
        """
        if not self.gradients:
            return self.norms.new_zeros(())
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
    gradients = [parameter.grad for parameter in index.parameters]
    members = np.array([i for i, gradient in enumerate(gradients) if gradient is not None], dtype=np.int64)
    present = [gradient for gradient in gradients if gradient is not None]
    return GradientNorms(index, optimizer, present, members, norms_of(present))


def norms_of(tensors: Sequence[Tensor], dtype: torch.dtype | None = None) -> Tensor:
    """Measure the L2 norm of each tensor in one fused pass.

    Args:
        tensors: Any floating or complex dtypes, devices and layouts.
        dtype: In which precision to sum, that of each tensor (float32 at least) by default.

    Returns:
        The norms on the device of the first tensor, ``[num_tensors]``.

    Example:
        >>> norms_of([torch.tensor([3.0, 4.0]), torch.zeros(2, 2)])
        tensor([5., 0.])
    """
    if not tensors:
        return torch.zeros(0)
    sharded = [hasattr(tensor, "full_tensor") for tensor in tensors]
    if any(sharded) and not all(sharded):
        # Sharded tensors (DTensor) and plain ones do not go into one pass.
        pairs = list(zip(tensors, sharded, strict=True))
        parts = [norms_of([tensor for tensor, s in pairs if s is kind], dtype) for kind in (False, True)]
        norms = torch.cat([part.to(parts[0].device, parts[0].dtype) for part in parts])
        return norms[torch.tensor(np.argsort(np.argsort(sharded, kind="stable")), device=norms.device)]
    with torch.no_grad():
        return _whole(torch.stack(_fused_norms(list(tensors), dtype)))


def _fused_norms(tensors: list[Tensor], dtype: torch.dtype | None) -> list[Tensor]:
    kinds = {(tensor.dtype, tensor.layout) for tensor in tensors}
    values = tensors if {layout for _, layout in kinds} == {torch.strided} else [_dense(tensor) for tensor in tensors]
    halves = {dtype for dtype, _ in kinds} & _HALF_PRECISION
    # A norm of half-precision numbers can be above what half precision holds, 65504, although no element is.
    if dtype is not None or not halves:
        norms = list(torch._foreach_norm(values, 2, dtype=dtype))
    elif len(halves) == len({dtype for dtype, _ in kinds}):
        norms = list(torch._foreach_norm(values, 2, dtype=torch.float32))
    else:
        norms = [torch.linalg.vector_norm(value, dtype=_at_least_single(value.dtype)) for value in values]
    device = norms[0].device
    return [norm.to(device) for norm in norms] if any(norm.device != device for norm in norms) else norms


def _at_least_single(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in _HALF_PRECISION else dtype


def _whole(norms: Tensor) -> Tensor:
    """Finish the norms of sharded gradients (DTensor), which hold one rank's part until then: one collective."""
    finished: Tensor = norms.full_tensor() if hasattr(norms, "full_tensor") else norms
    return finished


def _dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.layout == torch.strided else tensor.coalesce().values()


@dataclass(frozen=True, eq=False)
class HostReading:
    """What one transfer brought to the host, as float64.

    Attributes:
        norms: Norm of each gradient before clipping, ``[num_gradients]``.
        weight_norms: Norm of each parameter, ``[num_parameters]``; empty where it was not measured.
        loss: The loss, NaN where there was none.
        overflowed: Whether a norm was not finite on the device although the gradient is.
    """

    norms: npt.NDArray[np.float64]
    weight_norms: npt.NDArray[np.float64]
    loss: float
    overflowed: bool


def read_to_host(
    measured: GradientNorms,
    weight_norms: Tensor | None = None,
    loss: Tensor | None = None,
) -> HostReading:
    """Bring a reading to the host in one transfer, and measure again what float32 could not hold.

    Gradients whose norm came out as 0, not finite, or so small that float32 squares lose digits are measured a second
    time in float64 (a second transfer, only then), so that a finite gradient is never called infinite and a tiny one
    never zero.

    Args:
        measured: The norms on the device.
        weight_norms: Norms of the parameters, ``[num_parameters]``.
        loss: A tensor with one element.

    Returns:
        Plain numbers.
    """
    parts = [measured.norms, weight_norms, None if loss is None else loss.detach().reshape(1)]
    sent = [part.to(measured.norms.device) for part in parts if part is not None]
    flat = (sent[0] if len(sent) == 1 else torch.cat(sent)).cpu().numpy().astype(np.float64)
    ends = np.cumsum([0 if part is None else part.numel() for part in parts])
    norms, weights, losses = np.split(flat, ends[:-1])
    exact = _measured_again(measured, norms)
    overflowed = bool((np.isfinite(exact) & ~np.isfinite(norms)).any())
    return HostReading(exact, weights, float(losses[0]) if losses.size else float("nan"), overflowed)


def _measured_again(measured: GradientNorms, norms: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    smallest = _SMALLEST_EXACT * np.sqrt(measured.index.sizes[measured.members])
    suspicious = np.flatnonzero(~(np.isfinite(norms) & (norms >= smallest)))
    if not suspicious.size:
        return norms
    values = [_dense(measured.gradients[i].detach()) for i in suspicious.tolist()]
    # MPS has no float64; everywhere else the pass stays on the device.
    values = [value.cpu() if value.device.type == "mps" else value for value in values]
    parts = [torch.view_as_real(value) if value.is_complex() else value for value in values]
    exact: npt.NDArray[np.float64] = norms.copy()
    exact[suspicious] = norms_of(parts, torch.float64).cpu().numpy()
    return exact
