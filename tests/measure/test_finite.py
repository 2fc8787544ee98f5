"""Test ``lightning_gradwatch.measure.finite``."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_gradwatch.measure.finite import gradients_finite, layers_not_finite
from lightning_gradwatch.measure.layers import Layer, find_layers


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
def test_one_bad_number_is_found_in_any_format(bad, dtype):
    """A single number in one weight names its layer and no other."""
    fine, sick = (nn.Parameter(torch.ones(4, 4, dtype=dtype)) for _ in range(2))
    with torch.no_grad():
        sick[3, 1] = bad
    layers = [Layer(name, None, {"weight": weight}) for name, weight in (("fine", fine), ("sick", sick))]
    assert layers_not_finite(layers) == ["sick"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_largest_numbers_of_a_format_are_finite(dtype):
    """Weights whose squares, or whose sum, would overflow are not called broken."""
    net = nn.Linear(8, 8).to(dtype)
    nn.init.constant_(net.weight, torch.finfo(dtype).max)
    assert layers_not_finite(find_layers(net)) == []


def test_what_has_no_numbers_is_passed_over():
    """Parameters without elements, lazy ones and whole numbers."""
    net = nn.ModuleList([nn.LazyLinear(3)])
    net.empty = nn.Parameter(torch.ones(0, 3))
    net.flag = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
    assert layers_not_finite(find_layers(net)) == []


def test_one_transfer_answers_for_all_layers(monkeypatch):
    """It is one look, whatever the number of layers."""
    looks = []
    original = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: looks.append(len(self)) or original(self))
    layers_not_finite(find_layers(nn.Sequential(*(nn.Linear(3, 3) for _ in range(20)))))
    assert looks == [40]


@pytest.mark.parametrize("bad", [1.0, float("nan"), float("inf")])
def test_gradients_dense_sparse_or_missing(bad):
    """A sparse gradient is looked at in the rows that it has; no gradient is no fault."""
    table, head = nn.Embedding(5, 2, sparse=True), nn.Linear(2, 1)
    unused = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([*table.parameters(), *head.parameters(), unused], lr=0.1)
    assert gradients_finite(optimizer)
    (head(table(torch.tensor([1, 1, 3]))).sum() * bad).backward()
    assert gradients_finite(optimizer) is (bad == 1.0)
    head.zero_grad()
    assert gradients_finite(optimizer) is (bad == 1.0)
