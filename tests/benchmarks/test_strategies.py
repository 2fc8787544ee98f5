"""Test ``benchmarks.ward.strategies``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.ward.cases import all_cases
from benchmarks.ward.networks import Exponential, Functional, Residual
from benchmarks.ward.recipes import Recipe
from benchmarks.ward.rivals.look import Flag
from benchmarks.ward.sequences import Reader, SequenceRecipe
from benchmarks.ward.strategies import STRATEGIES, Seen, autotrainer, clip, he, names_the_culprit, ours, told, xavier
from lightning_gradwatch import Diagnosis, Remedy, Symptom


@dataclass
class Watch:
    """Stands for a GradWatch that has come to its diagnoses and remedies."""

    remedies: Sequence[Remedy] = ()
    diagnoses: Sequence[Diagnosis] = field(default_factory=list)


def remedy(title: str, rule: str = "vanishing.depth", severity: str = "warning", **what) -> Remedy:
    """Make a remedy for a diagnosis of a rule."""
    return Remedy(title, "it helps", Diagnosis(rule, Symptom.VANISHING, severity=severity), **what)


def seen(*remedies: Remedy, diagnoses: Sequence[Diagnosis] = (), **flags: Sequence[Flag]) -> Seen:
    """Make what a run has shown; ``gated`` and ``raw`` are flags of AUTOTRAINER's rules."""
    names = {"gated": "AUTOTRAINER", "raw": "AUTOTRAINER, raw rules"}
    return Seen(Watch(remedies, diagnoses), 0, {names[name]: said for name, said in flags.items()})


def test_our_first_remedy_is_tried_and_the_others_on_demand() -> None:
    """The first of ``watch.remedies`` is taken as it is; a place that holds none is no advice."""
    first, second = remedy("raise it", optimizer_changes={"lr": 0.7}), remedy("look", "spike", "notice")
    proposal = ours(seen(first, second))
    assert (proposal.title, proposal.rule, proposal.severity) == ("raise it", "vanishing.depth", "warning")
    assert not proposal.words_only
    lesson = Recipe(data="circle", depth=1, num_steps=2).lesson(0)
    assert proposal.treat(lesson).lesson.optimizer.param_groups[0]["lr"] == 0.7
    assert STRATEGIES["ours-second"](seen(first, second)).words_only
    assert STRATEGIES["ours-third"](seen(first, second)) is None
    assert ours(seen()) is None


def test_what_the_log_has_told_is_the_first_remedy_of_the_first_warning() -> None:
    """A notice comes after warnings, a diagnosis without remedies is passed over, and recovery does not matter."""

    def diagnosis(title: str, severity: str, *titles: str) -> Diagnosis:
        remedies = tuple(remedy(each, title, severity) for each in titles)
        return Diagnosis(title, Symptom.VANISHING, severity=severity, recovered_at=3, remedies=remedies)

    notice, bare = diagnosis("a", "notice", "first"), diagnosis("b", "warning")
    warning = diagnosis("c", "warning", "second", "third")
    assert told(seen(diagnoses=[notice, bare, warning])).title == "second"
    assert told(seen(diagnoses=[notice, bare])).title == "first"
    assert told(seen(diagnoses=[bare])) is None


@pytest.mark.parametrize(
    ("strategy", "bound"),
    [
        (xavier, lambda fan_in, fan_out: math.sqrt(6 / (fan_in + fan_out))),
        (he, lambda fan_in, _: math.sqrt(6 / fan_in)),
    ],
)
def test_rules_of_thumb_fill_every_weight_matrix_and_nothing_else(strategy, bound) -> None:
    """All matrices of a recurrent network are drawn anew within the scheme's bound; its biases stay."""
    recipe = SequenceRecipe(lambda: Reader("rnn", 32), num_steps=1)
    before = dict(recipe.lesson(0).model.named_parameters())
    after = strategy(seen()).treat(recipe.lesson(0)).lesson.model
    for name, parameter in after.named_parameters():
        if parameter.ndim == 1:
            assert torch.equal(parameter, before[name])
            continue
        largest = bound(parameter.shape[1], parameter.shape[0])
        assert 0.9 * largest < float(parameter.detach().abs().max()) <= largest


def test_clipping_is_the_trainers_own() -> None:
    """The Trainer clips by global norm 1, beside what the lesson asks of it."""
    recipe = Recipe(data="circle", depth=1, num_steps=1, trainer=lambda: {"precision": "bf16-mixed"})
    assert clip(seen()).treat(recipe.lesson(0)).lesson.trainer == {"precision": "bf16-mixed", "gradient_clip_val": 1.0}


def test_autotrainer_has_nothing_to_say_where_its_rules_have_not_spoken() -> None:
    """Without a flag of its gated rules there is no repair, whatever the raw ones say."""
    assert autotrainer(seen(raw=[Flag(30, Symptom.VANISHING)], gated=[])) is None
    assert autotrainer(seen()) is None


