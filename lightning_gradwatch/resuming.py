"""What a checkpoint remembers of a run, and how it goes on where that was saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning_gradwatch.poisoned import PoisonedSteps
from lightning_gradwatch.prober import ProbeSchedule
from lightning_gradwatch.record import Record
from lightning_gradwatch.remedy.clipping import Clipper
from lightning_gradwatch.steps import Steps

# Raised when what a checkpoint remembers changes its form.
_STATE_VERSION = 2


class Resumable:
    """Keeps together what belongs into a checkpoint.

    Args:
        record: What is known of the run.
        steps: How many steps were made.
        poisoned: How many were dropped.
        schedule: Which are probed.
        clipper: The person's clipper; one that remembers something has ``state_dict`` and ``load_state_dict``.
        warn: Takes what could not be taken back.
    """

    def __init__(
        self,
        record: Record,
        steps: Steps,
        poisoned: PoisonedSteps,
        schedule: ProbeSchedule,
        clipper: Clipper | None,
        warn: Callable[[str], None],
    ) -> None:
        self._record = record
        self._steps = steps
        self._poisoned = poisoned
        self._schedule = schedule
        self._clipper = clipper
        self._warn = warn
        # What was loaded, until the layers are known.
        self._saved: Mapping[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered as plain values and tensors, as a weights-only checkpoint admits them."""
        if self._saved is not None:
            # Loaded, and not yet taken back.
            return dict(self._saved)
        clipper = getattr(self._clipper, "state_dict", None)
        return {
            "version": _STATE_VERSION,
            "record": self._record.state_dict(),
            "steps": self._steps.state_dict(),
            "poisoned": self._poisoned.state_dict(),
            "prober": self._schedule.state_dict(),
            "clipper": clipper() if clipper else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep what ``state_dict`` returned until ``take_back``."""
        self._saved = state

    def take_back(self, names: Sequence[str]) -> None:
        """Take back what was loaded, or start afresh and say why.

        Args:
            names: Names of the layers.
        """
        if self._saved is None:
            return
        self._restore_clipper(self._saved)
        try:
            self._restore(self._saved, names)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            self._warn(f"starts afresh, what this checkpoint remembers is of another kind: {error!r}")
        self._saved = None

    def reset_clipper(self) -> None:
        """Have the clipper forget an earlier run, perhaps one that it shares with another GradWatch."""
        try:
            getattr(self._clipper, "reset", tuple)()
        except Exception as error:
            self._warn(f"clipper does not start afresh: {type(error).__name__}: {error}")

    def _restore_clipper(self, state: Mapping[str, Any]) -> None:
        """Give the clipper back what it remembers, whatever else of the checkpoint is of another kind."""
        load = getattr(self._clipper, "load_state_dict", None)
        try:
            if load and state["clipper"] is not None:
                load(state["clipper"])
        except KeyError as error:
            kind = type(self._clipper).__name__
            self._warn(f"clipper starts afresh: the checkpoint is of another one than {kind}, it has no {error}")
        except Exception as error:
            self._warn(f"clipper starts afresh: {type(error).__name__}: {error}")

    def _restore(self, state: Mapping[str, Any], names: Sequence[str]) -> None:
        if state["version"] != _STATE_VERSION:
            raise ValueError(f"version {state['version']}, expected {_STATE_VERSION}")
        self._record.load_state_dict(state["record"], names)
        self._steps.load_state_dict(**state["steps"])
        self._poisoned.load_state_dict(**state["poisoned"])
        self._schedule.load_state_dict(state["prober"])
