"""Test ``lightning_gradwatch.remedy.cut``."""

from __future__ import annotations

import torch
from torch import nn

from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.measure.layers import find_layers
from lightning_gradwatch.remedy.case import Case
from lightning_gradwatch.remedy.cut import against_dead, against_disconnected
from lightning_gradwatch.remedy.remedy import Remedy
from lightning_gradwatch.remedy.standing import measure_standing


def build() -> nn.Sequential:
    """Return a network whose hidden units are off for every sample, with weights of the right size."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    nn.init.kaiming_normal_(model[0].weight)
    nn.init.constant_(model[0].bias, -50.0)
    return model


def dead(severity: str = "warning", **evidence: object) -> list[Remedy]:
    """Return the ways out of exact zeros in the first layer."""
    layers = find_layers(build())
    diagnosis = Diagnosis("dead", Symptom.DEAD, severity, layers=("0",), evidence=evidence)
    return against_dead(Case(diagnosis, layers[:1], measure_standing(layers[:1]), {"0": "relu", "2": "output"}))


def test_a_softmax_over_one_unit_becomes_a_sigmoid():
    """The pasted loss has a gradient where softmax over one unit has none."""
    (remedy,) = dead(everywhere=True, one_unit="2")
    outputs, labels = torch.randn(8, 1, requires_grad=True), torch.randint(0, 2, (8,))
    given: dict[str, object] = {"torch": torch, "outputs": outputs, "labels": labels}
    soft = nn.functional.binary_cross_entropy(outputs.softmax(1).squeeze(1), labels.float())
    assert float(torch.autograd.grad(soft, outputs)[0].abs().max()) == 0
    exec(remedy.code, given)
    assert float(torch.autograd.grad(given["loss"], outputs)[0].abs().min()) > 0


def test_units_that_were_never_alive_start_again_with_biases_of_zero():
    """Although its weights have the right size the layer is initialized, and a gradient reaches it then."""
    afresh, leaky = dead(dead_units="0", ever_alive=False)
    assert afresh.title == "He initialization of 1 layer and biases of zero, then start again"
    assert "LeakyReLU" in leaky.title
    inputs = torch.randn(32, 64)
    for treat in (afresh.apply_, lambda model: exec(afresh.code, {"model": model})):
        model = build()
        model(inputs).sum().backward()
        assert float(model[0].weight.grad.abs().max()) == 0
        treat(model)
        model.zero_grad()
        model(inputs).sum().backward()
        assert float(model[0].weight.grad.abs().max()) > 0


def test_units_that_died_in_training_get_smaller_steps():
    """What was alive at the start had good weights."""
    slower, leaky = dead(dead_units="0", ever_alive=True)
    assert "learning rate" in slower.title
    assert "LeakyReLU" in leaky.title


def test_a_flat_operation_is_looked_for_behind_the_last_layer():
    """Where all units live and nothing has a gradient, the loss does not feel the output."""
    flat, *_ = dead(everywhere=True, dead_units="", one_unit="")
    assert flat.title.startswith("look between 0 and the loss for what has slope 0")
    assert dead(everywhere=False, dead_units="", one_unit="") == []


def test_float16_without_a_scaler_is_scaled_first():
    """The code is that of torch's documentation, and the Trainer's argument does the same."""
    scaled, flat = dead(everywhere=True, float16=True, dead_units="", one_unit="")
    assert "GradScaler" in scaled.code
    assert scaled.trainer_kwargs == {"precision": "16-mixed"}
    assert "slope 0" in flat.title


def test_a_branch_that_nothing_chose_is_left():
    """A notice has no cure."""
    assert dead("notice", dead_units="0") == []


def test_a_cut_is_placed_between_two_layers():
    """The layer before the cut and the one behind it are named, where the rule knows them."""
    sick = Diagnosis("disconnected", Symptom.DISCONNECTED, layers=("trunk.2", "trunk.0"), evidence={"cut": True})
    (behind,) = against_disconnected(Case(sick))
    assert behind.title == "find what cuts the graph behind trunk.2 and remove it"
    known = Diagnosis(sick.rule, sick.symptom, layers=sick.layers, evidence={"cut": True, "next_layer": "head.0"})
    (between,) = against_disconnected(Case(known))
    assert between.title == "find what cuts the graph between trunk.2 and head.0 and remove it"


def test_layers_that_no_loss_uses_may_go():
    """Nothing is cut: they are to be used, left out or frozen."""
    unused = Diagnosis("disconnected", Symptom.DISCONNECTED, layers=("aux",), evidence={"cut": False})
    (remedy,) = against_disconnected(Case(unused))
    assert "requires_grad_(False)" in remedy.title
    assert "experts: balance the routing" in remedy.title


def test_a_saturated_output_hands_its_logits_to_the_loss():
    """At a logit of -200 the sigmoid of a squared error has no slope in float32, and the advised loss has."""
    logits, smaller = dead(everywhere=True, dead_units="", one_unit="", saturated="2")
    assert "nn.BCEWithLogitsLoss()" in logits.title
    assert "a tenth of the learning rate" in smaller.title
    out, target = torch.full((1,), -200.0, requires_grad=True), torch.ones(1)
    assert float(torch.autograd.grad((out.sigmoid() - target).square().sum(), out)[0]) == 0
    assert float(torch.autograd.grad(nn.BCEWithLogitsLoss()(out, target), out)[0]) == -1
    assert smaller.reason.endswith("exactly 0 above 18 and below -104")
    edge = torch.tensor([18.0, 15.0, -80.0, -104.0], requires_grad=True)
    slope = torch.autograd.grad(edge.sigmoid().sum(), edge)[0]
    assert (slope > 0).tolist() == [False, True, True, False]


def test_layers_that_no_optimizer_holds_are_given_to_it() -> None:
    """The line makes the optimizer anew, of the same class and settings, with the whole model."""
    left_out = Diagnosis("disconnected", Symptom.DISCONNECTED, layers=("0",), evidence={"cut": False, "left_out": True})
    (remedy,) = against_disconnected(Case(left_out))
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    names = {"model": model, "optimizer": torch.optim.SGD(model[1].parameters(), lr=0.3, momentum=0.5)}
    exec(remedy.code, names)
    made = names["optimizer"]
    assert isinstance(made, torch.optim.SGD)
    assert (made.defaults["lr"], made.defaults["momentum"]) == (0.3, 0.5)
    assert [id(p) for p in made.param_groups[0]["params"]] == [id(p) for p in model.parameters()]


def test_a_flat_operation_is_looked_for_between_the_two_layers() -> None:
    """Where the weights alone may have shrunk the gradient to nothing they come first; what was alive had no such."""
    title = dead(dead_units="", one_unit="", flat_operation=True, next_layer="head", everywhere=False)[0].title
    assert title.startswith("look between 0 and head for what has slope 0")
    alive = dead(dead_units="", one_unit="", flat_operation=False, ever_alive=True, learning_rate=0.5)
    assert not any("slope 0" in remedy.title for remedy in alive)
    assert {"lr": 0.05} in [remedy.optimizer_changes for remedy in alive]
