"""When processes that train one model exchange what only each of them knows, and what follows from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from lightning_gradwatch.agreement import Agreement, Exchange
from lightning_gradwatch.harmless import Core
from lightning_gradwatch.inquest import Inquests
from lightning_gradwatch.record import Record
from lightning_gradwatch.report.teller import Teller
from lightning_gradwatch.stepper import Stepper


class Switch(Core, Protocol):
    """What can be switched off by another process."""

    def disable(self, reason: str) -> None:
        """Switch off, and say why."""
        ...


class Exchanges:
    """Has all processes know what each of them knows: its losses, that it was switched off, that its clipper failed.

    Args:
        core: What is switched off where it is so in another process.
        record: Gets the losses.
        inquests: Ask where a step came from.
        teller: Writes the training log.

    Attributes:
        agreement: What is collected for the next exchange; None where no other process trains the same model, or all
            of them are switched off.
    """

    def __init__(self, core: Switch, record: Record, inquests: Inquests, teller: Teller) -> None:
        self.agreement: Agreement | None = None
        self._core = core
        self._record = record
        self._inquests = inquests
        self._teller = teller

    def begin(self, *, alone: bool) -> None:
        """Begin a fit.

        Args:
            alone: Whether no other process trains the same model.
        """
        self.agreement = None if alone else Agreement()

    def end_batch(
        self, mean: Callable[[Sequence[float]], Sequence[float]], stepper: Stepper | None, *, now: bool
    ) -> bool:
        """Exchange where it is time; all processes have to call it after every batch.

        Args:
            mean: Takes this process's numbers and returns their mean over all processes.
            stepper: Clips, unless it could not even begin.
            now: Whether all of them exchange at once.

        Returns:
            Whether any of them has asked where a step came from; the same in all of them.
        """
        if self.agreement is None:
            return False
        off, failure = self._core.disabled_reason is not None, stepper.clipper_failure if stepper else ""
        known = self.agreement.end_batch(
            mean,
            off=off,
            unclipped=bool(failure),
            tells=self._teller.speaks,
            poisoned=self._inquests.has_question,
            now=now,
        )
        if known is None:
            return False
        if known.off.anywhere:
            self.agreement = None
        # All of them know that one has a question, so all of them are here.
        witnesses = self._inquests.ask() if known.poisoned else ()
        # Nobody waits for what follows.
        with self._core.guarded():
            self._take_in(known, stepper, off=off)
        with self._core.guarded():
            if known.poisoned:
                self._inquests.answer(witnesses)
            if self.agreement is None:
                self._inquests.end_exchanges()
        return known.poisoned

    def _take_in(self, known: Exchange, stepper: Stepper | None, *, off: bool) -> None:
        """Take in what all processes know, and say what only this one can say."""
        if known.unclipped.anywhere and stepper:
            failure = stepper.clipper_failure
            stepper.stop_clipping()
            if failure and not known.unclipped.told:
                self._teller.warn_from_here(f"failed in one of several processes: clipper {failure}")
        if known.off.anywhere:
            if not off:
                self._core.disable("it failed in another process, which says why")
            elif not known.off.told:
                self._teller.warn_from_here(f"failed in one of several processes: {self._core.disabled_reason}")
        for optimizer, step, loss in known.losses:
            self._record.history.set_loss(optimizer, step, loss)
