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
