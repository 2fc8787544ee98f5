"""From what the sessions of a run have told to one list of events."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_gradwatch.viewer.metadata import EventsMetadata


@dataclass(frozen=True)
class Told:
    """The events of a session.

    Attributes:
        about: What stands in the tag's metadata.
        events: As they were written, oldest first.
    """

    about: EventsMetadata
    events: Sequence[Mapping[str, Any]] = ()


def stitch_events(told: Iterable[Told]) -> tuple[Mapping[str, Any], ...]:
    """Put the events of all sessions one behind the other.

    A session that went on from a checkpoint, or anew, has trained once more what lies behind the step of its ``start``.
    What was told of that before is of a training that nobody went on with, and is left out, as it is in the pictures.

    Args:
        told: Of each session what it told.

    Returns:
        The events, oldest first.

    Example:
        >>> first = Told(EventsMetadata("a", 1.0), [{"event": "onset", "step": 3}, {"event": "onset", "step": 9}])
        >>> stitch_events([first, Told(EventsMetadata("b", 2.0), [{"event": "start", "step": 8}])])
        ({'event': 'onset', 'step': 3}, {'event': 'start', 'step': 8})
    """
    kept: list[Mapping[str, Any]] = []
    end = math.inf
    for each in sorted(told, key=lambda each: each.about.started, reverse=True):
        kept[:0] = [event for event in each.events if _step_of(event) < end]
        end = min([end, *(_step_of(event) for event in each.events if event.get("event") == "start")])
    return tuple(kept)


def _step_of(event: Mapping[str, Any]) -> float:
    step = event.get("step")
    return step if isinstance(step, (int, float)) else 0.0
