"""Test ``lightning_gradwatch.measure.one_pass``."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from models import CLASSES, WIDTH, deep_net
from torch import nn
from torch.nn.modules import module as torch_module

from lightning_gradwatch.measure.one_pass import Passes, checked_loss, leaves_of
from lightning_gradwatch.measure.reader import Reader

INPUTS, LABELS = torch.randn(4, WIDTH), torch.tensor([0, 1, 2, 0])


def loss_of(model: nn.Module) -> torch.Tensor:
    """Return the loss of a model on one batch."""
    return nn.functional.cross_entropy(model(INPUTS), LABELS)


def passes_of(model: nn.Module, make: Any = torch.optim.SGD, **settings: Any) -> Passes:
    """Return passes with a learning rate of 0.1."""
    return Passes(Reader(model), settings.pop("closure", loss_of), make(model.parameters(), lr=0.1), **settings)


def test_a_pass_measures_what_autograd_gives():
    """Norms of the gradients and of delta are those of plain hooks and plain ``backward``."""
    model = deep_net(nn.Tanh, 3)
    twin, value, outputs = copy.deepcopy(model), INPUTS, {}
    for name, layer in twin.named_children():
        value = outputs[name] = layer(value)
        value.retain_grad()
    loss = nn.functional.cross_entropy(value, LABELS)
    loss.backward()
    seen = passes_of(model).measured(0, moves=False)
    assert seen.loss == pytest.approx(float(loss.detach()))
    for column, name in enumerate(["0", "2", "4", "6"]):
        layer = twin[int(name)]
        whole = torch.cat([layer.weight.grad.flatten(), layer.bias.grad]).norm()
        assert seen.gradients.norms[column] == pytest.approx(float(whole))
        assert seen.signals.delta[column] == pytest.approx(float(outputs[name].grad.square().mean().sqrt()), rel=1e-5)
    assert torch.equal(model[0].weight, twin[0].weight)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam, torch.optim.LBFGS])
def test_steps_are_those_of_the_optimizer(make):
    """Measured or not, a step is what a plain loop does with the same optimizer."""
    model = deep_net(nn.Tanh, 2)
    twin = copy.deepcopy(model)
    passes, optimizer = passes_of(model, make), make(twin.parameters(), lr=0.1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(twin)
        loss.backward()
        return loss

    passes.measured(0, moves=True)
    passes.step()
    for _ in range(2):
        optimizer.step(closure)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert passes.loss() == pytest.approx(float(loss_of(twin).detach()))


def test_a_clipper_stands_before_each_step():
    """What it makes of the gradients is what the optimizer uses."""

    def silence(norms: Any) -> torch.Tensor:
        for gradient in norms.gradients:
            gradient.zero_()
        return torch.zeros_like(norms.norms)

    model = deep_net(nn.Tanh, 2)
    before = copy.deepcopy(model.state_dict())
    passes = passes_of(model, clip=silence)
    assert passes.measured(0, moves=True).gradients.clipped_norms.max() == 0
    passes.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_gradient_that_is_not_finite_makes_no_step():
    """Weights that became NaN would tell nothing any more."""
    model = deep_net(nn.Tanh, 2)
    seen = passes_of(model, closure=lambda model: loss_of(model) * torch.tensor(float("nan"))).measured(0, moves=True)
    assert not seen.gradients.finite
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())


def test_hooks_are_gone_after_an_error():
    """A closure that raises leaves no hook and no mode behind."""

    def breaks(model: nn.Module) -> torch.Tensor:
        raise ArithmeticError("mine")

    with pytest.raises(ArithmeticError, match="mine"):
        passes_of(deep_net(nn.Tanh, 2), closure=breaks).measured(0, moves=True)
    assert not torch_module._global_forward_hooks
    assert torch.overrides._get_current_function_mode_stack() == []


def test_others_keep_their_gradients():
    """A parameter of the loss function gets nothing added, and keeps the very tensor that it had."""
    weight = nn.Parameter(torch.ones(()))
    weight.grad = held = torch.tensor(7.0)
    passes_of(deep_net(nn.Tanh, 2), closure=lambda model: weight * loss_of(model)).measured(0, moves=True)
    assert weight.grad is held
    assert float(held) == 7.0
    assert float(weight.detach()) == 1.0


def test_the_original_is_not_to_be_used():
    """A closure that ignores the copy that it is given would train the person's model."""
    model = deep_net(nn.Tanh, 2)
    copied = copy.deepcopy(model)
    original = frozenset(map(id, model.parameters()))
    passes = passes_of(copied, closure=lambda _: loss_of(model), original=original)
    with pytest.raises(ValueError, match="must compute the loss with the model that it is given"):
        passes.measured(0, moves=False)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("loss", "error", "match"),
    [
        (1.0, TypeError, "a tensor of one number. Got float"),
        (torch.zeros(CLASSES, requires_grad=True), ValueError, r"shape \(3,\); end with .mean\(\)"),
        (torch.zeros(()), ValueError, "leave out detach"),
    ],
)
def test_what_is_no_loss_is_refused(loss, error, match):
    """The message says what came and what to do."""
    with pytest.raises(error, match=match):
        checked_loss(loss)


def test_the_leaves_of_a_loss_are_the_parameters():
    """And an input that asks for a gradient; nothing that does not."""
    model, x = nn.Linear(2, 1), torch.ones(1, 2, requires_grad=True)
    found = {id(leaf) for leaf in leaves_of((model(x) * torch.ones(1)).sum())}
    assert found == {id(model.weight), id(model.bias), id(x)}
