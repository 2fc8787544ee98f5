"""Graphs that are cut where the task needs them whole, and graphs that are cut on purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.ward.case import Case, Lesson
from benchmarks.ward.networks import optimizer_of
from benchmarks.ward.recipes import Recipe, sick, well
from lightning_gradwatch import Symptom

Step = Callable[[Tensor], Tensor]


def _whole(x: Tensor) -> Tensor:
    return x


def _detached(x: Tensor) -> Tensor:
    return x.detach()


def _data(x: Tensor) -> Tensor:
    return x.data


def _numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(x.detach().numpy())


def _rounded(x: Tensor) -> Tensor:
    return (2 * x).round() / 2


def _straight_through(x: Tensor) -> Tensor:
    return x + (_rounded(x) - x).detach()


class Narrow(nn.Module):
    """A trunk that ends in three numbers, a step, and a head: a trunk left to chance is not enough for ten classes.

    Args:
        inputs: Numbers that go in.
        outputs: Classes.
        step: What happens to the three numbers.
        graph: Whether the trunk runs with a graph; without one it is under ``torch.no_grad``.
    """

    def __init__(self, inputs: int, outputs: int, step: Step, *, graph: bool = True) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(inputs, 24), nn.ReLU(), nn.Linear(24, 3), nn.Tanh())
        self.head = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, outputs))
        self._step, self._graph = step, graph

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        with torch.set_grad_enabled(self._graph and torch.is_grad_enabled()):
            x = self.trunk(x)
        out: Tensor = self.head(self._step(x))
        return out


class Probed(nn.Module):
    """A network with a second head, whose loss must not reach the trunk: its features are detached on purpose."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.head, self.probe = nn.Linear(32, outputs), nn.Linear(32, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of both heads' logits."""
        features = self.trunk(x)
        out: Tensor = (self.head(features) + self.probe(features.detach())) / 2
        return out


def _network(step: Step, *, graph: bool = True) -> Callable[[int, int], nn.Module]:
    return lambda inputs, outputs: Narrow(inputs, outputs, step, graph=graph)


def _left_out(recipe: Recipe) -> Callable[[int], Lesson]:
    """Make the lesson with an optimizer that was made of the head alone."""

    def lesson(seed: int) -> Lesson:
        made = recipe.lesson(seed)
        assert isinstance(made.model, Narrow)
        return replace(made, optimizer=optimizer_of(recipe.optimizer, made.model.head, recipe.rate))

    return lesson


def cases() -> tuple[Case, ...]:
    """Return the cases of this family; names decide what is held back, so the oldest ones keep theirs (``rest/``)."""
    trunk, whole = ("trunk.0", "trunk.2"), {"network": _network(_whole)}
    adam = Recipe(network=_network(_whole), rate=3e-3, num_steps=600)
    momentum = replace(adam, optimizer="momentum", rate=0.05, num_steps=800)

    def cut(name: str, recipe: Recipe, step: Step, symptom: Symptom = Symptom.DISCONNECTED, **how: bool) -> Case:
        return sick(name, replace(recipe, network=_network(step, **how)), symptom, trunk, whole, decided="start")

    found = [
        cut("rest/detached-trunk/adam", adam, _detached),
        cut("rest/no-grad-trunk/adam", adam, _whole, graph=False),
        cut("rest/numpy-trunk/momentum", momentum, _numpy),
        well("disconnected/probe", Recipe(network=Probed, num_steps=400), "detached on purpose"),
    ]
    for name, recipe in (("adam", adam), ("momentum", momentum)):
        through = replace(recipe, network=_network(_straight_through))
        found += [
            cut(f"disconnected/data/{name}", recipe, _data),
            # Rounding has a derivative, and that is zero.
            cut(f"disconnected/rounded/{name}", recipe, _rounded, Symptom.DEAD),
            Case(
                f"disconnected/outside-the-optimizer/{name}",
                _left_out(recipe),
                Symptom.DISCONNECTED,
                trunk,
                recipe.lesson,
                decided="start",
            ),
            well(f"disconnected/straight-through/{name}", through, "detached on purpose"),
        ]
    return tuple(found)
