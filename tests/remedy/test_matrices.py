"""Test ``lightning_gradwatch.remedy.matrices``."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_gradwatch.measure.layers import find_layers
from lightning_gradwatch.remedy.matrices import matrices_of, weights_of

# Layer, shape of the input, how much of the border is left out.
SUMS = [
    (nn.Linear(200, 100), (500, 200), 0),
    (nn.Conv1d(16, 32, 6, stride=3), (64, 16, 201), 6),
    (nn.Conv2d(32, 64, 3), (16, 32, 20, 20), 3),
    (nn.Conv2d(32, 64, 4, stride=2, groups=4), (16, 32, 26, 26), 4),
    (nn.Conv2d(64, 64, 5, groups=64), (16, 64, 20, 20), 5),
    (nn.Conv2d(16, 32, 3, dilation=2), (16, 16, 24, 24), 6),
    (nn.ConvTranspose1d(64, 16, 6, stride=3), (64, 64, 60), 6),
    (nn.ConvTranspose2d(32, 64, 4, stride=2, groups=4), (16, 32, 20, 20), 4),
    (nn.ConvTranspose2d(64, 16, 3), (16, 64, 20, 20), 3),
]
IDS = [f"{type(layer).__name__}-{number}" for number, (layer, _, _) in enumerate(SUMS)]


def inner(values: torch.Tensor, border: int) -> torch.Tensor:
    """Leave out what lies at the border of the space."""
    return values[(..., *(slice(border, -border) for _ in values.shape[2:]))] if border else values


@pytest.mark.parametrize(("layer", "shape", "border"), SUMS, ids=IDS)
def test_fans_count_what_is_summed(layer, shape, border):
    """With weights of variance v the output has variance fan_in v, and the gradient of the input fan_out v."""
    torch.manual_seed(0)
    with torch.no_grad():
        layer.weight.normal_()
        layer.bias.zero_()
    matrices = matrices_of(layer, "weight", layer.weight)
    x = torch.randn(shape, requires_grad=True)
    output = layer(x)
    output.backward(torch.randn_like(output))
    assert float(inner(output.detach(), border).var()) == pytest.approx(matrices[0].fan_in, rel=0.12)
    assert float(inner(x.grad, border).var()) == pytest.approx(matrices[0].fan_out, rel=0.12)


@pytest.mark.parametrize(("layer", "shape", "border"), SUMS, ids=IDS)
def test_the_matrices_are_views_of_all_of_the_weight(layer, shape, border):
    """Writing to the matrices writes to the weight, each number once, and their rows are the layer's units."""
    layer.zero_grad()
    with torch.no_grad():
        layer.weight.zero_()
        for matrix in matrices_of(layer, "weight", layer.weight.detach()):
            matrix.weight.add_(1)
    assert bool((layer.weight == 1).all())
    units = sum(matrix.weight.shape[0] for matrix in matrices_of(layer, "weight", layer.weight))
    assert units == (layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


@pytest.mark.parametrize(
    ("layer", "num_gates"),
    [
        (nn.RNN(3, 5, num_layers=2, bidirectional=True), 1),
        (nn.GRU(3, 5), 3),
        (nn.LSTM(3, 5), 4),
        (nn.LSTMCell(3, 5), 4),
        (nn.GRUCell(3, 5), 3),
        (nn.RNNCell(3, 5), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_a_recurrent_layer_has_a_matrix_a_gate(layer, num_gates):
    """Input and recurrent weights are split by gates; fan_in is what enters, fan_out the hidden units."""
    weights = weights_of(find_layers(layer)[0])
    assert set(weights) == {name for name, _ in layer.named_parameters() if name.startswith("weight")}
    for name, weight in weights.items():
        matrices = matrices_of(layer, name, weight)
        assert [tuple(matrix.weight.shape) for matrix in matrices] == [(5, weight.shape[1])] * num_gates
        assert {matrix.recurrent for matrix in matrices} == {name.startswith("weight_hh")}
        assert {(matrix.fan_in, matrix.fan_out) for matrix in matrices} == {(weight.shape[1], 5)}


def test_an_lstm_that_projects_its_state_has_one_matrix_for_that():
    """``weight_hr`` leads from the cell to the state; it is no gate."""
    layer = nn.LSTM(3, 5, proj_size=2)
    (matrix,) = matrices_of(layer, "weight_hr_l0", layer.weight_hr_l0)
    assert (tuple(matrix.weight.shape), matrix.recurrent) == ((2, 5), False)
    assert len(matrices_of(layer, "weight_hh_l0", layer.weight_hh_l0)) == 4


def test_attention_has_a_matrix_each_for_queries_keys_and_values():
    """The three projections that torch keeps in one parameter are three; kept apart, they are as they are."""
    joined = nn.MultiheadAttention(8, 2)
    matrices = matrices_of(joined, "in_proj_weight", joined.in_proj_weight)
    assert [(tuple(m.weight.shape), m.fan_in, m.fan_out) for m in matrices] == [((8, 8), 8.0, 8.0)] * 3
    apart = nn.MultiheadAttention(8, 2, kdim=4, vdim=6)
    (layer, _) = find_layers(apart)
    fans = {name: matrices_of(apart, name, weight)[0].fan_in for name, weight in weights_of(layer).items()}
    assert fans == {"q_proj_weight": 8, "k_proj_weight": 4, "v_proj_weight": 6}


def test_a_bilinear_layer_sums_all_products():
    """fan_in is the number of pairs of inputs."""
    layer = nn.Bilinear(4, 5, 6)
    (matrix,) = matrices_of(layer, "weight", layer.weight)
    assert (matrix.fan_in, matrix.fan_out) == (20, 30)
    assert matrix.fan_in == math.prod(layer.weight.shape[1:])


def test_a_layer_of_unknown_make_has_none():
    """Of a module that torch does not know it is not known which way its weight lies."""

    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 3))

    assert weights_of(find_layers(Turned())[0]) == {}
