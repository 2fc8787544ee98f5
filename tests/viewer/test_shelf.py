"""Test ``lightning_gradwatch.viewer.shelf``."""

from __future__ import annotations

from lightning_gradwatch.viewer.shelf import Shelf


def made(shelf: Shelf[str], *keys: str) -> list[str]:
    """Ask for keys, each worth as many bytes as it has letters, and return those that had to be made."""
    anew: list[str] = []

    def make(key: str) -> str:
        anew.append(key)
        return key

    for key in keys:
        assert shelf.get(key, 0, lambda key=key: make(key)) == key
    return anew


class TestShelf:
    """What is kept."""

    def test_it_makes_a_thing_once(self) -> None:
        """A second look costs nothing."""
        assert made(Shelf(10, len), "a", "b", "a", "b") == ["a", "b"]

    def test_the_least_used_goes_first(self) -> None:
        """Of three that do not fit, the one that nobody has asked for lately is made again."""
        assert made(Shelf(4, len), "aa", "bb", "aa", "cc", "aa", "bb") == ["aa", "bb", "cc", "bb"]

    def test_what_is_too_large_is_kept_alone(self) -> None:
        """A single picture above the limit must not be made with each look."""
        assert made(Shelf(4, len), "a", "x" * 9, "x" * 9, "a") == ["a", "x" * 9, "a"]

    def test_a_thing_that_has_grown_counts_once(self) -> None:
        """Each is measured when it is made, and what it was before is forgotten."""
        measured: list[str] = []
        shelf: Shelf[str] = Shelf(6, lambda thing: measured.append(thing) or len(thing))
        for version, thing in enumerate(["a", "aa", "aaa"]):
            shelf.get("a", version, lambda thing=thing: thing)
        assert shelf.get("b", 0, lambda: "bbb") == "bbb"
        assert measured == ["a", "aa", "aaa", "bbb"]
        assert [shelf.get(key, version, lambda: "anew") for key, version in (("a", 2), ("b", 0))] == ["aaa", "bbb"]
