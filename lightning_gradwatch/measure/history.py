"""What was measured so far: a table of bounded size with a row a reading and a column a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_gradwatch.measure.snapshot import BoolArray, FloatArray, GradientSnapshot, IntArray

# Readings kept exactly: twice the 128 steps on which OLMo-core judges a spike, so that a rule sees one such window
# before the one that it judges.
WINDOW = 256
# As many as `detect.progress` needs to know where the loss stood after its first jump.
FIRST_LOSSES = 20
# design: "64 MB in all".
MAX_BYTES = 64 * 1024 * 1024
_PER_LAYER = ("norms", "clipped_norms", "bias_norms", "weight_norms", "learning_rates", "present")


@dataclass(frozen=True, eq=False)
class Readings:
    """The newest readings of one optimizer, oldest first, ``n`` of them.

    Attributes:
        steps: ``[n]``.
        norms: ``[n, num_layers]``, like the others that follow; see ``GradientSnapshot``.
        clipped_norms: After clipping.
        bias_norms: Of the bias alone.
        weight_norms: Of the parameters themselves.
        learning_rates: Learning rates.
        present: Which layers had a gradient.
        losses: ``[n]``.
        global_norms: Norm of all gradients seen as one vector, before clipping, ``[n]``.
    """

    steps: IntArray
    norms: FloatArray
    clipped_norms: FloatArray
    bias_norms: FloatArray
    weight_norms: FloatArray
    learning_rates: FloatArray
    present: BoolArray
    losses: FloatArray
    global_norms: FloatArray

    def __len__(self) -> int:
        """Return how many readings there are."""
        return len(self.steps)


class GradientHistory:
    """Readings of all optimizers in the order in which they came.

    The newest ``window`` rows of each optimizer stay exact. When the table is full, its older rows are thinned to
    every 2nd, then every 4th, 8th, ... reading of their optimizer, so that a run of any length keeps a uniform picture
    in ``max_bytes``.

    Args:
        layers: Names of the layers, in registration order.
        window: How many of the newest rows are never thinned.
        max_bytes: Bound for the whole table; a model so large that ``window`` rows do not fit keeps fewer.

    Example:
        >>> history = GradientHistory(("0", "2"))
        >>> history.norms.shape, history.layers
        ((0, 2), ('0', '2'))
    """

    def __init__(self, layers: Sequence[str] = (), window: int = WINDOW, max_bytes: int = MAX_BYTES) -> None:
        self.layers = tuple(layers)
        self.order = tuple(range(len(self.layers)))
        self.window = window
        self.max_bytes = max_bytes
        self._rows = 0
        self._seen: set[int] = set()
        # How many readings each optimizer has had, and how many of them an older row stands for.
        self._counts: dict[int, int] = {}
        self._strides: dict[int, int] = {}
        self._ordinals = np.empty(0, dtype=np.int64)
        self._steps = np.empty(0, dtype=np.int64)
        self._optimizers = np.empty(0, dtype=np.int64)
        self._losses = np.empty(0)
        # Adding up thousands of layers over a whole window at each reading would be the dearest part of a rule.
        self._global_norms = np.empty(0)
        self._first_losses = np.empty(0)
        self._tables = {name: self._empty(name, 0) for name in _PER_LAYER}

    def __len__(self) -> int:
        """Return how many rows are kept."""
        return self._rows

    @property
    def steps(self) -> IntArray:
        """The Trainer's ``global_step`` before each step, ``[n]``."""
        return self._steps[: self._rows]

    @property
    def optimizers(self) -> IntArray:
        """Number of the optimizer that stepped, ``[n]``."""
        return self._optimizers[: self._rows]

    @property
    def losses(self) -> FloatArray:
        """The loss of each reading, NaN where it is not known, ``[n]``."""
        return self._losses[: self._rows]

    @property
    def norms(self) -> FloatArray:
        """Gradient norm of each layer before clipping, ``[n, num_layers]``."""
        return self._column("norms")

    @property
    def clipped_norms(self) -> FloatArray:
        """Gradient norm of each layer after clipping, ``[n, num_layers]``."""
        return self._column("clipped_norms")

    @property
    def bias_norms(self) -> FloatArray:
        """Gradient norm of each layer's bias, NaN without one, ``[n, num_layers]``."""
        return self._column("bias_norms")

    @property
    def weight_norms(self) -> FloatArray:
        """Norm of each layer's parameters, as last measured, ``[n, num_layers]``."""
        return self._column("weight_norms")

    @property
    def learning_rates(self) -> FloatArray:
        """Learning rate of each layer, ``[n, num_layers]``."""
        return self._column("learning_rates")

    @property
    def present(self) -> BoolArray:
        """Whether the layer had a gradient in the reading, ``[n, num_layers]``."""
        present: BoolArray = self._tables["present"][: self._rows]
        return present

    def _column(self, name: str) -> FloatArray:
        column: FloatArray = self._tables[name][: self._rows]
        return column

    @property
    def capacity(self) -> int:
        """How many rows fit into ``max_bytes``, at least 2."""
        row = 5 * 8 + len(self.layers) * (8 * (len(_PER_LAYER) - 1) + 1)
        return max(2, self.max_bytes // row)

    def append(self, snapshot: GradientSnapshot) -> None:
        """Add a reading.

        Args:
            snapshot: One value a layer of this history.
        """
        if self._rows >= self.capacity:
            self._thin()
        if self._rows == len(self._steps):
            self._resize(min(self.capacity, max(64, 2 * self._rows)))
        row = self._rows
        self._steps[row], self._optimizers[row] = snapshot.step, snapshot.optimizer
        self._losses[row], self._global_norms[row] = snapshot.loss, snapshot.global_norm
        self._seen.add(snapshot.optimizer)
        if len(self._first_losses) < FIRST_LOSSES:
            self._first_losses = np.append(self._first_losses, snapshot.loss)
        self._ordinals[row] = self._counts.get(snapshot.optimizer, 0)
        self._counts[snapshot.optimizer] = int(self._ordinals[row]) + 1
        for name in _PER_LAYER:
            self._tables[name][row] = getattr(snapshot, name)
        self._rows += 1

    def set_loss(self, optimizer: int, step: int, loss: float) -> None:
        """Fill in a loss that became known after its reading.

        Args:
            optimizer: Number of the optimizer.
            step: Its step; nothing happens where the row is gone.
            loss: The loss.
        """
        # The newest: a run that starts anew with the same layers counts its steps from 0 again.
        rows = np.flatnonzero((self.steps == step) & (self.optimizers == optimizer))[-1:]
        self._losses[rows] = loss
        first = self._ordinals[rows]
        self._first_losses[first[first < len(self._first_losses)]] = loss

    def readings(self, optimizer: int) -> Readings:
        """Return the newest ``window`` readings of one optimizer."""
        rows = self._newest(optimizer)
        tables: dict[str, Any] = {name: self._tables[name][rows] for name in _PER_LAYER}
        return Readings(
            steps=self._steps[rows], losses=self._losses[rows], global_norms=self._global_norms[rows], **tables
        )

    def _newest(self, optimizer: int) -> slice | IntArray:
        if self._seen == {optimizer}:
            return slice(max(0, self._rows - self.window), self._rows)
        # Far enough back for an optimizer that steps four times as rarely as the others.
        start = max(0, self._rows - 4 * self.window * len(self._seen))
        rows: IntArray = start + np.flatnonzero(self.optimizers[start:] == optimizer)[-self.window :]
        return rows

    def losses_of(self, optimizer: int) -> FloatArray:
        """Return the losses of one optimizer since the start, as far as they are kept.

        With several optimizers all are NaN: each loss works on another's, and falls or rises for reasons of its own.
        """
        rows = self._newest(optimizer)
        newest = self._losses[rows]
        if self._seen != {optimizer}:
            return np.full(len(newest), np.nan)
        if self._counts[optimizer] <= len(newest):
            return newest
        # What the start was like decides whether the loss has fallen; thinning and checkpoints keep it apart.
        return np.concatenate([self._first_losses, newest])

    def add_layers(self, names: Sequence[str]) -> None:
        """Append columns for layers that appeared during training; their past is not present."""
        self.layers += tuple(names)
        self.order += tuple(range(len(self.order), len(self.layers)))
        for name in _PER_LAYER:
            old = self._tables[name]
            new = self._empty(name, len(old))
            new[:, : old.shape[1]] = old
            self._tables[name] = new
        while self._rows > self.capacity:
            self._thin()
        self._resize(min(len(self._steps), self.capacity))

    def _empty(self, name: str, rows: int) -> Any:
        shape = (rows, len(self.layers))
        return np.zeros(shape, dtype=np.bool_) if name == "present" else np.full(shape, np.nan)

    def _resize(self, rows: int) -> None:
        kept = self._rows
        for name in _PER_LAYER:
            new = self._empty(name, rows)
            new[:kept] = self._tables[name][:kept]
            self._tables[name] = new
        self._steps = np.concatenate([self._steps[:kept], np.empty(rows - kept, dtype=np.int64)])
        self._optimizers = np.concatenate([self._optimizers[:kept], np.empty(rows - kept, dtype=np.int64)])
        self._ordinals = np.concatenate([self._ordinals[:kept], np.empty(rows - kept, dtype=np.int64)])
        self._losses = np.concatenate([self._losses[:kept], np.empty(rows - kept)])
        self._global_norms = np.concatenate([self._global_norms[:kept], np.empty(rows - kept)])

    def _thin(self) -> None:
        keep = np.ones(self._rows, dtype=np.bool_)
        exact = min(self.window, max(1, self.capacity // (2 * len(self._seen))))
        older = {number: np.flatnonzero(self.optimizers == number)[:-exact] for number in self._seen}
        fair_share = sum(map(len, older.values())) / len(older)
        for number, rows in older.items():
            if len(rows) >= fair_share:
                keep[rows] = self._uniform(number, self._ordinals[rows])
        if keep.all():
            # There is no room for anything but the newest rows.
            keep[0] = False
        rows = np.flatnonzero(keep)
        # Into new memory: what a person has taken from the history does not change under their hands.
        self._steps, self._optimizers = _moved(self._steps, rows), _moved(self._optimizers, rows)
        self._losses, self._ordinals = _moved(self._losses, rows), _moved(self._ordinals, rows)
        self._global_norms = _moved(self._global_norms, rows)
        self._tables = {name: _moved(table, rows) for name, table in self._tables.items()}
        self._rows = len(rows)

    def _uniform(self, optimizer: int, ordinals: IntArray) -> BoolArray:
        stride = self._strides.get(optimizer, 1)
        while len(ordinals) > 1 and np.count_nonzero(ordinals % stride == 0) > (len(ordinals) + 1) // 2:
            stride *= 2
        self._strides[optimizer] = stride
        uniform: BoolArray = ordinals % stride == 0
        return uniform

    def state_dict(self) -> dict[str, Any]:
        """Return the newest ``window`` rows of each optimizer as plain arrays, for a checkpoint."""
        newest = [np.flatnonzero(self.optimizers == number)[-self.window :] for number in self._seen]
        rows = np.sort(np.concatenate(newest)) if newest else np.empty(0, dtype=np.int64)
        tables = {name: self._tables[name][rows] for name in _PER_LAYER}
        counted = {"steps": self._steps, "optimizers": self._optimizers}
        columns: dict[str, Any] = counted | {"losses": self._losses, "global_norms": self._global_norms}
        plain = {name: column[rows] for name, column in columns.items()}
        counts = [[number, count] for number, count in self._counts.items()]
        names = {"layers": list(self.layers), "order": list(self.order), "counts": counts}
        return {**names, "first_losses": self._first_losses.copy(), **plain, **tables}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back the rows of a checkpoint; columns are matched by the layers' names.

        Args:
            state: What ``state_dict`` returned, perhaps of a model with other layers. Layers that are gone are left
                out; layers that are new were not present.
        """
        places = {name: number for number, name in enumerate(self.layers)}
        pairs = [(old, places[name]) for old, name in enumerate(state["layers"]) if name in places]
        sources, targets = [old for old, _ in pairs], [new for _, new in pairs]
        kept = min(len(state["steps"]), self.capacity)
        self._rows = 0
        self._resize(kept)
        self._steps[:] = np.asarray(state["steps"])[-kept:] if kept else 0
        self._optimizers[:] = np.asarray(state["optimizers"])[-kept:] if kept else 0
        self._losses[:] = np.asarray(state["losses"])[-kept:] if kept else 0
        self._global_norms[:] = np.asarray(state["global_norms"])[-kept:] if kept else 0
        for name in _PER_LAYER:
            if kept and pairs:
                self._tables[name][:, targets] = np.asarray(state[name])[-kept:][:, sources]
        self._rows = kept
        self._seen = set(self.optimizers.tolist())
        self._strides = {}
        self._first_losses = np.asarray(state["first_losses"], dtype=np.float64).copy()
        self._counts = dict(state["counts"])
        for number in self._seen:
            rows = np.flatnonzero(self.optimizers == number)
            self._ordinals[rows] = self._counts[number] - len(rows) + np.arange(len(rows))


def _moved(table: Any, rows: IntArray) -> Any:
    """Return a table of the same shape whose first rows are the given ones of the old."""
    new = np.empty_like(table)
    new[: len(rows)] = table[rows]
    return new
