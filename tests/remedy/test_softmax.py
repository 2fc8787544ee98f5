"""Test ``lightning_gradwatch.remedy.softmax``."""

from __future__ import annotations

import torch
from torch import nn

from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.remedy.case import Case
from lightning_gradwatch.remedy.softmax import to_sigmoid

SICK = Diagnosis("dead", Symptom.DEAD)


def test_the_softmax_behind_the_layer_gives_way_to_a_sigmoid() -> None:
    """In the pasted lines and by ``apply_``; one elsewhere stays."""

    def build() -> nn.Sequential:
        return nn.Sequential(nn.Linear(2, 2), nn.Softmax(-1), nn.Linear(2, 1), nn.Softmax(-1))

    (remedy,) = to_sigmoid(Case(SICK, model=build()), "2")
    applied, pasted = build(), build()
    remedy.apply_(applied)
    exec(remedy.code, {"model": pasted})
    for model in (applied, pasted):
        assert [type(module) for module in model] == [nn.Linear, nn.Softmax, nn.Linear, nn.Sigmoid]
    assert remedy.needs_restart


def test_it_learns_what_a_softmax_over_one_unit_cannot() -> None:
    """The gradient of the first layer is exactly zero before and not after."""
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1), nn.Softmax(-1))
    x, y = torch.randn(8, 2), torch.rand(8, 1).round()
    norms = []
    for _ in range(2):
        model.zero_grad()
        nn.functional.binary_cross_entropy(model(x), y).backward()
        norms.append(float(model[0].weight.grad.norm()))
        to_sigmoid(Case(SICK, model=model), "2")[0].apply_(model) if not norms[1:] else None
    assert norms[0] == 0.0
    assert norms[1] > 0.0


def test_without_a_softmax_module_nothing_is_advised() -> None:
    """One that is called as a function, and no model at all."""
    assert to_sigmoid(Case(SICK, model=nn.Sequential(nn.Linear(2, 1))), "0") == []
    assert to_sigmoid(Case(SICK), "0") == []
