"""Test ``lightning_gradwatch.remedy.narrow``."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.measure.layers import find_layers
from lightning_gradwatch.remedy.case import Case
from lightning_gradwatch.remedy.narrow import born_dead, may_die
from lightning_gradwatch.remedy.standing import measure_standing


@pytest.mark.parametrize(("width", "depth"), [(2, 3), (3, 6)])
def test_the_share_of_networks_that_are_born_dead_is_that_of_drawn_ones(width: int, depth: int) -> None:
    """Of 4,000 ReLU stacks with weights from a normal distribution, for one sample each."""
    torch.manual_seed(0)
    signal = torch.randn(4000, width, 1)
    dead = torch.zeros(4000, dtype=torch.bool)
    for _ in range(depth):
        signal = (torch.randn(4000, width, width) @ signal).relu()
        dead |= (signal == 0).all(dim=1).squeeze(-1)
    assert float(dead.float().mean()) == pytest.approx(born_dead([width] * depth), abs=0.03)


def test_wide_or_few_layers_live() -> None:
    """Nothing, and what is wide, is not born dead."""
    assert born_dead([]) == 0.0
    assert born_dead([512] * 100) < 1e-9


@pytest.mark.parametrize(("width", "depth", "dies"), [(5, 8, True), (5, 1, False), (32, 20, False)])
def test_the_layers_of_a_model_are_counted(width: int, depth: int, dies: bool) -> None:
    """Those that are meant, by the units they put out; without a model nothing is known."""
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)), nn.Linear(width, 1))
    layers = find_layers(model)
    names = [layer.name for layer in layers[:-1]]
    sick = Diagnosis("vanishing.depth", Symptom.VANISHING)
    case = Case(sick, standings=measure_standing(layers), activations=dict.fromkeys(names, "sigmoid"), model=model)
    assert may_die(case, case.hidden) == dies
    assert not may_die(Case(sick), names)
