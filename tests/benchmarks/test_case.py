"""Test ``benchmarks.ward.case``."""

from __future__ import annotations

import pytest

from benchmarks.ward.case import Case


@pytest.mark.parametrize(
    ("name", "held_back"),
    # Places times letters: a = 97, b = 98, c = 99; 97 = 1, 97 + 2 x 98 = 293 = 2 and 98 + 2 x 97 = 292 = 1 mod 3.
    [("a", False), ("c", True), ("ab", False), ("ba", False), ("aa", True)],
)
def test_the_name_alone_decides_what_is_held_back(name: str, held_back: bool) -> None:
    """Each letter counts times its place, modulo 3; seeds, labels and processes have no say."""

    def lesson(seed: int) -> None:
        raise AssertionError("no lesson is made to tell")

    assert Case(name, lesson).held_back is held_back
