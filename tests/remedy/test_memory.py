"""Test ``lightning_gradwatch.remedy.memory``."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lightning_gradwatch.measure.layers import find_layers
from lightning_gradwatch.remedy.memory import Memory, measure_memory, memory_in_words, spectral_radius


def measure(module: nn.Module) -> Memory | None:
    """Measure the only layer of a module."""
    (layer,) = find_layers(module)
    return measure_memory(layer)


def radius_of(weight: torch.Tensor) -> float:
    """Return the largest absolute eigenvalue, as numpy computes it in float64."""
    return float(np.abs(np.linalg.eigvals(weight.detach().double().numpy())).max())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_radius_is_that_of_the_recurrent_weights(dtype):
    """The worst of all layers and directions counts, whatever the numbers are stored in."""
    module = nn.RNN(3, 12, num_layers=2, bidirectional=True).to(dtype)
    with torch.no_grad():
        module.weight_hh_l1_reverse.mul_(3)
    expected = max(radius_of(p) for name, p in module.named_parameters() if name.startswith("weight_hh"))
    memory = measure(module)
    assert (memory.kind, memory.gate_bias) == ("RNN", None)
    assert memory.radius == pytest.approx(expected, rel=1e-3)


def test_a_scaled_orthogonal_matrix_has_its_scale_as_radius():
    """A cell that doubles everything it holds has radius 2, as a cell of torch's and as a square layer."""
    cell, linear = nn.RNNCell(4, 8), nn.Linear(8, 8)
    nn.init.orthogonal_(cell.weight_hh, 2.0)
    nn.init.orthogonal_(linear.weight, 2.0)
    assert measure(cell).radius == pytest.approx(2.0, rel=1e-5)
    assert measure(linear).radius == pytest.approx(2.0, rel=1e-5)
    assert measure(linear).kind == "cell"


@pytest.mark.parametrize(("kind", "classes"), [("LSTM", (nn.LSTM, nn.LSTMCell)), ("GRU", (nn.GRU, nn.GRUCell))])
def test_the_gate_bias_is_that_of_the_gate_that_keeps(kind, classes):
    """Setting the second quarter (LSTM) or third (GRU) of both biases is what is read; the other gates are not."""
    for each in classes:
        module = each(3, 5)
        with torch.no_grad():
            for name, bias in module.named_parameters():
                if name.startswith("bias"):
                    bias.fill_(100.0)
                    bias[5:10] = 0.75 if name.startswith("bias_ih") else 0.5
        memory = measure(module)
        assert (memory.kind, memory.radius, memory.biased) == (kind, None, True)
        assert memory.gate_bias == pytest.approx(1.25)


def test_an_open_gate_keeps_the_state():
    """What is called the keeping gate is it: with a large bias there the state survives, and with no other gate."""
    for each in (nn.LSTM, nn.GRU):
        module = each(2, 4)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
            module.bias_ih_l0[4:8] = 20.0
        state = torch.ones(1, 1, 4)
        given = (torch.zeros(1, 1, 4), state) if each is nn.LSTM else state
        _, last = module(torch.zeros(50, 1, 2), given)
        kept = last[1] if each is nn.LSTM else last
        assert torch.allclose(kept, state, atol=1e-3)


def test_a_gate_without_a_bias_has_a_bias_of_zero():
    """It is half open, and there is nothing to set."""
    memory = measure(nn.LSTM(2, 3, bias=False))
    assert (memory.gate_bias, memory.biased) == (0.0, False)


class Sharded(nn.Parameter):
    """Stands for a DTensor, which only a process group can make."""

    def full_tensor(self):
        raise AssertionError("a collective was called")


def unknown() -> list[nn.Module]:
    """Return recurrent modules of which nothing may be measured."""
    sharded, gated, overflowed = nn.RNN(2, 3), nn.LSTM(2, 3), nn.RNN(2, 3)
    sharded.weight_hh_l0 = Sharded(torch.eye(3))
    gated.bias_ih_l0 = Sharded(torch.zeros(12))
    with torch.no_grad():
        overflowed.weight_hh_l0[0, 0] = math.inf
    return [sharded, gated, overflowed, nn.RNN(2, 3, device="meta"), nn.RNN(2, 1100)]


@pytest.mark.parametrize("module", unknown(), ids=["sharded", "sharded gate", "infinite", "meta", "large"])
def test_what_cannot_be_measured_is_not_claimed(module):
    """Shards, numbers that are not finite, no numbers, and matrices that would take seconds give no sentence."""
    memory = measure(module)
    assert (memory.radius, memory.gate_bias) == (None, None)
    assert memory_in_words(memory, 100) == ""


def test_layers_without_a_state_are_not_recurrent():
    """A weight that is not square, a vector, and a weight that is computed lead from no state to the next."""
    assert measure(nn.Linear(3, 4)) is None
    assert measure(nn.LayerNorm(3)) is None
    assert measure(parametrizations.orthogonal(nn.Linear(3, 3))) is None
    assert spectral_radius([]) is None
    assert spectral_radius([torch.ones(2, 3)]) is None


def test_the_words_tell_what_is_left_after_all_steps():
    """Radius and gate are raised to the number of steps, also beyond what float64 can hold."""
    assert memory_in_words(Memory("rnn", "RNN", 0.5), 10).endswith("radius 0.5 over 10 steps (0.5^10 = 1e-03)")
    assert memory_in_words(Memory("rnn", "RNN", 0.5), 5000).endswith("(0.5^5000 = 1e-1505)")
    assert memory_in_words(Memory("rnn", "RNN", 0.0), 10).endswith("(0^10 = 0)")
    assert memory_in_words(Memory("rnn", "RNN", 2.0), None) == "recurrent weights of rnn have spectral radius 2"
    assert memory_in_words(Memory("rnn", "GRU", gate_bias=math.log(9)), 10) == (
        "the update-gate bias of rnn is 2.2 on average: such a gate keeps 0.9 a step, 0.9^10 = 3e-01"
    )
    assert "bias of rnn is 0 on average: such a gate keeps 0.5 a step" in memory_in_words(
        Memory("rnn", "LSTM", gate_bias=-0.001), None
    )
    assert "keeps 1 a step, 1^10 = 1e+00" in memory_in_words(Memory("rnn", "LSTM", gate_bias=1e6), 10)
    assert "gate keeps 9.9e-305 a step" in memory_in_words(Memory("rnn", "LSTM", gate_bias=-1e6), 10)
