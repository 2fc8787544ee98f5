"""Test ``lightning_gradwatch.remedy.function_swap``."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules import module as torch_modules
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint
from treated import Calls

from lightning_gradwatch.remedy.function_swap import swapped_functions

X = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))


class One(nn.Module):
    """A layer and a function."""

    def __init__(self, function):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.function = function

    def forward(self, x):
        return self.function(self.fc(x))


@pytest.mark.parametrize(
    ("function", "old"),
    [
        (torch.sigmoid, "sigmoid"),
        (functional.sigmoid, "sigmoid"),
        (torch.special.expit, "sigmoid"),
        (functional.hardsigmoid, "sigmoid"),
        (lambda x: x.sigmoid(), "sigmoid"),
        (lambda x: torch.sigmoid(input=x), "sigmoid"),
        (nn.Sigmoid(), "sigmoid"),
        (torch.tanh, "tanh"),
        (functional.relu, "relu"),
        (lambda x: functional.relu(input=x), "relu"),
        (functional.gelu, "gelu"),
        (functional.silu, "silu"),
        (nn.PReLU(), "leaky_relu"),
        (functional.softplus, "softplus"),
    ],
)
@pytest.mark.parametrize("new", ["relu", "leaky_relu", "selu", "elu", "tanh"])
def test_whatever_the_way_of_calling_the_other_function_answers(function, old, new):
    """Output and gradient are those of a model whose source was edited, to the bit."""
    model = One(function)
    edited = One(getattr(functional, new) if new != "tanh" else torch.tanh)
    edited.fc.load_state_dict(model.fc.state_dict())
    with swapped_functions(model, {old: new}, ["fc"]) as swap:
        output = model(X)
    output.sum().backward()
    expected = edited(X)
    expected.sum().backward()
    assert torch.equal(output, expected)
    assert torch.equal(model.fc.weight.grad, edited.fc.weight.grad)
    assert swap.num_swapped == 1


@pytest.mark.parametrize(
    "function", [torch.sigmoid_, lambda x: x.sigmoid_(), torch.relu_, lambda x: functional.relu(x, inplace=True)]
)
def test_in_place_stays_in_place(function):
    """Who uses the tensor and not the result gets the new numbers too, and the gradient is right."""

    def forward(x):
        function(x)
        return x

    model = One(forward)
    with swapped_functions(model, {"sigmoid": "selu", "relu": "selu"}):
        output = model(X)
    output.sum().backward()
    weight = model.fc.weight.detach().requires_grad_()
    expected = functional.selu(functional.linear(X, weight, model.fc.bias))
    expected.sum().backward()
    assert torch.equal(output, expected)
    # In place the gradient is computed from the result.
    assert torch.allclose(model.fc.weight.grad, weight.grad, atol=1e-5)


class Cell(nn.Module):
    """An LSTM written by hand below hidden layers, with a head that makes probabilities."""

    def __init__(self):
        super().__init__()
        self.inputs, self.state = nn.Linear(8, 16), nn.Linear(4, 16)
        self.norm = nn.LayerNorm(4)
        self.hidden, self.gate, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)
        self.new = torch.sigmoid

    def forward(self, x):
        h = c = x.new_zeros(len(x), 4)
        for _ in range(3):
            i, f, o, g = (self.inputs(x) + self.state(h)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        h = self.new(self.norm(self.hidden(h)).reshape(-1, 2, 2).transpose(1, 2)).flatten(1)
        return torch.sigmoid(self.head(h * torch.sigmoid(self.gate(h))))


@pytest.mark.parametrize("grad", [True, False])
def test_gates_and_outputs_are_left_alone(grad):
    """Only what follows the named layer is swapped, through norms and reshapes; in training as without gradients."""
    model = Cell()
    edited = copy.deepcopy(model)
    edited.new = torch.relu
    with torch.set_grad_enabled(grad), swapped_functions(model, {"sigmoid": "relu", "tanh": "relu"}, ["hidden"]) as s:
        output = model(X)
    assert torch.equal(output, edited(X))
    assert s.num_swapped == 1


def test_the_models_own_parameters_are_a_layer():
    """What comes from no module's output comes from the model itself."""

    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8))
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            return self.head(torch.tanh(x @ self.weight)).tanh()

    model = Bare()
    with swapped_functions(model, {"tanh": "relu"}, ["(root)"]):
        output = model(X)
    assert torch.equal(output, model.head(torch.relu(X @ model.weight)).tanh())


