"""Make gradients smaller before the optimizer uses them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lightning_gradwatch.measure.norms import GradientNorms, norms_of


@runtime_checkable
class Clipper(Protocol):
    """Anything that changes gradients in place from norms already measured.

    A clipper that remembers may also have ``state_dict()`` and ``load_state_dict(state)`` of plain values, with one
    state for each ``norms.optimizer``. Gradients whose norm is not finite are left as they are: no coefficient makes
    them right, and ``on_nonfinite`` decides on that step.
    """

    def clip_(self, norms: GradientNorms) -> Tensor:
        """Clip ``norms.gradients`` in place and return their norms after it, ``[num_gradients]``, on the device."""
        ...


@dataclass(frozen=True)
class ClipByGlobalNorm(Clipper):
    """Scale all gradients of an optimizer so that their global norm is at most ``max_norm``.

    ``g_i *= min(1, max_norm / (global_norm + 1e-6))``, the formula of ``torch.nn.utils.clip_grad_norm_``. The
    direction of the step stays. Where the global norm is not finite nothing is changed (torch would spread NaN, or
    zero all gradients when finite ones overflow in the squares).

    Attributes:
        max_norm: Largest global norm. There is no default; 1.0 is what language models are trained with, and the
            log tells what norms a run has.

    Raises:
        ValueError: If ``max_norm`` is not a positive finite number.

    Example:
        >>> from lightning_gradwatch.measure.layers import find_layers, index_parameters
        >>> from lightning_gradwatch.measure.norms import measure_gradients
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> model(torch.tensor([[3.0, 4.0]])).sum().backward()
        >>> norms = measure_gradients(index_parameters(find_layers(model), [model.parameters()]))
        >>> ClipByGlobalNorm(max_norm=1.0).clip_(norms), model.weight.grad
        (tensor([1.0000]), tensor([[0.6000, 0.8000]]))

    References:
        Pascanu et al., On the difficulty of training recurrent neural networks, ICML 2013, section 3.2.
    """

    max_norm: float

    def __post_init__(self) -> None:
        """Refuse a bound that is none."""
        _check_bound("max_norm", self.max_norm)

    @torch.no_grad()
    def clip_(self, norms: GradientNorms) -> Tensor:
        """Clip in place; see the class."""
        if not norms.gradients:
            return norms.norms
        total = norms.global_norm()
        coefficient = torch.clamp(self.max_norm / (total + 1e-6), max=1.0)
        coefficient = torch.where(torch.isfinite(total), coefficient, torch.ones_like(coefficient))
        _scale_(norms.gradients, coefficient)
        return norms.norms * coefficient


@dataclass(frozen=True)
class ClipByValue(Clipper):
    """Clamp every element of every gradient to ``[-max_value, max_value]``.

    ``g = clamp(g, -max_value, max_value)``, as ``torch.nn.utils.clip_grad_value_``: an infinite element becomes
    ``max_value``, NaN stays NaN. It turns the direction of the step, since large elements lose more than small ones;
    clipping by norm does not.

    Attributes:
        max_value: Largest absolute value. There is no default, as for ``torch.nn.utils.clip_grad_value_``.

    Raises:
        ValueError: If ``max_value`` is not a positive finite number.

    Example:
        >>> from lightning_gradwatch.measure.layers import find_layers, index_parameters
        >>> from lightning_gradwatch.measure.norms import measure_gradients
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> model(torch.tensor([[3.0, 0.5]])).sum().backward()
        >>> norms = measure_gradients(index_parameters(find_layers(model), [model.parameters()]))
        >>> _ = ClipByValue(max_value=1.0).clip_(norms)
        >>> model.weight.grad
        tensor([[1.0000, 0.5000]])
    """

    max_value: float

    def __post_init__(self) -> None:
        """Refuse a bound that is none."""
        _check_bound("max_value", self.max_value)

    @torch.no_grad()
    def clip_(self, norms: GradientNorms) -> Tensor:
        """Clip in place; see the class."""
        dense = [gradient for gradient in norms.gradients if gradient.layout == torch.strided]
        parts = [torch.view_as_real(gradient) if gradient.is_complex() else gradient for gradient in dense]
        for alike in _by_kind(parts):
            # A bound beyond what the dtype holds is refused by torch.
            bound = min(self.max_value, torch.finfo(alike[0].dtype).max)
            torch._foreach_clamp_min_(alike, -bound)
            torch._foreach_clamp_max_(alike, bound)
        for gradient in norms.gradients:
            if gradient.layout != torch.strided:
                rows = gradient.coalesce()
                values = torch.view_as_real(rows.values()) if rows.is_complex() else rows.values()
                bound = min(self.max_value, torch.finfo(values.dtype).max)
                values.clamp_(-bound, bound)
                gradient.copy_(rows)
        return norms_of(norms.gradients)


def _by_kind(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    groups: dict[tuple[torch.device, torch.dtype, bool], list[Tensor]] = {}
    for tensor in tensors:
        # Sharded tensors (DTensor) and plain ones do not go into one pass.
        groups.setdefault((tensor.device, tensor.dtype, hasattr(tensor, "full_tensor")), []).append(tensor)
    return list(groups.values())


def _scale_(gradients: Sequence[Tensor], coefficient: Tensor) -> None:
    dense = [gradient for gradient in gradients if gradient.layout == torch.strided]
    # Complex numbers as pairs of real ones: a complex 1 times infinity would be NaN.
    parts = [torch.view_as_real(gradient) if gradient.is_complex() else gradient for gradient in dense]
    for alike in _by_kind(parts):
        # A coefficient of the gradients' own precision, float32 at least, keeps the multiplication fused on a GPU.
        kind = torch.promote_types(alike[0].dtype, torch.float32)
        torch._foreach_mul_(alike, coefficient.to(alike[0].device, kind))
    for gradient in gradients:
        if gradient.layout != torch.strided:
            gradient.mul_(coefficient.to(gradient.device))


def _check_bound(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise ValueError(f"`{name}` must be a positive finite number. Got {value!r}")
