"""A signal probe around one step without a Trainer, and what plain autograd says of the same step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_hooks
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import _get_current_function_mode_stack

from lightning_gradwatch.measure.layers import find_layers
from lightning_gradwatch.measure.probing import ProbeReading
from lightning_gradwatch.measure.signals import SignalProbe
from lightning_gradwatch.measure.snapshot import SignalSnapshot

Loss = Callable[[nn.Module], Tensor]


def recorded(net: nn.Module, probe: SignalProbe) -> SignalSnapshot:
    """Return what a probe recorded since its last ``take``, without updates of weights."""
    signals = probe.take()
    probe.end()
    assert signals is not None, "no gradient was seen"
    assert probe.failure == ""
    return ProbeReading(0, 0, [layer.name for layer in find_layers(net)], signals, None).snapshot()


def probed(net: nn.Module, loss_of: Loss, probe: SignalProbe | None = None) -> SignalSnapshot:
    """Probe one forward and backward pass."""
    probe = probe or SignalProbe()
    probe.begin(find_layers(net))
    loss = loss_of(net)
    probe.pause()
    loss.backward()
    probe.resume()
    return recorded(net, probe)


def rms(tensors: list[Tensor]) -> float:
    """Return the root mean square of all numbers, NaN of none."""
    numbers = torch.cat([tensor.detach().double().reshape(-1) for tensor in tensors]) if tensors else torch.empty(0)
    return float(numbers.square().mean().sqrt())


class Outputs:
    """What plain autograd says of the outputs of some modules, in float64: each keeps its gradient."""

    def __init__(self, net: nn.Module, names: list[str], loss_of: Loss) -> None:
        self.net = copy.deepcopy(net).double()
        self.calls: list[tuple[str, Tensor]] = []
        for name in names:
            self.net.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: self._keep(name, out))
        loss_of(self.net).backward()

    def _keep(self, name: str, output: Any) -> Tensor | None:
        while not isinstance(output, Tensor):
            packed = isinstance(output, PackedSequence)
            output = output.data if packed else next(iter(output.values() if isinstance(output, dict) else output))
        if output.requires_grad:
            output.retain_grad()
        self.calls.append((name, output))

    @property
    def order(self) -> list[str]:
        """The modules in the order of their first calls."""
        return list(dict.fromkeys(name for name, _ in self.calls))

    def signal(self, name: str) -> float:
        """The root mean square of a module's outputs."""
        return rms([output for called, output in self.calls if called == name])

    def delta(self, name: str) -> float:
        """The root mean square of the gradients with respect to them."""
        return rms([output.grad for called, output in self.calls if called == name and output.grad is not None])


def by_name(snapshot: SignalSnapshot, values: Any) -> dict[str, float]:
    """Return one value a layer under the layer's name, without those that were not measured."""
    return {name: float(value) for name, value in zip(snapshot.layers, values, strict=True) if not np.isnan(value)}


def num_hooks(*modules: nn.Module) -> int:
    """Count everything that hangs on modules, their parameters and torch itself to be called by it."""
    hooks: list[Any] = [
        torch_hooks._global_forward_hooks,
        torch_hooks._global_forward_pre_hooks,
        torch_hooks._global_backward_hooks,
        torch_hooks._global_backward_pre_hooks,
        _get_current_function_mode_stack(),
    ]
    for module in (part for each in modules for part in each.modules()):
        hooks += [module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks]
        hooks += [p._backward_hooks or {} for p in module.parameters(recurse=False)]
        hooks += [p._post_accumulate_grad_hooks or {} for p in module.parameters(recurse=False)]
    return sum(map(len, hooks))
