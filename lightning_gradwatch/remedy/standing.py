"""How a layer's weights stand beside what He, Xavier and LeCun would give them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from lightning_gradwatch.measure.drawn import DRAWN_KINDS, stands_as_drawn
from lightning_gradwatch.measure.layers import Layer
from lightning_gradwatch.remedy.initialization import HE, LECUN, XAVIER, Scheme


@dataclass(frozen=True)
class WeightStanding:
    """A layer's weight beside the standard deviations that it could have.

    Attributes:
        layer: The layer's name.
        std: Measured standard deviation (around zero) of the weight; NaN, like what follows, for a weight that is lazy
            or computed by a parametrization.
        he: What He gives.
        xavier: What Xavier gives.
        lecun: What LeCun gives.
        refusal: Why the weight cannot be initialized anew, empty where it can.
        at_default: Whether the weight stands where ``nn.Linear`` and ``nn.Conv2d`` put it: uniform in
            ``+- 1 / sqrt(fan_in)``, which is a standard deviation of ``1 / sqrt(3 fan_in)``.
        slope: Negative slope of the leaky ReLU that follows, which ``he`` counts; 0 elsewhere.
    """

    layer: str
    std: float
    he: float
    xavier: float
    lecun: float
    refusal: str = ""
    at_default: bool = False
    slope: float = 0.0

    def of(self, scheme: Scheme) -> float:
        """Return the standard deviation that a scheme gives this weight."""
        return {"He": scheme.share * self.he, "Xavier": self.xavier, "LeCun": self.lecun}[scheme.name]

    def before(self, std: float | None) -> WeightStanding:
        """Return how the weight stood when it had another standard deviation; as it is where that is not known."""
        return self if std is None else replace(self, std=std)

    def leaking(self, slope: float) -> WeightStanding:
        """Return the standing before a leaky ReLU: He gives ``sqrt(2 / ((1 + slope^2) fan_in))``.

        Example:
            >>> standing = WeightStanding("0", 0.1, he=1.0, xavier=0.7, lecun=0.7)
            >>> round(standing.leaking(0.75).he, 3)
            0.8
        """
        return replace(self, he=self.he / math.sqrt(1 + slope**2), slope=slope) if slope else self


def measure_standing(layers: Sequence[Layer], tied: frozenset[int] = frozenset()) -> tuple[WeightStanding, ...]:
    """Measure the weights of layers that have one weight matrix.

    ``std = ||w|| / sqrt(numel)``; ``he = sqrt(2 / fan_in)``, ``xavier = sqrt(2 / (fan_in + fan_out))``,
    ``lecun = sqrt(1 / fan_in)``.

    Args:
        layers: Any layers; those without a ``weight`` of two or more dimensions (norms, recurrent layers) are left
            out, as are embeddings, which no signal enters.
        tied: Ids of the parameters that several modules hold.

    Returns:
        One standing a layer that has a weight matrix.

    Example:
        >>> from lightning_gradwatch.measure.layers import find_layers
        >>> model = nn.Linear(64, 64)
        >>> _ = nn.init.constant_(model.weight, 0.5)
        >>> standing, = measure_standing(find_layers(model))
        >>> standing.std, round(standing.he, 3)
        (0.5, 0.177)
    """
    chosen = [(layer, weight) for layer in layers if (weight := _weight(layer)) is not None]
    if not chosen:
        return ()
    usable = [weight for layer, weight in chosen if not _hidden(layer, weight)]
    values = torch.stack([_size(weight) for weight in usable]).tolist() if usable else []
    measured = iter(values)
    standings = []
    for layer, weight in chosen:
        std, peak = (math.nan, math.nan) if _hidden(layer, weight) else next(measured)
        standings.append(_standing(layer, weight, std, peak, tied))
    return tuple(standings)


def _weight(layer: Layer) -> Tensor | None:
    if layer.module is None or isinstance(layer.module, (nn.Embedding, nn.EmbeddingBag)):
        return None
    if parametrize.is_parametrized(layer.module, "weight"):
        return next((p for n, p in layer.parameters.items() if n.startswith("parametrizations.") and p.ndim > 1), None)
    weight = layer.parameters.get("weight")
    return weight if weight is not None and (isinstance(weight, UninitializedParameter) or weight.ndim > 1) else None


def _hidden(layer: Layer, weight: Tensor) -> bool:
    """Tell whether the stored tensor is not the weight that the signal meets."""
    assert layer.module is not None
    return isinstance(weight, UninitializedParameter) or parametrize.is_parametrized(layer.module, "weight")


def _size(weight: Tensor) -> Tensor:
    """Return the root mean square and the largest absolute number of a weight."""
    whole = weight.detach()
    if hasattr(whole, "full_tensor"):
        # The norm of a DTensor is a collective, and only some ranks may have come here.
        return torch.full((2,), math.nan)
    values = torch.view_as_real(whole) if whole.is_complex() else whole
    dtype = torch.promote_types(values.dtype, torch.float32)
    rms = torch.linalg.vector_norm(values, dtype=dtype) / math.sqrt(max(whole.numel(), 1))
    peak = torch.linalg.vector_norm(values, math.inf, dtype=dtype) if values.numel() else torch.zeros_like(rms)
    return torch.stack([rms, peak]).cpu()


def _standing(layer: Layer, weight: Tensor, std: float, peak: float, tied: frozenset[int]) -> WeightStanding:
    if _hidden(layer, weight):
        return WeightStanding(layer.name, std, math.nan, math.nan, math.nan, _refusal(layer, weight, tied))
    receptive = math.prod(weight.shape[2:])
    fan_in, fan_out = max(1, weight.shape[1] * receptive), max(1, weight.shape[0] * receptive)
    he, xavier, lecun = (scheme.std(fan_in, fan_out) for scheme in (HE, XAVIER, LECUN))
    return WeightStanding(
        layer.name,
        std,
        he,
        xavier,
        lecun,
        _refusal(layer, weight, tied),
        at_default=isinstance(layer.module, DRAWN_KINDS) and stands_as_drawn(std, peak, fan_in, weight.numel()),
    )


def _refusal(layer: Layer, weight: Tensor, tied: frozenset[int]) -> str:
    assert layer.module is not None
    return refusal_of(layer.module, "weight", weight, tied)


def refusal_of(module: nn.Module, name: str, weight: Tensor, tied: frozenset[int] = frozenset()) -> str:
    """Say why a weight cannot be initialized anew.

    Args:
        module: The module that uses it.
        name: What the module calls it.
        weight: The stored tensor.
        tied: Ids of the parameters that several modules hold, where those are not to be touched.

    Returns:
        The reason, empty where it can.

    Example:
        >>> layer = nn.Linear(2, 2).requires_grad_(False)
        >>> refusal_of(layer, "weight", layer.weight)
        'it is frozen'
    """
    reasons = {
        "it is lazy and has no shape yet": isinstance(weight, UninitializedParameter),
        "its weight is parametrized: torch.nn.utils.parametrize computes it from other parameters": (
            parametrize.is_parametrized(module, name)
        ),
        "its weight is computed, not a parameter": name not in module._parameters,
        "its weight is tied: another module uses it too": id(weight) in tied,
        "its weight has no real numbers: it is quantized": not (weight.is_floating_point() or weight.is_complex()),
        "it is frozen": not weight.requires_grad,
        "its weight is a DTensor: initialize before sharding": hasattr(weight, "full_tensor"),
        "it is on the meta device and has no numbers yet": weight.device.type == "meta",
    }
    return next((reason for reason, applies in reasons.items() if applies), "")


def tied_parameters(model: nn.Module) -> frozenset[int]:
    """Return the ids of parameters that more than one module, or one module twice, holds.

    Example:
        >>> a, b = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> b.weight = a.weight
        >>> tied_parameters(nn.Sequential(a, b)) == {id(a.weight)}
        True
    """
    counts: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                counts[id(parameter)] = counts.get(id(parameter), 0) + 1
    return frozenset(number for number, count in counts.items() if count > 1)
