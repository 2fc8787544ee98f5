"""Make gradients smaller before the optimizer uses them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from lightning_gradwatch.measure.norms import GradientNorms, norms_of
from lightning_gradwatch.measure.snapshot import IntArray
from lightning_gradwatch.remedy.scaling import by_kind, check_positive, coefficient_of, dense_parts, scale_, scale_each_


@runtime_checkable
class Clipper(Protocol):
    """Anything that changes gradients in place from norms already measured.

    A clipper that remembers may also have ``state_dict()`` and ``load_state_dict(state)`` of plain values and tensors,
    with one state for each ``norms.optimizer``, and ``reset()``, called when a new run begins. Gradients whose norm is
    not finite are left as they are: no coefficient makes them right, and ``on_nonfinite`` decides on that step.

    Example:
        >>> class Halve:
        ...     def clip_(self, norms):
        ...         for gradient in norms.gradients:
        ...             gradient.mul_(0.5)
        ...         return 0.5 * norms.norms
        >>> isinstance(Halve(), Clipper)
        True
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
        check_positive("max_norm", self.max_norm)

    @torch.no_grad()
    def clip_(self, norms: GradientNorms) -> Tensor:
        """Clip in place; see the class."""
        if not norms.gradients:
            return norms.norms
        return scale_(norms, coefficient_of(norms.global_norm() + 1e-6, self.max_norm))


@dataclass(frozen=True)
class ClipByLayerNorm(Clipper):
    """Scale the gradients of each layer so that the layer's norm is at most ``max_norm``.

    ``g_i *= min(1, max_norm / (layer_norm + 1e-6))``, which is ``torch.nn.utils.clip_grad_norm_`` for each layer by
    itself; a layer is what one module owns directly, such as a weight with its bias. One layer that explodes does not
    make the steps of the others small; the direction of the whole step turns, that of each layer stays. A layer whose
    norm is not finite is left as it is.

    Attributes:
        max_norm: Largest norm of a layer. There is no default; ``watch.history.norms`` tells what norms a run has.

    Raises:
        ValueError: If ``max_norm`` is not a positive finite number.

    Example:
        >>> from lightning_gradwatch.measure.layers import find_layers, index_parameters
        >>> from lightning_gradwatch.measure.norms import measure_gradients
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(1, 1, bias=False))
        >>> model[0].weight.grad, model[1].weight.grad = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.5]])
        >>> norms = measure_gradients(index_parameters(find_layers(model), [model.parameters()]))
        >>> ClipByLayerNorm(max_norm=1.0).clip_(norms)
        tensor([1.0000, 0.5000])
    """

    max_norm: float
    # Where each layer's gradients stand among all, on the device, for each optimizer: it rarely changes.
    _places: dict[int, _Places] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse a bound that is none."""
        check_positive("max_norm", self.max_norm)

    @torch.no_grad()
    def clip_(self, norms: GradientNorms) -> Tensor:
        """Clip in place; see the class."""
        if not norms.gradients:
            return norms.norms
        layer, device = norms.index.layer[norms.members], norms.norms.device
        places = self._places.get(norms.optimizer)
        if places is None or places.table.device != device or not np.array_equal(places.layer, layer):
            places = self._places[norms.optimizer] = _Places.of(layer, device)
        coefficients = coefficient_of(places.layer_norms(norms.norms) + 1e-6, self.max_norm)
        return scale_each_(norms, coefficients[places.row])


@dataclass(frozen=True, eq=False)
class _Places:
    """Where each layer's gradients stand among all gradients of an optimizer.

    Attributes:
        layer: The layer of each gradient, ``[num_gradients]``.
        row: The same, counting only layers that have a gradient, on the device.
        table: Positions of each such layer's gradients, filled up with ``num_gradients``, ``[num_rows, most]``.
    """

    layer: IntArray
    row: Tensor
    table: Tensor

    @staticmethod
    def of(layer: IntArray, device: torch.device) -> _Places:
        """Sort gradients by layer."""
        kinds, row = np.unique(layer, return_inverse=True)
        table = np.full((len(kinds), int(np.bincount(row).max())), len(layer), dtype=np.int64)
        for number in range(len(kinds)):
            members = np.flatnonzero(row == number)
            table[number, : len(members)] = members
        return _Places(layer, torch.from_numpy(row).to(device), torch.from_numpy(table).to(device))

    def layer_norms(self, norms: Tensor) -> Tensor:
        """Combine the norms of a layer's gradients, without overflow of the squares.

        Args:
            norms: Norms of the gradients, ``[num_gradients]``.

        Returns:
            ``[num_rows]``.
        """
        # Not by adding up in place: on a GPU the order of such sums is left to chance.
        parts = torch.cat([norms, norms.new_zeros(1)])[self.table]
        scale = parts.amax(dim=1, keepdim=True).clamp(min=torch.finfo(norms.dtype).tiny)
        together: Tensor = torch.linalg.vector_norm(parts / scale, dim=1) * scale.squeeze(1)
        return together


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
        check_positive("max_value", self.max_value)

    @torch.no_grad()
    def clip_(self, norms: GradientNorms) -> Tensor:
        """Clip in place; see the class."""
        for alike in by_kind(dense_parts(norms.gradients)):
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
