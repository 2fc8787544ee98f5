"""Test ``lightning_gradwatch.measure.layers``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.utils import parametrizations

from lightning_gradwatch.measure.layers import (
    ROOT,
    Layer,
    clean_name,
    find_layers,
    index_parameters,
    num_elements,
    stray_layers,
)


def summary(model: nn.Module) -> list[tuple[str, str, list[str]]]:
    """Return name, kind and parameters of every layer."""
    return [(layer.name, layer.kind, list(layer.parameters)) for layer in find_layers(model)]


class Root(nn.Module):
    """A model with parameters of its own, one of them in a list."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.several = nn.ParameterList([nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, 2))])
        self.by_name = nn.ParameterDict({"a": nn.Parameter(torch.ones(1))})
        self.head = nn.Linear(2, 1, bias=False)


def test_root_parameters_lists_and_dicts_are_layers():
    """Parameters of the model itself are ``(root)``; lists and dicts of parameters are layers of their own."""
    assert summary(Root()) == [
        (ROOT, "Root", ["scale"]),
        ("several", "ParameterList", ["0", "1"]),
        ("by_name", "ParameterDict", ["a"]),
        ("head", "Linear", ["weight"]),
    ]


@pytest.mark.parametrize(
    "model",
    [
        Root(),
        nn.LSTM(3, 4, num_layers=2, bidirectional=True),
        nn.MultiheadAttention(4, 2),
        nn.TransformerEncoderLayer(4, 2, 8),
        nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2)), parametrizations.spectral_norm(nn.Linear(2, 2))),
    ],
    ids=["root", "lstm", "attention", "transformer", "parametrized"],
)
def test_every_parameter_belongs_to_one_layer(model):
    """The layers hold exactly the model's parameters, in their order, each once."""
    ours = [id(p) for layer in find_layers(model) for p in layer.parameters.values()]
    assert sorted(ours) == sorted(id(p) for p in model.parameters())
    assert sum(layer.num_parameters for layer in find_layers(model)) == sum(p.numel() for p in model.parameters())


def test_a_tied_parameter_belongs_to_its_first_module():
    """Tied weights count once, where ``named_parameters`` names them."""
    embedding, head = nn.Embedding(5, 3), nn.Linear(3, 5)
    head.weight = embedding.weight
    model = nn.Sequential(embedding, head)
    assert summary(model) == [("0", "Embedding", ["weight"]), ("1", "Linear", ["bias"])]


def test_a_parametrized_layer_is_one_layer():
    """The parameters behind a parametrization belong to the layer that it computes."""
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(3, 2)), parametrizations.spectral_norm(nn.Linear(2, 2))
    )
    assert summary(model) == [
        ("0", "Linear", ["bias", "parametrizations.weight.original0", "parametrizations.weight.original1"]),
        ("1", "Linear", ["bias", "parametrizations.weight.original"]),
    ]


def test_a_parametrized_root_is_the_root():
    """A bare parametrized layer has no name before its parametrizations."""
    assert summary(parametrizations.weight_norm(nn.Linear(3, 2), dim=None))[0][0] == ROOT


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_wrapper_of_torch_compile_leaves_names_and_kinds():
    """A compiled model, and a compiled child, have the layers of the model itself."""
    plain = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    expected = summary(plain)
    assert summary(torch.compile(plain)) == expected
    child = nn.Sequential(torch.compile(plain[0]), plain[1], plain[2])
    assert summary(child) == expected
    bare = torch.compile(nn.Linear(2, 3))
    assert summary(bare) == [(ROOT, "Linear", ["weight", "bias"])]


def test_a_checkpoint_wrapper_leaves_names_and_kinds():
    """A layer in a wrapper is the layer, with its own module."""
    inner = nn.Linear(2, 3)
    (layer,) = find_layers(nn.Sequential(checkpoint_wrapper(inner)))
    assert (layer.name, layer.kind) == ("0", "Linear")
    assert layer.module is inner


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", ROOT),
        ("_orig_mod", ROOT),
        ("net._orig_mod.0", "net.0"),
        ("_fsdp_wrapped_module.net._fsdp_wrapped_module", "net"),
        ("_forward_module.net", "net"),
        ("my_orig_mod.net", "my_orig_mod.net"),
        ("parametrizations.weight", ROOT),
        ("net.parametrizations.weight.0", "net"),
    ],
)
def test_names_lose_what_wrappers_added(name, expected):
    """Only whole parts of a name that a wrapper wrote are stripped."""
    assert clean_name(name) == expected


