"""Where a process stands among those that train the same model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_gradwatch.checkpoints import SavedCheckpoint


def _alone(line: bytes) -> Sequence[bytes]:
    return [line]


def _none_known(until: int) -> SavedCheckpoint | None:
    return None


@dataclass(frozen=True)
class Surroundings:
    """Where a process stands, for what it tells of a step that is not finite.

    Attributes:
        rank: Its number.
        num_processes: How many processes train the model.
        device: What it computes on.
        directory: The log directory; None where nothing may be written.
        gather: Sends this process's bytes and returns those of all, one collective; all processes have to call it.
        last_clean: Returns the newest checkpoint that was saved at a step or before it.
    """

    rank: int = 0
    num_processes: int = 1
    device: str = ""
    directory: Path | None = None
    gather: Callable[[bytes], Sequence[bytes]] = _alone
    last_clean: Callable[[int], SavedCheckpoint | None] = _none_known
