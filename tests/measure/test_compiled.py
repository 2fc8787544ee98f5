"""Test ``lightning_gradwatch.measure.compiled``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradwatch.measure.compiled import is_compiled


def compiled(what: Any) -> Any:
    """Compile with a backend that needs no compiler."""
    return torch.compile(what, backend="eager")


class Net(nn.Module):
    """A network with a layer and a method."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.settings, self.others = {"width": 2}, [3, "text"]

    def step(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs)


class Decorated(Net):
    """A network one of whose methods was compiled where it was written."""

    @torch.compile(backend="eager")
    def step(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs)


class LeftAlone(Net):
    """A network one of whose methods torch was told not to compile."""

    @torch.compiler.disable
    def step(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs)


def around(net: Net) -> None:
    net.layer = compiled(net.layer)


def in_place(net: Net) -> None:
    net.layer.compile(backend="eager")


def method(net: Net) -> None:
    net.step = compiled(net.step)


def hidden_in_a_list(net: Net) -> None:
    net.others = [compiled(net.layer)]


def hidden_in_a_dictionary(net: Net) -> None:
    net.settings = {"fast": compiled(net.step)}


def not_registered(net: Net) -> None:
    vars(net)["fast"] = compiled(net.layer)


@pytest.mark.parametrize(
    "compile_", [around, in_place, method, hidden_in_a_list, hidden_in_a_dictionary, not_registered]
)
@pytest.mark.parametrize("deep", [False, True])
def test_a_compiled_part_is_found(compile_, deep):
    """A compiled module or method is found wherever the model keeps it."""
    net = Net()
    compile_(net)
    assert is_compiled(nn.Sequential(nn.Sequential(net)) if deep else net)


def test_what_was_compiled_in_the_source_is_found():
    """``@torch.compile`` on a method, and the whole model compiled."""
    assert is_compiled(Decorated())
    assert is_compiled(compiled(Net()))


@pytest.mark.parametrize("make", [Net, LeftAlone, lambda: nn.LSTM(2, 2), lambda: nn.TransformerEncoderLayer(4, 2, 4)])
def test_what_is_not_compiled_is_not_found(make):
    """Plain modules, also with a method that torch was told to leave alone."""
    assert not is_compiled(make())
