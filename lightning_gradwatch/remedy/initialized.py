"""What an initialization did to each layer, or why it left it alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules import batchnorm, instancenorm

from lightning_gradwatch.measure.layers import Layer, clean_name
from lightning_gradwatch.remedy.matrices import weights_of
from lightning_gradwatch.remedy.standing import refusal_of

_NORMS = (batchnorm._NormBase, instancenorm._InstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_PARAMETRIZED = "its weight is parametrized: torch.nn.utils.parametrize computes it from other parameters"


@dataclass(frozen=True)
class InitializedLayer:
    """What an initialization did to one layer.

    Attributes:
        layer: The layer's name.
        activation: What follows it, as in ``LayerDescription.activation``; None where that is not known.
        scheme: Whose initialization it got (``"He"``); empty where it was left alone.
        gain: By how much its weights exceed what keeps the variance without an activation; NaN where left alone.
        std_before: Root mean square of its weights before; NaN where they cannot be read.
        std_after: The same afterwards.
        reason: Why it was left alone, wholly or in part; empty where nothing was.

    Example:
        >>> InitializedLayer("0", "relu", "He", 1.41, 0.07, 0.18).changed
        True
    """

    layer: str
    activation: str | None
    scheme: str
    gain: float
    std_before: float
    std_after: float
    reason: str = ""

    @property
    def changed(self) -> bool:
        """Whether the layer was initialized."""
        return bool(self.scheme)


def usable_weights(layer: Layer) -> tuple[dict[str, Tensor], str]:
    """Return the matrices of a layer that may be initialized, and why others may not.

    Args:
        layer: Any layer.

    Returns:
        The parameters by their name in the module, and the reason; empty where all may.

    Example:
        >>> from lightning_gradwatch.measure.layers import find_layers
        >>> usable_weights(find_layers(nn.Embedding(2, 3))[0])
        ({}, 'an embedding: it is looked up, no signal enters it')
    """
    module = layer.module
    assert module is not None, "layers of a model have a module"
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return {}, "an embedding: it is looked up, no signal enters it"
    if isinstance(module, _NORMS):
        return {}, "a norm layer: scale 1 and shift 0 are its start"
    if any(name.startswith("parametrizations.") for name in layer.parameters):
        return {}, _PARAMETRIZED
    weights = weights_of(layer)
    reasons = {name: refusal_of(module, name, weight) or _subclass(weight) for name, weight in weights.items()}
    usable = {name: weight for name, weight in weights.items() if not reasons[name]}
    reason = next((reason for reason in reasons.values() if reason), "")
    return usable, reason or ("" if usable else _without_matrix(layer))


def without_complex(weights: dict[str, Tensor], reason: str) -> tuple[dict[str, Tensor], str]:
    """Leave out complex weights, of which torch draws no orthogonal ones.

    Args:
        weights: Matrices of a layer.
        reason: Why others were left out.

    Returns:
        The same for those that remain.

    Example:
        >>> without_complex({"weight": torch.zeros(2, 2, dtype=torch.complex64)}, "")
        ({}, 'its weight is complex: torch draws no orthogonal ones')
    """
    if not any(weight.is_complex() for weight in weights.values()):
        return weights, reason
    return {}, "its weight is complex: torch draws no orthogonal ones"


def _subclass(weight: Tensor) -> str:
    plain = type(weight) in (nn.Parameter, Tensor)
    return "" if plain else f"its weight is a {type(weight).__name__}, no plain parameter"


def _without_matrix(layer: Layer) -> str:
    module = layer.module
    if module is not None and "weight" not in layer.parameters and getattr(module, "weight", None) is not None:
        held = module._parameters.get("weight") is not None
        return (
            "its weight is tied: it is that of another layer, which is treated once"
            if held
            else ("its weight is computed, not a parameter")
        )
    if all(parameter.ndim < 2 for parameter in layer.parameters.values()):
        return "it has no matrix: a scale, a shift or a slope"
    return f"how a {layer.kind} uses its parameters is not known"


def tied_layers(module: nn.Module, layers: Sequence[Layer]) -> list[str]:
    """Name the modules that hold nothing of their own: all of their parameters belong to layers before them.

    Example:
        >>> from lightning_gradwatch.measure.layers import find_layers
        >>> model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
        >>> model[1].weight = model[0].weight
        >>> tied_layers(model, find_layers(model))
        ['1']
    """
    known = {layer.name for layer in layers}
    names = {clean_name(name): part for name, part in module.named_modules()}
    return [name for name, part in names.items() if name not in known and list(part.parameters(recurse=False))]


def root_mean_squares(weights: Iterable[Iterable[Tensor]]) -> list[float]:
    """Measure groups of weights around zero, in one transfer; NaN where a group is empty or cannot be read.

    Args:
        weights: The tensors of each group.

    Returns:
        One number a group.

    Example:
        >>> [round(number, 4) for number in root_mean_squares([[torch.full((2,), 3.0)], []])]
        [3.0, nan]
    """
    sums = [_mean_square(list(group)) for group in weights]
    found: list[float] = torch.stack(sums).sqrt().tolist() if sums else []
    return found


def _mean_square(group: Sequence[Tensor]) -> Tensor:
    readable = [part.detach() for part in group if part.device.type != "meta" and not hasattr(part, "full_tensor")]
    numel = sum(part.numel() for part in readable)
    if not numel or len(readable) < len(group):
        return torch.tensor(math.nan, dtype=torch.float64)
    norms = [torch.linalg.vector_norm(part, dtype=_precise(part)).double().cpu() for part in readable]
    return torch.stack(norms).square().sum() / numel


def _precise(part: Tensor) -> torch.dtype:
    # The squares of large half-precision weights overflow.
    return torch.promote_types(part.dtype, torch.float32)
