"""Test ``lightning_gradwatch.measure.functions``."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everywhere
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from lightning_gradwatch.measure.functions import ActivationCalls


class Heard:
    """Keeps the name, the node and the place of each activation, and a copy of its output."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.nodes: list[Any] = []
        self.outputs: list[Tensor] = []
        self.places: list[str] = []
        self.errors: list[Exception] = []
        self.mode = ActivationCalls(self.note, lambda *_: None, self.errors.append)

    def note(self, name: str, node: Any, output: Tensor, place: str) -> None:
        self.names.append(name)
        self.nodes.append(node)
        self.outputs.append(output.detach().clone())
        self.places.append(place)


@pytest.fixture
def heard():
    """Return what listens, and leave torch alone after the test."""
    heard = Heard()
    heard.mode.listen()
    yield heard
    heard.mode.rest()
    assert _get_current_function_mode_stack() == []
    assert heard.errors == []


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (nn.Sigmoid(), "sigmoid"),
        (torch.sigmoid, "sigmoid"),
        (torch.Tensor.sigmoid, "sigmoid"),
        (torch.Tensor.sigmoid_, "sigmoid"),
        (F.sigmoid, "sigmoid"),
        (torch.special.expit, "sigmoid"),
        (nn.Hardsigmoid(), "sigmoid"),
        (F.logsigmoid, "log_sigmoid"),
        (nn.Tanh(), "tanh"),
        (torch.tanh, "tanh"),
        (torch.tanh_, "tanh"),
        (nn.Hardtanh(), "tanh"),
        (nn.Hardtanh(-2.0, 2.0), "hardtanh"),
        (lambda x: F.hardtanh(x, min_val=0.0, max_val=6.0), "relu"),
        (nn.ReLU(), "relu"),
        (nn.ReLU(inplace=True), "relu"),
        (torch.relu, "relu"),
        (torch.relu_, "relu"),
        (F.relu, "relu"),
        (F.relu_, "relu"),
        (lambda x: F.relu(input=x), "relu"),
        (torch.Tensor.relu, "relu"),
        (nn.ReLU6(), "relu"),
        (F.relu6, "relu"),
        (nn.Threshold(0.0, 0.0), "relu"),
        (nn.LeakyReLU(), "leaky_relu"),
        (nn.PReLU(), "leaky_relu"),
        (nn.RReLU(), "leaky_relu"),
        (nn.GELU(), "gelu"),
        (F.gelu, "gelu"),
        (nn.SiLU(), "silu"),
        (nn.Mish(), "silu"),
        (nn.Hardswish(), "silu"),
        (nn.ELU(), "elu"),
        (nn.CELU(), "elu"),
        (nn.SELU(), "selu"),
        (nn.Softplus(), "softplus"),
    ],
)
def test_every_style_of_an_activation_is_heard_once(heard, call, name):
    """Module, function, method and in place: each is one activation with the name that it has everywhere here."""
    hidden = nn.Linear(3, 3)(torch.ones(2, 3))
    node, outside = hidden.grad_fn, type(call).__module__ == "torch.nn.modules.activation"
    torch.manual_seed(3)
    result = call(hidden)
    assert (heard.names, heard.nodes) == ([name], [node])
    assert torch.equal(heard.outputs[0], result)
    assert (heard.places == [""]) is outside


def test_what_is_no_activation_passes_unheard(heard):
    """Other functions run as they are."""
    assert torch.equal(torch.ones(2).add(1).exp().softmax(0), torch.tensor([0.5, 0.5]))
    assert heard.names == []


def test_the_place_is_the_persons_line_and_not_torchs(heard):
    """The innermost line outside of torch and Lightning counts, also where torch calls the function."""
    lines = []

    def mine(inputs: Tensor) -> Tensor:
        lines.append(inspect.currentframe().f_lineno + 1)
        return inputs.sigmoid()

    nn.Sequential(nn.Identity()).apply(lambda _: mine(torch.ones(2)))
    file = __file__.removeprefix(f"{Path.cwd()}/")
    assert heard.places == [f"{file}:{line}" for line in lines]
    assert len(lines) == 2


