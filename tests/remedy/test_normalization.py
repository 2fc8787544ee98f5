"""Test ``lightning_gradwatch.remedy.normalization``."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from treated import Calls, accuracy_after, case_of, names_of, stack, task, treated, with_shapes

from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.measure.layers import find_layers
from lightning_gradwatch.remedy.case import Case
from lightning_gradwatch.remedy.normalization import convolutional as mostly_convolutional
from lightning_gradwatch.remedy.normalization import together, with_normalization
from lightning_gradwatch.remedy.reinitialize import reinitialize
from lightning_gradwatch.remedy.standing import measure_standing

X = task()[0]


def remedy_for(build, x=X, *shape: int, **more):
    """Advise for all layers of a model, with the shape of their outputs where it is known."""
    model = build()
    case = case_of(model, x, **more)
    (remedy,) = with_normalization(with_shapes(case, *shape) if shape else case, names_of(model))
    return remedy


def test_in_a_sequential_the_norm_stands_before_the_activation():
    """The activation's place gets both; layers keep their names, classes and weights, and the output has no norm."""
    remedy = remedy_for(lambda: stack(depth=3))
    assert remedy.title == "nn.BatchNorm1d between 3 layers and their activations, then start again"
    assert remedy.code.split("\n")[1:] == [
        "from torch import nn",
        "for number in [1, 3, 5]:",
        "    model[number] = nn.Sequential(nn.BatchNorm1d(32), model[number])",
    ]
    model = treated(remedy, lambda: stack(depth=3), X)
    assert [type(m).__name__ for m in model] == ["Linear", "Sequential"] * 3 + ["Linear"]
    assert repr(model[1][1]) == "Sigmoid()"
    assert set(stack(depth=3).state_dict()) < set(model.state_dict())


def test_the_norm_does_what_its_definition_says():
    """What the first activation gets has mean 0 and variance 1 in each unit over the batch."""
    model = stack(depth=2)
    remedy_for(lambda: stack(depth=2)).apply_(model)
    fed = []
    model[1][1].register_forward_pre_hook(lambda _, args: fed.append(args[0].detach()))
    model(X)
    hidden = model[0](X).detach()
    # torch adds 1e-5 to the variance.
    by_hand = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
    assert torch.allclose(fed[0], by_hand, atol=1e-5)


def test_where_the_forward_is_a_persons_own_a_hook_runs_the_norm():
    """A layer in a list keeps its class and its attributes; its norm is trained, copied and saved with it."""
    build = lambda: Calls(depth=3)  # noqa: E731
    model = treated(remedy_for(build, called_at={"layers.1": "net.py:4"}), build, X)
    assert [type(layer) for layer in model.layers] == [nn.Linear] * 3
    assert model.layers[0].weight.shape == (32, 8)
    assert "layers.0.norm.weight" in model.state_dict()
    norm = model.layers[0].norm
    by_hand = torch.nn.functional.linear(X, model.layers[0].weight, model.layers[0].bias)
    assert torch.allclose(model.layers[0](X), norm(by_hand))
    assert any(parameter is norm.weight for parameter in model.parameters())
    assert remedy_for(build, called_at={"layers.1": "net.py:4"}).where == "net.py:4"
    assert "for number in [0, 1, 2]:\n    layer = model.layers[number]\n    layer.norm = " in remedy_for(build).code


def convolutional(kind: int, transposed: bool = False, **more) -> nn.Sequential:
    """Make two convolutions of a number of dimensions, with pooling before the second activation."""
    make = getattr(nn, f"Conv{'Transpose' if transposed else ''}{kind}d")
    pool = nn.Identity() if kind == 3 else getattr(nn, f"MaxPool{kind}d")(2)
    return nn.Sequential(
        make(2, 6, 3, padding=1, **more), nn.Tanh(), make(6, 4, 3, padding=1, **more), nn.Dropout(0.1), pool, nn.Tanh(),
        nn.Flatten(), nn.Linear(4 * (64 if kind == 3 else 2**kind), 2),
    )  # fmt: skip


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kind", [1, 2, 3])
def test_convolutions_get_the_norm_of_their_dimensions(kind, transposed):
    """Of as many channels as they put out; what is pooled or dropped before the activation stays where it is."""
    build = lambda: convolutional(kind, transposed)  # noqa: E731
    x = torch.randn(5, 2, *[4] * kind)
    model = treated(remedy_for(build, x), build, x)
    assert repr(model[1][0]).startswith(f"BatchNorm{kind}d(6,")
    assert repr(model[5][0]).startswith(f"BatchNorm{kind}d(4,")
    assert isinstance(model[6], nn.Flatten)


