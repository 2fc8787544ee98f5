"""Test ``lightning_gradwatch.remedy.activation``."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from torch import nn
from treated import Calls, accuracy_after, case_of, names_of, paste, stack, task, treated

from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.measure.activations import describe_layers
from lightning_gradwatch.measure.graph import read_topology
from lightning_gradwatch.measure.layers import find_layers
from lightning_gradwatch.remedy.activation import TO_LEAKY_RELU, TO_RELU, TO_SELU, with_activation
from lightning_gradwatch.remedy.advice import advise
from lightning_gradwatch.remedy.edits import Edits

X = task()[0]


def remedy_for(build, exchange, x=X, **more):
    """Advise for all layers of a model."""
    model = build()
    (remedy,) = with_activation(case_of(model, x, **more), exchange, names_of(model))
    return remedy


@pytest.mark.parametrize(
    ("old", "exchange", "new", "std"),
    [
        (nn.Sigmoid, TO_RELU, "ReLU()", (2 / 32) ** 0.5),
        (nn.Hardsigmoid, TO_RELU, "ReLU()", (2 / 32) ** 0.5),
        (nn.Tanh, TO_RELU, "ReLU()", (2 / 32) ** 0.5),
        (nn.GELU, TO_SELU, "SELU()", (1 / 32) ** 0.5),
        (nn.ReLU, TO_SELU, "SELU()", (1 / 32) ** 0.5),
        (nn.ReLU, TO_LEAKY_RELU, "LeakyReLU(negative_slope=0.01)", (1 / 96) ** 0.5),
    ],
)
def test_code_and_apply_put_the_new_activation_and_its_weights(old, exchange, new, std):
    """All hidden activations are replaced, and weights drawn as belongs to the new one; LeakyReLU leaves them."""
    remedy = remedy_for(lambda: stack(old, 4), exchange)
    model = treated(remedy, lambda: stack(old, 4), X)
    assert [repr(module) for module in model[1::2]] == [new] * 4
    weights = torch.cat([layer.weight.detach().flatten() for layer in model[2:-1:2]])
    assert float(weights.std()) == pytest.approx(std, rel=0.04)
    assert remedy.needs_restart
    assert remedy.where is None


def test_the_code_is_what_a_person_would_write():
    """Places are written by their index, in one loop, with a comment that says the same for the source."""
    lines = remedy_for(lambda: nn.Sequential(OrderedDict(net=stack(nn.Sigmoid, 3))), TO_RELU).code.split("\n")
    assert lines[:5] == [
        "# where the model is built: nn.Sigmoid() -> nn.ReLU()",
        "from torch import nn",
        "for number in [1, 3, 5]:",
        "    model.net[number] = nn.ReLU()",
        "for name in ['net.0', 'net.2', 'net.4']:",
    ]
    assert lines.count("from torch import nn") == 1


class Shared(nn.Module):
    """One activation in several places: registered first, used behind every layer."""

    def __init__(self, activation):
        super().__init__()
        act = activation
        self.first = nn.Sequential(nn.Linear(8, 32), act)
        self.blocks = nn.ModuleDict({"a": nn.Sequential(nn.Linear(32, 32), act), "b": nn.Linear(32, 3)})

    def forward(self, x):
        return self.blocks["b"](self.blocks["a"](self.first(x)))


def test_a_module_in_two_places_is_replaced_in_both_and_stays_in_place():
    """Each place gets a module of its own that works in place as the old one did."""
    build = lambda: Shared(nn.ReLU(inplace=True))  # noqa: E731
    remedy = remedy_for(build, TO_LEAKY_RELU)
    model = treated(remedy, build, X)
    first, second = model.first[1], model.blocks["a"][1]
    assert repr(first) == repr(second) == "LeakyReLU(negative_slope=0.01, inplace=True)"
    assert first is not second
    assert "model.blocks['a'][1] = nn.LeakyReLU(negative_slope=0.01, inplace=True)" in remedy.code


def test_selu_gets_alpha_dropout():
    """Dropout behind what is replaced keeps mean and variance; dropout elsewhere stays."""

    def build():
        return nn.Sequential(
            nn.Dropout(0.1), nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 32), nn.ReLU(inplace=True),
            nn.Dropout1d(0.3, inplace=True), nn.Linear(32, 3),
        )  # fmt: skip

    model = treated(remedy_for(build, TO_SELU), build, X)
    assert [repr(module) for module in model if not isinstance(module, nn.Linear)] == [
        "Dropout(p=0.1, inplace=False)",
        "SELU()",
        "AlphaDropout(p=0.2, inplace=False)",
        "SELU(inplace=True)",
        "FeatureAlphaDropout(p=0.3, inplace=True)",
    ]


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = stack(nn.Sigmoid, 2)
        self.gate = nn.Sequential(nn.Linear(8, 3), nn.Sigmoid())
        self.out = nn.Sequential(nn.Linear(3, 3), nn.Sigmoid())

    def forward(self, x):
        return self.out(self.body(x) * self.gate(x))


def test_the_output_and_gates_keep_their_sigmoid():
    """A sigmoid that makes probabilities, or that is multiplied with something, is left alone."""
    model = treated(remedy_for(Gated, TO_RELU), Gated, X)
    assert [type(module) for module in model.body[1::2]] == [nn.ReLU] * 2
    assert type(model.gate[1]) is type(model.out[1]) is nn.Sigmoid


def test_names_that_are_no_identifiers_are_written_so_that_they_run():
    """Gaps between the numbers of a Sequential, and names with a dash, are reached all the same."""

    def build():
        model = nn.Sequential(OrderedDict({"in-put": nn.Linear(8, 4), "act-1": nn.Tanh()}))
        model.add_module("7", nn.Linear(4, 4))
        model.add_module("9", nn.Tanh())
        model.add_module("class", nn.Linear(4, 2))
        return model

    model = treated(remedy_for(build, TO_RELU), build, X)
    assert [type(m).__name__ for m in model] == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]


def test_a_function_is_refused_with_its_line():
    """``apply_`` says which line to edit how, and has changed nothing; the code says it and initializes."""
    model = Calls(depth=3)
    names = names_of(model)
    called_at = dict.fromkeys(names[:3], "model.py:31")
    (remedy,) = with_activation(case_of(model, X, called_at=called_at), TO_RELU, names)
    assert remedy.where == "model.py:31"
    assert remedy.code.startswith("# in model.py:31: torch.sigmoid(...) -> torch.relu(...)\nfrom torch import nn")
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(
        ValueError, match=r"model.py:31 calls sigmoid as a function.*torch.sigmoid\(...\) -> torch.relu"
    ):
        remedy.apply_(model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    paste(remedy.code, model)
    assert float(model.layers[1].weight.detach().std()) == pytest.approx((2 / 32) ** 0.5, rel=0.1)


class Mixed(nn.Module):
    """A module behind one layer, a function behind another, and a sigmoid registered for the output."""

    def __init__(self):
        super().__init__()
        self.fc1, self.act, self.fc2, self.head = nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.fc2(self.act(self.fc1(x)))))


def test_half_a_swap_is_none():
    """Where one of the activations is a function, ``apply_`` leaves the modules as they are too; a trial swaps both."""
    case = case_of(Mixed(), X, called_at={"fc2": "net.py:9"})
    (remedy,) = with_activation(case, TO_RELU, ["fc1", "fc2"])
    model = Mixed()
    with pytest.raises(ValueError, match=r"net\.py:9"):
        remedy.apply_(model)
    assert isinstance(model.act, nn.Tanh)
    assert isinstance(remedy.change, Edits)
    with remedy.change.tried(model):
        output = model(X)
    assert torch.equal(output, model.head(model.fc2(model.fc1(X).relu()).relu()))


def test_nothing_is_advised_where_no_such_activation_follows():
    """A ReLU is not replaced by ReLU, an unknown activation by nothing."""
    for case in (case_of(stack(nn.ReLU, 2), X), case_of(stack(nn.Identity, 2), X)):
        assert with_activation(case, TO_RELU, list(case.activations)) == []


def test_without_the_model_the_source_is_named():
    """A case that does not know its model has no places; nothing is claimed to be done."""
    case = replace(case_of(stack(depth=2), X), model=None)
    (remedy,) = with_activation(case, TO_RELU, ["0", "2"])
    with pytest.raises(ValueError, match="the model calls sigmoid as a function"):
        remedy.apply_(stack(depth=2))


def test_titles_and_reasons_name_what_goes_and_why():
    """Title and reason fit the activation that is replaced."""
    assert remedy_for(lambda: stack(nn.Sigmoid, 3), TO_RELU).title == (
        "ReLU instead of sigmoid after 3 layers, with He initialization, then start again"
    )
    tanh = remedy_for(lambda: stack(nn.Tanh, 1), TO_RELU)
    assert tanh.title.startswith("ReLU instead of tanh after 1 layer, with He")
    assert "quarter" not in tanh.reason
    leaky = remedy_for(lambda: stack(nn.ReLU, 2), TO_LEAKY_RELU)
    assert leaky.title == "LeakyReLU instead of relu after 2 layers, then start again"
    assert "Maas" in leaky.reason
    assert "Klambauer" in remedy_for(lambda: stack(nn.Tanh, 1), TO_SELU).reason


@pytest.mark.parametrize("exchange", [TO_RELU, TO_SELU])
def test_a_deep_sigmoid_stack_learns_afterwards(exchange):
    """Twelve sigmoid layers stay at chance; with ReLU and He, or SELU and LeCun, they learn."""
    torch.manual_seed(0)
    y = task()[1]
    assert accuracy_after(stack()) == pytest.approx(float(torch.bincount(y).max()) / len(y))
    model = stack()
    remedy_for(stack, exchange).apply_(model)
    assert accuracy_after(model) > 0.9


def test_a_stack_of_functions_learns_while_it_is_tried():
    """What ``apply_`` refuses, a trial on a copy does: the same stack with functions learns."""
    torch.manual_seed(0)
    remedy, model = remedy_for(Calls, TO_RELU), Calls()
    with remedy.change.tried(model):
        assert accuracy_after(model) > 0.9


class Probability(nn.Module):
    """A stack whose output is a probability, by the hidden layers' own sigmoid or by another."""

    def __init__(self, *, shared: bool) -> None:
        super().__init__()
        self.act = nn.Sigmoid()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(5))
        self.head = nn.Linear(8, 1)
        self.prob = None if shared else nn.Sigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = self.act(layer(x))
        return (self.prob or self.act)(self.head(x))


@pytest.mark.parametrize("shared", [True, False])
def test_the_sigmoid_of_the_output_stays(shared: bool) -> None:
    """One of its own is left where it is; one that the hidden layers share is refused in words."""
    model = Probability(shared=shared)
    layers = find_layers(model)
    described = describe_layers(model, layers, read_topology(model(torch.randn(4, 8)).sum(), layers))
    sick = Diagnosis("vanishing.depth", Symptom.VANISHING, layers=tuple(layer.name for layer in layers[:-1]))
    remedies = [r for r in advise(sick, model, layers, described).remedies if "instead of" in r.title]
    assert len(remedies) == 2
    for remedy in remedies:
        if shared:
            with pytest.raises(ValueError, match="makes the output as well"):
                remedy.apply_(model)
        else:
            fresh = Probability(shared=False)
            remedy.apply_(fresh)
            assert isinstance(fresh.prob, nn.Sigmoid)
            assert not isinstance(fresh.act, nn.Sigmoid)
            assert 0 <= float(fresh(torch.randn(1, 8)).detach()) <= 1
