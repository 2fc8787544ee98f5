"""Test ``lightning_gradwatch.viewer.natural``."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.viewer.natural import natural


@pytest.mark.parametrize(
    "names",
    [
        ["a", "a/version_2", "a/version_10", "a2/version_1", "a10/version_1", "b"],
        ["rnn", "rnn1.cell", "rnn9.cell", "rnn10"],
        ["net.0.2", "net.0.10", "net.1.0", "net.10.0"],
        ["lr=0.001", "lr=0.05", "lr=0.1", "lr=1.5", "lr=10.25"],
        ["v1.2.9", "v1.2.10", "v1.10.0"],
        ["", ".", "x07", "x7", "x8"],
    ],
)
def test_numbers_count_as_numbers(names: list[str]) -> None:
    """Wherever in the name they are; decimals as decimals, and a directory before what is in it."""
    assert sorted(random.Random(0).sample(names, len(names)), key=natural) == names


@given(st.text(alphabet="ab_/", max_size=5), st.integers(0, 10**30), st.integers(0, 10**30))
def test_two_numbers_behind_one_text_are_in_the_order_of_the_numbers(text: str, one: int, other: int) -> None:
    """However many digits they have."""
    assert (natural(f"{text}{one}") < natural(f"{text}{other}")) == (one < other)


@given(st.lists(st.text(max_size=8), max_size=8, unique=True))
def test_any_names_have_an_order_and_only_one(names: list[str]) -> None:
    """Two names are never alike, so a list in another order is sorted to the same."""
    assert sorted(names, key=natural) == sorted(random.Random(0).sample(names, len(names)), key=natural)


def test_a_number_without_end_does_no_harm() -> None:
    """``int`` would refuse it."""
    assert natural("x" + "9" * 10_000) > natural("x" + "8" * 10_000)
