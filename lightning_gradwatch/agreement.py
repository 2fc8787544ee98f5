"""What processes that train one model together tell each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

# As many batches as ``detect.progress`` asks for to know where the loss stood: a collective a batch would cost more
# than it tells.
EVERY_N_BATCHES = 20


@dataclass(frozen=True)
class Failure:
    """What all processes know of a failure.

    Attributes:
        anywhere: Whether it happened in any process.
        told: Whether it happened in the process that writes the log, which has told it then.
    """

    anywhere: bool
    told: bool


@dataclass(frozen=True)
class Exchange:
    """What all processes know after an exchange.

    Attributes:
        losses: Optimizer, step and mean loss of each reading since the last exchange.
        off: That GradWatch was switched off.
        unclipped: That the clipper failed.
        poisoned: Whether any process has seen a step that is not finite and wants to know where it came from.
    """

    losses: list[tuple[int, int, float]]
    off: Failure
    unclipped: Failure
    poisoned: bool = False


class Agreement:
    """Collects what each process alone knows, its losses and its failures, until all exchange it.

    Gradient norms are the same in every process, or become so while they are measured. Losses are not: without their
    mean one process could call a fault a warning and the next one a notice. The exchange happens after the same
    batches everywhere, whatever fails in between: a process that stays away would stop all others for ever.
    """

    def __init__(self) -> None:
        self._num_batches = 0
        self._losses = np.full(EVERY_N_BATCHES, np.nan)
        self._rows: list[tuple[int, int, int]] = []

    def note(self, optimizer: int, step: int, loss: float) -> None:
        """Note the loss of a reading in this batch; of several readings in a batch it stays unknown.

        Args:
            optimizer: Number of the optimizer.
            step: Its step.
            loss: This process's loss.
        """
        place = self._num_batches % EVERY_N_BATCHES
        # Of several readings in one batch none is told by one number.
        several = any(place == known for *_, known in self._rows)
        self._losses[place] = np.nan if several else loss
        self._rows.append((optimizer, step, place))

    def end_batch(
        self,
        mean: Callable[[Sequence[float]], Sequence[float]],
        *,
        off: bool,
        unclipped: bool,
        tells: bool,
        poisoned: bool = False,
        now: bool = False,
    ) -> Exchange | None:
        """Count a batch, and exchange where it is time; every process has to call this after every batch.

        Args:
            mean: Takes this process's numbers and returns their mean over all processes.
            off: Whether this process was switched off.
            unclipped: Whether its clipper failed.
            tells: Whether this process is the one that writes the log.
            poisoned: Whether it has seen a step that is not finite since the last exchange.
            now: Whether all processes exchange at once; the batch was counted before then.

        Returns:
            What all processes know now; None between exchanges.
        """
        self._num_batches += not now
        if not now and self._num_batches % EVERY_N_BATCHES:
            return None
        mine = [poisoned, off, off and tells, unclipped, unclipped and tells]
        shared = mean([*self._losses.tolist(), *map(float, mine)])
        losses, flags = shared[:EVERY_N_BATCHES], [share > 0 for share in shared[EVERY_N_BATCHES:]]
        known = [(optimizer, step, losses[place]) for optimizer, step, place in self._rows]
        self._losses[:] = np.nan
        self._rows.clear()
        return Exchange(
            known,
            off=Failure(anywhere=flags[1], told=flags[2]),
            unclipped=Failure(anywhere=flags[3], told=flags[4]),
            poisoned=flags[0],
        )