@pytest.mark.parametrize(
    ("gated", "raw", "title"),
    [
        (Symptom.NON_FINITE, [], "SELU, with LeCun initialization"),
        (Symptom.EXPLODING, [], "SELU, with LeCun initialization"),
        (Symptom.DEAD, [], "SELU, with LeCun initialization"),
        (Symptom.VANISHING, [Flag(30, Symptom.VANISHING)], "SELU, with LeCun initialization"),
        (Symptom.VANISHING, [Flag(90, Symptom.VANISHING)], "another optimizer"),
        (Symptom.VANISHING, [Flag(30, Symptom.DEAD)], "another optimizer"),
    ],
)
def test_autotrainers_first_repair_is_selu_or_another_optimizer(gated, raw, title) -> None:
    """Slow convergence is a vanishing flag at a time when no gradient had vanished."""
    assert autotrainer(seen(gated=[Flag(60, gated)], raw=raw)).title == title


def selu(lesson):
    """Treat a lesson with AUTOTRAINER's SELU."""
    return autotrainer(seen(gated=[Flag(60, Symptom.DEAD)])).treat(lesson).lesson


def test_selu_replaces_hidden_activations_and_draws_hidden_layers_anew() -> None:
    """Every activation before the last layer is SELU, weights and biases are LeCun's, and the last layer stays."""

    def network(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Linear(inputs, 64), nn.Sigmoid(), Residual(nn.Sequential(nn.Linear(64, 64), nn.ReLU())),
            nn.Linear(64, 64), Exponential(), nn.Linear(64, 1), nn.Sigmoid(),
        )  # fmt: skip

    recipe = Recipe(network=network, num_steps=1)
    before, after = recipe.lesson(0).model, selu(recipe.lesson(0)).model
    kinds = [type(module).__name__ for module in after.modules() if not list(module.children())]
    assert kinds == ["Linear", "SELU", "Linear", "SELU", "Linear", "SELU", "Linear", "Sigmoid"]
    assert torch.equal(before[5].weight, after[5].weight)
    for layer in (after[0], after[2].branch[0], after[3]):
        for values, fan_in in ((layer.weight, layer.in_features), (layer.bias, math.sqrt(64))):
            bound = math.sqrt(3 / fan_in)
            assert 0.9 * bound < float(values.detach().abs().max()) <= bound


def test_selu_reaches_activations_called_as_functions_and_leaves_recurrent_layers() -> None:
    """In Keras both kinds of activation are settings of a layer; recurrent layers keep their tanh and weights."""
    recipe = Recipe(network=lambda i, o: Functional([i, 8, 8, o], torch.sigmoid), num_steps=1)
    assert selu(recipe.lesson(0)).model._activation is F.selu
    sequences = SequenceRecipe(lambda: Reader("rnn", 8), num_steps=1)
    before, after = sequences.lesson(0).model, selu(sequences.lesson(0)).model
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


@pytest.mark.parametrize("now", ["sgd", "adam", "rmsprop"])
def test_another_optimizer_is_never_the_same_one(now: str) -> None:
    """It is drawn by lot among the others, for the same parameters, the same for the same seed."""
    recipe = Recipe(data="circle", depth=1, optimizer=now, num_steps=1, schedule=lambda _: 0.5)
    found = set()
    for seed in range(40):
        proposal = autotrainer(Seen(Watch(), seed, {"AUTOTRAINER": [Flag(60, Symptom.VANISHING)]}))
        lesson = recipe.lesson(0)
        before, treated = type(lesson.optimizer), proposal.treat(lesson).lesson
        found.add(type(treated.optimizer))
        assert treated.schedule.optimizer is treated.optimizer
        assert [id(p) for p in treated.optimizer.param_groups[0]["params"]] == list(map(id, lesson.model.parameters()))
        assert type(proposal.treat(recipe.lesson(0)).lesson.optimizer) is type(treated.optimizer)
    assert before not in found
    assert len(found) == 4


@pytest.mark.parametrize(
    ("case", "before", "following", "right"),
    [
        ("disconnected/data/adam", "net.trunk.2", "net.head.0", True),
        ("rest/no-grad-trunk/adam", "net.trunk.2", "net.head.0", True),
        ("disconnected/data/adam", "net.head.0", "net.head.2", False),
        ("disconnected/data/adam", "net.trunk.0", "net.trunk.2", False),
        ("disconnected/data/adam", "net.trunk.2", "", False),
        ("training/nan-in-a-batch", "net.trunk.2", "net.head.0", False),
    ],
)
def test_words_are_played_only_where_they_name_the_cut(case: str, before: str, following: str, right: bool) -> None:
    """The layer before it is a culprit and the next one is none; other cases cut nothing."""
    cut = Diagnosis("disconnected", Symptom.DISCONNECTED, layers=(before,), evidence={"next_layer": following})
    words = Remedy(f"find what cuts the graph between {before} and {following} and remove it", "", cut)
    proposal = ours(seen(words))
    assert proposal.words_only
    assert names_the_culprit(next(each for each in all_cases() if each.name == case), proposal) == right
    elsewhere = ours(seen(Remedy("look somewhere", "", cut)))
    assert not names_the_culprit(next(each for each in all_cases() if each.name == case), elsewhere)
