"""Parameters with prepared gradients, for tests of what is done to gradients."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_gradwatch.measure.layers import find_layers, index_parameters
from lightning_gradwatch.measure.norms import GradientNorms, measure_gradients


def with_gradients(*gradients: Tensor) -> list[nn.Parameter]:
    """Make parameters that have these gradients."""
    parameters = [nn.Parameter(torch.zeros(g.shape, dtype=g.dtype)) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    return parameters


def measure(parameters: list[nn.Parameter], optimizer: int = 0) -> GradientNorms:
    """Measure the gradients of parameters; each is a layer of its own."""
    layers = find_layers(nn.ModuleList(nn.ParameterList([parameter]) for parameter in parameters))
    index = index_parameters(layers, [parameters])
    assert index is not None
    return measure_gradients(index, optimizer)


def measure_model(model: nn.Module, parameters: list[nn.Parameter] | None = None) -> GradientNorms:
    """Measure the gradients of a model as a clipper is given them, with the layers.

    Args:
        model: The model.
        parameters: What the optimizer holds, in its order; by default all.
    """
    layers = find_layers(model)
    index = index_parameters(layers, [list(model.parameters()) if parameters is None else parameters])
    assert index is not None
    return replace(measure_gradients(index), layers=layers)


def random_gradients(seed: int, *dtypes: torch.dtype, scale: float = 1.0) -> list[Tensor]:
    """Draw a gradient of each dtype."""
    generator = torch.Generator().manual_seed(seed)
    return [(scale * torch.randn(4, 5, generator=generator)).to(dtype) for dtype in dtypes]


def of_norm(norm: float) -> GradientNorms:
    """Make one gradient of four equal numbers whose norm is this."""
    return measure(with_gradients(torch.full((4,), norm / 2)))


def twin(model: nn.Module) -> nn.Module:
    """Copy a model together with its gradients."""
    copied = copy.deepcopy(model)
    for new, old in zip(copied.parameters(), model.parameters(), strict=True):
        new.grad = None if old.grad is None else old.grad.clone()
    return copied
