"""What the rules saw in a run, kept so that changed rules can be asked again without another run."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from lightning_gradwatch import Diagnosis, Observations, Rule
from lightning_gradwatch.detect.onset import OnsetTracker
from lightning_gradwatch.measure.history import FIRST_LOSSES, WINDOW, Readings
from lightning_gradwatch.measure.snapshot import SignalSnapshot

_COLUMNS = tuple(column.name for column in fields(Readings))


@dataclass
class _Seen:
    """What the rules saw of one optimizer.

    Attributes:
        newest: The observations at the last reading.
        told: What is known of the layers, and their order, from which reading on.
        rows: Each reading's own row of every column.
        signals: The probes.
        losses: Each reading's loss as the rules may judge it.
        counts: What had been counted by each reading that was judged: of each layer, and of other optimizers.
    """

    newest: Observations
    told: list[tuple[int, tuple[Any, ...], Any]] = field(default_factory=list)
    rows: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in _COLUMNS})
    signals: list[SignalSnapshot] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    counts: dict[int, tuple[Any, int]] = field(default_factory=dict)


class Recorder:
    """A rule that says nothing and remembers every reading of each optimizer."""

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}
        self._judged: list[tuple[int, int]] = []

    def __call__(self, observations: Observations) -> Iterable[Diagnosis]:
        """Remember the newest reading."""
        seen = self._seen.setdefault(observations.optimizer, _Seen(observations))
        seen.newest = observations
        # Readings that no rule was asked about, such as those of steps that a loss scaler dropped, are remembered too.
        last = seen.rows["steps"][-1] if seen.rows["steps"] else -1
        new = np.flatnonzero(observations.gradients.steps > last)
        for name in _COLUMNS:
            seen.rows[name] += [np.copy(row) for row in getattr(observations.gradients, name)[new]]
        seen.losses += observations.loss[len(observations.loss) - len(new) :].tolist()
        number = len(seen.losses) - 1
        if not seen.told or not _same(seen.told[-1], observations):
            seen.told.append((number, observations.layers, observations.order))
        if observations.probe is not None:
            seen.signals.append(observations.probe)
        seen.counts[number] = (np.copy(observations.num_present), observations.num_elsewhere)
        self._judged.append((observations.optimizer, number))
        return ()

    def save(self, path: Path) -> None:
        """Write everything to a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = {
            number: replace(seen, newest=replace(seen.newest, signals=[]), rows=_stacked(seen.rows))
            for number, seen in self._seen.items()
        }
        path.write_bytes(pickle.dumps((kept, self._judged)))


def _same(told: tuple[int, tuple[Any, ...], Any], observations: Observations) -> bool:
    return told[1] == observations.layers and np.array_equal(told[2], observations.order)


def _stacked(rows: dict[str, list[Any]]) -> dict[str, Any]:
    # A layer that appeared in the course of training was not there before.
    longest = max((np.size(value) for value in rows["norms"]), default=0)

    def wide(value: Any) -> Any:
        missing = longest - len(value)
        nothing = np.zeros(missing, dtype=np.bool_) if value.dtype == np.bool_ else np.full(missing, np.nan)
        return np.concatenate([value, nothing])

    return {
        name: np.array([wide(value) if np.ndim(value) else value for value in values]) for name, values in rows.items()
    }


def observed(path: Path) -> Iterator[Observations]:
    """Go once more through what the rules saw, reading by reading.

    Args:
        path: What ``Recorder.save`` has written; a file of one's own, since unpickling runs code.
    """
    kept, judged = pickle.loads(path.read_bytes())  # noqa: S301
    for optimizer, number in judged:
        seen = kept[optimizer]
        rows, losses = seen.rows, seen.losses
        _, layers, order = next(each for each in reversed(seen.told) if each[0] <= number)
        num_present, num_elsewhere = seen.counts[number]
        window = slice(max(0, number + 1 - WINDOW), number + 1)
        columns = {name: values[window] for name, values in rows.items()}
        columns = {name: v[:, : len(layers)] if v.ndim > 1 else v for name, v in columns.items()}
        step = int(rows["steps"][number])
        loss = np.array(losses[window])
        if number + 1 > WINDOW and np.isfinite(loss).any():
            loss = np.concatenate([losses[:FIRST_LOSSES], loss])
        yield replace(
            seen.newest,
            step=step,
            layers=layers,
            order=order,
            gradients=Readings(**columns),
            loss=loss,
            signals=[snapshot for snapshot in seen.signals if snapshot.step <= step],
            num_present=num_present,
            num_elsewhere=num_elsewhere,
        )


def replay(path: Path, rules: Sequence[Rule], patience: int = 3) -> list[Diagnosis]:
    """Ask rules about a recorded run.

    Args:
        path: The recording.
        rules: The rules.
        patience: As in ``GradWatch``.

    Returns:
        The diagnoses at the end of the run, without remedies.
    """
    tracker = OnsetTracker(patience)
    seen: dict[int, np.ndarray[Any, Any]] = {}
    for observations in observed(path):
        present = observations.gradients.present[-1]
        before = seen.get(observations.optimizer, np.zeros(0, dtype=np.int64))
        before = np.concatenate([before, np.zeros(len(present) - len(before), dtype=np.int64)])
        seen[observations.optimizer] = before + present
        with np.errstate(all="ignore"):
            findings = [finding for rule in rules for finding in rule(observations)]
        findings = [replace(finding, optimizer=observations.optimizer, step=observations.step) for finding in findings]
        columns = {observations.layers[column].name: int(column) for column in np.flatnonzero(present)}
        tracker.update(
            findings, observations.optimizer, observations.step, columns, seen[observations.optimizer].tolist()
        )
    return tracker.diagnoses
