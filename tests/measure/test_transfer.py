"""Test ``lightning_gradwatch.measure.transfer``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.measure.transfer import Transfer

FLOATS = st.floats(-6e4, 6e4, width=16) | st.sampled_from([0.0, -0.0, float("inf"), float("nan")])

vectors = st.builds(
    lambda values, dtype: torch.tensor(values, dtype=torch.float64).to(dtype),
    st.lists(FLOATS, max_size=5),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)


@given(st.lists(vectors, min_size=1, max_size=5))
def test_parts_come_back_as_they_were(parts):
    """Any number of vectors, of any length and dtype, arrive apart, in order, as float64, and to the last bit."""
    arrived = Transfer(parts).numbers()
    assert {part.dtype for part in arrived} == {np.dtype(np.float64)}
    for sent, part in zip(parts, arrived, strict=True):
        np.testing.assert_array_equal(part, sent.double().numpy())


def test_parts_of_no_length_keep_their_place():
    """A vector without elements is one at any place, also alone."""
    nothing, two = torch.empty(0), torch.tensor([1.0, 2.0])
    for parts in ([nothing], [nothing, two], [two, nothing, two], [two, nothing], [nothing, nothing]):
        assert [part.tolist() for part in Transfer(parts).numbers()] == [part.tolist() for part in parts]


def test_the_widest_dtype_carries_all():
    """Numbers that float32 cannot hold arrive beside those that it can."""
    parts = [torch.tensor([1e-300, 1e300], dtype=torch.float64), torch.tensor([1e30]), torch.ones(1).bfloat16()]
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        arrived = Transfer([parts[i] for i in order]).numbers()
        assert [part.tolist() for part in arrived] == [parts[i].double().tolist() for i in order]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_arrives_alone(dtype):
    """Numbers of numpy are never bfloat16; it arrives as float64 all the same."""
    (alone,) = Transfer([torch.tensor([1.5, -2.0]).to(dtype)]).numbers()
    assert alone.tolist() == [1.5, -2.0]
    both = Transfer([torch.tensor([1.5]).to(dtype), torch.tensor([2.0]).to(dtype)]).numbers()
    assert [part.tolist() for part in both] == [[1.5], [2.0]]


def test_numbers_may_be_asked_for_twice_and_changed():
    """What one caller changes in its numbers is not seen by another."""
    transfer = Transfer([torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([3.0])])
    first = transfer.numbers()
    first[0][:] = 0
    assert [part.tolist() for part in transfer.numbers()] == [[1.0, 2.0], [3.0]]


@pytest.mark.gpu
@pytest.mark.supports("CUDA: the reading waits for nothing")
def test_on_cuda_the_numbers_land_in_pinned_memory_and_nothing_waits():
    """Starting a transfer does not wait for the device; asking for the numbers does."""
    parts = [torch.arange(3, device="cuda", dtype=torch.float64), torch.ones(2, device="cuda")]
    # The first pinned memory of a process is asked of the driver.
    Transfer(parts).numbers()
    torch.cuda.set_sync_debug_mode("error")
    try:
        transfer = Transfer(parts)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert transfer._host.is_pinned()
    assert transfer._arrived is not None
    assert [part.tolist() for part in transfer.numbers()] == [[0.0, 1.0, 2.0], [1.0, 1.0]]


@pytest.mark.gpu
@pytest.mark.supports("CUDA: the reading waits for nothing")
def test_on_cuda_the_numbers_are_those_of_when_they_were_sent():
    """What changes on the device after the transfer was started does not reach the host."""
    part = torch.ones(1000, device="cuda")
    transfer = Transfer([part])
    part.zero_()
    (arrived,) = transfer.numbers()
    assert (arrived == 1).all()
