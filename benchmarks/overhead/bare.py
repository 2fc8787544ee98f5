"""Watching a step beside the floor, without forward and backward pass: gradients are there, and are read.

The floor is ``torch.nn.utils.get_total_norm``: one read of every gradient, one number, not even brought to the host.
GradWatch does all that it does in a step without a probe: measure, bring to the host, remember, ask every rule.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.overhead.abba import Seconds, compare
from benchmarks.overhead.works import Work
from lightning_gradwatch import ClipByGlobalNorm
from lightning_gradwatch.settings import Settings
from lightning_gradwatch.watching import Watch

# Below the norm of the prepared gradients, so that every one of them is multiplied.
MAX_NORM = 1e-3


def steps_of(work: Work, rounds: int) -> dict[str, Seconds]:
    """Time what reads and what clips the gradients of one step.

    Args:
        work: The model.
        rounds: How many times forwards and backwards.

    Returns:
        Medians by name: ``floor``, ``floor again`` (the null control), ``clip_grad_norm_``, ``GradWatch`` and
        ``GradWatch with ClipByGlobalNorm``.
    """
    torch.manual_seed(0)
    model = work.make()
    inputs, targets = work.batch()
    loss = work.loss(model(inputs), targets)
    torch.autograd.backward(loss)
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    calls: dict[str, Callable[[], object]] = {
        "floor": lambda: nn.utils.get_total_norm(gradients),
        "GradWatch": _watching(model, loss.detach(), Settings(probe_every_n_steps=None)),
        "clip_grad_norm_": lambda: nn.utils.clip_grad_norm_(parameters, MAX_NORM),
        "GradWatch with ClipByGlobalNorm": _watching(
            model, loss.detach(), Settings(probe_every_n_steps=None, clipper=ClipByGlobalNorm(MAX_NORM))
        ),
        "floor again": lambda: nn.utils.get_total_norm(gradients),
    }
    return compare(calls, rounds)


def _watching(model: nn.Module, loss: torch.Tensor, settings: Settings) -> Callable[[], object]:
    watch, optimizer = Watch(settings), torch.optim.SGD(model.parameters(), lr=1e-3)
    watch.start(model, num_optimizers=1)
    step = 0

    def one_step() -> None:
        nonlocal step
        watch.begin_batch(step, due=False)
        watch.before_backward(loss)
        watch.after_backward()
        watch.before_step(0, optimizer, step)
        watch.after_step(0)
        watch.end_batch()
        step += 1
        assert watch.disabled_reason is None, watch.disabled_reason

    return one_step
