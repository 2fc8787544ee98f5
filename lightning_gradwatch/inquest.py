"""Where a row of steps that are not finite began: asked once, of all processes, when it begins."""

from __future__ import annotations

import math
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lightning_gradwatch.detect.diagnosis import Diagnosis
from lightning_gradwatch.measure.history import GradientHistory
from lightning_gradwatch.measure.layers import Layer
from lightning_gradwatch.report.nonfinite import NonFiniteFiles, NonFiniteStep
from lightning_gradwatch.report.origin import Witness, origin_in_words
from lightning_gradwatch.report.teller import Teller
from lightning_gradwatch.surroundings import Surroundings
from lightning_gradwatch.testimony import PoisonedStep, witness_of

# For each optimizer: where gradients break again and again, what each onset tells stands in the log anyway.
_MAX_INQUESTS = 10
# Steps before the onset that are written down.
_NUM_CLEAN_STEPS = 10
_LATER = "the other processes are asked within the next batches"
_NEVER = "the other processes cannot be asked any more: GradWatch is switched off"


@dataclass(eq=False)
class _Inquest:
    """What is known of one step.

    Attributes:
        about: The step.
        witnesses: What each process knows of it; this one alone until the others have answered.
        not_asked: Why the others are not in it, empty where they are.
        told: What was told of it, None before that.
    """

    about: PoisonedStep
    witnesses: tuple[Witness, ...]
    not_asked: str = ""
    told: NonFiniteStep | None = None


