"""Test ``benchmarks.ward.networks``."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from benchmarks.ward.networks import ACTIVATIONS, Functional, Residual, dense, initialize_, linears, optimizer_of


@pytest.mark.parametrize("activation", [*ACTIVATIONS, "exp"])
def test_a_stack_has_so_many_layers_and_one_activation_each(activation: str) -> None:
    """Five hidden layers and a head are six linear layers, and each hidden one has its activation."""
    model = dense(3, 2, depth=5, width=7, activation=activation)
    assert [(layer.in_features, layer.out_features) for layer in linears(model)] == [(3, 7)] + [(7, 7)] * 4 + [(7, 2)]
    assert sum(not isinstance(module, nn.Linear) for module in model) == 5
    assert model(torch.zeros(4, 3)).shape == (4, 2)


def test_norms_dropout_and_residual_connections_come_when_asked() -> None:
    """Each is in every layer; the first one cannot be added to what has another size."""
    parts = dense(3, 2, depth=4, width=5, activation="relu", norm="batch", dropout=0.5)
    assert [type(module).__name__ for module in parts[:4]] == ["Linear", "BatchNorm1d", "ReLU", "Dropout"]
    model = dense(3, 2, depth=4, width=5, activation="relu", norm="layer", residual=True)
    assert sum(isinstance(module, Residual) for module in model) == 3
    assert sum(isinstance(module, nn.LayerNorm) for module in model.modules()) == 4
    assert all(layer.bias is None for layer in linears(dense(3, 2, depth=2, width=5, activation="relu", bias=False)))


def test_a_residual_adds_what_came_in() -> None:
    """With a branch of zero the sum is what came in."""
    branch = nn.Linear(3, 3)
    nn.init.zeros_(branch.weight)
    nn.init.ones_(branch.bias)
    x = torch.randn(2, 3)
    assert torch.equal(Residual(branch)(x), x + 1)


def test_functions_and_modules_are_the_same_network() -> None:
    """A stack whose activation is called as a function computes what the stack of modules does."""
    by_module = dense(3, 2, depth=3, width=4, activation="sigmoid")
    by_function = Functional([3, 4, 4, 4, 2], torch.sigmoid)
    for one, other in zip(linears(by_module), linears(by_function), strict=True):
        other.load_state_dict(one.state_dict())
    x = torch.randn(5, 3)
    assert torch.equal(by_module(x), by_function(x))


@pytest.mark.parametrize(
    ("scheme", "gain", "deviation"),
    [
        ("default", 1.0, 1 / math.sqrt(3 * 400)),
        ("he", 1.0, math.sqrt(2 / 400)),
        ("he", 2.0, 2 * math.sqrt(2 / 400)),
        ("xavier", 1.0, math.sqrt(2 / 700)),
        ("lecun", 1.0, math.sqrt(1 / 400)),
        ("normal", 0.3, 0.3),
        ("uniform", 0.3, 0.3 / math.sqrt(3)),
        ("orthogonal", 1.0, math.sqrt(1 / 400)),
    ],
)
def test_weights_begin_with_the_deviation_of_their_scheme(scheme: str, gain: float, deviation: float) -> None:
    """The spread of 400 x 300 weights is that of the formula, times the gain; biases begin at 0 but for PyTorch's."""
    model = nn.Sequential(nn.Linear(400, 300))
    initialize_(model, scheme, gain)
    assert model[0].weight.std().item() == pytest.approx(deviation, rel=0.02)
    assert bool((model[0].bias == 0).all()) == (scheme != "default")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sgd", torch.optim.SGD),
        ("momentum", torch.optim.SGD),
        ("adam", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
        ("rmsprop", torch.optim.RMSprop),
        ("adagrad", torch.optim.Adagrad),
    ],
)
def test_an_optimizer_holds_what_asks_for_a_gradient(name: str, kind: type[torch.optim.Optimizer]) -> None:
    """Frozen parameters are left out, and the rate is the one asked for."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    optimizer = optimizer_of(name, model, 0.25)
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert [id(each) for each in group["params"]] == [id(each) for each in model[1].parameters()]
    assert group["lr"] == 0.25
    assert group.get("momentum", 0) == (0.9 if name == "momentum" else 0)
