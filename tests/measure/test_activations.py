"""Test ``lightning_gradwatch.measure.activations``."""

from __future__ import annotations

import torch
from torch import nn

from lightning_gradwatch.measure.activations import describe_layers
from lightning_gradwatch.measure.graph import Topology, read_topology
from lightning_gradwatch.measure.layers import find_layers, stray_layers


def test_a_description_outlives_the_model():
    """Name, kind, sizes and whether it is trainable are plain values."""
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1, bias=False))
    model[2].requires_grad_(requires_grad=False)
    first, norm, last = describe_layers(model, find_layers(model), Topology())
    assert (first.name, first.kind, first.num_parameters, first.num_biases) == ("0", "Linear", 9, 3)
    assert (first.has_matrix, first.trainable) == (True, True)
    assert (norm.has_matrix, norm.num_biases) == (False, 3)
    assert (last.num_biases, last.trainable) == (0, False)


def test_the_graph_wins_over_registration():
    """Where the graph named an activation, registered modules say nothing, right or wrong."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.Linear(2, 1))
    layers = find_layers(model)
    topology = read_topology(model(torch.randn(4, 2)).sum(), layers)
    described = describe_layers(model, layers, topology)
    assert [about.activation for about in described] == ["relu", "relu", "output"]
    assert [about.feeds_batch_norm for about in described] == [True, False, False]
    partly = describe_layers(model, layers, Topology(order=(0, 1, 2), activations={2: "output"}))
    assert [about.activation for about in partly] == [None, None, "output"]


def test_a_graph_without_any_activation_leaves_it_to_registration():
    """A graph that shows the layers and no activation (``torch.compile``) is completed by the registered modules."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.Linear(2, 1))
    described = describe_layers(model, find_layers(model), Topology(order=(0, 1, 2)))
    assert [about.activation for about in described] == [None, "relu", None]


def test_without_a_graph_the_activation_registered_next_counts():
    """Of several activations behind one layer the first counts; one before all layers counts for none."""
    model = nn.Sequential(
        nn.Tanh(), nn.Linear(2, 2), nn.GELU(), nn.ReLU(), nn.Linear(2, 2), nn.PReLU(), nn.Linear(2, 1)
    )
    described = describe_layers(model, find_layers(model), Topology())
    assert [(about.kind, about.activation) for about in described] == [
        ("Linear", "gelu"),
        ("Linear", "leaky_relu"),
        ("PReLU", None),
        ("Linear", None),
    ]


def test_without_a_graph_the_sigmoid_behind_the_last_layer_is_the_output():
    """A sigmoid behind which no layer is registered makes probabilities."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 1), nn.Sigmoid())
    described = describe_layers(model, find_layers(model), Topology())
    assert [about.activation for about in described] == ["sigmoid", "output"]


def test_lazy_and_stray_layers_are_described():
    """A layer without a shape, or without a module, is described as far as it is known."""
    model = nn.Sequential(nn.LazyLinear(3), nn.ReLU())
    layers = find_layers(model)
    layers += stray_layers(layers, [nn.Parameter(torch.ones(2))])
    lazy, stray = describe_layers(model, layers, Topology())
    assert (lazy.num_parameters, lazy.num_biases, lazy.activation) == (0, 0, "relu")
    assert (stray.kind, stray.num_parameters, stray.has_matrix) == ("Parameter", 2, False)
    model(torch.ones(1, 2))
    again = describe_layers(model, layers, Topology())[0]
    assert (again.kind, again.num_parameters, again.num_biases, again.has_matrix) == ("Linear", 9, 3, True)