def test_a_folder_that_is_gone_costs_no_run(heard, tmp_path, monkeypatch):
    """Where the current folder was deleted, the file's name has to do."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    torch.relu(torch.ones(2))
    assert heard.places[0].startswith("test_functions.py:")


@pytest.mark.parametrize("name", [None, 7, "a.module"])
def test_code_that_was_made_by_exec_has_no_place_of_its_own(heard, name):
    """Whatever its ``__name__`` is, the line that called it counts: nobody can open the file ``<string>``."""
    scope = {"__name__": name, "torch": torch}
    exec("def call(x):\n    return torch.relu(x)", scope)
    scope["call"](torch.ones(2))
    (place,) = heard.places
    assert Path(place.partition(":")[0]).name == Path(__file__).name


def test_a_traced_graph_has_nothing_of_ours(heard):
    """While ``torch.jit.trace`` runs, torch is left alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(nn.ReLU(), torch.ones(2), check_trace=False)
        assert heard.names == []
        assert traced(torch.tensor([-1.0, 1.0])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("tell", ["seen", "made"])
def test_an_error_of_our_own_is_told_once_and_costs_no_run(tell):
    """The function's result comes all the same, and nothing more is told."""
    calls: list[str] = []

    def fails(*_: Any) -> None:
        calls.append(tell)
        raise ZeroDivisionError("ours")

    errors: list[Exception] = []
    told = {"seen": lambda *_: None, "made": lambda *_: None, tell: fails}
    mode = ActivationCalls(told["seen"], told["made"], errors.append)
    mode.listen()
    results = [torch.relu(torch.ones(2)).tolist() for _ in range(3)]
    mode.rest()
    assert results == [[1.0, 1.0]] * 3
    assert calls == [tell]
    assert list(map(type, errors)) == [ZeroDivisionError]


def test_questions_to_a_tensor_pass_by():
    """Shape, dtype and gradient make nothing; clearing the gradients of thousands of layers tells of none of them."""
    told = []
    mode = ActivationCalls(lambda *_: None, lambda *made: told.append(made), told.append)
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    weight.grad = torch.ones(2)
    mode.listen()
    try:
        optimizer.zero_grad()
        assert (weight.shape, weight.dtype, weight.requires_grad, weight.grad_fn) == ((2,), torch.float32, True, None)
        # Of the optimizer's own name for the profiler it is told.
        assert not any(part is weight for args, _, _ in told for part in args)
        weight.detach()
        assert told[-1][0] == (weight,)
    finally:
        mode.rest()


def test_an_error_of_the_persons_own_is_theirs(heard):
    """What an activation raises goes through, and listening goes on."""
    with pytest.raises(TypeError):
        torch.relu(3)
    torch.relu(torch.ones(2))
    assert heard.names == ["relu"]


def test_an_input_whose_node_torch_refuses_to_tell_costs_no_run(heard):
    """A view made without gradients whose base was written to since has no node that may be asked for."""
    base = torch.ones(2, requires_grad=True) * 1.0
    with torch.no_grad():
        view = base.view(2)
    base.mul_(2.0)
    with pytest.raises(RuntimeError, match="view was created in no_grad mode"):
        _ = view.grad_fn
    with torch.no_grad():
        assert torch.relu(view).tolist() == [2.0, 2.0]
    assert heard.nodes == [None]


def test_resting_leaves_torch_alone():
    """While it rests no mode is active, and nothing is heard."""
    heard = Heard()
    for _ in range(2):
        heard.mode.listen()
        heard.mode.listen()
        assert _get_current_function_mode_stack() == [heard.mode]
        heard.mode.rest()
        assert _get_current_function_mode_stack() == []
    torch.relu(torch.ones(2))
    assert heard.names == []


class Other(TorchFunctionMode):
    """A mode of the person's own."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def test_a_mode_of_the_persons_own_above_it_stays():
    """It stops listening at once and leaves as soon as the other mode has left."""
    heard = Heard()
    heard.mode.listen()
    with Other() as other:
        torch.relu(torch.ones(2))
        heard.mode.rest()
        torch.relu(torch.ones(2))
        assert _get_current_function_mode_stack() == [heard.mode, other]
    heard.mode.rest()
    assert heard.names == ["relu"]
    assert _get_current_function_mode_stack() == []


def test_a_device_context_of_the_persons_own_works_as_before(heard):
    """``with torch.device(...)`` inside the forward pass makes tensors there, and activations are heard."""
    with torch.device("meta"):
        assert torch.ones(2).device.type == "meta"
        torch.relu(torch.ones(2))
    assert torch.ones(2).device.type == "cpu"
    assert heard.names == ["relu"]


@pytest.mark.parametrize(
    ("module", "training", "aside"),
    [
        (nn.MultiheadAttention(2, 1), False, True),
        (nn.TransformerEncoderLayer(2, 1), False, True),
        (nn.MultiheadAttention(2, 1), True, False),
        (nn.Linear(2, 2), False, False),
    ],
)
def test_torch_is_left_alone_while_attention_runs_in_eval_mode(heard, module, training, aside):
    """Only modules with a fast path in eval mode are stood aside for, until that very module is done."""
    module.train(training)
    heard.mode.stand_aside(module)
    assert (_get_current_function_mode_stack() == []) is aside
    heard.mode.stand_aside(nn.MultiheadAttention(2, 1).eval())
    heard.mode.come_back(nn.Linear(1, 1))
    torch.relu(torch.ones(2))
    heard.mode.come_back(module)
    torch.tanh(torch.ones(2))
    assert heard.names[-1:] == (["tanh"] if aside else [])


# ---- results without a gradient


def made(call: Callable[[Tensor], Any]) -> list[tuple[Any, dict[str, Any]]]:
    """Return the arguments of everything that was told to have made a result without a gradient."""
    found: list[tuple[Any, dict[str, Any]]] = []
    mode = ActivationCalls(lambda *_: None, lambda args, kwargs, _: found.append((args, kwargs)), pytest.fail)
    inputs = torch.ones(2, 3, requires_grad=True)
    mode.listen()
    call(inputs)
    mode.rest()
    return [(tuple(arg is inputs for arg in args), kwargs) for args, kwargs in found]


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda x: x.detach(), [((True,), {})]),
        (lambda x: x.argmax(dim=1), [((True,), {"dim": 1})]),
        (lambda x: x.max(1), [((True, False), {})]),
        (lambda x: torch.relu(x.detach()), [((True,), {}), ((False,), {})]),
        (lambda x: x.detach().to(x), [((True,), {}), ((False,), {})]),
        (lambda x: x.detach().view_as(x), [((True,), {}), ((False,), {})]),
        # A result that asks for a gradient, and what takes nothing but a shape.
        (lambda x: torch.relu(x * 2), []),
        (lambda x: [torch.randn_like(x), x.new_zeros(3)], []),
    ],
)
def test_results_without_a_gradient_are_told_with_what_they_were_made_of(call, expected):
    """Whether they are one or several, of an activation or not; an argument that gives only its form is left out."""
    assert made(call) == expected