def test_a_frozen_layer_is_not_trainable():
    """A layer is trainable while any of its parameters asks for a gradient."""
    model = nn.Linear(2, 1)
    (layer,) = find_layers(model)
    model.weight.requires_grad_(requires_grad=False)
    assert layer.trainable
    model.bias.requires_grad_(requires_grad=False)
    assert not layer.trainable


def test_a_lazy_layer_has_no_numbers_yet():
    """A lazy parameter counts as none until its first forward pass."""
    model = nn.LazyLinear(3)
    (layer,) = find_layers(model)
    assert layer.num_parameters == 0
    model(torch.ones(1, 2))
    assert layer.num_parameters == 9
    assert num_elements(model.weight) == 6


def test_the_index_knows_layer_bias_group_and_size():
    """Parameters of two groups, in any order, find their layer, group and size."""
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    groups = [[model[2].bias, model[0].weight], [model[1].bias]]
    index = index_parameters(find_layers(model), groups)
    assert index is not None
    assert index.layer.tolist() == [2, 0, 1]
    assert index.bias.tolist() == [True, False, True]
    assert index.group.tolist() == [0, 0, 1]
    assert index.sizes.tolist() == [1, 6, 3]
    assert index.filled.tolist() == [0, 1, 2]
    assert not index.sharded
    assert index.num_layers == 3


@pytest.mark.supports("lazy layers")
def test_the_index_of_lazy_parameters_has_size_zero():
    """An optimizer may hold a lazy parameter; it is not among those that have a shape."""
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1))
    index = index_parameters(find_layers(model), [list(model.parameters())])
    assert index is not None
    np.testing.assert_array_equal(index.sizes, [0, 0, 3, 1])
    assert index.filled.tolist() == [2, 3]


@pytest.mark.supports("lazy layers")
def test_an_index_no_longer_covers_lazy_parameters_that_got_a_shape():
    """The parameters are the same objects, but the index knows neither their size nor that they can be measured."""
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1))
    parameters = list(model.parameters())
    index = index_parameters(find_layers(model), [parameters])
    assert index is not None
    assert index.covers(parameters)
    model(torch.ones(1, 2))
    assert not index.covers(parameters)
    fresh = index_parameters(find_layers(model), [parameters])
    assert fresh is not None
    assert fresh.covers(parameters)
    assert fresh.sizes.tolist() == [6, 3, 3, 1]
    assert fresh.filled.tolist() == [0, 1, 2, 3]


def test_the_index_knows_whether_a_parameter_is_sharded(tmp_path: Path):
    """One parameter in shards is enough: its norm needs all processes."""
    distributed.init_process_group("gloo", init_method=(tmp_path / "store").as_uri(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        model = nn.Linear(2, 2)
        model.bias = nn.Parameter(distribute_tensor(model.bias.detach(), mesh, [Shard(0)]))
        index = index_parameters(find_layers(model), [model.parameters()])
        assert index is not None
        assert index.sharded
        assert index.filled.tolist() == [0, 1]
    finally:
        distributed.destroy_process_group()


def test_the_index_covers_its_own_parameters_only():
    """Other, more or reordered parameters ask for a new index."""
    model = nn.Linear(2, 1)
    weight, bias = model.parameters()
    index = index_parameters(find_layers(model), [[weight, bias]])
    assert index is not None
    assert index.covers([weight, bias])
    assert not index.covers([bias, weight])
    assert not index.covers([weight])


def test_a_matrix_called_bias_is_no_bias():
    """Only a one-dimensional ``bias`` has the batch sum of delta as its gradient."""
    model = nn.Module()
    model.bias = nn.Parameter(torch.ones(2, 2))
    index = index_parameters(find_layers(model), [model.parameters()])
    assert index is not None
    assert index.bias.tolist() == [False]


def test_strays_become_layers_with_numbers_that_go_on():
    """A parameter of no module is a layer of its own, and later strays get later numbers."""
    layers = find_layers(nn.Linear(2, 1))
    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3), requires_grad=False)
    assert index_parameters(layers, [[first]]) is None
    layers += stray_layers(layers, [first])
    layers += stray_layers(layers, [first, second])
    names = [layer.name for layer in layers]
    assert names == [ROOT, "(outside the model) 0", "(outside the model) 1"]
    assert [layer.kind for layer in layers] == ["Linear", "Parameter", "Parameter"]
    assert layers[1].parameters == {"parameter": first}
    assert isinstance(layers[2], Layer)
    assert not layers[2].trainable
