"""Test ``lightning_gradwatch.remedy.filling``."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_gradwatch.remedy.filling import Way, initialize_, orthogonal_
from lightning_gradwatch.remedy.matrices import Matrix, matrices_of


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 2, 3)])
def test_orthonormal_are_the_fewer_of_rows_and_columns(shape):
    """Times the gain; a kernel counts as columns."""
    weight = torch.empty(shape)
    orthogonal_(Matrix("weight", weight, float(weight[0].numel()), 1.0), 3.0)
    flat = weight.flatten(1)
    product = flat @ flat.T if flat.shape[0] <= flat.shape[1] else flat.T @ flat
    assert torch.allclose(product, 9 * torch.eye(len(product)), atol=1e-4)


def test_the_kernels_of_a_transposed_convolution_make_up_for_its_stride():
    """Each unit sums a quarter of the kernel at stride 2 by 2, so that its weights are twice as large."""
    layer = nn.ConvTranspose2d(8, 4, 2, stride=2)
    (matrix,) = matrices_of(layer, "weight", layer.weight.detach())
    orthogonal_(matrix, 1.0)
    flat = layer.weight.detach().transpose(0, 1).flatten(1)
    assert torch.allclose(flat @ flat.T, 4 * torch.eye(4), atol=1e-4)


def test_a_way_of_ones_own_gets_each_matrix_with_its_gain():
    """The filler is called once a matrix, in registration order, with the gain of what follows or 1."""
    model = nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), nn.ReLU(), nn.Conv2d(4, 2, 1))
    for gained, gains in ((True, [math.sqrt(2), math.sqrt(2), 1.0]), (False, [1.0, 1.0, 1.0])):
        calls: list[tuple[int, float]] = []
        way = Way("Own", "own_", lambda matrix, gain, calls=calls: calls.append((len(matrix.weight), gain)), gained)
        done = initialize_(model, None, way)
        assert calls == list(zip([2, 2, 2], gains, strict=True))
        assert [about.scheme for about in done] == ["Own", "Own"]
