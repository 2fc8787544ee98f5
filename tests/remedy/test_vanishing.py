"""Test ``lightning_gradwatch.remedy.vanishing``."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.measure.layers import find_layers
from lightning_gradwatch.remedy.case import Case
from lightning_gradwatch.remedy.remedy import Remedy
from lightning_gradwatch.remedy.vanishing import against_vanishing


def stalled(model: nn.Module | None = None, **evidence: float | None) -> list[Remedy]:
    """Return the ways out of steps that move no weight."""
    sick = find_layers(model or nn.Linear(2, 2))
    return against_vanishing(Case(Diagnosis("vanishing.update", Symptom.VANISHING, evidence=evidence), sick))


def forgetting(layer: nn.Module, **evidence: int) -> list[Remedy]:
    """Return the ways out of a layer that forgets."""
    diagnosis = Diagnosis("vanishing.time", Symptom.VANISHING, layers=("(root)",), evidence=evidence)
    return against_vanishing(Case(diagnosis, find_layers(layer)))


def test_a_learning_rate_is_advised_that_moves_a_hundredth():
    """The rate grows by what is missing from a step of 1e-2 of the weights; SGD's step then is about that."""
    (remedy,) = stalled(learning_rate=1e-6, update_ratio=4e-8, relative_gradient=0.04)
    assert remedy.title == "learning rate 0.2 instead of 1e-06"
    (higher,) = remedy.optimizer_changes.values()
    assert higher * 0.04 == pytest.approx(1e-2, rel=0.25)


def test_a_step_that_is_lost_in_rounding_is_known_from_its_gradient():
    """What the step should have been counts more than the nothing that was measured."""
    (remedy,) = stalled(learning_rate=1e-9, update_ratio=0.0, expected_ratio=5e-11, relative_gradient=0.04)
    assert remedy.optimizer_changes == {"lr": 0.2}


@pytest.mark.parametrize("expected", [None, float("nan"), 0.0])
def test_where_the_step_is_not_known_no_number_is_made_up(expected):
    """A higher rate is advised, without one."""
    (remedy,) = stalled(learning_rate=1e-9, update_ratio=0.0, expected_ratio=expected)
    assert remedy.title == "a learning rate well above 1e-09"
    assert remedy.optimizer_changes == {}


def test_a_gradient_that_is_nothing_asks_for_a_larger_loss():
    """The factor brings a step to a hundredth of the weights; the learning rate may take it under SGD."""
    (remedy,) = stalled(learning_rate=0.1, update_ratio=0.0, relative_gradient=4e-11)
    assert "or multiply it by 1e+09" in remedy.title
    assert remedy.optimizer_changes == {"lr": pytest.approx(1e8)}
    (unknown,) = stalled(relative_gradient=4e-11)
    assert unknown.optimizer_changes == {}


def test_nothing_known_is_nothing_advised():
    """Without a learning rate there is no advice on it."""
    assert stalled() == []


@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.bfloat16, "bf16-mixed"), (torch.float16, "16-mixed"), (torch.float32, None)]
)
def test_half_precision_weights_come_first(dtype, precision):
    """Steps below the distance of two numbers are rounded away; float32 weights take them."""
    remedies = stalled(nn.Linear(2, 2, dtype=dtype), learning_rate=1e-4, update_ratio=1e-6)
    assert [r.trainer_kwargs.get("precision") for r in remedies] == ([precision, None] if precision else [None])


def test_what_forgets_gets_what_its_kind_needs():
    """Gates stay open in an LSTM and GRU, weights keep lengths in an RNN and a square cell; others get nothing."""
    assert [r.title for r in forgetting(nn.LSTM(2, 3), num_steps=60)] == [
        "chrono initialization of the forget gates in (root) for 60 steps, then start again"
    ]
    assert "update gates" in forgetting(nn.GRU(2, 3), num_steps=60)[0].title
    assert [r.title.split(" in ")[0] for r in forgetting(nn.RNN(2, 3), num_steps=60)] == [
        "orthogonal recurrent weights",
        "nn.LSTM or nn.GRU",
    ]
    assert "orthogonal" in forgetting(nn.Linear(3, 3), num_steps=60)[0].title
    assert forgetting(nn.Linear(2, 3), num_steps=60) == []
    assert forgetting(nn.LSTM(2, 3, bias=False), num_steps=60) == []
    assert forgetting(nn.LSTM(2, 3)) == []


@pytest.mark.parametrize(
    ("width", "activation", "advised"),
    [
        (2, "sigmoid", ["torch.tanh in the place", "nn.LSTM or nn.GRU"]),
        (3, "sigmoid", ["torch.tanh in the place", "nn.LSTM or nn.GRU"]),
        (2, "tanh", ["nn.LSTM or nn.GRU"]),
        (3, "tanh", ["orthogonal recurrent weights", "nn.LSTM or nn.GRU"]),
        (2, "gate", []),
        (2, None, []),
    ],
)
def test_a_cell_written_by_hand_gets_what_its_activation_needs(width, activation, advised):
    """A sigmoid gives way to a tanh; no gates are advised where there are gates, or where nothing is known."""
    diagnosis = Diagnosis("vanishing.time", Symptom.VANISHING, layers=("(root)",), evidence={"num_steps": 60})
    case = Case(diagnosis, find_layers(nn.Linear(width, 3)), activations={"(root)": activation})
    titles = [remedy.title for remedy in against_vanishing(case)]
    assert [title[: len(start)] for title, start in zip(titles, advised, strict=True)] == advised
    assert not any("forget" in title for title in titles)


def test_what_rescales_needs_no_larger_loss():
    """Under Adam a step of 1e-8 asks for a million times the rate, however small the gradient is."""
    (remedy,) = stalled(learning_rate=1e-9, update_ratio=1e-8, relative_gradient=1e-9, rescaled=True)
    assert remedy.optimizer_changes == {"lr": pytest.approx(1e-3)}
    assert "0.01 of its weights" in remedy.reason


def test_an_eps_that_outweighs_the_gradients_is_made_smaller():
    """Adam with eps far above the gradient is plain gradient descent; below it eps is no reason."""
    known = {"learning_rate": 1e-3, "update_ratio": 1e-9, "rescaled": True, "eps": 1e-8}
    (remedy,) = stalled(gradient_rms=3e-12, **known)
    assert remedy.optimizer_changes == {"eps": pytest.approx(3e-14)}
    assert "eps" not in stalled(gradient_rms=1e-3, **known)[0].optimizer_changes
    parameter = nn.Parameter(torch.ones(1))
    moved = []
    for eps in (1e-8, 3e-14):
        names = {"optimizer": torch.optim.Adam([parameter], lr=1e-3)}
        if eps < 1e-8:
            exec(remedy.code, names)
        before = parameter.detach().clone()
        parameter.grad = torch.full((1,), 3e-12)
        names["optimizer"].step()
        moved.append(float((before - parameter.detach()).abs()))
    assert moved[0] < 1e-6
    assert moved[1] == pytest.approx(1e-3, rel=0.02)
