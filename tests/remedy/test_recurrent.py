"""Test ``lightning_gradwatch.remedy.recurrent``."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_gradwatch.detect.diagnosis import Diagnosis, Severity, Symptom
from lightning_gradwatch.measure.layers import find_layers
from lightning_gradwatch.remedy.case import Case
from lightning_gradwatch.remedy.memory import measure_memory
from lightning_gradwatch.remedy.recurrent import chrono, gated, orthogonal
from lightning_gradwatch.remedy.remedy import Remedy


class Net(nn.Module):
    """A recurrent layer below a head."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(8, 2)


def remedy_for(make, model: nn.Module, *more: object, severity: Severity = "warning") -> Remedy:
    """Make a remedy for the first layer of a model."""
    layer = find_layers(model)[0]
    case = Case(Diagnosis("vanishing.time", Symptom.VANISHING, severity, layers=(layer.name,)), (layer,))
    memory = measure_memory(layer)
    assert memory is not None
    return make(case, memory, *more)


def both_ways(remedy: Remedy, build) -> list[nn.Module]:
    """Treat two equal models, one with the pasted lines and one with ``apply_``, from the same seed."""
    pasted, applied = build(), build()
    applied.load_state_dict(pasted.state_dict())
    torch.manual_seed(1)
    exec(remedy.code, {"model": pasted})
    torch.manual_seed(1)
    remedy.apply_(applied)
    assert all(torch.equal(a, b) for a, b in zip(pasted.parameters(), applied.parameters(), strict=True))
    return [pasted, applied]


@pytest.mark.parametrize(
    ("build", "weights"),
    [
        (lambda: Net(nn.RNN(3, 8, num_layers=2)), ["weight_hh_l0", "weight_hh_l1"]),
        (lambda: Net(nn.RNNCell(3, 8)), ["weight_hh"]),
        (lambda: Net(nn.Linear(8, 8)), ["weight"]),
    ],
    ids=["RNN", "RNNCell", "Linear"],
)
def test_recurrent_weights_become_orthogonal(build, weights):
    """Code and ``apply_`` leave ``W W^T = 1`` in every recurrent weight, and everything else as it was."""
    remedy = remedy_for(orthogonal, build())
    assert remedy.needs_restart
    for model in both_ways(remedy, build):
        for name in weights:
            weight = getattr(model.layer, name).detach()
            assert torch.allclose(weight @ weight.T, torch.eye(8), atol=1e-5)


def test_only_recurrent_weights_are_touched():
    """What enters the layer, its biases and the head keep their numbers."""
    model = Net(nn.RNN(3, 8))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    remedy_for(orthogonal, model).apply_(model)
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert changed == ["layer.weight_hh_l0"]


@pytest.mark.parametrize("each", [nn.LSTM, nn.GRU])
def test_gates_keep_from_one_step_to_all_of_them(each):
    """The keeping gate's biases sum to ``log(n)`` with n from 1 to T - 1; an LSTM's input gate gets the opposite."""

    def build() -> nn.Module:
        return Net(each(3, 8, num_layers=2, bidirectional=True))

    remedy = remedy_for(chrono, build(), 100)
    assert "for 100 steps" in remedy.title
    for model in both_ways(remedy, build):
        for end in ("l0", "l1", "l0_reverse", "l1_reverse"):
            summed = (getattr(model.layer, f"bias_ih_{end}") + getattr(model.layer, f"bias_hh_{end}")).detach()
            keeps = summed[8:16]
            assert float(keeps.min()) >= 0
            assert float(keeps.max()) <= math.log(99)
            assert float(keeps.std()) > 0
            if each is nn.LSTM:
                assert torch.equal(summed[:8], -keeps)


def test_with_chrono_gates_an_early_input_is_felt_at_the_end():
    """Over 100 steps the gradient that reaches the first input grows a million times and more."""

    def reached(model: Net) -> float:
        inputs = torch.randn(100, 4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
        model.layer(inputs)[0][-1].sum().backward()
        return float(inputs.grad[0].norm())

    model = Net(nn.LSTM(3, 8))
    before = reached(model)
    remedy_for(chrono, model, 100).apply_(model)
    assert reached(model) > 1e6 * before


def test_with_orthogonal_weights_an_early_input_is_felt_at_the_end():
    """The same for a plain recurrent layer, at small signals."""

    def reached(model: Net) -> float:
        inputs = (0.01 * torch.randn(100, 4, 3, generator=torch.Generator().manual_seed(0))).requires_grad_()
        model.layer(inputs)[0][-1].sum().backward()
        return float(inputs.grad[0].norm())

    model = Net(nn.RNN(3, 8, bias=False))
    before = reached(model)
    remedy_for(orthogonal, model).apply_(model)
    assert reached(model) > 1e6 * before


def test_a_model_that_is_the_layer_itself_is_reached():
    """The root has no name that ``get_submodule`` knows."""
    remedy = remedy_for(chrono, nn.LSTM(3, 8), 50)
    both_ways(remedy, lambda: nn.LSTM(3, 8))


def test_a_notice_advises_on_a_condition():
    """Who learns what the last steps tell needs no cure."""
    model = Net(nn.RNN(3, 8))
    for make in (orthogonal, gated):
        assert remedy_for(make, model, severity="notice").title.startswith("if the answer lies far back: ")
        assert "if" not in remedy_for(make, model).title
