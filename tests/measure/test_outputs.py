"""Test ``lightning_gradwatch.measure.outputs``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from lightning_gradwatch.measure.outputs import output_of, unit_dim

LEARNED = torch.ones(3, requires_grad=True) * 2
FIXED, NUMBERS = torch.zeros(2), torch.arange(4)
PACKED = pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])


@dataclass
class Answer:
    """What a module may return."""

    count: int
    parts: list[Any]


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (LEARNED, LEARNED),
        (FIXED, FIXED),
        ((FIXED, LEARNED), LEARNED),
        ({"number": NUMBERS, "deep": [{"fixed": FIXED}]}, FIXED),
        (Answer(3, [NUMBERS, LEARNED]), LEARNED),
        ((Answer(3, [FIXED]), 5), FIXED),
        ((PACKED, (LEARNED.detach(), FIXED)), PACKED.data),
        (NUMBERS, None),
        (Answer, None),
        (None, None),
    ],
)
def test_the_output_is_the_first_tensor_with_a_gradient_or_the_first_at_all(returned, expected):
    """However deep it lies in tuples, dictionaries, dataclasses and packed sequences."""
    assert output_of(returned) is expected


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.Linear(2, 2), (4, 2), 1),
        (nn.Linear(2, 2), (4, 5, 2), 2),
        (nn.Conv1d(2, 2, 1), (4, 2, 5), 1),
        (nn.Conv1d(2, 2, 1), (2, 5), 0),
        (nn.ConvTranspose2d(2, 2, 1), (2, 5, 5), 0),
        (nn.Conv3d(2, 2, 1), (4, 2, 5, 5, 5), 1),
        (nn.BatchNorm1d(2), (4, 2), 1),
        (nn.BatchNorm2d(2), (4, 2, 5, 5), 1),
        (nn.GroupNorm(1, 2), (4, 2, 5), 1),
        (nn.LayerNorm(2), (4, 5, 2), 2),
        (nn.Embedding(3, 2), (2,), 0),
    ],
)
def test_units_are_channels_where_there_are_channels(module, shape, expected):
    """With a batch and without one."""
    output: Tensor = torch.zeros(shape)
    assert unit_dim(module, output) == expected
