"""Clip by the global norms that a run has had so far (AutoClip)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from lightning_gradwatch.measure.norms import GradientNorms
from lightning_gradwatch.remedy.clipping import Clipper
from lightning_gradwatch.remedy.memory_of_norms import counts, in_full, restored
from lightning_gradwatch.remedy.scaling import coefficient_of, scale_


@dataclass(frozen=True, eq=False)
class ClipByQuantile(Clipper):
    """Scale all gradients of an optimizer so that their global norm is at most a quantile of its latest norms.

    ``h = [h_2, ..., h_window, global_norm]``, then ``g_i *= min(1, Q(h) / global_norm)``, where ``Q`` is the quantile
    with linear interpolation (``numpy.quantile``). As published the norm before clipping enters the history, and enters
    it before the quantile is taken. It needs no number in the gradient's unit, and follows the norms as they rise or
    fall; with ``quantile=0.1`` nine steps of ten are clipped. The paper keeps the whole history; a bounded one follows
    what the run has become.

    A norm that is not finite, such as that of a step which a loss scaler drops, never enters the history; its gradients
    are left as they are. Nor does a norm of exactly zero: with as many of those as the quantile has room for, every
    gradient would be scaled to zero. Each optimizer has a history of its own; a checkpoint keeps them.

    Attributes:
        quantile: Which one, above 0 and at most 1.
        window: How many norms are kept.

    Raises:
        ValueError: If ``quantile`` or ``window`` is out of range.

    Example:
        >>> from lightning_gradwatch.measure.layers import find_layers, index_parameters
        >>> from lightning_gradwatch.measure.norms import measure_gradients
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> index = index_parameters(find_layers(model), [model.parameters()])
        >>> clipper = ClipByQuantile(quantile=0.5)
        >>> for size in (1.0, 2.0, 9.0):
        ...     model.weight.grad = torch.tensor([[size]])
        ...     print(clipper.clip_(measure_gradients(index)))
        tensor([1.])
        tensor([1.5000])
        tensor([2.])

    References:
        Seetharaman et al., AutoClip: Adaptive Gradient Clipping for Source Separation Networks, MLSP 2020,
        https://arxiv.org/abs/2007.14469.
    """

    # Seetharaman et al.: the 10th percentile did best.
    quantile: float = 0.1
    # As the package autoclip on PyPI; the paper keeps all.
    window: int = 1000
    # Of each optimizer the latest norms, oldest first, NaN where there are fewer, `[window]`.
    _norms: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse a quantile or a window that is none."""
        if isinstance(self.quantile, bool) or not isinstance(self.quantile, Real) or not 0 < self.quantile <= 1:
            raise ValueError(f"`quantile` must be a number above 0 and at most 1. Got {self.quantile!r}")
        if isinstance(self.window, bool) or not isinstance(self.window, Integral) or self.window < 1:
            raise ValueError(f"`window` must be a positive integer. Got {self.window!r}")

    @torch.no_grad()
    def clip_(self, norms: GradientNorms) -> Tensor:
        """Clip in place; see the class."""
        if not norms.gradients:
            return norms.norms
        norm = in_full(norms.global_norm())
        known = self._norms.get(norms.optimizer)
        known = norm.new_full((self.window,), float("nan")) if known is None else known.to(norm)
        known = torch.where(counts(norm), torch.cat([known[1:], norm.reshape(1)]), known)
        self._norms[norms.optimizer] = known
        return scale_(norms, coefficient_of(norm, _quantile(known, self.quantile)))

    def reset(self) -> None:
        """Forget all norms: a new run begins."""
        self._norms.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the norms of each optimizer, oldest first."""
        return {"norms": dict(self._norms)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the norms back.

        Args:
            state: What ``state_dict`` returned; of a longer window the newest norms are kept.
        """
        kept = {number: norms[-self.window :] for number, norms in restored(state["norms"]).items()}
        self._norms.clear()
        for number, norms in kept.items():
            missing = norms.new_full((self.window - len(norms),), float("nan"))
            self._norms[number] = torch.cat([missing, norms])


def _quantile(values: Tensor, quantile: float) -> Tensor:
    """Compute a quantile of the values that are not NaN, on the device; NaN where all are.

    Not by ``torch.nanquantile``, which looks at its arguments on the host.
    """
    ordered = torch.sort(values).values
    place = quantile * (torch.isfinite(values).sum().to(values.dtype) - 1).clamp(min=0)
    below = place.floor()
    pair = ordered[torch.stack([below, place.ceil()]).long()]
    return torch.lerp(pair[0], pair[1], place - below)