@pytest.mark.parametrize(
    ("shape", "rule", "kind"),
    [
        ((64, 32), "vanishing.depth", "BatchNorm1d"),
        ((), "vanishing.depth", "BatchNorm1d"),
        ((64, 10, 32), "vanishing.depth", "LayerNorm"),
        ((1, 32), "vanishing.depth", "LayerNorm"),
        ((32,), "vanishing.depth", "LayerNorm"),
        ((64, 32), "vanishing.time", "LayerNorm"),
    ],
)
def test_layer_norm_where_a_batch_is_not_many_rows(shape, rule, kind):
    """Sequences, single samples and layers that are used step after step get layer norm."""
    remedy = remedy_for(lambda: stack(depth=2), X, *shape, rule=rule)
    assert remedy.title.startswith(f"nn.{kind} between 2 layers")
    assert ("Ba et al." in remedy.reason) == (kind == "LayerNorm")


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(10, 8)
        self.body = stack(nn.GELU, 2)

    def forward(self, x):
        return self.body(self.words(x))


def test_sequences_are_known_from_what_reads_them():
    """Where no shape is known, embeddings or a recurrent layer tell; and the layer norm runs on three dimensions."""
    x = torch.randint(10, (3, 5))
    model = treated(remedy_for(Reader, x), Reader, x)
    assert isinstance(model.body[1][0], nn.LayerNorm)


def test_a_convolution_that_sees_one_sample_gets_group_norm():
    """One group of all channels is layer norm for pictures."""
    x = torch.randn(1, 2, 4, 4)
    model = treated(remedy_for(lambda: convolutional(2), x, 1, 6, 4, 4), lambda: convolutional(2), x)
    assert repr(model[1][0]).startswith("GroupNorm(1, 6,")


def test_a_layer_in_two_places_gets_one_layer_norm():
    """Statistics of two places are not one batch's."""

    def build():
        shared = nn.Linear(8, 8)
        return nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(8, 2))

    model = treated(remedy_for(build), build, X)
    assert model[0] is model[2]
    assert isinstance(model[0].norm, nn.LayerNorm)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.batch = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.layer = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.ReLU())
        self.gate = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid())
        self.bare = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.rnn = nn.GRU(8, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        x = self.layer(self.batch(x)) * self.gate(x)
        return torch.sigmoid(self.head(self.rnn(self.bare(x))[0]))


def test_what_is_normalized_gated_or_the_output_gets_none():
    """Only a hidden layer without a norm behind it is named."""
    remedy = remedy_for(Net, X, 256, 8)
    assert remedy.code.split("\n")[-1] == "model.bare[1] = nn.Sequential(nn.BatchNorm1d(8), model.bare[1])"
    treated(remedy, Net, X)
    assert with_normalization(case_of(stack(nn.Identity, 2), X), ["0", "2", "4"]) == []
    assert with_normalization(case_of(nn.Linear(8, 1), X), ["(root)"]) == []


def test_other_precisions_are_kept():
    """The norm has the dtype of the layer, in the lines as well, and is in its mode."""
    build = lambda: stack(depth=2).double()  # noqa: E731
    remedy = remedy_for(build, X.double())
    assert "nn.BatchNorm1d(32, dtype=torch.float64)" in remedy.code
    model = treated(remedy, build, X.double())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    evaluated = build().eval()
    remedy.apply_(evaluated)
    assert not any(module.training for module in evaluated.modules())


def test_the_norm_is_made_where_the_layer_is():
    """On another device the norm is there too."""
    for build in (stack, Calls):
        model = build(depth=2).to("meta")
        remedy_for(lambda build=build: build(depth=2)).apply_(model)
        assert {value.device.type for value in model.state_dict().values()} == {"meta"}


def test_weights_that_are_no_numbers_get_a_norm_of_float32():
    """A layer whose weights are packed into bytes puts out numbers all the same."""
    model = stack(nn.ReLU, 1)
    case = case_of(model, X)
    packed = nn.Parameter(torch.zeros(32, 8, dtype=torch.uint8), requires_grad=False)
    model[0]._parameters = {"weight": packed}
    (remedy,) = with_normalization(case, ["0"])
    assert remedy.code.endswith("model[1] = nn.Sequential(nn.BatchNorm1d(32), model[1])")
    remedy.apply_(model)
    assert model[1][0].weight.dtype is torch.float32


def test_different_widths_are_lines_of_their_own():
    """Layers of one width share a loop; another width has its line."""
    net = lambda: nn.Sequential(  # noqa: E731
        nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1)
    )
    remedy = remedy_for(net)
    assert remedy.code.split("\n")[2:] == [
        "for number in [1, 5]:",
        "    model[number] = nn.Sequential(nn.BatchNorm1d(4), model[number])",
        "model[3] = nn.Sequential(nn.BatchNorm1d(6), model[3])",
    ]
    treated(remedy, net, X)


