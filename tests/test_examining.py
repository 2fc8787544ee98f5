"""Test ``lightning_gradwatch.examining``."""

from __future__ import annotations

import copy
import random
import threading
from typing import Any

import numpy as np
import pytest
import torch
from models import CLASSES, WIDTH, deep_net, healthy_net
from torch import nn
from torch.nn.modules import module as torch_module

from lightning_gradwatch import examine
from lightning_gradwatch.remedy import copying

INPUTS, LABELS = torch.randn(16, WIDTH), torch.arange(16) % CLASSES


def loss_of(model: nn.Module) -> torch.Tensor:
    """Return the loss of a model on one batch."""
    return nn.functional.cross_entropy(model(INPUTS), LABELS)


class Stateful(nn.Module):
    """A sick network that draws, counts and keeps statistics, part of it at rest."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.net = nn.BatchNorm1d(WIDTH), nn.Dropout(0.2), deep_net(nn.Sigmoid, 12)
        self.norm.weight.requires_grad_(False)
        self.drop.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(self.drop(self.norm(x)) + random.random() + float(np.random.rand()))  # noqa: NPY002


def state_of(model: nn.Module) -> list[Any]:
    """Return all that must be what it was, as bytes and plain values."""
    tensors = [*model.state_dict().values(), *(p.grad for p in model.parameters() if p.grad is not None)]
    kept = [t.detach().numpy().tobytes() for t in (*tensors, torch.get_rng_state())]
    flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    hooks = [list(m._forward_hooks) + list(m._forward_pre_hooks) for m in model.modules()]
    return [kept, flags, hooks, random.getstate(), np.random.get_state()[1].tolist()]  # noqa: NPY002


def used() -> Stateful:
    """Return a model in the middle of its training: with gradients and statistics."""
    model = Stateful()
    loss_of(model).backward()
    return model


def test_a_stack_of_sigmoids_is_named_and_cured():
    """Delta is what autograd gives, the factor what a line through it gives, and the best remedy mends it."""
    model = deep_net(nn.Sigmoid, 12)
    report = examine(model, loss_of)
    twin, value, outputs = copy.deepcopy(model), INPUTS, []
    for part in twin:
        value = part(value)
        if isinstance(part, nn.Linear):
            value.retain_grad()
            outputs.append(value)
    nn.functional.cross_entropy(value, LABELS).backward()
    rms = [float(output.grad.square().mean().sqrt()) for output in outputs]
    assert report.layers == tuple(str(2 * place) for place in range(13))
    assert report.delta == pytest.approx(rms, rel=1e-4)
    assert report.signal == pytest.approx([float(o.detach().square().mean().sqrt()) for o in outputs], rel=1e-5)
    norms = np.log10([float(output.grad.norm()) for output in outputs])
    assert report.factor == pytest.approx(10 ** -np.polyfit(np.arange(13), norms, 1)[0], rel=0.2)
    assert report.r2 == pytest.approx(np.corrcoef(np.arange(13), norms)[0, 1] ** 2, rel=1e-6)
    assert [(d.rule, d.severity) for d in report.diagnoses] == [("vanishing.depth", "warning")]
    assert not report.healthy
    assert report.remedies[0].effect["first_over_last_after"] > 1e-2
    assert report.diagnoses[0].remedies == report.remedies
    assert report.notes == ()


def test_a_healthy_network_is_healthy():
    """He's initialization at depth, and a shallow network in PyTorch's own; nothing is rehearsed."""
    for model in (deep_net(nn.ReLU, 12, he=True), healthy_net()):
        calls: list[nn.Module] = []

        def closure(model: nn.Module, calls: list[nn.Module] = calls) -> torch.Tensor:
            calls.append(model)
            return loss_of(model)

        report = examine(model, closure)
        assert report.healthy, str(report)
        report.assert_healthy()
        assert len(calls) == 3


def test_nothing_is_changed():
    """Weights, buffers, gradients, modes, flags, hooks and random states, with everything that ``examine`` does."""
    model = used()
    optimizer = torch.optim.Adam(model.parameters())
    before, gradients = state_of(model), [p.grad for p in model.parameters()]
    report = examine(model, loss_of, optimizer=optimizer)
    assert report.remedies[0].effect is not None
    assert state_of(model) == before
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert not optimizer.state


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("call", [1, 2, 5])
def test_nothing_is_changed_where_the_closure_raises(call, locked):
    """At any call: on a copy, in a rehearsal, or on a model that cannot be copied; and no hook is left."""
    model, calls = used(), []
    if locked:
        model.lock = threading.Lock()
    before = state_of(model)

    def closure(model: nn.Module) -> torch.Tensor:
        calls.append(1)
        model.train()
        loss = loss_of(model)
        if len(calls) == call:
            raise ArithmeticError("mine")
        return loss

    if call <= (1 if locked else 3):
        with pytest.raises(ArithmeticError, match="mine"):
            examine(model, closure)
    else:
        examine(model, closure)
    assert state_of(model) == before
    assert not torch_module._global_forward_hooks
    assert torch.overrides._get_current_function_mode_stack() == []


def test_a_model_that_cannot_be_copied_is_examined_itself():
    """It is said why, remedies come from closed form alone, and everything is what it was."""
    model = used()
    model.lock = threading.Lock()
    before = state_of(model)
    report = examine(model, loss_of)
    assert [d.rule for d in report.diagnoses] == ["vanishing.depth"]
    assert report.remedies
    assert all(remedy.effect is None for remedy in report.remedies)
    assert report.notes[0].startswith("examined without a copy and without steps: lock (lock) cannot be copied")
    assert report.notes[1] == "remedies are computed from the model, and not rehearsed"
    assert state_of(model) == before


def test_a_model_too_large_is_examined_itself(monkeypatch):
    """With a reason that has the numbers."""
    monkeypatch.setattr(copying, "bytes_free", lambda _: 100)
    report = examine(deep_net(nn.Sigmoid, 12), loss_of)
    assert "more than 50% of the 0 MiB that are free" in report.notes[0]
    assert report.remedies


def test_rehearsal_can_be_left_out():
    """Then remedies stand in the expert's order, and three passes are all."""
    report = examine(deep_net(nn.Sigmoid, 12), loss_of, rehearse=False)
    assert report.remedies
    assert all(remedy.effect is None for remedy in report.remedies)
    assert report.notes == ()


