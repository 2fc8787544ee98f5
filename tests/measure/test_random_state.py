"""Test ``lightning_gradwatch.measure.random_state``."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from lightning_gradwatch.measure.random_state import RandomState, kept_random_state


def draws() -> list[float]:
    """Draw a number from every generator that a person's code shares with torch, numpy and python."""
    return [float(torch.rand(())), float(np.random.rand()), random.random(), float(torch.randn(3).sum())]  # noqa: NPY002


def test_everything_is_drawn_again():
    """After ``restore`` torch, numpy and python give the same numbers; between two of them they do not."""
    state = RandomState()
    first, second = draws(), draws()
    state.restore()
    assert draws() == first
    assert second != first


def test_an_error_puts_the_state_back_too():
    """What was drawn in a block that fails is not missed."""
    inside = []

    def fail() -> None:
        with kept_random_state():
            inside.extend(draws())
            raise ArithmeticError("mine")

    with pytest.raises(ArithmeticError):
        fail()
    assert draws() == inside


@pytest.mark.gpu
def test_cuda_draws_again():
    """The state of every CUDA device is kept."""
    torch.rand(1, device="cuda")
    with kept_random_state():
        inside = torch.rand(3, device="cuda")
    assert torch.equal(torch.rand(3, device="cuda"), inside)
