"""Test ``lightning_gradwatch.poisoned``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gradwatch.measure.snapshot import GradientSnapshot
from lightning_gradwatch.poisoned import PoisonedSteps


@pytest.fixture
def adam():
    """Return an optimizer that has momentum to lose, about to do its second step."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(2):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    return optimizer


def test_warn_leaves_the_step_alone(adam):
    """Nothing is dropped and nothing ends."""
    steps = PoisonedSteps("warn", 1)
    assert not steps.handle_(adam)
    assert all(parameter.grad is not None for parameter in adam.param_groups[0]["params"])


def test_skip_moves_neither_weights_nor_moments(adam):
    """Without gradients AdamW has nothing to do: no step, no decay."""
    steps = PoisonedSteps("skip", 3)
    weights = [parameter.detach().clone() for parameter in adam.param_groups[0]["params"]]
    assert not steps.handle_(adam)
    adam.step()
    assert all(torch.equal(p, w) for p, w in zip(adam.param_groups[0]["params"], weights, strict=True))
    assert {float(state["step"]) for state in adam.state.values()} == {2.0}
    assert steps.num_skipped == 1


def test_only_skips_in_a_row_end_training(adam):
    """A clean step between two poisoned ones starts the count anew."""
    steps = PoisonedSteps("skip", 2)
    assert [steps.handle_(adam), steps.handle_(adam)] == [False, False]
    steps.clean()
    assert [steps.handle_(adam) for _ in range(3)] == [False, False, True]
    assert steps.num_skipped == 5


def test_the_reason_names_step_and_layers():
    """At most three layers are named."""
    norms, present = np.array([1.0, np.nan, np.inf, np.nan, np.nan]), np.ones(5, dtype=np.bool_)
    snapshot = GradientSnapshot(7, 0, norms, norms, norms, norms, present, norms)
    text = PoisonedSteps("raise", 1).reason(snapshot, list("abcde"))
    assert text == 'step 7: gradients are not finite in b, c, d and 1 more (on_nonfinite="raise")'


def test_counts_survive_a_checkpoint(adam):
    """A row of skips goes on where it was."""
    steps, fresh = PoisonedSteps("skip", 2), PoisonedSteps("skip", 2)
    assert [steps.handle_(adam), steps.handle_(adam)] == [False, False]
    fresh.load_state_dict(**steps.state_dict())
    assert fresh.num_skipped == 2
    assert fresh.handle_(adam)
