"""What has been made already, so that polling costs next to nothing: at most so many bytes of it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class Shelf(Generic[T]):
    """Keeps things by key until their version changes or there are too many bytes; the least used goes first.

    Several threads may ask for the same thing at once, and then it is made several times: that is no harm.

    Args:
        most_bytes: How much is kept; the newest thing is kept in any case.
        size_of: How many bytes a thing has.

    Example:
        >>> shelf = Shelf(100, len)
        >>> shelf.get("a", 1, lambda: "made"), shelf.get("a", 1, lambda: "again"), shelf.get("a", 2, lambda: "anew")
        ('made', 'made', 'anew')
    """

    def __init__(self, most_bytes: int, size_of: Callable[[T], int]) -> None:
        self._most_bytes = most_bytes
        self._size_of = size_of
        # Version, thing and bytes of each.
        self._things: OrderedDict[Hashable, tuple[Hashable, T, int]] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def get(self, key: Hashable, version: Hashable, make: Callable[[], T]) -> T:
        """Return a thing, made anew where its version is not the one that is kept."""
        with self._lock:
            known = self._things.get(key)
            if known is not None and known[0] == version:
                self._things.move_to_end(key)
                return known[1]
        thing = make()
        size = self._size_of(thing)
        with self._lock:
            before = self._things.pop(key, None)
            self._bytes += size - (before[2] if before else 0)
            self._things[key] = version, thing, size
            while self._bytes > self._most_bytes and len(self._things) > 1:
                _, (_, _, freed) = self._things.popitem(last=False)
                self._bytes -= freed
        return thing
