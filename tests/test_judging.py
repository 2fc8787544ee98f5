"""Test ``lightning_gradwatch.judging``, through the core that drives it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import CLASSES, WIDTH, deep_net, healthy_net, module_in, train, trainer_in
from torch import nn

from lightning_gradwatch import Diagnosis, GradWatch, Symptom, default_rules, judging
from lightning_gradwatch.settings import Settings
from lightning_gradwatch.watching import Watch


def watched(net: nn.Module, steps: int = 6, **settings: Any) -> Watch:
    """Watch a few steps of plain SGD on random data."""
    watch = Watch(Settings(**settings))
    batches = [(torch.randn(4, 8), torch.tensor([0, 1, 2, 0])) for _ in range(steps)]
    train(net, batches, watch, steps)
    return watch


def test_a_diagnosis_carries_how_every_sick_layer_stands():
    """The evidence has the measured standard deviation beside He, Xavier and LeCun, layer by layer."""
    (diagnosis,) = watched(deep_net(nn.Sigmoid, 12)).diagnoses
    weights = diagnosis.evidence["weights"]
    assert set(diagnosis.layers) <= set(weights)
    assert weights["0"]["he"] == pytest.approx(0.5)
    assert weights["0"]["std"] == pytest.approx(1 / 8**0.5 / 3**0.5, rel=0.2)
    assert diagnosis.remedies[0].diagnosis.rule == diagnosis.rule


def test_a_failing_advice_costs_the_advice_only(monkeypatch, caplog):
    """A diagnosis without a way out is better than none."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise ArithmeticError("no idea")

    monkeypatch.setattr(judging, "advise", fail)
    watch = watched(deep_net(nn.Sigmoid, 12))
    assert watch.disabled_reason is None
    assert [(d.rule, d.remedies) for d in watch.diagnoses] == [("vanishing.depth", ())]
    assert caplog.text.count("found no advice: ArithmeticError: no idea") == 1


def test_a_short_rule_is_completed():
    """A rule that names neither layers nor step means all layers of this reading."""

    def rule(observations: Any) -> Any:
        yield Diagnosis("mine", Symptom.SPIKE, message="hm")

    (diagnosis,) = watched(deep_net(nn.ReLU, 2), rules=[rule], patience=2).diagnoses
    assert diagnosis.layers == ("0", "2", "4")
    assert diagnosis.step == 1


def test_muted_rules_and_layers_are_not_told():
    """``ignore`` takes a rule, or some of its layers, out of everything."""
    assert watched(deep_net(nn.Sigmoid, 12), ignore=["vanishing"]).diagnoses == []
    (diagnosis,) = watched(deep_net(nn.Sigmoid, 12), ignore=["vanishing.depth:[0-9]"]).diagnoses
    assert diagnosis.layers[0] == "10"


def test_the_closing_lines_admit_what_was_muted_and_what_failed(caplog: pytest.LogCaptureFixture):
    """Who reads the log has not set it up: "no fault" would be taken for health."""

    def mine(observations: Any) -> Any:
        raise KeyError("fc")

    caplog.set_level("INFO", logger="lightning_gradwatch")
    watch = watched(deep_net(nn.Sigmoid, 12), ignore=["vanishing"], rules=[*default_rules(), mine])
    assert watch.diagnoses == []
    watch.finish()
    assert "rule mine failed at step 0 and is switched off, the others go on: KeyError: 'fc'" in caplog.text
    assert "; muted: vanishing.depth; rule mine failed, see above\n" in caplog.text


def test_ways_out_are_found_again_after_a_checkpoint():
    """A checkpoint keeps no model: what lasts is advised on anew at the first reading after it."""
    before = watched(deep_net(nn.Sigmoid, 12))
    after = Watch(Settings())
    after.load_state_dict(before.state_dict())
    train(deep_net(nn.Sigmoid, 12), [(torch.randn(4, 8), torch.tensor([0, 1, 2, 0]))] * 2, after, 2)
    assert [d.step for d in after.diagnoses] == [d.step for d in before.diagnoses]
    assert [remedy.title for remedy in after.remedies] == [remedy.title for remedy in before.remedies]
    assert after.diagnoses[0].cause == before.diagnoses[0].cause