def test_exploding_and_non_finite_are_named():
    """Weights five times too large, and a NaN in the forward pass."""
    model = deep_net(nn.ReLU, 12, he=True)
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(5)
    report = examine(model, loss_of)
    assert ("exploding.depth", "warning") in [(d.rule, d.severity) for d in report.diagnoses]
    assert report.remedies[0].effect["loss_after"] < report.loss / 10
    broken = examine(healthy_net(), lambda model: loss_of(model) * float("nan"))
    assert [d.rule for d in broken.diagnoses] == ["non_finite"]


def test_dead_and_cut_layers_are_named():
    """Units that are off for every sample; and a graph that is cut by ``detach``."""
    model = deep_net(nn.ReLU, 4, he=True)
    nn.init.constant_(model[4].bias, -1e3)
    (dead,) = [d for d in examine(model, loss_of).diagnoses if d.rule == "dead"]
    assert dead.severity == "warning"

    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.unused = nn.Linear(WIDTH, 8), nn.Linear(8, CLASSES), nn.Linear(1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x).detach().relu())

    found = {d.layers: d.severity for d in examine(Cut(), loss_of).diagnoses if d.rule == "disconnected"}
    assert found == {("first",): "warning", ("unused",): "notice"}


def test_a_zero_start_is_no_fault():
    """LoRA's first step has a zero gradient, and ReZero's; both leave it within a step."""

    class Lora(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.a = nn.Linear(WIDTH, CLASSES).requires_grad_(False), nn.Linear(WIDTH, 2, bias=False)
            self.b = nn.Linear(2, CLASSES, bias=False)
            nn.init.zeros_(self.b.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.frozen(x) + self.b(self.a(x))

    report = examine(Lora(), loss_of)
    assert report.diagnoses == (), str(report)


def test_an_optimizer_that_copes_makes_it_a_notice():
    """PyTorch's default ReLU stack starts poorly; Adam saves it and SGD does not, and each is told so."""
    model = deep_net(nn.ReLU, 12)
    adam = examine(model, loss_of, optimizer=torch.optim.Adam(model.parameters()), rehearse=False)
    sgd = examine(model, loss_of, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), rehearse=False)
    assert [(d.rule, d.severity) for d in adam.diagnoses] == [("vanishing.depth", "notice")]
    assert [(d.rule, d.severity) for d in sgd.diagnoses] == [("vanishing.depth", "warning")]


def test_the_learning_rate_is_judged_where_the_optimizer_is_known():
    """A step that overwrites weights is named, and the remedy has a number."""
    model = healthy_net()
    report = examine(model, loss_of, optimizer=torch.optim.SGD(model.parameters(), lr=1e3))
    assert report.diagnoses[0].rule == "exploding.update"
    assert any(remedy.optimizer_changes.get("lr", 1e3) < 1 for remedy in report.remedies)
    assert examine(model, loss_of).healthy


class Exploding(nn.Module):
    """A recurrent network whose weights from state to state multiply the gradient by four a step."""

    def __init__(self) -> None:
        super().__init__()
        self.memory, self.head = nn.RNN(1, 16, batch_first=True), nn.Linear(16, 1)
        with torch.no_grad():
            nn.init.orthogonal_(self.memory.weight_hh_l0, gain=4.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.memory(x)[0][:, -1])


@pytest.mark.parametrize("copied", [True, False])
def test_a_step_that_overwrites_is_told_although_the_next_gradient_is_zero(copied):
    """An overwritten tanh saturates, so that only the first pass shows it; the rate times the norms is the oracle."""
    torch.manual_seed(0)
    model, x = Exploding(), torch.randn(16, 60, 1)
    if not copied:
        model.lock = threading.Lock()

    def closure(net: nn.Module) -> torch.Tensor:
        return nn.functional.mse_loss(net(x), x[:, 0])

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    report = examine(model, closure, optimizer=optimizer)
    assert [(d.rule, d.severity, d.layers) for d in report.diagnoses] == [("exploding.update", "warning", ("memory",))]
    closure(model).backward()
    with torch.no_grad():
        weights = torch.cat([p.flatten() for p in model.memory.parameters()])
        ratio = 0.05 * float(torch.cat([p.grad.flatten() for p in model.memory.parameters()]).norm() / weights.norm())
    assert ratio > 1e3
    assert report.diagnoses[0].evidence["update_ratio"] == pytest.approx(ratio, rel=1e-3)
    assert report.diagnoses[0].recovered_at is None
    assert not report.healthy


def test_a_branch_that_starts_at_zero_is_not_dead_beside_an_overwriting_step():
    """What would leave zero in the next step is not blamed where that step is not made."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"main": healthy_net(), "down": nn.Linear(WIDTH, 2), "up": nn.Linear(2, CLASSES)})
    nn.init.zeros_(model["up"].weight)

    def closure(net: nn.Module) -> torch.Tensor:
        return nn.functional.cross_entropy(net["main"](INPUTS) + net["up"](net["down"](INPUTS)), LABELS)

    report = examine(model, closure, optimizer=torch.optim.SGD(model.parameters(), lr=1e3))
    assert [d.rule for d in report.diagnoses if d.severity == "warning"] == ["exploding.update"]


def test_a_deep_transformer_and_a_recurrent_net_are_examined():
    """Several inputs and calls; a long recurrence fades, which is a notice."""
    transformer = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 12)
    assert examine(transformer, lambda model: model(INPUTS[None]).square().mean()).healthy
    net = nn.ModuleDict({"memory": nn.RNN(WIDTH, WIDTH, batch_first=True), "head": nn.Linear(WIDTH, 1)})
    for name, weight in net.named_parameters():
        if "weight_hh" in name:
            nn.init.orthogonal_(weight, gain=0.5)
    sequences = torch.randn(4, 60, WIDTH)
    report = examine(net, lambda model: model["head"](model["memory"](sequences)[0][:, -1]).square().mean())
    assert [(d.rule, d.severity) for d in report.diagnoses] == [("vanishing.time", "notice")]
    assert report.healthy


def fails(*_: Any) -> torch.Tensor:
    raise AssertionError("nothing may run before the arguments are checked")


@pytest.mark.parametrize(
    ("model", "closure", "error", "match"),
    [
        (torch.zeros(1), fails, TypeError, r"`model` must be a torch.nn.Module. Got Tensor"),
        (nn.Linear(1, 1), torch.zeros(1), TypeError, r"`loss_closure` must be callable.*lambda model"),
        (nn.Linear(1, 1, device="meta"), fails, ValueError, r"weight is on the device meta. Use model.to_empty"),
        (nn.ReLU(), fails, ValueError, r"has no parameters"),
        (nn.Linear(1, 1).requires_grad_(False), fails, ValueError, r"is frozen: set requires_grad_\(True\)"),
        (nn.Linear(1, 1), lambda _: 1.0, TypeError, r"a tensor of one number. Got float"),
        (nn.Linear(1, 1), lambda m: m.weight.expand(3, 3), ValueError, r"shape \(3, 3\); end with .mean"),
        (nn.Linear(1, 1), lambda m: m.weight.detach().sum(), ValueError, r"without a graph"),
    ],
)
def test_what_cannot_be_examined_is_refused(model, closure, error, match):
    """Before anything is changed, with what to do."""
    with pytest.raises(error, match=match):
        examine(model, closure)


def test_the_closure_has_to_use_the_model_that_it_is_given():
    """One that has closed over the original would train it; its gradients stay away."""
    model = used()
    before = state_of(model)
    with pytest.raises(ValueError, match="with the model that it is given"):
        examine(model, lambda _: loss_of(model))
    assert state_of(model) == before


@pytest.mark.parametrize(
    ("optimizer", "came"),
    [(torch.optim.SGD, "the class SGD"), (0.1, "float"), ([], "list")],
)
def test_what_is_no_optimizer_is_refused(optimizer, came):
    """A class is what people pass by mistake."""
    match = rf"`optimizer` must be a torch.optim.Optimizer.*SGD\(model.parameters\(\), lr=0.1\)`. Got {came}$"
    with pytest.raises(TypeError, match=match):
        examine(healthy_net(), fails, optimizer=optimizer)


def test_an_optimizer_of_another_model_is_refused():
    """It could not be rehearsed with."""
    model, other = healthy_net(), healthy_net()
    with pytest.raises(ValueError, match="`optimizer` must hold parameters of `model`"):
        examine(model, loss_of, optimizer=torch.optim.SGD(other.parameters(), lr=0.1))


class Noting(nn.Module):
    """Replaces a buffer, counts, keeps what it has seen, switches a part off, and cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.lock = deep_net(nn.Sigmoid, 12), threading.Lock()
        self.register_buffer("average", torch.zeros(WIDTH))
        self.calls, self.losses, self.seen, self.last = 0, [], {}, None
        self.total = torch.zeros(())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.average = 0.9 * self.average + 0.1 * x.mean(dim=0)
        self.calls += 1
        self.last = self.net(x)
        self.losses.append(float(self.last.detach().mean()))
        self.seen["batch"] = x
        self.total += 1
        self.net.eval()
        return self.last


def test_no_trace_is_left_in_a_model_that_cannot_be_copied():
    """Not in a buffer that the forward pass replaces, nor in a counter, a list or a tensor that it keeps."""
    model = Noting()
    average = model.average
    report = examine(model, loss_of)
    assert report.notes[0].startswith("examined without a copy and without steps: lock")
    assert model.average is average
    assert not average.any()
    assert (model.calls, model.losses, model.seen, model.last, float(model.total)) == (0, [], {}, None, 0.0)
    assert all(part.training for part in model.modules())


def test_an_optimizer_that_cannot_be_made_anew_is_told():
    """What is judged then does not depend on it, and a person has to know."""

    class Special(torch.optim.SGD):
        def __init__(self, params: Any, secret: str, rate: float) -> None:
            super().__init__(params, lr=rate)

    model = healthy_net()
    report = examine(model, loss_of, optimizer=Special(model.parameters(), "x", 1e3))
    assert report.healthy
    (note,) = report.notes
    assert note.startswith("judged without the optimizer: Special cannot be made anew: TypeError")


def test_a_closure_that_uses_another_model_is_told_so():
    """A notebook has several models by the same name; nothing is known then, and it is not called healthy."""
    other = nn.Linear(2, 1)
    report = examine(nn.Linear(2, 1), lambda _: other(torch.ones(1, 2)).sum(), rehearse=False)
    assert any("use the model that it is given" in note for note in report.notes)
    assert not report.healthy
