"""Test ``lightning_gradwatch.remedy.rebuilding``."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from lightning_gradwatch.remedy.rebuilding import NotRebuiltError, change_, rebuild, twins_of


def pair() -> tuple[nn.Module, nn.Module, dict[int, torch.Tensor]]:
    """Return a model, its copy, and which parameter is which."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    copied = copy.deepcopy(model)
    return model, copied, twins_of(model, copied)


MAKERS: list[Any] = [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), betas=(0.8, 0.9), amsgrad=True),
    lambda p: torch.optim.AdamW(p, lr=0.01, eps=1e-3),
    lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True),
    lambda p: torch.optim.Adagrad(p, lr_decay=0.1),
    lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=2),
]


@pytest.mark.parametrize("make", MAKERS)
def test_it_steps_as_the_persons_own_does(make):
    """Three steps of the rebuilt optimizer give the weights of three steps of a fresh one."""
    model, copied, twins = pair()
    x = torch.randn(5, 2)
    own, rebuilt = make(model.parameters()), None
    rebuilt = rebuild(own, twins, copied)
    assert type(rebuilt) is type(own)
    for network, optimizer in ((model, own), (copied, rebuilt)):
        for _ in range(3):

            def closure(network: Any = network, optimizer: Any = optimizer) -> torch.Tensor:
                optimizer.zero_grad()
                loss = network(x).square().sum()
                loss.backward()
                return loss

            optimizer.step(closure)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), copied.parameters(), strict=True))


def test_groups_keep_their_settings_and_what_was_remembered_is_left_out():
    """Two groups with rates of their own; a schedule's tensor is not shared; the state is empty."""
    model, copied, twins = pair()
    rate = torch.tensor(0.5)
    own = torch.optim.Adam([{"params": model[0].parameters(), "lr": rate}, {"params": model[2].weight}], lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    own.step()
    rebuilt = rebuild(own, twins, copied)
    rate.fill_(9.0)
    assert [float(group["lr"]) for group in rebuilt.param_groups] == [0.5, 0.1]
    assert [p for group in rebuilt.param_groups for p in group["params"]][2] is copied[2].weight
    assert not rebuilt.state
    assert own.state


def test_what_a_remedy_added_is_trained_and_what_it_took_away_is_not():
    """New parameters join the first group; a layer that was replaced is gone."""
    model, copied, twins = pair()
    copied[1] = nn.BatchNorm1d(3)
    copied[2] = nn.Linear(3, 1, bias=False)
    rebuilt = rebuild(torch.optim.SGD(model.parameters(), lr=0.1), twins, copied)
    (group,) = rebuilt.param_groups
    assert set(map(id, group["params"])) == set(map(id, copied.parameters()))


def test_frozen_and_foreign_parameters_are_left_out():
    """Only what the person's optimizer holds of the model is trained."""
    model, copied, twins = pair()
    outside = nn.Parameter(torch.ones(1))
    rebuilt = rebuild(torch.optim.SGD([model[0].weight, outside], lr=0.1), twins, copied)
    assert [p for group in rebuilt.param_groups for p in group["params"]] == [copied[0].weight]
    with pytest.raises(NotRebuiltError, match="holds no parameter of the model"):
        rebuild(torch.optim.SGD([outside], lr=0.1), twins, copied)


def test_a_class_that_asks_for_more_is_told():
    """What its constructor says is part of the reason."""

    class Special(Optimizer):
        def __init__(self, params: Any, secret: str) -> None:
            super().__init__(params, {"lr": 0.1})

    model, copied, twins = pair()
    with pytest.raises(NotRebuiltError, match=r"Special cannot be made anew: TypeError.*secret"):
        rebuild(Special(model.parameters(), "x"), twins, copied)


def test_a_change_is_made_in_every_group():
    """Also where the learning rate is a tensor."""
    model, copied, twins = pair()
    rebuilt = rebuild(torch.optim.Adam(model.parameters(), lr=torch.tensor(0.1)), twins, copied)
    change_(rebuilt, {"lr": 0.25, "eps": 1e-3})
    assert float(rebuilt.param_groups[0]["lr"]) == 0.25
    assert rebuilt.param_groups[0]["eps"] == 1e-3


def test_everything_is_trained_where_that_is_asked_for():
    """What the person's optimizer was never given joins its first group; what it was given stays in its own."""
    model, copied, twins = pair()
    copied[0].bias.requires_grad_(requires_grad=False)
    own = torch.optim.SGD([{"params": [model[2].weight]}, {"params": [model[2].bias], "lr": 0.5}], lr=0.1)
    first, second = rebuild(own, twins, copied, everything=True).param_groups
    assert set(map(id, first["params"])) == {id(copied[2].weight), id(copied[0].weight)}
    assert (second["lr"], second["params"]) == (0.5, [copied[2].bias])
