"""Test ``lightning_gradwatch.remedy.exploding``."""

from __future__ import annotations

import pytest
from torch import nn

import lightning_gradwatch
from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.measure.layers import find_layers
from lightning_gradwatch.remedy.case import Case
from lightning_gradwatch.remedy.clipping import ClipByGlobalNorm
from lightning_gradwatch.remedy.exploding import against_exploding, against_spike

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
