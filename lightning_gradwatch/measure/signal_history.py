"""The probes of a run, bounded whatever its length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

from lightning_gradwatch.measure.snapshot import SignalSnapshot, TimeProfile

# At the default of a probe every 50 steps, 256 of them are 12,800 steps; then the older ones are thinned.
_MAX_PROBES = 256
# The newest ones stay, so that a rule always finds several in a row.
_KEPT = 16
MAX_BYTES = 16 * 2**20
_PER_LAYER = ("sizes", "signal", "delta", "dead", "saturated", "update_ratio", "training", "fed_by_cut")


class SignalHistory(Sequence[SignalSnapshot]):
    """Snapshots of the signal probe, oldest first; older ones are thinned when there are too many.

    Args:
        max_bytes: Bound for all of them; the newest 16 stay in any case.

    Example:
        >>> history = SignalHistory()
        >>> len(history), history.of(0)
        (0, [])
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self._snapshots: list[SignalSnapshot] = []

    def __len__(self) -> int:
        """Return how many are kept."""
        return len(self._snapshots)

    @overload
    def __getitem__(self, place: int) -> SignalSnapshot: ...
    @overload
    def __getitem__(self, place: slice) -> list[SignalSnapshot]: ...
    def __getitem__(self, place: int | slice) -> SignalSnapshot | list[SignalSnapshot]:
        """Return one of them, or several."""
        return self._snapshots[place]

    def __iter__(self) -> Iterator[SignalSnapshot]:
        """Go through all of them, oldest first."""
        return iter(self._snapshots)

    def of(self, optimizer: int) -> list[SignalSnapshot]:
        """Return those of one optimizer's steps."""
        return [snapshot for snapshot in self._snapshots if snapshot.optimizer == optimizer]

    def append(self, snapshot: SignalSnapshot) -> None:
        """Add a snapshot and keep the bounds."""
        self._snapshots.append(snapshot)
        while len(self._snapshots) > _KEPT and self._too_many():
            del self._snapshots[self._least_missed()]

    def _least_missed(self) -> int:
        """Find the older snapshot whose neighbors are nearest to each other, so that an even choice stays."""
        steps = [snapshot.step for snapshot in self._snapshots]
        # The first one of an optimizer shows how its network started, and goes last.
        between = sorted(set(range(len(steps) - _KEPT)) - self._first_places())
        return min(between, key=lambda place: steps[place + 1] - steps[place - 1], default=0)

    def _first_places(self) -> set[int]:
        """Return where the first snapshot of each optimizer stands."""
        first: dict[int, int] = {}
        for place, snapshot in enumerate(self._snapshots):
            first.setdefault(snapshot.optimizer, place)
        return set(first.values())

    def widen(self, names: Sequence[str]) -> None:
        """Give every snapshot the layers that have appeared since."""
        self._snapshots = [widened_signals(snapshot, names) for snapshot in self._snapshots]

    def _too_many(self) -> bool:
        return len(self._snapshots) > _MAX_PROBES or sum(map(_num_bytes, self._snapshots)) > self.max_bytes

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the newest ones and the first one of each optimizer as plain values, for a checkpoint."""
        newest = range(max(len(self) - _KEPT, 0), len(self))
        return [_plain(self._snapshots[place]) for place in sorted(self._first_places().union(newest))]

    def load_state_dict(self, state: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
        """Take back what ``state_dict`` returned.

        Args:
            state: What was saved; snapshots of a model with other layers are left out.
            names: Names of the layers now.
        """
        same = [saved for saved in state if tuple(saved["layers"]) == tuple(names)[: len(saved["layers"])]]
        self._snapshots = [widened_signals(_from_plain(saved), names) for saved in same]


def widened_signals(snapshot: SignalSnapshot, names: Sequence[str]) -> SignalSnapshot:
    """Return a snapshot with as many layers as there are by now; those that it did not know were not measured."""
    missing = len(names) - len(snapshot.layers)
    if not missing:
        return snapshot
    wide = {name: np.append(getattr(snapshot, name), np.full(missing, np.nan)) for name in _PER_LAYER}
    return SignalSnapshot(**{**vars(snapshot), "layers": tuple(names), **wide})


def _num_bytes(snapshot: SignalSnapshot) -> int:
    return 8 * (len(_PER_LAYER) * len(snapshot.layers) + sum(len(profile.delta) for profile in snapshot.time))


def _plain(snapshot: SignalSnapshot) -> dict[str, Any]:
    arrays = {name: getattr(snapshot, name).tolist() for name in ("order", *_PER_LAYER)}
    time = [[profile.column, profile.delta.tolist(), profile.recurrent, profile.both_ways] for profile in snapshot.time]
    return {
        "step": snapshot.step,
        "optimizer": snapshot.optimizer,
        "layers": list(snapshot.layers),
        **arrays,
        "time": time,
        "unscaled_float16": snapshot.unscaled_float16,
    }


def _from_plain(saved: Mapping[str, Any]) -> SignalSnapshot:
    arrays: dict[str, Any] = {name: np.array(saved[name], dtype=np.float64) for name in _PER_LAYER}
    return SignalSnapshot(
        step=saved["step"],
        optimizer=saved["optimizer"],
        layers=tuple(saved["layers"]),
        order=np.array(saved["order"], dtype=np.int64),
        time=tuple(TimeProfile(column, np.array(delta), *kinds) for column, delta, *kinds in saved["time"]),
        # Missing in what was saved before it was asked for.
        unscaled_float16=saved.get("unscaled_float16", False),
        **arrays,
    )
