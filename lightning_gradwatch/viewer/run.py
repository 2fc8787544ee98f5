"""One training run as a person looks at it: its series, each a whole picture, and what was diagnosed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_gradwatch.viewer.metadata import SeriesMetadata
from lightning_gradwatch.viewer.windows import Windows


@dataclass(frozen=True, eq=False)
class Series:
    """One quantity of one optimizer over the whole run, its layers in forward order.

    Attributes:
        about: Where it comes from; of several sessions the newest. Its ``layers`` are in registration order.
        layers: Names in forward order, input first, ``[num_layers]``.
        kinds: Class of each layer's module, in forward order; empty where nobody has told.
        windows: What was measured, its layers in forward order.
        known_step: A step that lies in the last window, where its first one is not the newest that is known.

    Example:
        >>> about = SeriesMetadata("norms", 0, "a1", 0.0, 0, ("fc1", "fc2"), (0, 1))
        >>> Series(about, about.layers, (), Windows.empty(2)).name
        'norms/0'
    """

    about: SeriesMetadata
    layers: tuple[str, ...]
    kinds: tuple[str, ...]
    windows: Windows
    known_step: int | None = None

    @property
    def name(self) -> str:
        """Name it within its run: quantity, optimizer, and for ``time`` the layer."""
        return self.about.name

    @property
    def last_step(self) -> int | None:
        """The newest step of which it is known that it has a reading; None where there is none."""
        steps = self.windows.steps
        return None if not len(steps) else int(steps[-1]) if self.known_step is None else self.known_step


@dataclass(frozen=True, eq=False)
class Run:
    """What a run has written.

    Attributes:
        name: As TensorBoard calls it, such as ``"lightning_logs/version_0"``.
        series: One for each quantity and optimizer (and for ``time`` each layer), those of ``QUANTITIES`` in order.
        events: How sessions began and ended, onsets and recoveries, oldest first, as they were written.
    """

    name: str
    series: tuple[Series, ...] = ()
    events: Sequence[Mapping[str, Any]] = field(default_factory=tuple)

    @property
    def last_step(self) -> int | None:
        """The newest step of which it is known that it was trained; None where nothing was measured."""
        return newest_step([one.last_step for one in self.series], self.events)

    @property
    def diagnoses(self) -> list[dict[str, Any]]:
        """What was diagnosed, oldest first, each as it was at its onset, with ``recovered_at`` where it is over.

        Layers that have joined since are among its ``layers``.
        A notice that has become a warning is one diagnosis, the warning.
        """
        told: list[dict[str, Any]] = []
        for event in self.events:
            values = event.get("diagnosis")
            if not isinstance(values, Mapping):
                continue
            diagnosis = {**values, "muted": True} if event.get("muted") else dict(values)
            if event.get("event") == "onset":
                told = [*_end_of_kin(told, diagnosis), diagnosis]
            elif event.get("event") in {"recovery", "update"}:
                told = [_followed(known, diagnosis) for known in told]
        return told


def newest_step(steps: Iterable[int | None], events: Iterable[Mapping[str, Any]]) -> int | None:
    """Return the newest step of which it is known that it was trained.

    A record tells the first step of its window alone; how far the last window goes is told by what else is known.

    Args:
        steps: Of the last window of each series the first step, or a later one; None for a series without any.
        events: Of the run.

    Returns:
        None where nothing was measured.

    Example:
        >>> newest_step([96, 50], [{"event": "end", "step": 99}]), newest_step([], [{"event": "off", "step": 7}])
        (99, None)
    """
    measured = [step for step in steps if step is not None]
    told = [event.get("step") for event in events if event.get("num_readings") != 0]
    return max([*measured, *(step for step in told if type(step) is int)]) if measured else None


def is_open_warning(diagnosis: Mapping[str, Any]) -> bool:
    """Whether a person has to do something about it: a warning that lasts and was not muted."""
    is_warning = diagnosis.get("severity") == "warning" and not diagnosis.get("muted")
    return is_warning and diagnosis.get("recovered_at") is None


def _same_fault(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether both are one fault to the onset tracker: one optimizer, one symptom, a layer in common."""
    alike = all(one.get(name) == other.get(name) for name in ("optimizer", "symptom"))
    return alike and not {*_layers(one)}.isdisjoint(_layers(other))


def _worsens(notice: Mapping[str, Any], onset: Mapping[str, Any]) -> bool:
    """Whether a notice has become a warning without having been over."""
    severities = notice.get("severity"), onset.get("severity")
    return severities == ("notice", "warning") and notice.get("count") == onset.get("count")


def _layers(diagnosis: Mapping[str, Any]) -> list[str]:
    layers = diagnosis.get("layers")
    return [str(name) for name in layers] if isinstance(layers, (list, tuple)) else []


def _end_of_kin(told: list[dict[str, Any]], onset: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what was told before an onset: a fault that begins, or begins again, does not last from before.

    The recovery of a notice is never told, nor that of a warning whose session was killed.
    """
    kept = []
    for known in told:
        kin = _same_fault(known, onset) and bool(known.get("muted")) == bool(onset.get("muted"))
        if known.get("recovered_at") is not None or not kin:
            kept.append(known)
        elif not _worsens(known, onset):
            kept.append({**known, "recovered_at": onset.get("step")})
    return kept


def _followed(known: dict[str, Any], news: Mapping[str, Any]) -> dict[str, Any]:
    """Note that a fault is over, or that its layers have become more since its onset, if it is the one."""
    same = all(known.get(name) == news.get(name) for name in ("rule", "step")) and _same_fault(known, news)
    if known.get("recovered_at") is not None or not same:
        return known
    return {**known, "layers": news["layers"], "recovered_at": news.get("recovered_at")}


def quantity_of_rule(rule: str) -> str:
    """Name the quantity that shows what a rule speaks of.

    Args:
        rule: A rule's id.

    Returns:
        One of ``QUANTITIES``.

    Example:
        >>> quantity_of_rule("vanishing.depth"), quantity_of_rule("exploding.time"), quantity_of_rule("spike")
        ('delta', 'time', 'norms')
    """
    kind = rule.partition(".")[2]
    # What saturates a layer is how large its output is.
    return {"depth": "delta", "time": "time", "update": "updates", "saturation": "signal"}.get(kind, "norms")
