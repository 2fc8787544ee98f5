"""Test ``benchmarks.ward.recipes``."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from benchmarks.ward.data import PASSES
from benchmarks.ward.recipes import Recipe, early, sick, well
from benchmarks.ward.train import train
from lightning_gradwatch import Symptom

SHORT = Recipe(depth=2, width=8, num_steps=3, batch_size=4)


def loss(recipe: Recipe) -> float:
    """Return the loss of the first batch of a recipe."""
    lesson = recipe.lesson(0)
    return lesson.loss(lesson.model, lesson.batches[0]).item()


def test_a_lesson_is_what_the_settings_say() -> None:
    """Steps, batches, accumulation, rate and the score to reach are those of the recipe and of its data."""
    lesson = replace(SHORT, accumulate=2, rate=0.5, optimizer="sgd").lesson(0)
    assert len(lesson.batches) == 6
    assert lesson.batches[0][0].shape == (4, 64)
    assert lesson.accumulate == 2
    assert lesson.optimizer.param_groups[0]["lr"] == 0.5
    assert lesson.passes == PASSES["digits"]
    assert replace(SHORT, passes=0.33).lesson(0).passes == 0.33


def test_the_loss_is_scaled_and_summed_as_asked() -> None:
    """A factor multiplies it, and a sum over four samples is four times the mean."""
    plain = loss(SHORT)
    lesson = SHORT.lesson(0)
    assert plain == pytest.approx(F.cross_entropy(lesson.model(lesson.batches[0][0]), lesson.batches[0][1]).item())
    assert loss(replace(SHORT, factor=1e-4)) == pytest.approx(1e-4 * plain)
    assert loss(replace(SHORT, sum_loss=True)) == pytest.approx(4 * plain)
    assert loss(replace(SHORT, loss=lambda out, _: 0 * out.sum() + 7, factor=2.0)) == 14


def test_scaled_targets_of_a_regression_are_scored_on_their_own_scale() -> None:
    """The loss sees targets times the scale, and a network that answers on that scale scores as one without it."""
    lesson = replace(SHORT, data="curve", target_scale=100.0).lesson(0)
    batch = lesson.batches[0]
    out = lesson.model(batch[0]).squeeze(-1)
    assert lesson.loss(lesson.model, batch).item() == pytest.approx(F.mse_loss(out, 100 * batch[1]).item())
    plain = replace(SHORT, data="curve", num_steps=300, rate=1e-2).lesson(0)
    train(plain)
    with torch.no_grad():
        score = plain.score(plain.model)
        assert score > 0.1
        assert lesson.score(lambda x: 100 * plain.model(x)) == pytest.approx(score)


def test_a_change_is_made_of_each_batch_by_its_number() -> None:
    """A batch that is changed is changed alone."""
    changed = replace(SHORT, change=lambda number, batch: (batch[0] * (number == 1), batch[1])).lesson(0)
    assert [bool(inputs.any()) for inputs, _ in changed.batches] == [False, True, False]
    assert torch.equal(changed.batches[1][0], SHORT.lesson(0).batches[1][0])


def test_a_schedule_is_a_share_of_the_rate() -> None:
    """The learning rate of the first step is the rate times the share at 0."""
    lesson = replace(SHORT, rate=0.5, schedule=lambda step: 0.1 if step == 0 else 1.0).lesson(0)
    assert lesson.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def test_an_edit_comes_after_the_initialization() -> None:
    """What an edit does to the weights stays."""
    lesson = replace(SHORT, scheme="he", edit=lambda model: torch.nn.init.ones_(model[0].weight)).lesson(0)
    assert bool((lesson.model[0].weight == 1).all())


def test_a_cure_is_the_same_recipe_with_one_thing_changed() -> None:
    """Weights, batches and score are those of the sick lesson where the cure does not say otherwise."""
    case = sick("a/b", replace(SHORT, rate=9.0), Symptom.EXPLODING, ("*",), {"rate": 1e-3}, decided="start")
    assert case.cure is not None
    ill, cured = case.lesson(3), case.cure(3)
    assert (ill.optimizer.param_groups[0]["lr"], cured.optimizer.param_groups[0]["lr"]) == (9.0, 1e-3)
    assert all(torch.equal(a, b) for a, b in zip(ill.model.parameters(), cured.model.parameters(), strict=True))
    assert torch.equal(ill.batches[2][0], cured.batches[2][0])
    assert (case.symptom, case.culprits, case.decided) == (Symptom.EXPLODING, ("*",), "start")
    assert well("a/c", SHORT, "a GAN").negative == "a GAN"


def test_the_first_third_of_a_stack_is_named() -> None:
    """Of twelve hidden layers four are early, of two one; names step by the parts of a layer."""
    assert early(12) == ("0", "2", "4", "6")
    assert early(2, stride=3, prefix="net.") == ("net.0",)
