"""Test ``benchmarks.ward.rivals.callback``."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.ward.case import Lesson
from benchmarks.ward.rivals import Flag, Rivals
from benchmarks.ward.rivals.callback import published_rules
from benchmarks.ward.train import train
from lightning_gradwatch import Symptom


class Witness:
    """A rule that copies what it may look at and says what it is told to say."""

    name = "witness"

    def __init__(self, looks: list, says: Symptom | None = None) -> None:
        self.looks, self._says = looks, says

    def observe(self, look) -> list[Flag]:
        self.looks.append((look, look.gradients, look.weights))
        return [look.flag(self._says)] if self._says else []


def classes(num_steps: int = 4, accumulate: int = 1) -> Lesson:
    """Make a lesson of three classes with a layer that nothing uses."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))
    model.spare = nn.Linear(2, 2)
    model.forward = lambda x: model[2](model[1](model[0](x)))
    batches = [(torch.randn(6, 3), torch.arange(6) % 3) for _ in range(num_steps * accumulate)]
    return Lesson(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        batches=batches,
        loss=lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]),
        score=lambda _: 1.0,
        passes=0.5,
        accumulate=accumulate,
    )


def seen(lesson: Lesson) -> list:
    """Train a lesson and return what a rule could look at."""
    looks: list = []
    train(lesson, [Rivals(lambda: [Witness(looks)])])
    return looks


def test_a_rule_sees_what_plain_autograd_computes() -> None:
    """Gradients, weights, loss and accuracy of each step are those of a plain loop; an unused layer is not there."""
    looks, twin = seen(classes()), classes()
    for (look, gradients, weights), batch in zip(looks, twin.batches, strict=True):
        out = twin.model(batch[0])
        loss = F.cross_entropy(out, batch[1])
        twin.optimizer.zero_grad()
        loss.backward()
        assert look.names == ("0", "2")
        assert look.loss == pytest.approx(loss.item())
        assert look.accuracy == pytest.approx(float((out.argmax(1) == batch[1]).float().mean()))
        for place, layer in enumerate((twin.model[0], twin.model[2])):
            assert weights[place] == pytest.approx(layer.weight.detach().flatten().double().numpy())
            assert gradients[place] == pytest.approx(layer.weight.grad.flatten().double().numpy())
        twin.optimizer.step()
    assert [look.step for look, _, _ in looks] == [look.number for look, _, _ in looks] == [0, 1, 2, 3]
    assert [look.progress for look, _, _ in looks] == [0.25, 0.5, 0.75, 1.0]


def test_accumulated_losses_are_those_of_a_whole_batch() -> None:
    """With accumulation a step has one look, and its loss is not divided by the number of batches."""
    looks, twin = seen(classes(2, accumulate=3)), classes(2, accumulate=3)
    assert len(looks) == 2
    assert looks[0][0].loss == pytest.approx(twin.loss(twin.model, twin.batches[2]).item(), rel=1e-5)


def test_the_first_flag_of_each_symptom_is_kept() -> None:
    """A rule that repeats itself has one flag, that of the first step."""
    rivals = Rivals(lambda: [Witness([], Symptom.DEAD)])
    train(classes(), [rivals])
    assert rivals.flags == {"witness": [Flag(0, Symptom.DEAD, ())]}


def test_each_optimizer_has_rules_of_its_own() -> None:
    """Two optimizers are watched by two sets of rules, each of which sees its own weights and counts its own steps."""
    made: list[list] = []

    def rules() -> list:
        made.append([])
        return [Witness(made[-1])]

    lesson = classes()
    first = torch.optim.SGD(lesson.model[0].parameters(), lr=0.1)
    second = torch.optim.SGD(lesson.model[2].parameters(), lr=0.1)

    def play(module, optimizers, batch) -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
            module.manual_backward(lesson.loss(module.net, batch))
            optimizer.step()

    train(replace(lesson, optimizer=first, others=[second], play=play), [Rivals(rules)])
    # The first call only asks for names.
    one, two = made[1:]
    assert {look.names for look, _, _ in one} == {("0",)}
    assert {look.names for look, _, _ in two} == {("2",)}
    assert [look.number for look, _, _ in two] == [0, 1, 2, 3]


def test_a_regression_has_no_accuracy() -> None:
    """Where targets are no classes the accuracy is NaN."""
    lesson = classes()
    numbers = [(x, torch.randn(6, 3)) for x, _ in lesson.batches]
    looks = seen(replace(lesson, batches=numbers, loss=lambda net, batch: F.mse_loss(net(batch[0]), batch[1])))
    assert all(look.accuracy != look.accuracy for look, _, _ in looks)


def test_watching_changes_nothing_and_leaves_nothing() -> None:
    """The weights are those of a run without rivals, bit by bit, and no hook stays on the network."""
    plain, watched = classes(), classes()
    train(plain)
    train(watched, [Rivals()])
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), watched.model.parameters(), strict=True))
    assert not any(module._forward_hooks for module in watched.model.modules())


def test_hooks_are_gone_after_an_error() -> None:
    """A run that ends in an error leaves no hook either."""
    lesson = classes()

    def loss(net, batch):
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        train(replace(lesson, loss=loss), [Rivals()])
    assert not any(module._forward_hooks for module in lesson.model.modules())


def test_every_published_rule_named_in_the_issue_is_there() -> None:
    """SageMaker, AUTOTRAINER with and without its gate, DeepDiagnosis, thresholds, ZClip, and Lightning's proposal."""
    assert [rule.name for rule in published_rules()] == [
        "SageMaker Debugger",
        "AUTOTRAINER",
        "AUTOTRAINER, raw rules",
        "DeepDiagnosis",
        "thresholds on each layer's norm",
        "thresholds on the global norm",
        "global norm (proposed for Lightning)",
        "ZClip's z-score",
    ]
