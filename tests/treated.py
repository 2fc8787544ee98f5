"""What the tests of edits share: cases as advice makes them, and a model treated twice, by paste and by ``apply_``."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.measure.activations import describe_layers
from lightning_gradwatch.measure.graph import read_topology
from lightning_gradwatch.measure.layers import find_layers
from lightning_gradwatch.remedy.case import Case
from lightning_gradwatch.remedy.remedy import Remedy
from lightning_gradwatch.remedy.standing import measure_standing, tied_parameters


def case_of(model: nn.Module, x: Tensor, rule: str = "vanishing.depth", **more: object) -> Case:
    """Make the case of a model all of whose layers are sick."""
    layers = find_layers(model)
    described = describe_layers(model, layers, read_topology(model(x).sum(), layers))
    return Case(
        Diagnosis(rule, Symptom.VANISHING, layers=tuple(layer.name for layer in layers)),
        layers,
        measure_standing(layers, tied_parameters(model)),
        {about.name: about.activation for about in described},
        model=model,
        feed_batch_norm=frozenset(about.name for about in described if about.feeds_batch_norm),
        **more,
    )


def names_of(model: nn.Module) -> list[str]:
    """Name all layers of a model."""
    return [layer.name for layer in find_layers(model)]


def with_shapes(case: Case, *shape: int) -> Case:
    """Say that every layer's output has a shape."""
    return replace(case, shapes=dict.fromkeys(case.activations, shape))


def paste(code: str, model: nn.Module) -> None:
    """Run lines as a person would paste them, with ``model`` in scope."""
    exec(code, {"model": model, "__name__": "pasted"})


def structure(model: nn.Module) -> list[tuple[str, str]]:
    """List every place of a model, the second of a module too, with its class."""
    return [(name, type(m).__name__) for name, m in model.named_modules(remove_duplicate=False)]


def treated(remedy: Remedy, build: Callable[[], nn.Module], x: Tensor) -> nn.Module:
    """Treat two fresh, equal models, one by the pasted lines and one by ``apply_``, and demand that they are one.

    They have the same places, parameters, outputs and gradients, to the bit; a copy and a pickled model are as good,
    and share nothing with what they were made of.
    """
    pasted, applied = build(), build()
    applied.load_state_dict(pasted.state_dict())
    for treat, model in ((lambda m: paste(remedy.code, m), pasted), (remedy.apply_, applied)):
        torch.manual_seed(1)
        treat(model)
    assert structure(pasted) == structure(applied)
    copies = [copy.deepcopy(pasted), copy.deepcopy(applied), pickle.loads(pickle.dumps(applied))]
    expected = _run(applied, x)
    for model in (pasted, *copies):
        assert list(model.state_dict()) == list(applied.state_dict())
        found = _run(model, x)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    with torch.no_grad():
        for parameter in copies[1].parameters():
            parameter.fill_(0.5)
    assert torch.equal(expected[0], _run(applied, x)[0])
    return applied


def _run(model: nn.Module, x: Tensor) -> list[Tensor]:
    torch.manual_seed(2)
    model.zero_grad()
    output = model(x)
    output.square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [output.detach(), *gradients, *(value.clone() for value in model.parameters())]


def task(inputs: int = 8, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Make samples that a linear layer could tell apart."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, inputs, generator=generator)
    return x, (x @ torch.randn(inputs, classes, generator=generator)).argmax(1)


def accuracy_after(model: nn.Module, steps: int = 120) -> float:
    """Train on all samples of the task, and return the share that the model gets right."""
    x, y = task()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return float((model(x).argmax(1) == y).float().mean())


def stack(activation: Callable[[], nn.Module] = nn.Sigmoid, depth: int = 12, width: int = 32) -> nn.Sequential:
    """Make a stack of hidden layers for the task, at PyTorch's default."""
    sizes: Sequence[int] = [8, *[width] * depth]
    parts = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), activation())]
    return nn.Sequential(*parts, nn.Linear(width, 3))


class Calls(nn.Module):
    """A stack whose activation is called as a function."""

    def __init__(self, activation: Callable[[Tensor], Tensor] = torch.sigmoid, depth: int = 12, width: int = 32):
        super().__init__()
        sizes = [8, *[width] * depth]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.head = nn.Linear(width, 3)
        self.activation = activation

    def forward(self, x):
        """Go through the stack."""
        for layer in self.layers:
            x = self.activation(layer(x))
        return self.head(x)
