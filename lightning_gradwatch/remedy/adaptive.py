"""Clip each unit's gradient by the size of the unit's weights (AGC)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lightning_gradwatch.measure.norms import GradientNorms, norms_of
from lightning_gradwatch.measure.snapshot import BoolArray
from lightning_gradwatch.remedy.clipping import Clipper
from lightning_gradwatch.remedy.scaling import check_positive, coefficient_of

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_MATRIX = 2


@dataclass(frozen=True)
class AdaptiveClip(Clipper):
    """Scale each unit's gradient so that its norm is at most ``clip_factor`` of the norm of the unit's weights (AGC).

    ``G_i *= min(1, clip_factor * max(||W_i||, eps) / ||G_i||)`` for each unit ``i`` of a layer: a row of a weight
    matrix, an output channel of a convolution, a row of an embedding; the first dimension of a weight everywhere but in
    a transposed convolution. Biases, gains and other parameters of one dimension count as one unit. It is what trains
    normalizer-free networks with large batches and strong augmentation. A unit whose norm is not finite is left as it
    is.

    The last layer is left out unless asked for: the layers on which no other layer depends, as the graph of the loss
    tells; where that is not known (``torch.compile``), the layer with a weight matrix that is registered last.

    Attributes:
        clip_factor: Largest ratio of a unit's gradient to its weights, ``lambda`` in the paper.
        eps: Smallest norm of weights that is reckoned with, so that weights of zero can be trained at all.
        clip_last_layer: Whether the last layer is clipped, too.

    Raises:
        TypeError: If ``clip_last_layer`` is not a bool.
        ValueError: If ``clip_factor`` or ``eps`` is not a positive finite number.

    Example:
        >>> from lightning_gradwatch.measure.layers import find_layers, index_parameters
        >>> from lightning_gradwatch.measure.norms import measure_gradients
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        >>> model.weight.grad = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
        >>> norms = measure_gradients(index_parameters(find_layers(model), [model.parameters()]))
        >>> _ = AdaptiveClip(clip_factor=0.01, clip_last_layer=True).clip_(norms)
        >>> model.weight.grad
        tensor([[0.0000e+00, 5.0000e-02],
                [0.0000e+00, 1.0000e-05]])

    References:
        Brock et al., High-Performance Large-Scale Image Recognition Without Normalization, ICML 2021, section 4.1,
        https://arxiv.org/abs/2102.06171.
    """

    # Brock et al., for batches of 4096; they tried up to 0.16, and smaller batches take larger factors.
    clip_factor: float = 0.01
    # Brock et al.
    eps: float = 1e-3
    clip_last_layer: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check_positive("clip_factor", self.clip_factor)
        check_positive("eps", self.eps)
        if not isinstance(self.clip_last_layer, bool):
            raise TypeError(f"`clip_last_layer` must be True or False. Got {self.clip_last_layer!r}")

    @torch.no_grad()
    def clip_(self, norms: GradientNorms) -> Tensor:
        """Clip in place; see the class."""
        left_out = np.zeros(len(norms.gradients), dtype=np.bool_) if self.clip_last_layer else _of_the_last_layer(norms)
        parts = [_Part.of(norms, place) for place in np.flatnonzero(~left_out).tolist()]
        if not parts:
            return norms.norms
        gradient_norms, weight_norms = [part.unit_norms(norms) for part in parts], _weight_norms(parts, norms)
        if norms.alike:
            # A model has thousands of units, and all of them go into one vector.
            sizes = [norm.numel() for norm in gradient_norms]
            flat = torch.split(self._coefficient(_joined(gradient_norms), _joined(weight_norms)), sizes)
            coefficients = [piece.view(norm.shape) for piece, norm in zip(flat, gradient_norms, strict=True)]
            torch._foreach_mul_([part.gradient for part in parts], coefficients)
        else:
            coefficients = [self._coefficient(*pair) for pair in zip(gradient_norms, weight_norms, strict=True)]
            for part, coefficient in zip(parts, coefficients, strict=True):
                part.scale_(coefficient)
        kept = list(torch.ones_like(norms.norms).unbind())
        for part, share in zip(parts, _shares(gradient_norms, coefficients, norms).unbind(), strict=True):
            kept[part.place] = share
        return norms.norms * torch.stack(kept)

    def _coefficient(self, gradient_norms: Tensor, weight_norms: Tensor) -> Tensor:
        return coefficient_of(gradient_norms, self.clip_factor * weight_norms.clamp(min=self.eps))


@dataclass(frozen=True, eq=False)
class _Part:
    """A gradient and its weights, seen by units.

    Attributes:
        place: Where the gradient stands in ``norms.gradients``.
        gradient: A view of it that can be changed; of a sparse one the values.
        weight: The weights in the same shape.
        within: The dimensions that are summed up in a unit; none where the whole is one unit.
        rows: Of a sparse gradient the coalesced one, to which ``gradient`` belongs.
        sparse: The sparse gradient itself.
    """

    place: int
    gradient: Tensor
    weight: Tensor
    within: tuple[int, ...]
    rows: Tensor | None = None
    sparse: Tensor | None = None

    @staticmethod
    def of(norms: GradientNorms, place: int) -> _Part:
        """Look at one of the gradients."""
        member = int(norms.members[place])
        gradient, weight = norms.gradients[place], norms.index.parameters[member].detach()
        if gradient.layout != torch.strided:
            return _Part._of_sparse(place, gradient, weight)
        within = tuple(range(1, gradient.ndim))
        module = norms.layers[norms.index.layer[member]].module if norms.layers else None
        if isinstance(module, _TRANSPOSED) and gradient.ndim > _MATRIX:
            # Its weight is [in, out / groups, ...], and each group of inputs has outputs of its own.
            shape = (module.groups, gradient.shape[0] // module.groups)
            gradient, weight = torch.unflatten(gradient, 0, shape), torch.unflatten(weight, 0, shape)
            within = (1, *range(3, gradient.ndim))
        return _Part(place, *_real(gradient, weight, within))

    @staticmethod
    def _of_sparse(place: int, gradient: Tensor, weight: Tensor) -> _Part:
        rows = gradient.coalesce()
        values = rows.values()
        if values.ndim > 1 and rows.sparse_dim() == 1:
            # Only rows that were looked up have a gradient.
            weight = weight[rows.indices()[0]]
        within = tuple(range(1, values.ndim))
        return _Part(place, *_real(values, weight, within), rows, gradient)

    def unit_norms(self, norms: GradientNorms) -> Tensor:
        """Measure the gradient of each unit, shaped so that it can be multiplied with the gradient."""
        if not self.within:
            return norms.norms[self.place].to(self.gradient.device)
        # As precise as the norm of the whole: float64 where float32 could not hold that.
        dtype = torch.promote_types(self.gradient.dtype, norms.norms.dtype)
        found: Tensor = torch.linalg.vector_norm(self.gradient, dim=self.within, keepdim=True, dtype=dtype)
        return found

    def scale_(self, coefficient: Tensor) -> None:
        """Multiply the gradient."""
        self.gradient.mul_(coefficient)
        if self.sparse is not None and self.rows is not None:
            self.sparse.copy_(self.rows)


def _real(gradient: Tensor, weight: Tensor, within: tuple[int, ...]) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Return all in real numbers: a complex one is a pair in a further dimension."""
    if not gradient.is_complex():
        return gradient, weight, within
    pair = (gradient.ndim,) if within else ()
    return torch.view_as_real(gradient), torch.view_as_real(weight), (*within, *pair)


