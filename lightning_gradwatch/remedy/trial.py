"""One copy of the model, with a remedy or as it is: a pass that is measured, and a few steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradwatch.measure.one_pass import LossClosure, Passes
from lightning_gradwatch.measure.random_state import RandomState
from lightning_gradwatch.measure.reader import Reader
from lightning_gradwatch.measure.snapshot import FloatArray, SignalSnapshot
from lightning_gradwatch.remedy.budget import LEAST_STEPS, Budget
from lightning_gradwatch.remedy.clipping import Clipper
from lightning_gradwatch.remedy.copying import FREE_SHARE, copy_of
from lightning_gradwatch.remedy.rebuilding import NotRebuiltError, change_, rebuild, twins_of
from lightning_gradwatch.remedy.remedy import Remedy

# Ours: enough for the loss of a network that can learn to leave its start, few enough to wait for.
NUM_STEPS = 10
# AUTOTRAINER calls a first/last ratio below 1e-3 vanishing; as in ``DepthRule.notice``.
POOR = 3.0


class NotRehearsedError(Exception):
    """Says in words why nothing can be tried with this model, to be raised by a loss closure."""


@dataclass(frozen=True)
class Trial:
    """What was seen of one copy.

    Attributes:
        loss: Loss of its first pass.
        loss_after: Loss after the steps, with the same random numbers; ``loss`` where there were none.
        first_over_last: Norm of the gradient that reaches the first layer's output, of that of the last one, in
            the first pass; after the steps where it is exactly 0 in the first.
        steps: How many steps were made.
        note: Why there were none, in words.
        over_time: The same ratio along the time steps of the recurrent layer that fades or grows most, in the first
            pass; NaN where there is none.
    """

    loss: float
    loss_after: float
    first_over_last: float
    steps: int
    note: str = ""
    over_time: float = math.nan

    @property
    def orders(self) -> float:
        """How many orders of magnitude the gradient fades or grows along depth; 0 where that is not known."""
        return _orders(self.first_over_last)

    @property
    def poor(self) -> bool:
        """Whether those are so many that the profile is poor."""
        return self.orders >= POOR

    @property
    def poor_over_time(self) -> bool:
        """Whether the profile along time is poor."""
        return _orders(self.over_time) >= POOR


def _orders(ratio: float) -> float:
    if math.isnan(ratio):
        return 0.0
    return abs(math.log10(ratio)) if 0 < ratio < math.inf else math.inf


@dataclass(frozen=True)
class Stage:
    """Where remedies are tried: a model, a batch and what trains it.

    Attributes:
        model: The model; nothing of it is changed.
        loss_closure: Takes a model of its kind, runs the batch through it and returns the loss.
        optimizer: The person's own, None for ``Adam(lr=1e-3)``, torch's default.
        clipper: What clips their steps already.
        prepare: Makes a copy ready, such as one that must not log.
        free_share: Share of the free memory that a copy may take.
        num_steps: How many steps of the optimizer are made.
        seconds: How long all of it may take: as many steps are made as the time allows for all copies, as its first
            pass tells, and what does not fit any more is not tried. None for as long as it takes.
        say: Takes a line for the log where it will take long; None where nobody is told.

    Example:
        >>> stage = Stage(nn.Linear(2, 1), lambda model: model(torch.ones(1, 2)).sum())
        >>> stage.num_steps
        10
    """

    model: nn.Module
    loss_closure: LossClosure
    optimizer: Optimizer | None = None
    clipper: Clipper | None = None
    prepare: Callable[[nn.Module], None] | None = None
    free_share: float = FREE_SHARE
    num_steps: int = NUM_STEPS
    seconds: float | None = None
    say: Callable[[str], None] | None = None


def try_on_copy(stage: Stage, state: RandomState, remedy: Remedy | None, budget: Budget | None = None) -> Trial:
    """Run a copy with a remedy, or as it is.

    Args:
        stage: Where it is tried.
        state: The random numbers from which it starts.
        remedy: What to do to the copy, None for nothing.
        budget: Says after each step whether there is time for another; None where there is.

    Returns:
        What was seen.

    Raises:
        NotCopiedError: If there can be no copy; errors of the remedy and of the person's own code go through.
    """
    copied = copy_of(stage.model, free_share=stage.free_share)
    twins = twins_of(stage.model, copied)
    if stage.prepare is not None:
        stage.prepare(copied)
    state.restore()
    with nullcontext() if remedy is None else remedy.tried(copied):
        everything = remedy is not None and remedy.optimizer_changes.get("params") == "all"
        optimizer, note = _optimizer(stage, twins, copied, everything=everything)
        if remedy is not None:
            change_(optimizer, remedy.optimizer_changes)
        clipper = deepcopy(stage.clipper if remedy is None or remedy.clipper is None else remedy.clipper)
        passes = Passes(
            Reader(copied),
            stage.loss_closure,
            optimizer,
            None if clipper is None else clipper.clip_,
            frozenset(map(id, stage.model.parameters())),
        )
        return _run(passes, state, 0 if note else stage.num_steps, note, budget)


def _optimizer(
    stage: Stage, twins: Mapping[int, Tensor], copied: nn.Module, *, everything: bool
) -> tuple[Optimizer, str]:
    """Return an optimizer for the copy, and why it cannot step."""
    trained = [parameter for parameter in copied.parameters() if parameter.requires_grad]
    if stage.optimizer is None:
        return torch.optim.Adam(trained), ""
    try:
        return rebuild(stage.optimizer, twins, copied, everything=everything), ""
    except NotRebuiltError as reason:
        return torch.optim.SGD(trained, lr=1.0), f"rehearsed with one backward pass and no step: {reason}"


def _run(passes: Passes, state: RandomState, num_steps: int, note: str, budget: Budget | None) -> Trial:
    state.restore()
    first = passes.measured(0, moves=num_steps > 0)
    # The measured pass has made the first step; with a gradient that is not finite nothing can be learned.
    steps = 1 if num_steps else 0
    while steps < num_steps and (budget is None or budget.another_step(steps, num_steps)):
        if first.gradients.finite:
            passes.step()
        steps += 1
    if steps < min(num_steps, LEAST_STEPS):
        steps = 0
    state.restore()
    after = passes.loss() if steps else first.loss
    ratio = first_over_last(first.signals, passes.reader)
    if ratio == 0 and steps:
        # A branch that is switched off at the start (ReZero, LoRA) lets nothing through before its first step.
        ratio = first_over_last(passes.measured(steps, moves=False).signals, passes.reader)
    return Trial(first.loss, after, ratio, steps, note, over_time(first.signals))


def first_over_last(signals: SignalSnapshot | None, reader: Reader) -> float:
    """Return what reaches the first layer's output of what reaches the last one's.

    ``|delta_first| / |delta_last|`` of the layers with a weight matrix that the forward pass called.

    Args:
        signals: What a probe saw.
        reader: Knows the layers.

    Returns:
        The ratio; NaN where fewer than two layers were reached.
    """
    if signals is None:
        return math.nan
    norms = signals.delta * np.sqrt(signals.sizes)
    matrices = np.array([about.has_matrix for about in reader.descriptions])
    called = signals.order[matrices[signals.order] & ~np.isnan(norms[signals.order])]
    if len(called) < 2 or norms[called[-1]] == 0:
        return math.nan
    return float(norms[called[0]] / norms[called[-1]])


def over_time(signals: SignalSnapshot | None) -> float:
    """Return what reaches the first time step of what reaches the last one that gets anything.

    Args:
        signals: What a probe saw.

    Returns:
        The ratio of the recurrent layer in which it is farthest from 1; NaN without one that reads in one direction.
    """
    profiles = () if signals is None else signals.time
    ratios = [_first_over_last_step(profile.delta) for profile in profiles if not profile.both_ways]
    return max(ratios, key=_orders, default=math.nan)


def _first_over_last_step(delta: FloatArray) -> float:
    reached = np.flatnonzero(np.isfinite(delta) & (delta > 0))
    return float(delta[0] / delta[reached[-1]]) if len(reached) and len(delta) > 1 else math.nan
