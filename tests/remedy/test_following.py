"""Test ``lightning_gradwatch.remedy.following``."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from lightning_gradwatch.measure.layers import find_layers
from lightning_gradwatch.remedy.following import describe_following


def following(module: nn.Module, example=None) -> list[tuple[str, str | None]]:
    """Return what follows each layer."""
    described = describe_following(module, find_layers(module), example, "he_init_")
    return [(about.name, about.activation) for about in described]


def twice() -> nn.Sequential:
    """Use the same layer in two places."""
    shared = nn.Linear(4, 4)
    return nn.Sequential(shared, nn.ReLU(), shared, nn.Tanh(), nn.Linear(4, 1))


PLAIN = {
    "chain": nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4), nn.LeakyReLU(0.2)),
    "nested": nn.Sequential(
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), nn.GELU(), nn.Sequential(nn.Linear(4, 2))
    ),
    "sigmoid": nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 1), nn.Sigmoid()),
    "softmax": nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.ELU(0.5), nn.Linear(4, 3), nn.LogSoftmax(-1)),
    "parametrized": nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.SiLU(), nn.Linear(4, 1)),
    "prelu": nn.Sequential(nn.Linear(4, 4), nn.PReLU(), nn.Linear(4, 1)),
    "unknown": nn.Sequential(nn.Linear(4, 4), nn.GLU(), nn.Linear(2, 1)),
    "twice": twice(),
    "alone": nn.Sequential(nn.Linear(4, 4)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_sequential_tells_what_its_forward_pass_would(name):
    """Read off the modules or seen in the graph: every matrix has the same activation behind it, with its number."""
    module, layers = PLAIN[name], find_layers(PLAIN[name])
    read = describe_following(module, layers, None, "he_init_")
    seen = describe_following(module, layers, torch.randn(8, 4), "he_init_")
    for one, other in zip(read, seen, strict=True):
        if one.has_matrix:
            assert (one.name, one.activation, one.curve) == (other.name, other.activation, other.curve)


def test_convolutions_and_pooling_are_passed_through():
    """Pooling, norms, dropout and reshapes stand between a layer and its activation."""
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2), nn.Dropout()
    )
    assert [pair for pair in following(module) if pair[0] in "05"] == [("0", "relu"), ("5", "output")]
    assert [pair for pair in following(module, torch.randn(2, 1, 4, 4)) if pair[0] in "05"] == [
        ("0", "relu"),
        ("5", "output"),
    ]


class Called(nn.Module):
    """Calls its activations as functions, and returns several things."""

    def __init__(self):
        super().__init__()
        self.head, self.other, self.body = nn.Linear(4, 1), nn.Linear(4, 1), nn.Linear(4, 4)

    def forward(self, x):
        h = functional.leaky_relu(self.body(x), 0.3)
        return {"out": torch.tanh(self.head(h)), "more": [self.other(h)], "mask": torch.ones(2).bool()}


def test_activations_that_are_called_are_seen_in_all_outputs():
    """The forward pass tells of functions, in each branch that leads to an output."""
    assert following(Called(), torch.randn(2, 4)) == [("head", "tanh"), ("other", "output"), ("body", "leaky_relu")]


def test_it_is_seen_where_nobody_asks_for_gradients():
    """``torch.no_grad()`` and ``torch.inference_mode()`` around the call do not hide the graph."""
    module, x = Called(), torch.randn(2, 4)
    for quiet in (torch.no_grad(), torch.inference_mode()):
        with quiet:
            assert following(module, x)[0] == ("head", "tanh")


class Own(nn.Sequential):
    """A Sequential that does something else."""

    def forward(self, x):
        return torch.tanh(super().forward(x))


class Square(nn.Module):
    """A module that torch does not know."""

    def forward(self, x):
        return x**2


@pytest.mark.parametrize(
    ("module", "what"),
    [
        (Called(), "Got Called"),
        (Own(nn.Linear(4, 4)), "Got Own"),
        (nn.Sequential(nn.Linear(4, 4), Square()), "Got Sequential with a Square"),
        (nn.Sequential(nn.Sequential(Called())), "with a Called"),
        (nn.Sequential(nn.TransformerEncoderLayer(4, 2)), "with a TransformerEncoderLayer"),
        (nn.Linear(4, 4), "Got Linear"),
        (nn.ModuleList([nn.Linear(4, 4)]), "Got ModuleList"),
    ],
)
def test_anything_else_needs_an_example(module, what):
    """The refusal says what was found and how to call it."""
    with pytest.raises(ValueError, match=what) as refusal:
        following(module)
    assert "he_init_(module, example_input)" in str(refusal.value)


class Hidden(nn.Linear):
    """Its forward pass keeps no graph."""

    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)


def compiled_inside() -> nn.Module:
    """Compile one function that the forward pass calls."""

    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.step = torch.compile(lambda h: torch.relu(h) * 2, backend="aot_eager")

        def forward(self, x):
            return self.step(self.fc(x))

    return Inside()


@pytest.mark.parametrize(
    ("module", "what"),
    [
        (Hidden(4, 4), "no way from a layer to the output"),
        (nn.Sequential(nn.LazyLinear(4)), "lazy parameters"),
        (compiled_inside(), "compiled"),
    ],
    ids=["hidden", "lazy", "compiled"],
)
def test_what_a_run_cannot_show_is_refused(module, what):
    """No graph, lazy parameters that a run would fill, and compiled parts are named, with the way out."""
    with pytest.raises(ValueError, match=what):
        following(module, torch.randn(2, 4))


def test_a_frozen_module_has_nothing_to_be_seen():
    """Without a trainable layer nothing will be initialized, so that nothing is refused."""
    module = Called().requires_grad_(requires_grad=False)
    assert [name for name, _ in following(module, torch.randn(2, 4))] == ["head", "other", "body"]
