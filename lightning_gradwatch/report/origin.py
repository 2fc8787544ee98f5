"""What each process knows of a step that is not finite, and what that says in words."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

# Every process sends as many bytes, so that one collective is enough; a thousand processes send a megabyte.
NUM_BYTES = 1024
_NAMED_PROCESSES = 3
_NAMED_BATCHES = 8


@dataclass(frozen=True)
class Witness:
    """What one process knows.

    Attributes:
        rank: Its number.
        host: Name of its machine.
        device: What it computes on.
        step: The ``global_step`` of the step that was not finite; None where it has seen none.
        epoch: The epoch; None where it is not known.
        batches: Index of the first and the last batch whose gradients the step would use; empty where not known.
        loss: Its own loss of the step, the mean of the accumulated batches; None where it is not known.
        broken_batches: Which of the batches had a loss that is not finite.
        broken_gradients: The first layers with a gradient that is not finite.
        broken_weights: The first layers with a weight that is not finite.
        num_broken_weights: How many layers have one; None where nobody could look.
        seed: What its random numbers were last seeded with (``torch.initial_seed()``).
        optimizer: Number of the optimizer whose step it was.
        measured: Whether it could measure its gradients; where it could not, it has named none that broke.

    Example:
        >>> Witness.decode(Witness(rank=5, host="node03", loss=float("nan")).encode(), rank=5).host
        'node03'
    """

    rank: int = 0
    host: str = ""
    device: str = ""
    step: int | None = None
    epoch: int | None = None
    batches: tuple[int, ...] = ()
    loss: float | None = None
    broken_batches: tuple[int, ...] = ()
    broken_gradients: tuple[str, ...] = ()
    broken_weights: tuple[str, ...] = ()
    num_broken_weights: int | None = None
    seed: int | None = None
    optimizer: int = 0
    measured: bool = True

    def encode(self) -> bytes:
        """Return it in ``NUM_BYTES`` bytes; names that are too long for that are cut or left out."""
        short = replace(self, broken_batches=self.broken_batches[:_NAMED_BATCHES])
        for witness in (
            short,
            replace(short, host=self.host[:32], device=self.device[:16], broken_gradients=(), broken_weights=()),
            Witness(self.rank, step=self.step, optimizer=self.optimizer),
        ):
            line = json.dumps(asdict(witness), separators=(",", ":")).encode()
            if len(line) <= NUM_BYTES:
                return line.ljust(NUM_BYTES, b"\0")
        raise AssertionError("a rank and a step always fit")

    @classmethod
    def decode(cls, line: bytes, rank: int) -> Witness:
        """Return what another process has sent.

        Args:
            line: The bytes.
            rank: The process's number, which stands even where its bytes say nothing.
        """
        try:
            sent: dict[str, Any] = json.loads(line.rstrip(b"\0").decode())
            plain: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in sent.items()}
            known = cls(**plain)
        except (AttributeError, TypeError, ValueError):
            return cls(rank)
        return replace(known, rank=rank)

    @property
    def broken(self) -> bool:
        """Whether its loss was not finite."""
        return self.loss is not None and not math.isfinite(self.loss)

    @property
    def where(self) -> str:
        """The process, in words."""
        place = ", ".join(part for part in (self.host, self.device) if part)
        return f"rank {self.rank} ({place})" if place else f"rank {self.rank}"

    @property
    def batch(self) -> str:
        """The batches of the step, in words; empty where they are not known."""
        if not self.batches:
            return ""
        first, last = self.batches[0], self.batches[-1]
        # Batches are counted anew in each epoch.
        epoch = f"epoch {self.epoch}, " if self.epoch else ""
        return epoch + (f"batch {last}" if first == last else f"batches {first} to {last}")

    @property
    def what(self) -> str:
        """The loss, in words, and in which of several batches it broke."""
        if self.loss is None:
            return "loss not known"
        several = len(set(self.batches)) > 1 and self.broken_batches
        named = ", ".join(str(batch) for batch in self.broken_batches[:_NAMED_BATCHES])
        word = "batch" if len(self.broken_batches) == 1 else "batches"
        return f"loss {self.loss:.4g}" + (f", broken in {word} {named}" if several else "")

    @property
    def line(self) -> str:
        """Batch and loss, in words."""
        return f"{self.batch}: {self.what}" if self.batch else self.what


def origin_in_words(witnesses: Sequence[Witness]) -> str:
    """Say which process a step that is not finite came from.

    Args:
        witnesses: What each process knows, one where there is one process only.

    Returns:
        One line.

    Example:
        >>> fine = [Witness(rank, loss=0.7) for rank in range(5)]
        >>> sick = Witness(5, "node03", "cuda:5", batches=(8123, 8123), loss=float("nan"))
        >>> origin_in_words([*fine, sick])
        'rank 5 (node03, cuda:5) batch 8123: loss nan; 5 others finite'
    """
    if len(witnesses) == 1:
        fine = witnesses[0].loss is not None and not witnesses[0].broken
        return witnesses[0].line + (", finite: it began after the loss, in the backward pass" if fine else "")
    broken = [witness for witness in witnesses if witness.broken]
    if len(broken) == len(witnesses):
        return f"{_together(witnesses)}loss not finite in all {len(witnesses)} processes: the weights, or all batches"
    return _named(witnesses, broken) if broken else _after_the_loss(witnesses)


def _named(witnesses: Sequence[Witness], broken: Sequence[Witness]) -> str:
    told = [f"{w.where} {w.line}" if w.batch else f"{w.where}: {w.line}" for w in broken]
    rest = len(told) - _NAMED_PROCESSES
    told = told[:_NAMED_PROCESSES] + ([f"{rest} more broken"] if rest > 0 else [])
    unknown = sum(witness.loss is None for witness in witnesses)
    num_finite = len(witnesses) - len(broken) - unknown
    told += [f"{num_finite} {'other' if num_finite == 1 else 'others'} finite"] if num_finite else []
    return "; ".join(told + ([f"{unknown} not known"] if unknown else []))


def _after_the_loss(witnesses: Sequence[Witness]) -> str:
    """Say what is known where no process had a loss that was not finite; gradients are told where they differ."""
    unknown = sum(witness.loss is None for witness in witnesses)
    sick = [witness for witness in witnesses if witness.broken_gradients]
    known = f"{_together(witnesses)}the loss was finite in {len(witnesses) - unknown} of {len(witnesses)} processes"
    if 0 < len(sick) < len(witnesses) and all(witness.measured for witness in witnesses):
        places = "; ".join(f"{w.where} in {', '.join(w.broken_gradients)}" for w in sick[:_NAMED_PROCESSES])
        return f"{known}; the gradient broke in {places}"
    if unknown:
        return f"{known} and is not known in {unknown}: it was one of those, or the backward pass"
    return f"{known}: it began after the loss, in the backward pass"


def _together(witnesses: Sequence[Witness]) -> str:
    """Name the batch where all processes speak of the same one."""
    batches = {witness.batch for witness in witnesses if witness.batch}
    return f"{batches.pop()}: " if len(batches) == 1 else ""
