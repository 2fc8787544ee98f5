"""How many steps on how many copies fit into the time that a rehearsal may take."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import perf_counter

# Fewer steps say nothing of where the loss goes; then one backward pass has to do. Ours.
LEAST_STEPS = 3
# Whoever waits longer wants to know for what. Ours.
_TOLD_FROM = 2.0


class Budget:
    """Shares out the time among copies: the first, untreated one finds out what a step takes.

    It makes as many steps as its share allows, ``seconds / num_copies``, and ``LEAST_STEPS`` where those fit twice
    into all of the time: some remedies compared well are worth more than all of them compared badly.

    Args:
        seconds: How long all copies together may take.
        num_copies: How many there are, the untreated one among them.
        say: Takes the line that tells how long it will take.

    Example:
        >>> Budget(0.0, 3).another_step(1, 10), Budget(math.inf, 3).another_step(1, 10)
        (False, True)
    """

    def __init__(self, seconds: float, num_copies: int, say: Callable[[str], None] | None = None) -> None:
        self._seconds, self._num_copies, self._say = seconds, num_copies, say
        self._began = self._mark = perf_counter()
        self._first, self._a_copy = math.inf, 0.0

    def another_step(self, made: int, wanted: int) -> bool:
        """Tell whether the untreated copy may make one more step; to be asked after each.

        Args:
            made: How many it has made.
            wanted: How many it would make.

        Returns:
            Whether it fits, with the pass that looks at the loss afterwards.
        """
        now = perf_counter()
        last, taken, self._mark = now - self._mark, now - self._began, now
        share = self._seconds / self._num_copies
        if made == 1:
            self._first = taken
        # The first pass may have to warm up, and does not tell what a step takes unless it is slow in any case.
        if made > 1 or taken > _TOLD_FROM:
            self._tell(min(taken + (wanted - made + 1) * last, max(share, taken)) * self._num_copies)
        if taken + 2 * last <= share or (made == 1 and 4 * taken <= self._seconds):
            return True
        return made < LEAST_STEPS and 2 * (taken + (LEAST_STEPS - made + 1) * last) <= self._seconds

    def untreated_done(self, made: int) -> None:
        """Note what a copy takes, now that the untreated one is through.

        Args:
            made: How many steps the others will make.
        """
        taken = perf_counter() - self._began
        self._a_copy = taken if made else min(self._first, taken)
        self._tell(self._a_copy * self._num_copies)

    def another_copy(self) -> bool:
        """Tell whether one more copy fits."""
        return perf_counter() + self._a_copy <= self._began + self._seconds

    def _tell(self, expected: float) -> None:
        expected = min(expected, max(self._seconds, self._mark - self._began))
        if self._say is not None and expected > _TOLD_FROM:
            ways = self._num_copies - 1
            self._say(
                f"GradWatch  trying {ways} {'way' if ways == 1 else 'ways'} out on copies, about {expected:.0f} s"
            )
            self._say = None