class Inquests:
    """Opens an inquest at each onset, asks all processes, and tells what came out.

    Two ways lead to the other processes, and neither depends on what one process alone knows. Where all processes have
    agreed that a step is dropped they ask each other at once. Elsewhere a process may have been switched off and see
    nothing, so they ask each other at their next exchange, which tells all of them that one has a question: there
    about the oldest step that any of them wants to know of, and about later ones at the exchanges after it.

    Args:
        teller: Writes the training log.
        on_nonfinite: What the person has set.
    """

    def __init__(self, teller: Teller, on_nonfinite: str) -> None:
        self._teller = teller
        self._on_nonfinite = on_nonfinite
        self.begin(Surroundings())

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the fit under way: from a copy nobody can be asked."""
        return vars(Inquests(self._teller, self._on_nonfinite))

    def begin(self, surroundings: Surroundings) -> None:
        """Begin a fit; nothing of an earlier one counts.

        Args:
            surroundings: Where this process stands.
        """
        self._surroundings = surroundings
        self._host = socket.gethostname()
        self._files = NonFiniteFiles(surroundings.directory)
        self._exchanges = surroundings.num_processes > 1
        # All by the number of the optimizer, since one may step in this process only and another one in all of them:
        # the rows that last and the inquest at their beginning, None where there was none; how many were begun; and
        # those that are not told yet.
        self._rows: dict[int, _Inquest | None] = {}
        self._num_begun: dict[int, int] = {}
        self._open: dict[int, _Inquest] = {}
        # What this process asks the others, by step and optimizer.
        self._questions: dict[tuple[int, int], _Inquest] = {}

    def finite(self, number: int) -> None:
        """Note a step of an optimizer that is finite."""
        self._rows.pop(number, None)

    def begins(self, number: int) -> bool:
        """Note a step that is not finite, and tell whether a row of them begins with it that is to be looked into.

        Args:
            number: Number of the optimizer.
        """
        if number in self._rows:
            return False
        self._rows[number] = None
        self._num_begun[number] = self._num_begun.get(number, 0) + 1
        return self._num_begun[number] <= _MAX_INQUESTS

    def origin(self, number: int) -> str:
        """Say where the row of steps came from that lasts; empty where that is not known.

        Args:
            number: Number of the optimizer.
        """
        inquest = self._rows.get(number)
        return "" if inquest is None or inquest.not_asked else origin_in_words(inquest.witnesses)

    def is_open(self, number: int) -> bool:
        """Tell whether there is something to close.

        Args:
            number: Number of the optimizer.
        """
        return number in self._open

    @property
    def has_question(self) -> bool:
        """Whether this process wants to ask the others at their next exchange."""
        return bool(self._questions)

    def open(self, about: PoisonedStep, layers: Sequence[Layer], *, at_once: bool) -> None:
        """Take down what this process knows, and ask the others where that is possible.

        Args:
            about: The step.
            layers: The layers whose weights are looked at.
            at_once: Whether all processes have agreed that the step is not finite, and so come here together.
        """
        mine = self._testify(about, layers)
        inquest = _Inquest(about, (mine,))
        if self._surroundings.num_processes > 1:
            if at_once:
                inquest.witnesses = self._gather(mine)
            else:
                inquest.not_asked = _LATER if self._exchanges else _NEVER
                if self._exchanges:
                    self._questions[about.step, about.optimizer] = inquest
        self._open[about.optimizer] = inquest
        if about.optimizer in self._rows:
            self._rows[about.optimizer] = inquest

    def ask(self) -> tuple[Witness, ...]:
        """Ask the others, and answer them; all processes have to call it, those that have seen nothing as well.

        Returns:
            What each process knows of the step that it wants to ask about first, for ``answer``.
        """
        oldest = min(self._questions, default=None)
        return self._gather(self._myself() if oldest is None else self._questions[oldest].witnesses[0])

    def answer(self, witnesses: Sequence[Witness]) -> None:
        """Tell what the processes have said about the oldest step that any of them has asked about.

        Args:
            witnesses: What ``ask`` returned, the same in all processes.
        """
        steps = [(witness.step, witness.optimizer) for witness in witnesses if witness.step is not None]
        if not steps:
            # Whatever was asked has not arrived, and would not the next time.
            self._questions.clear()
            return
        step, number = min(steps)
        inquest = self._questions.pop((step, number), None)
        # Who has asked about another step has seen nothing of this one.
        them = tuple(
            w if (w.step, w.optimizer) == (step, number) else Witness(w.rank, w.host, w.device) for w in witnesses
        )
        more = ""
        if inquest is not None:
            inquest.witnesses, inquest.not_asked = them, ""
            if self._open.get(number) is inquest:
                # It is about to be told, with all of them in it.
                return
            more = self._tell_again(inquest)
        # A process that has seen nothing of it speaks for the one that has.
        self._teller.warn(f"step {step}  not finite, it came from {origin_in_words(them)}{more}")

    def _tell_again(self, inquest: _Inquest) -> str:
        """Write down once more what was told, and return what belongs behind the line of the log."""
        if inquest.told is None:
            return ""
        told = replace(inquest.told, witnesses=inquest.witnesses, not_asked=inquest.not_asked)
        path = self._write(replace(told, checkpoint=self._checkpoint(told)))
        return f"; {path}" if path else ""

    def end_exchanges(self) -> None:
        """Give up what is not asked yet: the processes exchange nothing any more."""
        self._exchanges = False
        for inquest in self._questions.values():
            inquest.not_asked = _NEVER
            self._tell_again(inquest)
        self._questions.clear()

    def close(
        self,
        number: int,
        layers: Sequence[str],
        history: GradientHistory,
        diagnosis: Diagnosis | None,
        label: str = "",
    ) -> None:
        """Tell what came out and write it down.

        Args:
            number: Number of the optimizer; nothing happens where no inquest is open.
            layers: Names of the layers, ``[num_layers]``.
            history: All readings.
            diagnosis: What the rules made of the step.
            label: Name of the optimizer where there are several.
        """
        inquest = self._open.pop(number, None)
        if inquest is None:
            return
        about = inquest.about
        case = NonFiniteStep(
            step=about.step,
            optimizer=number,
            optimizer_kind=about.optimizer_kind,
            on_nonfinite=self._on_nonfinite,
            witnesses=inquest.witnesses,
            num_processes=self._surroundings.num_processes,
            not_asked=inquest.not_asked,
            snapshot=about.snapshot,
            layers=tuple(layers),
            diagnosis=diagnosis,
            clean_steps=_clean_steps(history, number, about.step),
            before_step=about.before_step,
        )
        case = replace(case, checkpoint=self._checkpoint(case))
        inquest.told = case
        if self._teller.speaks:
            self._teller.logger.warning(case.text(label, self._write(case)))

    def _gather(self, mine: Witness) -> tuple[Witness, ...]:
        # Nothing before the collective may fail in one process alone: all of them wait for each other in it.
        lines = self._surroundings.gather(mine.encode())
        return tuple(Witness.decode(bytes(line), rank) for rank, line in enumerate(lines))

    def _myself(self) -> Witness:
        return Witness(rank=self._surroundings.rank, host=self._host, device=self._surroundings.device)

    def _testify(self, about: PoisonedStep, layers: Sequence[Layer]) -> Witness:
        myself = replace(self._myself(), step=about.step, optimizer=about.optimizer)
        try:
            return witness_of(myself, about, layers)
        except Exception as error:
            self._teller.warn(f"cannot look into the step that is not finite: {type(error).__name__}: {error}")
            return myself

    def _checkpoint(self, case: NonFiniteStep) -> tuple[str, int] | None:
        """Find the last clean checkpoint.

        A finite loss, or a look at the weights before the step, shows that they were finite before it. Where neither
        is known they were finite before the last step that was.
        """
        before = case.before_step and case.weights_broken is False
        seen = any(witness.loss is not None and math.isfinite(witness.loss) for witness in case.witnesses)
        until = case.step if before or seen else max((step for step, *_ in case.clean_steps), default=-1)
        try:
            found = self._surroundings.last_clean(until)
        except Exception as error:
            self._teller.warn(f"cannot find the last clean checkpoint: {type(error).__name__}: {error}")
            return None
        return None if found is None else (found.path, found.step)

    def _write(self, case: NonFiniteStep) -> Path | None:
        if not self._teller.speaks:
            return None
        try:
            return self._files.write(case)
        except Exception as error:
            self._teller.warn(f"cannot write down the step that is not finite: {type(error).__name__}: {error}")
            return None


def _clean_steps(history: GradientHistory, number: int, step: int) -> tuple[tuple[int, float, float], ...]:
    rows = history.readings(number)
    used = np.where(rows.present, rows.clipped_norms, 0.0)
    fine = np.flatnonzero((rows.steps < step) & np.isfinite(used).all(axis=1) & rows.present.any(axis=1))
    return tuple(
        (int(rows.steps[row]), float(rows.global_norms[row]), float(rows.losses[row]))
        for row in fine[-_NUM_CLEAN_STEPS:]
    )
