"""Multiply gradients in place, all by one number or each by its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from lightning_gradwatch.measure.norms import GradientNorms


def coefficient_of(norm: Tensor, bound: float | Tensor) -> Tensor:
    """Compute what a gradient is multiplied by, ``min(1, bound / norm)``; 1 where the norm is zero or not finite.

    Args:
        norm: Norms, of any shape.
        bound: Largest norm, one or of the same shape, not negative.

    Returns:
        The coefficients, on the device.

    Example:
        >>> coefficient_of(torch.tensor([4.0, 0.5, 0.0, float("inf"), float("nan")]), 1.0)
        tensor([0.2500, 1.0000, 1.0000, 1.0000, 1.0000])
    """
    # A division by zero is infinite, and becomes 1 like all that is above it; or it is not a number.
    finite = torch.nan_to_num(norm, nan=0.0, posinf=0.0)
    return torch.nan_to_num(torch.clamp(bound / finite, max=1.0), nan=1.0)


def scale_(norms: GradientNorms, coefficient: Tensor) -> Tensor:
    """Multiply all gradients by one number.

    Args:
        norms: The gradients.
        coefficient: The number, on a device, ``[]``.

    Returns:
        Their norms after it, ``[num_gradients]``.
    """
    gradients = norms.gradients
    for alike in [list(gradients)] if norms.alike else by_kind(dense_parts(gradients)):
        # A coefficient of the gradients' own precision, float32 at least, keeps the multiplication fused on a GPU.
        kind = torch.promote_types(alike[0].dtype, torch.float32)
        torch._foreach_mul_(alike, coefficient.to(alike[0].device, kind))
    for gradient in () if norms.alike else gradients:
        if gradient.layout != torch.strided:
            gradient.mul_(coefficient.to(gradient.device))
    return norms.norms * coefficient


def scale_each_(norms: GradientNorms, coefficients: Tensor) -> Tensor:
    """Multiply each gradient by a number of its own.

    Args:
        norms: The gradients.
        coefficients: The numbers, on a device, ``[num_gradients]``.

    Returns:
        Their norms after it, ``[num_gradients]``.
    """
    if norms.alike:
        kind = torch.promote_types(norms.gradients[0].dtype, torch.float32)
        torch._foreach_mul_(list(norms.gradients), list(coefficients.to(kind).unbind()))
    else:
        for gradient, coefficient in zip(norms.gradients, coefficients.unbind(), strict=True):
            part = torch.view_as_real(gradient) if gradient.is_complex() and not gradient.is_sparse else gradient
            part.mul_(coefficient.to(part.device))
    return norms.norms * coefficients.to(norms.norms.dtype)


def dense_parts(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Return the dense ones of some gradients, complex ones as pairs of real numbers.

    Args:
        gradients: Of any layout.

    Returns:
        Views of them: what changes these changes the gradients.
    """
    dense = [gradient for gradient in gradients if gradient.layout == torch.strided]
    # A complex 1 times infinity would be NaN.
    return [torch.view_as_real(gradient) if gradient.is_complex() else gradient for gradient in dense]


def by_kind(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Sort tensors into those that go into one call: of one device and dtype.

    Args:
        tensors: Dense ones.

    Returns:
        Their groups, in the order in which the first of each comes.
    """
    groups: dict[tuple[torch.device, torch.dtype, bool], list[Tensor]] = {}
    for tensor in tensors:
        # Sharded tensors (DTensor) and plain ones do not go into one pass.
        groups.setdefault((tensor.device, tensor.dtype, hasattr(tensor, "full_tensor")), []).append(tensor)
    return list(groups.values())


def check_positive(name: str, value: object) -> None:
    """Refuse what is not a positive finite number.

    Args:
        name: Name of the setting.
        value: What came.

    Raises:
        ValueError: If it is none.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise ValueError(f"`{name}` must be a positive finite number. Got {value!r}")
