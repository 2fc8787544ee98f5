"""What one process knows of a step that is not finite when it is found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_gradwatch.measure.finite import layers_not_finite
from lightning_gradwatch.measure.layers import Layer
from lightning_gradwatch.measure.snapshot import GradientSnapshot
from lightning_gradwatch.report.origin import Witness

_NAMED_LAYERS = 3


@dataclass(frozen=True, eq=False)
class PoisonedStep:
    """A step that is not finite, when it is found.

    Attributes:
        step: The ``global_step`` before it.
        optimizer: Number of the optimizer.
        optimizer_kind: Its class.
        snapshot: Its gradients; None where they could not be measured.
        sick: Names of the layers whose gradient is not finite in this process.
        losses: The losses whose gradients it would use, each with the index of its batch.
        place: The epoch and the index of the batch in which it was found, None where they are not known.
        before_step: Whether the optimizer has not used it, and never will.
    """

    step: int
    optimizer: int
    optimizer_kind: str
    snapshot: GradientSnapshot | None
    sick: tuple[str, ...] = ()
    losses: Sequence[tuple[int | None, Tensor]] = ()
    place: tuple[int, int] | None = None
    before_step: bool = False


def witness_of(myself: Witness, about: PoisonedStep, layers: Sequence[Layer]) -> Witness:
    """Take down what this process knows: its batches, its losses, and what is broken in its part of the model.

    Args:
        myself: Who it is, and which step it speaks of.
        about: The step.
        layers: The layers whose weights are looked at; one transfer to the host.

    Returns:
        What it can say.

    Example:
        >>> about = PoisonedStep(7, 0, "SGD", None, losses=((3, torch.tensor(float("nan"))),))
        >>> witness_of(Witness(step=7), about, []).line
        'batch 3: loss nan'
    """
    witness = replace(myself, seed=torch.initial_seed())
    if about.place is not None:
        # One that the optimizer has used may be found in the batch after it.
        batches = (about.place[1],) * 2 if about.before_step else ()
        witness = replace(witness, epoch=about.place[0], batches=batches)
    witness = replace(_with_losses(witness, about), broken_gradients=about.sick[:_NAMED_LAYERS])
    witness = replace(witness, measured=about.snapshot is not None)
    broken = layers_not_finite(layers)
    return replace(witness, broken_weights=tuple(broken[:_NAMED_LAYERS]), num_broken_weights=len(broken))


def _with_losses(witness: Witness, about: PoisonedStep) -> Witness:
    """Add a process's losses: which batches they are of, their mean, and which are not finite."""
    if not about.losses:
        return witness
    batches = [batch for batch, _ in about.losses if batch is not None]
    device = about.losses[0][1].device
    values = torch.stack([loss.to(device) for _, loss in about.losses]).tolist()
    broken = [
        batch
        for (batch, _), value in zip(about.losses, values, strict=True)
        if batch is not None and not math.isfinite(value)
    ]
    return replace(
        witness,
        batches=(batches[0], batches[-1]) if batches else witness.batches,
        broken_batches=tuple(dict.fromkeys(broken)),
        # The mean that belongs to the step, without the factor of a loss scaler.
        loss=float(sum(values)) if about.snapshot is None else about.snapshot.loss,
    )
