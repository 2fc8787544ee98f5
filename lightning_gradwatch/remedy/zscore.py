"""Clip the global norms that stand out from their moving average (ZClip)."""

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
from lightning_gradwatch.remedy.scaling import check_positive, coefficient_of, scale_


@dataclass(frozen=True, eq=False)
class ClipByZScore(Clipper):
    """Scale all gradients of an optimizer where their global norm stands out from its moving average.

    With ``z = (global_norm - mean) / std``: where ``z > max_z_score``, ``bound = mean + max_z_score^2 / z * std``, so
    that the farther a norm stands out the closer to the mean it ends; elsewhere nothing is changed. Then, with
    ``n = min(global_norm, bound)``, the norm after clipping,

        ``mean = alpha * mean + (1 - alpha) * n``
        ``var  = alpha * var  + (1 - alpha) * (n - mean)^2``, with the new mean; ``std = sqrt(var)``.

    The first ``warmup_steps`` norms are not held against anything; their mean and variance are where it starts. There
    is no number in the gradient's unit: gradients that are all multiplied by something are clipped at the same steps.

    A norm that is not finite, such as that of a step which a loss scaler drops, never enters mean and variance; its
    gradients are left as they are. Nor does a norm of exactly zero: after a warm-up of such nothing could ever grow.
    Each optimizer has a mean and a variance of its own; a checkpoint keeps them.

    Attributes:
        max_z_score: How many standard deviations above the mean a norm may stand.
        alpha: Share of the old mean and variance that stays in each step, at least 0 and below 1.
        warmup_steps: Steps before the first that may be clipped, at least 2.
        max_norm: Largest global norm whatever came before, also in the first steps; None for none, as in the paper.

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> from lightning_gradwatch.measure.layers import find_layers, index_parameters
        >>> from lightning_gradwatch.measure.norms import measure_gradients
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> index = index_parameters(find_layers(model), [model.parameters()])
        >>> clipper = ClipByZScore(warmup_steps=2)
        >>> for size in (1.0, 3.0, 4.0, 102.0):
        ...     model.weight.grad = torch.tensor([[size]])
        ...     print(clipper.clip_(measure_gradients(index)))
        tensor([1.])
        tensor([3.])
        tensor([4.])
        tensor([2.1277])

    References:
        Kumar et al., ZClip: Adaptive Spike Mitigation for LLM Pre-Training, 2025, https://arxiv.org/abs/2504.02507.
    """

    # All three as in Kumar et al. and their code.
    max_z_score: float = 2.5
    alpha: float = 0.97
    warmup_steps: int = 25
    max_norm: float | None = None
    # Of each optimizer how many norms there were, their mean and their variance, `[3]`.
    _moments: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check_positive("max_z_score", self.max_z_score)
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, Real) or not 0 <= self.alpha < 1:
            raise ValueError(f"`alpha` must be a number of at least 0 and below 1. Got {self.alpha!r}")
        steps = self.warmup_steps
        if isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 2:
            raise ValueError(f"`warmup_steps` must be an integer of at least 2. Got {steps!r}")
        if self.max_norm is not None:
            check_positive("max_norm", self.max_norm)

    @torch.no_grad()
    def clip_(self, norms: GradientNorms) -> Tensor:
        """Clip in place; see the class."""
        if not norms.gradients:
            return norms.norms
        norm = in_full(norms.global_norm())
        known = self._moments.get(norms.optimizer)
        known = norm.new_zeros(3) if known is None else known.to(norm)
        bound = self._bound(norm, known)
        self._moments[norms.optimizer] = torch.where(counts(norm), self._next(norm, bound, known), known)
        return scale_(norms, coefficient_of(norm, bound))

    def _bound(self, norm: Tensor, known: Tensor) -> Tensor:
        count, mean, variance = known.unbind()
        above = norm - mean
        # The same as `z > max_z_score`, without a division by a standard deviation that may be zero.
        stands_out = (count >= self.warmup_steps) & (above > self.max_z_score * variance.sqrt())
        bound = torch.where(stands_out, mean + self.max_z_score**2 * variance / above, norm)
        return bound if self.max_norm is None else bound.clamp(max=self.max_norm)

    def _next(self, norm: Tensor, bound: Tensor, known: Tensor) -> Tensor:
        count, mean, variance = known.unbind()
        # Welford's way of adding one number to a mean and a variance.
        first_mean = mean + (norm - mean) / (count + 1)
        first_variance = (variance * count + (norm - mean) * (norm - first_mean)) / (count + 1)
        moving_mean = self.alpha * mean + (1 - self.alpha) * bound
        moving_variance = self.alpha * variance + (1 - self.alpha) * (bound - moving_mean).square()
        first = torch.stack([count + 1, first_mean, first_variance])
        return torch.where(count < self.warmup_steps, first, torch.stack([count + 1, moving_mean, moving_variance]))

    def reset(self) -> None:
        """Forget mean and variance: a new run begins."""
        self._moments.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return number, mean and variance of the norms of each optimizer."""
        return {"moments": dict(self._moments)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back.

        Args:
            state: What ``state_dict`` returned.
        """
        moments = restored(state["moments"])
        self._moments.clear()
        self._moments.update(moments)