def _of_the_last_layer(norms: GradientNorms) -> BoolArray:
    """Tell which gradients belong to the last layer, ``[num_gradients]``."""
    index = norms.index
    last = [number for number, about in enumerate(norms.descriptions) if number in about.outlets]
    if not last:
        pairs = zip(index.layer.tolist(), index.parameters, strict=True)
        last = [max((layer for layer, weight in pairs if weight.ndim >= _MATRIX), default=-1)]
    return np.isin(index.layer[norms.members], last)


def _weight_norms(parts: Sequence[_Part], norms: GradientNorms) -> list[Tensor]:
    """Measure the weights of each unit, those of all whole tensors in one go."""
    whole = iter(norms_of([part.weight for part in parts if not part.within]).unbind())
    found = []
    for part in parts:
        if part.within:
            dtype = torch.promote_types(part.weight.dtype, norms.norms.dtype)
            found.append(torch.linalg.vector_norm(part.weight, dim=part.within, keepdim=True, dtype=dtype))
        else:
            found.append(next(whole).to(part.weight.device))
    return found


def _joined(norms: Sequence[Tensor]) -> Tensor:
    return torch.cat([norm.reshape(-1) for norm in norms])


def _shares(unit_norms: Sequence[Tensor], coefficients: Sequence[Tensor], norms: GradientNorms) -> Tensor:
    """Compute what is left of the norm of each tensor whose units were multiplied, ``[num_parts]``."""
    after = [norm * coefficient for norm, coefficient in zip(unit_norms, coefficients, strict=True)]
    # Together: of sharded tensors one collective brings all of them.
    both = norms_of([*unit_norms, *after]).view(2, -1).to(norms.norms)
    return torch.nan_to_num(both[1] / both[0], nan=1.0)