def test_a_second_activation_is_not_the_layers():
    """The first activation behind a layer is its own; one on top of it stays."""
    model = One(lambda x: torch.tanh(torch.sigmoid(x) + 1))
    with swapped_functions(model, {"sigmoid": "relu", "tanh": "relu"}, ["fc"]):
        output = model(X)
    assert torch.equal(output, torch.tanh(torch.relu(model.fc(X)) + 1))


def test_without_layers_every_call_is_swapped():
    """Gates and outputs too, and no other function."""
    model = Calls(depth=3)
    with swapped_functions(model, {"sigmoid": "relu"}) as swap:
        model(X)
        torch.sigmoid(X)
        torch.tanh(X)
    assert swap.num_swapped == 4


def test_nothing_stays_behind():
    """No mode, no hook and no attribute is left, after an error either; a copy made meanwhile is a plain one."""
    model = Calls(depth=2)
    before, hooks = model(X), len(torch_modules._global_forward_hooks)
    attributes = {name: dict(vars(m)) for name, m in model.named_modules()}

    def run(*, fails):
        with swapped_functions(model, {"sigmoid": "relu"}, ["layers.0"]):
            copied = copy.deepcopy(model)
            model(X[:, :3] if fails else X)
            return copied

    copied = run(fails=False)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run(fails=True)
    assert _get_current_function_mode_stack() == []
    assert len(torch_modules._global_forward_hooks) == hooks
    assert {name: dict(vars(m)) for name, m in model.named_modules()} == attributes
    assert torch.equal(model(X), before)
    assert torch.equal(copied(X), before)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_checkpointed_layer_is_refused_and_no_wrong_gradient_made(use_reentrant):
    """Its forward runs again in the backward pass, where torch asks no mode: that is an error in words."""
    model = One(torch.sigmoid)
    x = X.clone().requires_grad_()
    with swapped_functions(model, {"sigmoid": "relu"}, ["fc"]), pytest.raises(RuntimeError, match="checkpointing off"):
        checkpoint(model, x, use_reentrant=use_reentrant).sum().backward()
    assert _get_current_function_mode_stack() == []


def test_another_thread_is_refused():
    """Where a mode is not asked the model would run unswapped; that is an error and not a silent half."""
    model, errors = One(torch.sigmoid), []

    def run():
        try:
            model(X)
        except RuntimeError as error:
            errors.append(str(error))

    with swapped_functions(model, {"sigmoid": "relu"}):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert "fc runs where its activation cannot be swapped" in errors[0]


@pytest.mark.parametrize(
    ("functions", "layers", "match"),
    [
        ({"cosine": "relu"}, None, "`functions` must map one of .* Got 'cosine': 'relu'"),
        ({"sigmoid": "softmax"}, None, "Got 'sigmoid': 'softmax'"),
        ({"sigmoid": "relu"}, ["fc9", "fc"], r"`layers` must be names of layers of the model. Got \['fc9'\]"),
    ],
)
def test_names_that_are_none_are_refused(functions, layers, match):
    """What cannot be swapped is named with what can."""
    with pytest.raises(ValueError, match=match), swapped_functions(One(torch.sigmoid), functions, layers):
        pass


def test_out_arguments_are_left():
    """A function that writes to a tensor of the person's is not swapped."""
    model, out = One(torch.sigmoid), torch.empty(16, 8)
    with torch.no_grad(), swapped_functions(model, {"sigmoid": "relu"}) as swap:
        torch.sigmoid(X, out=out)
    assert torch.equal(out, torch.sigmoid(X))
    assert swap.num_swapped == 0


def test_what_is_compiled_is_not_seen_and_that_can_be_known():
    """A compiled model keeps its activation; no swap is counted."""
    model = One(torch.sigmoid)
    before = model(X)
    model.compile(backend="eager")
    with swapped_functions(model, {"sigmoid": "relu"}, ["fc"]) as swap:
        output = model(X)
    assert torch.equal(output, before)
    assert swap.num_swapped == 0
