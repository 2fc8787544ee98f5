"""Test ``lightning_gradwatch.report.origin``."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.report.origin import NUM_BYTES, Witness, origin_in_words

NAN = float("nan")


def finite(number: int, **about) -> list[Witness]:
    """Return processes in which the loss is finite."""
    return [Witness(rank, loss=0.5, **about) for rank in range(number)]


@pytest.mark.parametrize(
    ("witnesses", "words"),
    [
        ([Witness(batches=(3, 3), loss=NAN)], "batch 3: loss nan"),
        ([Witness(epoch=0, batches=(3, 3), loss=NAN)], "batch 3: loss nan"),
        ([Witness(epoch=2, batches=(3, 3), loss=NAN)], "epoch 2, batch 3: loss nan"),
        (
            [Witness(batches=(3, 3), loss=0.25)],
            "batch 3: loss 0.25, finite: it began after the loss, in the backward pass",
        ),
        ([Witness()], "loss not known"),
        (
            [Witness(batches=(4, 7), loss=NAN, broken_batches=(5, 6))],
            "batches 4 to 7: loss nan, broken in batches 5, 6",
        ),
        (
            [*finite(7), Witness(7, "node03", "cuda:7", batches=(8123, 8123), loss=NAN)],
            "rank 7 (node03, cuda:7) batch 8123: loss nan; 7 others finite",
        ),
        ([Witness(0, loss=math.inf), *finite(1)], "rank 0: loss inf; 1 other finite"),
        (
            [Witness(0, "a", loss=NAN), Witness(1), Witness(2, loss=1.0)],
            "rank 0 (a): loss nan; 1 other finite; 1 not known",
        ),
        (
            [Witness(rank, loss=NAN) for rank in range(5)] + [Witness(5, loss=0.0)],
            "rank 0: loss nan; rank 1: loss nan; rank 2: loss nan; 2 more broken; 1 other finite",
        ),
        (
            [Witness(rank, batches=(9, 9), loss=NAN) for rank in range(4)],
            "batch 9: loss not finite in all 4 processes: the weights, or all batches",
        ),
        (
            finite(4, batches=(9, 9)),
            "batch 9: the loss was finite in 4 of 4 processes: it began after the loss, in the backward pass",
        ),
        (
            [*finite(2), Witness(2)],
            "the loss was finite in 2 of 3 processes and is not known in 1: it was one of those, or the backward pass",
        ),
        (
            [*finite(2), Witness(2, "b", loss=0.5, broken_gradients=("net.2", "net.4"))],
            "the loss was finite in 3 of 3 processes; the gradient broke in rank 2 (b) in net.2, net.4",
        ),
        (
            finite(2, broken_gradients=("net.2",)),
            "the loss was finite in 2 of 2 processes: it began after the loss, in the backward pass",
        ),
    ],
)  # fmt: skip
def test_words(witnesses, words):
    """Who it was stands first, and how many were well last."""
    assert origin_in_words(witnesses) == words


@given(
    st.builds(
        Witness,
        rank=st.integers(0, 2**20),
        host=st.text(max_size=300),
        device=st.text(max_size=20),
        step=st.none() | st.integers(0, 2**40),
        epoch=st.none() | st.integers(0, 2**20),
        batches=st.just(()) | st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)),
        loss=st.none() | st.floats(),
        broken_batches=st.lists(st.integers(0, 2**40), max_size=30).map(tuple),
        broken_gradients=st.lists(st.text(max_size=300), max_size=3).map(tuple),
        broken_weights=st.lists(st.text(max_size=300), max_size=3).map(tuple),
        num_broken_weights=st.none() | st.integers(0, 2**20),
        seed=st.none() | st.integers(0, 2**64 - 1),
    )
)
def test_everything_fits_and_what_matters_arrives(witness):
    """Every process sends the same number of bytes; its number, step and, but for absurd names, its loss arrive."""
    line = witness.encode()
    assert len(line) == NUM_BYTES
    arrived = Witness.decode(line, witness.rank)
    assert (arrived.rank, arrived.step) == (witness.rank, witness.step)
    assert repr(arrived.loss) == repr(witness.loss)
    assert arrived.num_broken_weights == witness.num_broken_weights
    assert (arrived.batches, arrived.seed) == (witness.batches, witness.seed)


@pytest.mark.parametrize("line", [b"", b"\0" * NUM_BYTES, b"\xff" * 8, b"[1]", b'{"other": 1}', b"3"])
def test_what_is_no_witness_knows_nothing(line):
    """A process whose bytes say nothing keeps its number."""
    assert Witness.decode(line, 4) == Witness(4)


def test_no_process_is_named_where_another_could_not_measure() -> None:
    """A gradient that nobody has seen may have broken first."""
    sick = Witness(1, loss=0.5, broken_gradients=("net.0",))
    assert "the gradient broke in rank 1 in net.0" in origin_in_words([Witness(0, loss=0.5), sick])
    blind = origin_in_words([Witness(0, loss=0.5, measured=False), sick])
    assert blind.endswith("the loss was finite in 2 of 2 processes: it began after the loss, in the backward pass")


def test_the_optimizer_survives_a_line_that_is_too_long() -> None:
    """Of everything that may be cut, the step and the optimizer are not: an answer belongs to both."""
    long = Witness(3, "h" * 2000, step=9, optimizer=2, broken_gradients=("n" * 2000,), broken_batches=(10**400,))
    sent = Witness.decode(long.encode(), 3)
    assert (sent.step, sent.optimizer) == (9, 2)
