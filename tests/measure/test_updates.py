"""Test ``lightning_gradwatch.measure.updates``."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gradwatch.measure.layers import find_layers
from lightning_gradwatch.measure.updates import MAX_SAMPLE, WeightSample


def clones(net: nn.Module) -> list[torch.Tensor]:
    """Return each layer's trainable numbers as one vector in float64."""
    return [
        torch.cat([p.detach().double().reshape(-1).clone() for p in layer.parameters.values() if p.requires_grad])
        for layer in find_layers(net)
    ]


def ratios(sample: WeightSample) -> list[float]:
    """Return |dW| / |W| of each column."""
    before, moved = sample.measure()
    return (moved / before).tolist()


@pytest.mark.parametrize(
    "make",
    [
        partial(torch.optim.SGD, lr=0.1),
        partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
        partial(torch.optim.Adam, lr=0.01),
        partial(torch.optim.Adam, lr=0.01, fused=True),
        partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1, foreach=True),
    ],
)
def test_the_update_of_a_small_layer_is_that_of_its_clones(make):
    """Whatever the optimizer does with a gradient, what is told is how far the weights went."""
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    optimizer = make(net.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(4, 6)).square().mean().backward()
        before, sample = clones(net), WeightSample(find_layers(net), [0, 1])
        optimizer.step()
        moved = [float((new - old).norm() / old.norm()) for new, old in zip(clones(net), before, strict=True)]
        assert ratios(sample) == pytest.approx(moved, rel=1e-4)


def row_dependent(weight: torch.Tensor) -> torch.Tensor:
    """Return an update that only some of the inputs get, as the pixels of a digit do: the border is always black."""
    columns = torch.arange(weight[0].numel()).view(weight[0].shape)
    return 0.01 * torch.randn_like(weight) * (columns % 28 > 4)


@pytest.mark.parametrize("update", [lambda weight: 0.01 * torch.randn_like(weight), row_dependent])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(784, 512),
        lambda: nn.Linear(1024, 1024),
        lambda: nn.Linear(100_000, 3),
        lambda: nn.Embedding(3000, 64),
        lambda: nn.Conv2d(128, 128, 3),
        lambda: nn.Conv2d(128, 128, 3).to(memory_format=torch.channels_last),
        lambda: nn.Linear(300, 437),
    ],
)
def test_a_sample_tells_the_update_of_a_large_layer(make, update):
    """The 64th part of a layer, or 65,536 numbers, tells the ratio of all to 6%, also where inputs differ."""
    net = make()
    before, sample = clones(net), WeightSample(find_layers(net), [0])
    assert sum(map(torch.Tensor.numel, sample._before)) <= MAX_SAMPLE
    assert sum(map(torch.Tensor.numel, sample._before)) > 0.8 * min(MAX_SAMPLE, len(before[0]) / 64)
    with torch.no_grad():
        net.weight.add_(update(net.weight))
    after = clones(net)
    assert ratios(sample) == pytest.approx([float((after[0] - before[0]).norm() / before[0].norm())], rel=0.06)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize(
    "form",
    [lambda w: w, lambda w: w.t(), lambda w: w[::2, 1::2], lambda w: w.t()[:, 3:]],
    ids=["plain", "transposed", "every second", "sliced"],
)
def test_every_format_and_layout_is_read(form, dtype):
    """Moving all numbers by a half of themselves is a ratio of a half, and the sample stays a sample."""
    net = nn.Module()
    net.weight = nn.Parameter(form(torch.randn(800, 600).to(dtype)))
    sample = WeightSample(find_layers(net), [0])
    assert 1024 <= sample._before[0].numel() <= net.weight.numel() / 25
    with torch.no_grad():
        net.weight.mul_(1.5)
    assert ratios(sample) == pytest.approx([0.5], rel=5e-3)


def test_only_what_can_be_trained_counts():
    """A frozen weight beside a trained bias does not make the layer look unmoved, and a frozen layer has no value."""
    net = nn.Sequential(nn.Linear(50, 4), nn.Linear(4, 2).requires_grad_(requires_grad=False))
    net[0].weight.requires_grad_(requires_grad=False)
    sample = WeightSample(find_layers(net), np.array([0, 1]))
    with torch.no_grad():
        net[0].bias.mul_(3.0)
    assert sample.columns == [0]
    assert ratios(sample) == pytest.approx([2.0])


@pytest.mark.parametrize("shape", [(0,), (0, 3)])
def test_a_layer_without_numbers_has_no_value(shape):
    """A parameter of size zero, and an optimizer of nothing else, cost no error."""
    net = nn.Module()
    net.empty = nn.Parameter(torch.zeros(shape))
    sample = WeightSample(find_layers(net), [0])
    before, moved = sample.measure()
    assert (sample.columns, before.tolist(), moved.tolist()) == ([], [], [])


def test_a_single_number_beside_a_large_weight_is_read():
    """A scalar parameter has no rows."""
    net = nn.Module()
    net.weight, net.scale = nn.Parameter(torch.ones(700, 300)), nn.Parameter(torch.tensor(2.0))
    sample = WeightSample(find_layers(net), [0])
    with torch.no_grad():
        net.scale.mul_(3.0)
    before, moved = sample.measure()
    assert float(moved[0]) == 4.0
    assert float(before[0]) > 2.0


def test_no_random_number_is_drawn_and_no_parameter_is_written_to():
    """Sampling and measuring leave the random state and the weights alone."""
    net = nn.Linear(500, 300)
    state, before = torch.get_rng_state(), clones(net)
    sample: Any = WeightSample(find_layers(net), [0])
    sample.measure()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(clones(net)[0], before[0])
