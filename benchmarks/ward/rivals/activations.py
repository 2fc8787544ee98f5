"""What the activations of a network do, for rules that look at them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from benchmarks.ward.rivals.look import FloatArray, Units

# Inputs beyond which the derivative is below 1e-7: Amazon SageMaker Debugger, SaturatedActivation.
_BOUNDS = {nn.Tanh: (-9.4999, 9.4999), nn.Sigmoid: (-23.0, 16.99999)}


class Activations:
    """Watches the ReLU, sigmoid and tanh modules of a network; functions are not seen, as the rules' own tools do not.

    Args:
        network: The network.
    """

    def __init__(self, network: nn.Module) -> None:
        self._calls: dict[str, list[Units]] = {}
        self._hooks: list[RemovableHandle] = []
        layer = ""
        for name, module in network.named_modules():
            if any(parameter.ndim > 1 for parameter in module.parameters(recurse=False)):
                layer = name
            if isinstance(module, (nn.ReLU, nn.Tanh, nn.Sigmoid)):
                self._hooks.append(module.register_forward_hook(self._hook(name, layer)))

    def take(self) -> dict[str, Units]:
        """Return what was seen since the last time, by name, and forget it."""
        calls, self._calls = self._calls, {}
        return {name: _mean(each) for name, each in calls.items()}

    def remove(self) -> None:
        """Take the hooks off the network."""
        for hook in self._hooks:
            hook.remove()

    def _hook(self, name: str, layer: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if module.training:
                self._calls.setdefault(name, []).append(_units(layer, module, args[0], output))

        return hook


def _units(layer: str, module: nn.Module, given: Tensor, output: Tensor) -> Units:
    """Measure one call; an in-place ReLU has overwritten its input, but only its output counts."""
    if isinstance(module, nn.ReLU):
        return Units(layer, off=_by_unit(output.detach() <= 0))
    low, high = _BOUNDS[nn.Tanh if isinstance(module, nn.Tanh) else nn.Sigmoid]
    given = given.detach()
    return Units(layer, beyond_5=_by_unit(given.abs() >= 5), beyond_bounds=_by_unit((given <= low) | (given >= high)))


def _by_unit(mask: Tensor) -> FloatArray:
    """Return the share of True of each unit: of each channel of an image, of each feature otherwise."""
    unit = 1 if mask.ndim == 4 else mask.ndim - 1
    others = [axis for axis in range(mask.ndim) if axis != unit]
    shares: FloatArray = mask.double().mean(dim=others).cpu().numpy() if others else mask.double().cpu().numpy()
    return shares


def _mean(calls: list[Units]) -> Units:
    """Average over calls of the same shape; the last one's shape counts."""
    last = calls[-1]
    if len(calls) == 1:
        return last
    same = [each for each in calls if each.off.shape == last.off.shape and each.beyond_5.shape == last.beyond_5.shape]
    return Units(
        last.layer,
        off=np.mean([each.off for each in same], axis=0),
        beyond_5=np.mean([each.beyond_5 for each in same], axis=0),
        beyond_bounds=np.mean([each.beyond_bounds for each in same], axis=0),
    )
