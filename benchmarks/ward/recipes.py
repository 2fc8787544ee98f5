"""Recipes: a lesson written as a handful of settings, so that a cure is the same recipe with one of them changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.ward.case import Batch, Case, Lesson
from benchmarks.ward.data import PASSES, accuracy, batches, explained, table, unseen
from benchmarks.ward.networks import dense, initialize_, optimizer_of
from lightning_gradwatch import Symptom

Data = Literal["circle", "blob", "digits", "curve", "noisy", "product"]


@dataclass(frozen=True)
class Recipe:
    """Settings of a lesson on a table of data.

    Attributes:
        data: Which table.
        network: Makes the network from the numbers of inputs and outputs; None for a dense stack of the following.
        depth: Hidden layers.
        width: Their width.
        activation: What follows each of them.
        more: Further arguments of ``dense``.
        scheme: How the weights begin.
        gain: What they are multiplied by.
        edit: Changes the network once it is made.
        optimizer: Its name.
        rate: Learning rate.
        num_steps: Optimizer steps.
        batch_size: Samples a batch.
        factor: What the loss is multiplied by.
        sum_loss: Whether the loss is summed over the batch.
        target_scale: What the targets of a regression are multiplied by.
        loss: Another loss; takes outputs and targets.
        change: Changes a batch: takes its number and the batch.
        schedule: Learning rate of a step as a share of ``rate``.
        accumulate: Batches an optimizer step.
        trainer: Makes further arguments of the Trainer.
        passes: Score from which on it counts as trained; None for that of the data.
    """

    data: Data = "digits"
    network: Callable[[int, int], nn.Module] | None = None
    depth: int = 8
    width: int = 32
    activation: str = "relu"
    more: Mapping[str, Any] = field(default_factory=dict)
    scheme: str = "default"
    gain: float = 1.0
    edit: Callable[[nn.Module], None] | None = None
    optimizer: str = "adam"
    rate: float = 1e-3
    num_steps: int = 300
    batch_size: int = 64
    factor: float = 1.0
    sum_loss: bool = False
    target_scale: float = 1.0
    loss: Callable[[Tensor, Tensor], Tensor] | None = None
    change: Callable[[int, Batch], Batch] | None = None
    schedule: Callable[[int], float] | None = None
    accumulate: int = 1
    trainer: Callable[[], Mapping[str, Any]] = dict
    passes: float | None = None

    def lesson(self, seed: int) -> Lesson:
        """Make the lesson of a seed."""
        torch.manual_seed(seed)
        inputs, targets = table(self.data)
        outputs = 1 if self.data == "curve" else int(targets.max()) + 1
        model = (self.network or self._dense)(inputs.shape[1], outputs)
        initialize_(model, self.scheme, self.gain)
        if self.edit is not None:
            self.edit(model)
        optimizer = optimizer_of(self.optimizer, model, self.rate)
        drawn = batches(self.data, self.num_steps * self.accumulate, self.batch_size, seed)
        if self.change is not None:
            drawn = [self.change(number, batch) for number, batch in enumerate(drawn)]
        return Lesson(
            model=model,
            optimizer=optimizer,
            batches=drawn,
            loss=self._loss,
            score=self._score,
            passes=PASSES[self.data] if self.passes is None else self.passes,
            schedule=None if self.schedule is None else LambdaLR(optimizer, self.schedule),
            accumulate=self.accumulate,
            trainer=self.trainer(),
        )

    def _dense(self, inputs: int, outputs: int) -> nn.Module:
        return dense(inputs, outputs, depth=self.depth, width=self.width, activation=self.activation, **dict(self.more))

    def _loss(self, model: nn.Module, batch: Batch) -> Tensor:
        out, targets = model(batch[0]), batch[1]
        if self.loss is not None:
            return self.factor * self.loss(out, targets)
        reduction = "sum" if self.sum_loss else "mean"
        if self.data == "curve":
            return self.factor * F.mse_loss(out.squeeze(-1), targets * self.target_scale, reduction=reduction)
        return self.factor * F.cross_entropy(out, targets, reduction=reduction)

    def _score(self, model: nn.Module) -> float:
        inputs, targets = unseen(self.data)
        out = model(inputs)
        if self.data == "curve":
            return explained(out.squeeze(-1) / self.target_scale, targets)
        return accuracy(out, targets)


def sick(
    name: str,
    recipe: Recipe,
    symptom: Symptom,
    culprits: tuple[str, ...],
    cure: Mapping[str, Any],
    **more: Any,
) -> Case:
    """Make a case of a fault and of what alone cures it."""
    healthy = replace(recipe, **cure)
    return Case(name, recipe.lesson, symptom=symptom, culprits=culprits, cure=healthy.lesson, **more)


def well(name: str, recipe: Recipe, negative: str = "", **more: Any) -> Case:
    """Make a healthy case."""
    return Case(name, recipe.lesson, negative=negative, **more)


def early(depth: int, stride: int = 2, prefix: str = "") -> tuple[str, ...]:
    """Name the first third of the hidden layers of a dense stack."""
    return tuple(f"{prefix}{stride * number}" for number in range(max(1, depth // 3)))
