"""Test ``lightning_gradwatch.remedy.exploding``."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lightning_gradwatch
from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.measure.layers import find_layers
from lightning_gradwatch.remedy.case import Case
from lightning_gradwatch.remedy.clipping import ClipByGlobalNorm
from lightning_gradwatch.remedy.exploding import against_exploding, against_non_finite, against_spike
from lightning_gradwatch.remedy.initialization import measure_standing
from lightning_gradwatch.remedy.remedy import Remedy

NAMES = {name: getattr(lightning_gradwatch, name) for name in ("GradWatch", "ClipByGlobalNorm")}


@pytest.mark.parametrize(("median", "bound"), [(0.037, 0.07), (50.0, 100.0), (None, 1.0)])
def test_a_spike_is_clipped_near_the_usual_norm(median, bound):
    """The bound is twice the median, so that usual steps stay as they are; the code does what the remedy holds."""
    spike = Diagnosis("spike", Symptom.SPIKE, step=9, evidence={"median": median, "step": 7} if median else {})
    clip, look, slower = against_spike(Case(spike))
    assert clip.clipper == ClipByGlobalNorm(bound)
    assert eval(clip.code, NAMES).settings.clipper == clip.clipper
    assert f"the batch of step {7 if median else 9}" in look.title
    assert "lower learning rate" in slower.title


@pytest.mark.parametrize(("radius", "advised"), [(2.0, True), (0.9, False)])
def test_recurrent_weights_that_stretch_are_made_orthogonal(radius, advised):
    """Where the state grows from step to step the weights are the reason, beside clipping; else they are not."""
    model = nn.RNN(3, 8)
    nn.init.orthogonal_(model.weight_hh_l0, radius)
    case = Case(Diagnosis("exploding.time", Symptom.EXPLODING, layers=("(root)",)), find_layers(model))
    titles = [remedy.title for remedy in against_exploding(case)]
    assert titles[0].startswith("clip by global norm 1")
    assert any("orthogonal" in title for title in titles) == advised


def test_weights_that_a_step_overwrote_are_not_blamed():
    """After such a step the radius tells what the step did, not what made the gradient grow."""
    model = nn.RNN(3, 8)
    nn.init.constant_(model.weight_hh_l0, 1e6)
    case = Case(Diagnosis("exploding.update", Symptom.EXPLODING, layers=("(root)",)), find_layers(model))
    assert [bool(remedy.clipper) for remedy in against_exploding(case)] == [True]


def blown_up(symptom: Symptom = Symptom.EXPLODING, at_first: float = 0.1, **evidence: object) -> list[Remedy]:
    """Return the ways out for a ReLU layer whose weights are far too large, from their size at the first reading."""
    model = nn.Linear(128, 128)
    nn.init.normal_(model.weight, std=100.0)
    layers = find_layers(model)
    known = {"update_ratio": 50.0, "learning_rate": 0.1} | evidence
    diagnosis = Diagnosis("a.rule", symptom, layers=("(root)",), evidence=known)
    standings, activations = measure_standing(layers), {"(root)": "relu"}
    return against(Case(diagnosis, layers, standings, activations, {"(root)": 100.0}, {"(root)": at_first}))


def against(case: Case) -> list[Remedy]:
    """Return the ways out of a diagnosis that grows."""
    return (against_exploding if case.diagnosis.symptom is Symptom.EXPLODING else against_non_finite)(case)


@pytest.mark.parametrize("symptom", [Symptom.EXPLODING, Symptom.NON_FINITE])
def test_weights_that_training_blew_up_are_not_initialized_anew(symptom):
    """They were small at first: smaller steps, not another start, and no rate made up from weights that are lost."""
    first, *others = blown_up(symptom)
    assert "zero_grad()" in first.title
    assert not any("initialization" in remedy.title or remedy.optimizer_changes for remedy in [first, *others])
    assert "He initialization" in blown_up(symptom, at_first=100.0)[0].title
    assert "He initialization" in blown_up(symptom, at_first=40.0)[0].title
    assert "He initialization" in blown_up(symptom, at_first=float("nan"))[0].title


def test_a_loss_whose_slope_is_nan_gets_an_eps_inside():
    """With it the root of the sum of squares has a gradient at 0, and without it NaN."""
    eps, find, skip = blown_up(Symptom.NON_FINITE, in_the_loss=True, began_in="gradient")
    assert eps.title.startswith("add an eps inside")
    assert "sqrt(x + 1e-8)" in eps.title
    assert ("detect_anomaly" in find.title, "skip" in skip.title) == (True, True)
    x = torch.zeros(3, requires_grad=True)
    assert torch.autograd.grad(x.square().sum().sqrt(), x)[0].isnan().all()
    assert torch.autograd.grad((x.square().sum() + 1e-8).sqrt(), x)[0].isfinite().all()
    overflow = blown_up(Symptom.NON_FINITE, at_first=100.0, in_the_loss=True, began_in="loss")
    assert "He initialization" in overflow[0].title
    assert overflow[1].title.startswith("look for NaN in the batch; if there is none, add an eps")


@pytest.mark.parametrize(("rescaled", "rate"), [(False, 2e-6), (True, 2e-5)])
def test_an_optimizer_that_rescales_may_move_a_hundredth(rescaled, rate):
    """0.1 times 0.001 over 50 for SGD, ten times that under Adam."""
    changes = [r.optimizer_changes for r in blown_up(at_first=100.0, rescaled=rescaled) if r.optimizer_changes]
    assert changes == [{"lr": pytest.approx(rate)}]


@pytest.mark.parametrize(
    ("rate", "evidence", "first"), [(300.0, {}, True), (0.1, {}, False), (3.0, {"rescaled": True}, True)]
)
def test_a_learning_rate_that_clipping_cannot_help_comes_first(rate, evidence, first):
    """At 300 a gradient of norm 1 overwrites weights of norm 11 as well; under Adam no clipping changes a step."""
    model = nn.Linear(32, 32)
    diagnosis = Diagnosis(
        "exploding.update",
        Symptom.EXPLODING,
        layers=("(root)",),
        evidence={"update_ratio": 100.0, "learning_rate": rate} | evidence,
    )
    case = Case(diagnosis, find_layers(model), weights_before={"(root)": 0.34})
    remedies = against_exploding(case)
    assert bool(remedies[0].optimizer_changes) == first
    assert any(remedy.clipper for remedy in remedies) == (not evidence)
