"""The edit that gives layers other weights: initialized anew, each with its scheme, and biases of zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from lightning_gradwatch.measure.layers import ROOT, find_layers
from lightning_gradwatch.remedy.edits import loop_over
from lightning_gradwatch.remedy.initialization import Scheme


@dataclass(frozen=True)
class FreshWeights:
    """Initialize layers anew.

    Attributes:
        schemes: The initialization of each layer, by name.
        left_out: Why other layers keep their weights, by name; written as comments.

    Example:
        >>> from lightning_gradwatch.remedy.initialization import HE
        >>> print(FreshWeights({"0": HE, "2": HE}).code)
        from torch import nn
        for name in ['0', '2']:
            layer = model.get_submodule(name)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if getattr(layer, "bias", None) is not None:
                nn.init.zeros_(layer.bias)
    """

    schemes: Mapping[str, Scheme]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def code(self) -> str:
        """Lines to paste."""
        lines = [f"# left out: {name}, {reason}" for name, reason in self.left_out.items()]
        lines.append("from torch import nn")
        for scheme, names in self._by_scheme():
            lines += [
                # get_submodule("") is the model itself.
                *loop_over("name", ["" if name == ROOT else name for name in names]),
                "    layer = model.get_submodule(name)",
                "    " + scheme.call.format(weight="layer.weight"),
                '    if getattr(layer, "bias", None) is not None:',
                "        nn.init.zeros_(layer.bias)",
            ]
        return "\n".join(lines)

    def apply_(self, model: nn.Module) -> None:
        """Do it in place, in the order of the lines: the same seed gives the same weights.

        Args:
            model: The model.
        """
        layers = {layer.name: layer.parameters for layer in find_layers(model)}
        for scheme, names in self._by_scheme():
            for parameters in (layers[name] for name in names if name in layers):
                scheme.apply_(parameters["weight"])
                if "bias" in parameters:
                    nn.init.zeros_(parameters["bias"])

    def _by_scheme(self) -> list[tuple[Scheme, list[str]]]:
        schemes = dict.fromkeys(self.schemes.values())
        return [(scheme, [name for name, own in self.schemes.items() if own == scheme]) for scheme in schemes]