@pytest.mark.parametrize("build", [stack, Calls])
def test_a_deep_sigmoid_stack_learns_afterwards(build):
    """Twelve sigmoid layers that stay at chance learn with batch norm alone, called as functions or not."""
    torch.manual_seed(0)
    model = build()
    remedy_for(build).apply_(model)
    assert accuracy_after(model) > 0.9


class Outside(nn.Module):
    """Chains that end before the activation, which is called as a function."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1))
        self.second = nn.Sequential(nn.Linear(8, 8), nn.Flatten())
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


def test_an_activation_that_is_not_in_the_chain_is_reached_by_a_hook():
    """Whatever else is in it, a chain without the activation is as good as none."""
    model = treated(remedy_for(Outside), Outside, X)
    assert isinstance(model.first[0].norm, nn.BatchNorm1d)
    assert isinstance(model.second[0].norm, nn.BatchNorm1d)


def test_without_the_model_nothing_is_advised():
    """Where the norm would go is not known then."""
    case = case_of(stack(depth=2), X)
    assert with_normalization(replace(case, model=None), ["0", "2"]) == []


def test_fresh_weights_and_norms_make_one_remedy_of_convolutions() -> None:
    """Both edits in one, first the weights; a stack with norms, and one of linear layers, is none."""
    model = nn.Sequential(*(m for _ in range(5) for m in (nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())))
    layers = find_layers(model)
    names = [layer.name for layer in layers]
    sick = Diagnosis("vanishing.depth", Symptom.VANISHING, layers=tuple(names))
    activations = dict.fromkeys(names, "relu")
    case = Case(sick, layers, measure_standing(layers), activations, model=model)
    assert mostly_convolutional(case)
    assert not mostly_convolutional(replace(case, feed_batch_norm=frozenset(names)))
    assert not mostly_convolutional(replace(case, model=None))
    fresh, norms = reinitialize(case), with_normalization(case, names)
    (both,) = together(fresh, norms)
    assert both.title.startswith("He initialization of 5 layers, and nn.BatchNorm2d between 5 layers")
    assert both.title.count("start again") == 1
    assert together([], norms) == together(fresh, []) == []
    applied, pasted = copy.deepcopy(model), copy.deepcopy(model)
    torch.manual_seed(3)
    both.apply_(applied)
    torch.manual_seed(3)
    exec(both.code, {"model": pasted})
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(applied(x), pasted(x))
    assert sum(isinstance(module, nn.BatchNorm2d) for module in applied.modules()) == 5
