"""Test ``lightning_gradwatch.measure.magnitude``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_gradwatch.measure import magnitude
from lightning_gradwatch.measure.magnitude import (
    alive_units,
    measurable,
    norm_in_pieces,
    norms_along,
    norms_of_segments,
    pieces_of,
    steep_units,
)

FORMS = {
    "small": lambda: torch.randn(3, 4),
    "scalar": lambda: torch.randn(()),
    "empty": lambda: torch.zeros(0, 3),
    "large": lambda: torch.randn(700, 300),
    "long": lambda: torch.randn(200_001),
    "cube": lambda: torch.randn(45, 60, 55),
    "transposed": lambda: torch.randn(300, 700).t(),
    "channels last": lambda: torch.randn(2, 30, 50, 40).to(memory_format=torch.channels_last),
    "every second": lambda: torch.randn(600, 600)[::2, 1::2],
    "expanded": lambda: torch.randn(1, 70_000).expand(3, 70_000),
    "half": lambda: torch.randn(400, 300).half(),
    "bfloat16": lambda: torch.randn(400, 300).bfloat16(),
    "double": lambda: torch.randn(400, 300).double(),
    "tiny": lambda: torch.randn(400, 300) * 1e-30,
    "huge": lambda: torch.randn(400, 300) * 1e30,
}


def numbers(tensor: Tensor) -> np.ndarray:
    """Return a tensor's numbers in float64."""
    return tensor.double().numpy()


def units_first(tensor: Tensor, dim: int) -> np.ndarray:
    """Return a row for each unit."""
    return numbers(tensor.movedim(dim, 0).flatten(1))


@pytest.mark.parametrize("form", FORMS)
def test_a_norm_is_that_of_all_numbers_in_double_precision(form):
    """Whatever shape, layout and format a tensor has, its norm is numpy's in float64."""
    tensor = FORMS[form]()
    assert float(norm_in_pieces(tensor)) == pytest.approx(np.linalg.norm(numbers(tensor).ravel()), rel=1e-12)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_norm_of_what_is_not_finite_is_not_finite(value):
    """One such number among many gives the norm away."""
    tensor = torch.ones(200_000)
    tensor[150_000] = value
    assert float(norm_in_pieces(tensor)) == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize("form", FORMS)
def test_pieces_are_small_views_that_make_up_the_tensor(form):
    """No piece is a copy or larger than 65,536 numbers, and none is left out or comes twice."""
    tensor = FORMS[form]()
    pieces = list(pieces_of(tensor))
    storage = tensor.untyped_storage().data_ptr()
    assert all(piece.numel() <= 2**16 and piece.untyped_storage().data_ptr() == storage for piece in pieces)
    assert sum(piece.numel() for piece in pieces) == tensor.numel()
    together = np.sort(np.concatenate([numbers(piece).ravel() for piece in pieces]))
    assert np.array_equal(together, np.sort(numbers(tensor).ravel()))


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("shape", [(3, 4, 5), (40, 60, 50), (1, 3, 70_000)])
def test_norms_along_a_dimension_are_those_of_its_slices(shape, dim):
    """One norm a slice, in order."""
    tensor = torch.randn(shape)
    expected = np.linalg.norm(units_first(tensor, dim), axis=1)
    assert norms_along(tensor, dim).tolist() == pytest.approx(expected, rel=1e-12)


def test_norms_of_segments_are_those_of_neighboring_rows():
    """Rows belong to segments of the given lengths."""
    rows = torch.randn(9, 4)
    expected = [np.linalg.norm(numbers(rows[a:b]).ravel()) for a, b in ((0, 4), (4, 7), (7, 9))]
    assert norms_of_segments(rows, [4, 3, 2]).tolist() == pytest.approx(expected, rel=1e-12)


UNIT_FORMS = [((6, 5), 1), ((3, 4, 7), 2), ((3, 4, 7), 1), ((4, 3, 60, 200), 1), ((3000, 50), 1), ((5, 80_000), 0)]


@pytest.mark.parametrize(("shape", "dim"), UNIT_FORMS)
def test_a_unit_is_alive_that_is_not_zero_somewhere(shape, dim):
    """NaN and negative numbers are not zero; units lie in any dimension."""
    output = torch.randn(shape).relu()
    units = output.movedim(dim, 0)
    units[:2] = 0.0
    units[(1, *[-1] * (len(shape) - 1))] = float("nan")
    expected = (units_first(output, dim) != 0).any(axis=1)
    assert alive_units(output, dim).tolist() == expected.tolist()
    assert expected[:2].tolist() == [False, True]


@pytest.mark.parametrize("piece", [2**16, 64])
@pytest.mark.parametrize(("shape", "dim"), UNIT_FORMS)
@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_a_unit_is_steep_that_has_a_hundredth_of_the_greatest_slope_somewhere(
    monkeypatch, activation, shape, dim, piece
):
    """The slope is computed by autograd, in float64, for each number."""
    monkeypatch.setattr(magnitude, "_PIECE", piece)
    if piece < 2**16 and np.prod(shape) > 200_000:
        shape = (shape[0] // 100 + 1, *shape[1:]) if dim else (*shape[:-1], shape[-1] // 100)
    # Some units see only large values.
    scale = torch.where(torch.arange(shape[dim]) % 2 == 0, 20.0, 1.0)
    scale = scale.view([-1 if d == dim else 1 for d in range(len(shape))])
    inputs = (torch.randn(shape, dtype=torch.float64).sign() + 0.1 * torch.randn(shape)) * scale
    inputs.requires_grad_()
    output = getattr(torch, activation)(inputs)
    (slope,) = torch.autograd.grad(output.sum(), inputs)
    greatest = 0.25 if activation == "sigmoid" else 1.0
    expected = (units_first(slope, dim) > 0.01 * greatest).any(axis=1)
    assert steep_units(output, dim, activation).tolist() == expected.tolist()
    assert set(expected.tolist()) == {True, False}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.ones(2), True),
        (torch.ones(2).half(), True),
        (torch.ones(2, dtype=torch.complex64), False),
        (torch.ones(2).bool(), False),
        (torch.ones(0), False),
        (torch.eye(2).to_sparse(), False),
        (torch.ones(2, device="meta"), False),
        (torch.ones(2).to(torch.float8_e4m3fn), False),
        (None, False),
        ([torch.ones(2)], False),
    ],
)
def test_only_plain_tensors_of_real_numbers_are_measurable(value, expected):
    """Everything else is passed over."""
    assert measurable(value) is expected


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_nested_tensors_and_what_torch_func_wraps_are_not_measurable():
    """Neither may be read from inside."""
    assert not measurable(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]))
    seen = []
    torch.vmap(lambda x: seen.append(measurable(x)) or x)(torch.ones(2, 3))
    torch.func.grad(lambda x: seen.append(measurable(x)) or x.sum())(torch.ones(3))
    assert seen == [False, False]
