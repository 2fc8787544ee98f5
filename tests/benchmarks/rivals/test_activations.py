"""Test ``benchmarks.ward.rivals.activations``."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.ward.rivals.activations import Activations


def test_a_unit_is_off_as_often_as_its_output_is_not_above_zero() -> None:
    """Of four samples the first unit is off in one, the second in all; the layer before is named."""
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True))
    network[0].weight.data = torch.eye(2)
    network[0].bias.data.zero_()
    watched = Activations(network)
    network(torch.tensor([[1.0, -1.0], [2.0, 0.0], [-3.0, -1.0], [4.0, -5.0]]))
    (units,) = watched.take().values()
    assert units.layer == "0"
    assert units.off.tolist() == [0.25, 1.0]
    assert not units.beyond_5.size


@pytest.mark.parametrize(
    ("module", "inputs", "beyond_5", "beyond_bounds"),
    [
        (nn.Tanh(), [4.9, -5.0, 9.49, 9.6], 0.75, 0.25),
        (nn.Sigmoid(), [4.9, -5.0, -22.0, 17.0], 0.75, 0.25),
        (nn.Sigmoid(), [0.0, 0.0, -23.5, 16.0], 0.5, 0.25),
    ],
)
def test_saturation_is_counted_at_the_inputs(
    module, inputs: list[float], beyond_5: float, beyond_bounds: float
) -> None:
    """Inputs of at least 5 either way, and beyond the bounds that Amazon SageMaker Debugger has for each function."""
    network = nn.Sequential(module)
    watched = Activations(network)
    network(torch.tensor(inputs).unsqueeze(1))
    (units,) = watched.take().values()
    assert units.beyond_5.tolist() == [beyond_5]
    assert units.beyond_bounds.tolist() == [beyond_bounds]
    assert not units.off.size


def test_a_channel_of_an_image_is_a_unit() -> None:
    """Of ``[batch, channel, height, width]`` the shares are those of the channels."""
    network = nn.Sequential(nn.ReLU())
    watched = Activations(network)
    images = torch.ones(2, 3, 4, 4)
    images[:, 1] = -1.0
    images[0, 2] = -1.0
    network(images)
    assert watched.take()["0"].off.tolist() == [0.0, 1.0, 0.5]


def test_calls_are_averaged_and_then_forgotten() -> None:
    """Several calls between two looks count alike; the next look begins anew, and evaluation does not count."""
    network = nn.Sequential(nn.ReLU())
    watched = Activations(network)
    network(torch.tensor([[1.0]]))
    network(torch.tensor([[-1.0]]))
    assert watched.take()["0"].off.tolist() == [0.5]
    network.eval()
    network(torch.tensor([[-1.0]]))
    assert watched.take() == {}


def test_removed_hooks_see_nothing() -> None:
    """After ``remove`` the network has no hook left."""
    network = nn.Sequential(nn.Linear(1, 1), nn.Tanh())
    watched = Activations(network)
    assert network[1]._forward_hooks
    watched.remove()
    assert not any(module._forward_hooks for module in network.modules())
