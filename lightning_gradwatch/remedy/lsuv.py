"""Layer-sequential unit-variance initialization: each layer's output has variance 1 on the batch that it is shown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from lightning_gradwatch.measure.layers import Layer, find_layers
from lightning_gradwatch.measure.outputs import output_of
from lightning_gradwatch.measure.random_state import RandomState
from lightning_gradwatch.remedy.filling import Chosen, Way, fill_layers_, orthogonal_
from lightning_gradwatch.remedy.following import refuse_stranger, refuse_unready
from lightning_gradwatch.remedy.initialized import InitializedLayer, root_mean_squares, usable_weights, without_complex
from lightning_gradwatch.remedy.matrices import SELF_CONTAINED
from lightning_gradwatch.remedy.traceless import call, traceless

_NOT_SCALED = "not scaled: another scale would take from its gates or projections that they are orthogonal"
_NOT_CALLED = "not scaled: the forward pass did not call it, or used its weights without calling it"
# A spread below this share of the mean is rounding noise. Ours: float32 has 7 digits.
_CONSTANT = 1e-6


def lsuv_init_(
    module: nn.Module, example_input: Any = None, *, tolerance: float = 0.1, max_iterations: int = 10
) -> tuple[InitializedLayer, ...]:
    """Initialize a module in place so that each layer's output has variance 1 on a batch.

    Weights become orthonormal and biases zero. Then, layer by layer as the forward pass calls them,
    ``weight /= sqrt(var)``, with ``var`` the variance of all numbers of the layer's output, before its activation,
    until ``|var - 1| < tolerance``. It needs no gain, so it serves any activation, GELU and SiLU among them, and any
    branches.

    It takes one forward pass, in which each layer is run again after it was scaled (once, as a rule: without a bias the
    output is proportional to the weight), so about two in all, not one a layer. A layer that is called several times is
    scaled at its first call. Recurrent layers and the projections of attention stay orthonormal. A layer whose output
    is constant or not finite is not scaled, which is told. What is left alone, and what the example leaves untouched:
    as in ``he_init_``; where the forward pass fails, the weights are put back too.

    Args:
        module: Any module, in the mode in which the batch is to run: one in training mode has its batch normalized.
        example_input: A batch as the forward pass takes it: a tensor, a tuple of arguments, a dictionary of named ones.
        tolerance: How far from 1 the variance may stay.
        max_iterations: How often a layer is scaled at most.

    Returns:
        One value a layer, in registration order; ``gain`` is what the orthonormal weights were multiplied by.

    Raises:
        TypeError: If it is no module.
        ValueError: Without a batch, or where the module is compiled or lazy.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 2))
        >>> batch = 3 * torch.randn(256, 16)
        >>> done = lsuv_init_(model, batch)
        >>> [round(float(model[:end](batch).detach().var()), 1) for end in (1, 3, 5)]
        [1.0, 1.0, 1.0]

    References:
        Mishkin and Matas, All you need is a good init, ICLR 2016, https://arxiv.org/abs/1511.06422.
    """
    refuse_stranger(module, "lsuv_init_")
    # Mishkin's own code: 0.1 and 10.
    if example_input is None:
        raise ValueError(
            "`example_input` must be a batch: LSUV scales weights by what the batch makes of them. Got None; call "
            "lsuv_init_(module, batch)"
        )
    if not (tolerance > 0 and max_iterations > 0):
        raise ValueError(f"`tolerance` and `max_iterations` must be positive. Got {tolerance} and {max_iterations}")
    refuse_unready(module, "lsuv_init_")
    layers = find_layers(module)
    chosen = [_chosen(layer) for layer in layers]
    scaling = _Scaling(tolerance, max_iterations)
    with _kept_on_failure(module):
        done = fill_layers_(module, layers, chosen, Way("LSUV", "lsuv_init_", orthogonal_))
        targets = {
            number: layer.module
            for number, (layer, plan) in enumerate(zip(layers, chosen, strict=True))
            if plan.weights and not isinstance(layer.module, SELF_CONTAINED)
        }
        with torch.inference_mode(mode=False), torch.no_grad(), traceless(module), scaling.hooked(targets):
            call(module, example_input)
    return _told(layers, chosen, done, targets, scaling)


def _chosen(layer: Layer) -> Chosen:
    weights, reason = without_complex(*usable_weights(layer))
    return Chosen(weights, 1.0 if weights else math.nan, None, reason)


@dataclass(eq=False)
class _Scaling:
    """Scales the weights of layers while a forward pass runs."""

    tolerance: float
    max_iterations: int
    factors: dict[int, float] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)

    @contextmanager
    def hooked(self, targets: dict[int, nn.Module | None]) -> Iterator[None]:
        # First of all hooks: what a person's own does to the output is not the layer's.
        handles = [
            module.register_forward_hook(partial(self._settle, number), prepend=True, with_kwargs=True)
            for number, module in targets.items()
            if module is not None
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _settle(self, number: int, module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        if number in self.factors:
            return None
        self.factors[number] = 1.0
        for iteration in range(self.max_iterations + 1):
            variance, mean = _moments(output)
            self.reasons[number] = self._reason(variance, mean, last=iteration == self.max_iterations)
            if self.reasons[number] or abs(variance - 1.0) < self.tolerance:
                break
            factor = 1.0 / math.sqrt(variance)
            module.weight.mul_(factor)
            self.factors[number] *= factor
            # Not the module itself, which would call this hook again.
            output = module.forward(*args, **kwargs)
        return output

    def _reason(self, variance: float, mean: float, *, last: bool) -> str:
        if not math.isfinite(variance):
            return "not scaled: its output has no finite variance"
        if variance <= (_CONSTANT * mean) ** 2:
            return "not scaled: its output is constant"
        far = abs(variance - 1.0) >= self.tolerance
        return (
            f"the variance of its output is {variance:.2g} after {self.max_iterations} scalings" if last and far else ""
        )


def _moments(output: Any) -> tuple[float, float]:
    value = output_of(output)
    if value is None or value.numel() < 2:
        return math.nan, math.nan
    variance, mean = torch.var_mean(value.detach().double(), correction=0)
    found: list[float] = torch.stack([variance, mean]).tolist()
    return found[0], found[1]


@contextmanager
def _kept_on_failure(module: nn.Module) -> Iterator[None]:
    state = RandomState()
    before = [(parameter, parameter.detach().clone()) for parameter in module.parameters() if parameter.requires_grad]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for parameter, value in before:
                parameter.copy_(value)
        state.restore()
        raise


def _told(
    layers: Sequence[Layer],
    chosen: Sequence[Chosen],
    done: Sequence[InitializedLayer],
    targets: dict[int, nn.Module | None],
    scaling: _Scaling,
) -> tuple[InitializedLayer, ...]:
    after = root_mean_squares([list(plan.weights.values()) for plan in chosen])
    told = list(done)
    for number, plan in enumerate(chosen):
        if not plan.weights:
            continue
        reason = scaling.reasons.get(number, _NOT_CALLED) if number in targets else _NOT_SCALED
        told[number] = replace(
            told[number],
            gain=scaling.factors.get(number, 1.0),
            std_after=after[number],
            reason="; ".join(part for part in (plan.reason, reason) if part),
        )
    return tuple(told)
