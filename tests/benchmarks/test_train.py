"""Test ``benchmarks.ward.train``."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.ward.case import Lesson
from benchmarks.ward.train import PREFIX, train


def line(seed: int = 0, num_steps: int = 40, rate: float = 0.2) -> Lesson:
    """Make a lesson in which a linear layer learns a noisy linear function; its score is 1 minus the squared error."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 1))
    inputs, noise = torch.randn(num_steps, 16, 3), 0.05 * torch.randn(num_steps, 16)
    wanted = torch.tensor([1.0, -2.0, 0.5])

    def score(net: nn.Module) -> float:
        return 1 - float(((net[0].weight.detach() - wanted) ** 2).sum())

    return Lesson(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=rate),
        batches=[(x, x @ wanted + e) for x, e in zip(inputs, noise, strict=True)],
        loss=lambda net, batch: F.mse_loss(net(batch[0]).squeeze(-1), batch[1]),
        score=score,
        passes=0.9,
    )


class Witness(pl.Callback):
    """Writes down what it sees of a training run."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.batches: list[torch.Tensor] = []
        self.steps = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.names = [name for name, _ in pl_module.named_modules()]
        self.batches.append(batch[0])
        self.steps = trainer.global_step


def test_it_trains() -> None:
    """A network that can learn has learned, and the score is that of the trained network."""
    lesson = line()
    before = lesson.score(lesson.model)
    after = train(lesson)
    assert before < 0.9 < after
    assert after == lesson.score(lesson.model)


def test_the_same_seed_ends_in_the_same_weights() -> None:
    """Two runs of a seed are alike to the bit, and those of two seeds are not."""
    first, again, other = line(0), line(0), line(1)
    for lesson in (first, again, other):
        train(lesson)
    assert torch.equal(first.model[0].weight, again.model[0].weight)
    assert not torch.equal(first.model[0].weight, other.model[0].weight)


def test_layers_have_the_names_of_the_model_behind_the_prefix() -> None:
    """What a callback calls a layer is its name in ``lesson.model`` behind the prefix."""
    lesson, witness = line(), Witness()
    train(lesson, [witness])
    seen = {name.removeprefix(PREFIX) for name in witness.names if name.startswith(PREFIX)}
    assert seen == {name for name, _ in lesson.model.named_modules() if name}


def test_batches_come_in_the_order_of_the_lesson_and_accumulate() -> None:
    """Every batch is seen once and in order; four of them make an optimizer step where the lesson says so."""
    lesson, witness = replace(line(), accumulate=4), Witness()
    train(lesson, [witness])
    assert all(torch.equal(seen, own[0]) for seen, own in zip(witness.batches, lesson.batches, strict=True))
    assert witness.steps == 10


def test_the_schedule_is_stepped_with_the_optimizer() -> None:
    """A learning rate schedule moves on once an optimizer step."""
    lesson = line(num_steps=12)
    schedule = LambdaLR(lesson.optimizer, lambda step: 1.0 if step < 12 else 0.5)
    train(replace(lesson, schedule=schedule))
    assert schedule.get_last_lr() == [0.1]


def test_the_trainer_gets_the_arguments_of_the_lesson() -> None:
    """A lesson that clips its gradients to nearly nothing hardly moves."""
    lesson = line()
    before = lesson.model[0].weight.detach().clone()
    train(replace(lesson, trainer={"gradient_clip_val": 1e-6}))
    assert 0 < float((lesson.model[0].weight.detach() - before).abs().max()) < 1e-4


@pytest.mark.parametrize("several", [True, False])
def test_a_lesson_may_play_a_step_by_itself(several: bool) -> None:
    """With ``play`` the lesson does the step and gets every optimizer, in a list even where there is one."""
    lesson, counts = line(num_steps=5), []
    bias = torch.optim.SGD([lesson.model[0].bias], lr=0.1)
    before = lesson.model[0].weight.detach().clone()

    def play(module, optimizers, batch) -> None:
        counts.append(len(optimizers))
        optimizers[0].zero_grad()
        module.manual_backward(lesson.loss(module.net, batch))
        optimizers[0].step()

    train(replace(lesson, play=play, others=[bias] if several else []))
    assert counts == [1 + several] * 5
    assert not torch.equal(before, lesson.model[0].weight)


def test_a_loss_that_is_not_finite_does_not_end_training() -> None:
    """A network that a batch has driven to NaN trains on to the last batch."""
    lesson, witness = line(), Witness()
    lesson.batches[3][0][0, 0] = float("nan")
    train(lesson, [witness])
    assert witness.steps == 40
    assert torch.isnan(lesson.model[0].weight).all()


def test_an_arithmetic_error_scores_zero_and_another_one_is_passed_on() -> None:
    """Arithmetic that ends training is a failed run; a mistake in a recipe is none and must be seen."""

    def fail(error: Exception):
        def loss(net, batch) -> torch.Tensor:
            raise error

        return loss

    assert train(replace(line(), loss=fail(FloatingPointError("1 / 0")))) == 0.0
    with pytest.raises(KeyError, match="a typing error"):
        train(replace(line(), loss=fail(KeyError("a typing error"))))


def test_it_is_silent_and_leaves_loggers_as_they_were(caplog, capsys) -> None:
    """Nothing is printed or logged, and the levels of the loggers are those from before, also after an error."""
    names = ("pytorch_lightning", "lightning.pytorch", "lightning_gradwatch")
    before = [logging.getLogger(name).level for name in names]
    train(line(num_steps=2))
    with pytest.raises(TypeError):
        train(replace(line(num_steps=2), trainer={"no_such_argument": 1}))
    assert [logging.getLogger(name).level for name in names] == before
    assert not caplog.records
    assert capsys.readouterr().out == ""
