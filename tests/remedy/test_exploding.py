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
from lightning_gradwatch.remedy.remedy import Remedy
from lightning_gradwatch.remedy.standing import measure_standing

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


@pytest.mark.parametrize(("rule", "radius", "advised"), [
    ("exploding.time", 2.0, True), ("exploding.time", 0.9, True),
    ("exploding.update", 2.0, True), ("exploding.update", 0.9, False),
])  # fmt: skip
def test_recurrent_weights_that_stretch_are_made_orthogonal(rule, radius, advised):
    """First where the state grows from step to step; a profile along time has seen it, whatever is left of it now."""
    model = nn.Sequential(nn.RNN(3, 8), nn.Linear(8, 8))
    nn.init.orthogonal_(model[0].weight_hh_l0, radius)
    layers = find_layers(model)
    sick = layers[:1] if rule == "exploding.time" else layers[1:]
    case = Case(Diagnosis(rule, Symptom.EXPLODING, layers=(sick[0].name,)), sick, model=model)
    first, *others = [remedy.title for remedy in against_exploding(case)]
    assert first.startswith("orthogonal recurrent weights in 0" if advised else "clip by global norm 1")
    assert any(title.startswith("clip") for title in [first, *others])


def test_a_square_layer_is_a_cell_only_where_a_profile_along_time_says_so():
    """A large square weight that a step has overwritten is no recurrence."""
    model = nn.Linear(8, 8)
    nn.init.constant_(model.weight, 1e6)
    case = Case(Diagnosis("exploding.update", Symptom.EXPLODING, layers=("(root)",)), find_layers(model), model=model)
    assert [bool(remedy.clipper) for remedy in against_exploding(case)] == [True]
    by_time = Case(Diagnosis("exploding.time", Symptom.EXPLODING, layers=("(root)",)), find_layers(model), model=model)
    assert "orthogonal" in against_exploding(by_time)[0].title


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


@pytest.mark.parametrize(("known", "rate"), [({}, 2e-5), ({"first_ratio": 5.0}, 2e-4)])
def test_the_step_that_is_advised_moves_a_hundredth(known, rate):
    """0.1 times 0.01 over what the step moved the worst layer by: the first step, where that was measured."""
    changes = [r.optimizer_changes for r in blown_up(at_first=100.0, **known) if r.optimizer_changes]
    assert changes == [{"lr": pytest.approx(rate)}]


def test_weights_that_training_blew_up_ask_for_the_rate_of_the_first_step():
    """What the newest step did tells of the wreck; the first one tells how far the learning rate goes by itself."""
    first, *_ = blown_up(first_ratio=2.0)
    assert first.optimizer_changes == {"lr": pytest.approx(5e-4)}


@pytest.mark.parametrize(
    ("evidence", "kinds"),
    [({}, ["lr", "clip"]), ({"usual_norm": 3.0}, ["clip", "lr"]), ({"rescaled": True}, ["lr"])],
    ids=["from the start", "a jump", "Adam"],
)
def test_a_rate_is_lowered_and_a_jump_is_clipped(evidence, kinds):
    """A run that went well has a usual norm, at twice of which it is clipped; under Adam no clipping changes a step."""
    diagnosis = Diagnosis(
        "exploding.update",
        Symptom.EXPLODING,
        layers=("(root)",),
        evidence={"update_ratio": 100.0, "learning_rate": 0.1} | evidence,
    )
    remedies = against_exploding(Case(diagnosis, find_layers(nn.Linear(32, 32))))
    assert ["clip" if remedy.clipper else "lr" for remedy in remedies] == kinds
    bounds = [remedy.clipper.max_norm for remedy in remedies if remedy.clipper]
    assert bounds == ([] if "rescaled" in evidence else [6.0 if evidence else 1.0])


def exponential(num_layers: int, width: int = 64) -> list[Remedy]:
    """Return the ways out for layers of a width that are followed by an exponential."""
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(num_layers)))
    layers = find_layers(model)
    overflow = Diagnosis("non_finite", Symptom.NON_FINITE, layers=tuple(layer.name for layer in layers))
    activations = dict.fromkeys(overflow.layers, "exp")
    return against_non_finite(Case(overflow, layers, measure_standing(layers), activations, model=model))


def test_exponentials_in_a_row_give_way_and_one_is_a_variance():
    """A ReLU takes their place, a SELU where the layers are so narrow that ReLU would be born dead."""
    assert exponential(8)[0].title.startswith("ReLU instead of exp after 8 layers, with He initialization")
    assert exponential(8, width=5)[0].title.startswith("SELU instead of exp after 8 layers, with LeCun")
    assert not any("instead of exp" in remedy.title for remedy in exponential(2))


def test_a_poisoned_batch_in_a_run_that_went_well_is_skipped_first():
    """At the start the loss is looked at first; after ten good steps it is the batch."""
    late, early = (blown_up(Symptom.NON_FINITE, in_the_loss=True, began_in="loss", num_clean=n)[0] for n in (10, 9))
    assert eval(late.code, NAMES).settings.on_nonfinite == "skip"
    assert "eps" in early.title
