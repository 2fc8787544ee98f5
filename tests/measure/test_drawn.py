"""Test ``lightning_gradwatch.measure.drawn``."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_gradwatch.measure.drawn import find_drawn
from lightning_gradwatch.measure.layers import find_layers


def drawn(*modules: nn.Module) -> frozenset[str]:
    """Return what is found among modules that are called ``0``, ``1`` and so on."""
    return find_drawn(find_layers(nn.Sequential(*modules)))


@settings(max_examples=50, deadline=None)
@given(inputs=st.integers(4, 64), outputs=st.integers(4, 64), seed=st.integers(0, 2**16))
def test_a_fresh_linear_layer_is_found_whatever_its_shape(inputs: int, outputs: int, seed: int) -> None:
    """The spread of few uniform numbers is allowed for."""
    torch.manual_seed(seed)
    assert drawn(nn.Linear(inputs, outputs)) == {"0"}


def test_fresh_convolutions_are_found() -> None:
    """With groups as well, whose units see fewer channels."""
    assert drawn(nn.Conv1d(4, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv3d(2, 4, 2)) == {"0", "1", "2"}


@pytest.mark.parametrize(
    "change", [nn.init.xavier_normal_, nn.init.kaiming_normal_, nn.init.orthogonal_, nn.init.zeros_]
)
def test_another_initialization_is_not_taken_for_it(change) -> None:
    """Normal numbers lie beyond the bound, and a zero is not drawn."""
    layer = nn.Linear(32, 32)
    change(layer.weight)
    assert drawn(layer) == frozenset()


def test_a_trained_layer_is_not_taken_for_it() -> None:
    """A hundred steps of Adam on a task move weights beyond where they were drawn."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer, x = torch.optim.Adam(model.parameters(), 1e-2), torch.randn(64, 16)
    y = x[:, :1] * x[:, 1:2]
    assert find_drawn(find_layers(model)) == {"0", "2"}
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    assert find_drawn(find_layers(model)) == frozenset()


def test_what_cannot_be_read_or_says_too_little_is_left_out() -> None:
    """Lazy and meta weights, embeddings, norms and layers of a few numbers."""
    assert (
        drawn(nn.LazyLinear(3), nn.Linear(9, 9, device="meta"), nn.Embedding(9, 9), nn.LayerNorm(9), nn.Linear(3, 3))
        == frozenset()
    )
    assert find_drawn([]) == frozenset()


def test_nothing_is_changed() -> None:
    """Neither the weights nor the random state."""
    layer, state = nn.Linear(8, 8), torch.get_rng_state()
    before = layer.weight.clone()
    assert drawn(layer) == {"0"}
    assert torch.equal(layer.weight, before)
    assert torch.equal(torch.get_rng_state(), state)
