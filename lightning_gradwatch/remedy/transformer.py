"""Ways out for stacks of torch's own transformer layers: norms before the branches, smaller projections, warm-up."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from lightning_gradwatch.remedy.case import Case, count_layers
from lightning_gradwatch.remedy.edits import Edits, loop_over
from lightning_gradwatch.remedy.remedy import Remedy

_LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


@dataclass(frozen=True)
class PreNorm:
    """Put the norm of torch's transformer layers before their branches instead of behind the sums.

    Attributes:
        layers: Where they are registered, as ``get_submodule`` takes them.

    Example:
        >>> model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, batch_first=True))
        >>> PreNorm(("0",)).apply_(model)
        >>> model[0].norm_first
        True
    """

    layers: tuple[str, ...]

    @property
    def code(self) -> str:
        """Lines to paste."""
        lines = [*loop_over("name", self.layers), "    model.get_submodule(name).norm_first = True"]
        return "\n".join(["# where the model is built: nn.TransformerEncoderLayer(..., norm_first=True)", *lines])

    def apply_(self, model: nn.Module) -> None:
        """Do it in place."""
        for name in self.layers:
            # Not setattr by attribute: torch's layers declare it as a bool of their own.
            setattr(model.get_submodule(name), "norm_first", True)  # noqa: B010


@dataclass(frozen=True)
class SmallerProjections:
    """Divide the weights that write into the residual stream by ``sqrt(2 num_layers)``.

    Attributes:
        layers: Where the transformer layers are registered.

    Example:
        >>> model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, batch_first=True))
        >>> before = model[0].linear2.weight.detach().clone()
        >>> SmallerProjections(("0",)).apply_(model)
        >>> torch.allclose(model[0].linear2.weight, before / 2**0.5)
        True
    """

    layers: tuple[str, ...]

    @property
    def code(self) -> str:
        """Lines to paste."""
        lines = [
            "import torch",
            "with torch.no_grad():",
            *(f"    {line}" for line in loop_over("name", self.layers)),
            "        layer = model.get_submodule(name)",
            f"        layer.self_attn.out_proj.weight.div_({2 * len(self.layers)} ** 0.5)",
            f"        layer.linear2.weight.div_({2 * len(self.layers)} ** 0.5)",
        ]
        return "\n".join(lines)

    @torch.no_grad()
    def apply_(self, model: nn.Module) -> None:
        """Do it in place."""
        for name in self.layers:
            layer = model.get_submodule(name)
            for projection in ("self_attn.out_proj", "linear2"):
                weight = layer.get_submodule(projection).get_parameter("weight")
                weight.div_(math.sqrt(2 * len(self.layers)))


def for_transformers(case: Case) -> list[Remedy]:
    """Advise on a model with torch's transformer layers.

    Norms before the branches where they stand behind the sums; projections into the residual stream that are smaller
    the more layers write into it; a learning rate that warms up.

    Args:
        case: What is known, with the model.

    Returns:
        The remedies; none where the model has no such layer.

    References:
        Xiong et al., On layer normalization in the transformer architecture, ICML 2020. Radford et al., Language models
        are unsupervised multitask learners, 2019 (the factor of the projections). Vaswani et al., Attention is all you
        need, NeurIPS 2017 (warm-up).
    """
    if case.model is None:
        return []
    found = {name: module for name, module in case.model.named_modules() if isinstance(module, _LAYERS)}
    if not found:
        return []
    behind = tuple(name for name, module in found.items() if not module.norm_first)
    sums = "with norms behind the sums the last layers get far more gradient than the first (Xiong et al., 2020)"
    branches = "the sum of all branches then stays as large as one (Radford et al., 2019)"
    early = "before the attention has settled a full step is too far (Vaswani et al., 2017)"
    smaller = f"projections into the residual stream divided by sqrt(2 x {len(found)}), then start again"
    plans: list[tuple[str, str, Edits | None]] = [
        (smaller, branches, Edits((SmallerProjections(tuple(found)),))),
        ("warm up the learning rate over the first steps, such as 5% of them", early, None),
    ]
    if behind:
        first = f"norm_first=True in {count_layers(len(behind))}, then start again"
        plans.insert(0, (first, sums, Edits((PreNorm(behind),))))
    return [
        Remedy(
            title=title,
            reason=reason,
            diagnosis=case.diagnosis,
            code=edits.code if edits is not None else "",
            needs_restart=edits is not None,
            change=edits,
        )
        for title, reason, edits in plans
    ]
