"""What a case of the ward is: a network, its data and its optimizer, what ails it, and what alone cures it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_gradwatch import Symptom

Batch = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Lesson:
    """Everything that one training run needs, made for one seed.

    Attributes:
        model: The network; its layer names are the names that diagnoses use.
        optimizer: Its optimizer.
        batches: The batches in the order of training, one a step (``[num_steps]``, times ``accumulate``).
        loss: Computes the loss of a batch.
        score: How well the trained network does, at best 1.0: accuracy or R2 on data that it has not seen.
        passes: Score from which on the network counts as trained: 90% of what its healthy twin reaches.
        schedule: Learning rate schedule, stepped after each optimizer step.
        accumulate: Batches an optimizer step.
        play: For several optimizers: does the whole step by itself (``play(module, optimizers, batch)``, called with
            the LightningModule, whose ``manual_backward`` it has to use); then ``others`` holds the further optimizers.
        others: Further optimizers, for ``play``.
        trainer: Further arguments of the Trainer, such as ``{"gradient_clip_val": 1.0}``.
    """

    model: nn.Module
    optimizer: Optimizer
    batches: Sequence[Batch]
    loss: Callable[[nn.Module, Batch], Tensor]
    score: Callable[[nn.Module], float]
    passes: float
    schedule: LRScheduler | None = None
    accumulate: int = 1
    play: Callable[[Any, Sequence[Any], Batch], None] | None = None
    others: Sequence[Optimizer] = ()
    trainer: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Case:
    """A lesson with its label.

    Attributes:
        name: Family first, such as ``"mlp/sigmoid-12/sgd"``.
        lesson: Makes the lesson of a seed; the same seed always makes the same one.
        symptom: What it is claimed to suffer from, None for a healthy one.
        culprits: Names of the layers where the fault lies, any of which may be named among the first three; patterns
            with ``*`` as in ``fnmatch``. Empty for healthy ones.
        cure: The same lesson with the claimed fault repaired and nothing else changed; None for healthy ones.
        decided: Whether the fault can be told at the start (exact zeros, non-finite numbers, steps that move nothing
            or overwrite the weights), or only the outcome decides.
        source: Where the case is from: a published list with its number, or ``"ours"``.
        negative: Which hard negative a healthy case is, such as ``"LoRA's zero start"``; empty for plain ones.
        event_step: The step in which a fault begins that does not lie in the start (a spike, a poisoned batch).
    """

    name: str
    lesson: Callable[[int], Lesson]
    symptom: Symptom | None = None
    culprits: tuple[str, ...] = ()
    cure: Callable[[int], Lesson] | None = None
    decided: Literal["start", "outcome"] = "outcome"
    source: str = "ours"
    negative: str = ""
    event_step: int = 0

    @property
    def held_back(self) -> bool:
        """Whether it is one of the third that the rules were not tuned on; decided by its name alone."""
        digest = sum((place + 1) * ord(letter) for place, letter in enumerate(self.name))
        return digest % 3 == 0