class Forgetful(nn.Module):
    """Feeds the numbers of a sample, four times over, one by one into a recurrent layer of a given spectral radius."""

    def __init__(self, radius: float) -> None:
        super().__init__()
        self.rnn = nn.RNN(1, WIDTH, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(WIDTH, CLASSES)
        with torch.no_grad():
            nn.init.eye_(self.rnn.weight_hh_l0).mul_(radius)

    def forward(self, inputs):
        steps = 0.1 * inputs.repeat(1, 4)[..., None]
        return self.head(self.rnn(steps)[0][:, -1])


class Cut(nn.Module):
    """Throws away the gradient of all but its head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs):
        return self.head(self.body(inputs).detach())


def hot_net() -> nn.Module:
    """Return a network whose weights are three times what He would give."""
    net = deep_net(nn.ReLU, 12, he=True)
    with torch.no_grad():
        for layer in net[::2]:
            layer.weight.mul_(3)
    return net


def dead_net() -> nn.Module:
    """Return a network in which the units of the last hidden layer are off for every sample."""
    net = deep_net(nn.ReLU, 3, he=True)
    nn.init.constant_(net[4].bias, -1e3)
    return net


def times_at(step: int, factor: float) -> Any:
    """Return a training_step whose loss is multiplied by a number at one step."""

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        return loss * factor if self.global_step == step else loss

    return training_step


SICK = {
    "vanishing.depth": (
        lambda: deep_net(nn.Sigmoid, 12),
        {},
        "WARNING",
        ["VANISHING: ", "hardly move", "of 13 layers: net.0, net.2", "multiplies the gradient by 0.1"],
        ["12 x sigmoid (slope at most 0.25)", "Xavier"],
    ),
    "exploding.depth": (
        hot_net,
        {"rate": 1e-11},
        "INFO",
        ["notice, exploding: ", "of 13 layers: net.0, net.2", "multiplies the gradient by 2.", "signal grows by 1e+"],
        ["12 x relu", "He would give 0.5"],
    ),
    "vanishing.time": (
        lambda: Forgetful(0.3),
        {},
        "INFO",
        [
            "notice, vanishing: ",
            "(1 of 2 layers: net.rnn)",
            "every step back multiplies the gradient by 0.",
            "32 steps",
        ],
        ["RNN used over 32 steps", "spectral radius 0.3"],
    ),
    "exploding.time": (
        lambda: Forgetful(1.3),
        {"rate": 1e-6},
        "INFO",
        ["notice, exploding: ", "(1 of 2 layers: net.rnn)", "every step back multiplies the gradient by 1."],
        ["RNN used over 32 steps", "spectral radius 1.3"],
    ),
    "vanishing.update": (
        healthy_net,
        {"rate": 1e-12},
        "WARNING",
        ["VANISHING: the steps move no weight", "(2 of 2 layers: ", "learning rate 1e-12"],
        ["the learning rate of 1e-12 is too small"],
    ),
    "exploding.update": (
        healthy_net,
        {"rate": 1e4},
        "WARNING",
        ["EXPLODING: ", "(2 of 2 layers: ", "the step moves net.", "learning rate of 1e+04"],
        ["the learning rate is too high"],
    ),
    "dead": (
        dead_net,
        {},
        "WARNING",
        [
            "DEAD: ",
            "(3 of 4 layers: net.4, net.2, net.0)",
            "exactly 0",
            "all units behind net.4 are 0 for every sample",
        ],
        ["dead ReLU"],
    ),
    "disconnected": (
        Cut,
        {},
        "WARNING",
        ["DISCONNECTED: the graph is cut", ": net.body)", "None, not 0"],
        ["detach()"],
    ),
    "spike": (
        healthy_net,
        {"steps": 42, "training_step": times_at(40, 100.0), "rate": 1e-3},
        "INFO",
        ["step 40  notice, spike: ", "net.2", "times its median", "at step 40"],
        ["an odd batch"],
    ),
    "non_finite": (
        healthy_net,
        {"training_step": times_at(3, float("nan"))},
        "WARNING",
        ["step 3  NON-FINITE: gradients are NaN", "(2 of 2 layers: net.2, net.0)", "2 NaN"],
        ["the loss"],
    ),
}


@pytest.mark.parametrize("rule", SICK)
def test_an_onset_tells_layers_numbers_and_the_likely_cause(rule, pl, tmp_path, data, caplog):
    """Of a small sick network a person reads in the log what is wrong, where, by how much, and why."""
    make, more, level, facts, causes = SICK[rule]
    hooks = {name: more[name] for name in more if name == "training_step"}
    torch.manual_seed(0)
    module = module_in(pl, make(), lambda p: torch.optim.SGD(p, lr=more.get("rate", 0.1)), **hooks)
    watch = GradWatch(heatmap=False)
    with caplog.at_level("INFO", logger="lightning_gradwatch"):
        trainer_in(pl, tmp_path, watch, max_steps=more.get("steps", 8)).fit(module, data)
    told = [record for record in caplog.records if f"rule       {rule}" in record.getMessage()]
    assert [record.levelname for record in told] == [level]
    lines = told[0].getMessage().splitlines()
    assert [fact for fact in facts if fact not in "\n".join(lines)] == []
    why = next(line for line in lines if line.startswith("  why"))
    assert [cause for cause in causes if cause not in why] == []
    # Nothing else is wrong with it, and the line at the end says what lasts.
    (diagnosis,) = watch.diagnoses
    assert diagnosis.rule == rule
    assert "GradWatch  seen" in caplog.messages[-1]


def test_the_number_of_layers_is_at_least_that_of_the_sick_ones(pl, tmp_path, data, caplog):
    """Layers that get no gradient are among those that are counted: "1 of 2", never "1 of 1"."""
    with caplog.at_level("INFO", logger="lightning_gradwatch"):
        trainer_in(pl, tmp_path, GradWatch(heatmap=False), max_steps=8).fit(module_in(pl, Cut()), data)
    (onset,) = [message for message in caplog.messages if "DISCONNECTED: " in message]
    assert "(1 of 2 layers: net.body)" in onset
