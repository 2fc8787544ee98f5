"""Test ``lightning_gradwatch.losses``."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from lightning_gradwatch.losses import LossWindow


@pytest.mark.parametrize(("losses", "divided_by", "expected"), [([3.0], 1, 3.0), ([1.0, 2.0], 2, 3.0), ([1.0], 4, 4.0)])
def test_the_loss_of_a_step_is_the_sum_of_what_was_divided(losses, divided_by, expected):
    """A full window adds up to its mean; a shorter one is made up for."""
    window = LossWindow()
    for loss in losses:
        window.add(torch.tensor([loss], requires_grad=True))
    taken = window.take(divided_by)
    assert taken is not None
    assert (taken.item(), taken.requires_grad) == (expected, False)
    assert window.take(divided_by) is None


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda window: pickle.loads(pickle.dumps(window))])
def test_a_copy_has_no_losses(duplicate):
    """They belong to a fit under way; the original keeps them."""
    window = LossWindow()
    window.add(torch.tensor(1.0))
    window.take()
    window.add(torch.tensor(2.0))
    other = duplicate(window)
    assert (other.taken, other.take()) == ((), None)
    assert len(window.taken) == 1
    assert window.take() == 2.0
