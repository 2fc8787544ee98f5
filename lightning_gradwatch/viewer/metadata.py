"""What writer and viewer agree on: tags, what stands in a tag's metadata, and in its records.

Two kinds of tags. A *series* has one record a window of readings: a ``float16`` tensor ``[4, num_layers]`` with the
median, the least and the largest log10 of each layer, and what else was seen. At resolution 0 records are single
readings, ``[1, num_layers]``, or several of them, ``[n, 1, 2 + num_layers]`` (``lightning_gradwatch.viewer.windows``:
``pack``, ``pack_reading``, ``bundle``).
Its metadata holds all else, once: the layers' names, their forward order, the quantity, the optimizer. *Events* are
JSON texts: how a run began and ended, onsets, layers that joined a fault, recoveries.

A tag holds up to ``MAX_RECORDS`` windows or readings; then the series goes on under the next ``resolution``, which
begins with the pairwise merged ones of the one before, so that the newest alone is a whole picture.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeGuard

PLUGIN_NAME = "gradwatch"
# Raised when a viewer of today would misread what is written; the viewer goes on reading what is older.
FORMAT_VERSION = 1
# A picture is hardly ever wider than 2,000 pixels.
MAX_RECORDS = 2048
# TensorBoard keeps a random choice of so many records of a tag. All of a series fit; so do all events of a run in which
# a fault that flaps is told in ever longer intervals.
SAMPLES = 2 * MAX_RECORDS
_LARGEST = sys.float_info.max


@dataclass(frozen=True)
class Quantity:
    """Something that is measured for each layer.

    Attributes:
        title: What it is, for a person.
        explanation: What to see in it, in a sentence.
        low: log10 below which it is drawn as vanishing.
        high: log10 above which it is drawn as exploding.
    """

    title: str
    explanation: str
    low: float
    high: float


# The ends of the colors are fixed, so that two runs can be compared. Of the norms: what Amazon SageMaker Debugger calls
# vanishing, and so far up that the norm of a healthy layer (0.18, the median of 755 runs of ours) is in the middle.
# Of the others ours: six decades around what a healthy layer has.
QUANTITIES: Mapping[str, Quantity] = {
    "norms": Quantity("gradient norm", "L2 norm of each layer's gradient, before clipping", -7.0, 5.0),
    "ratios": Quantity("gradient / weight", "norm of each layer's gradient, divided by that of its weights", -8.0, 4.0),
    "signal": Quantity("forward signal", "root mean square of each layer's output", -6.0, 6.0),
    "delta": Quantity(
        "gradient reaching the layer", "root mean square of the gradient at each layer's output", -10.0, 2.0
    ),
    "updates": Quantity(
        "update / weight", "how far the optimizer moved each layer, in parts of its weights", -7.0, 1.0
    ),
    "time": Quantity("gradient along time", "root mean square of the gradient at each time step", -10.0, 2.0),
}


@dataclass(frozen=True)
class SeriesMetadata:
    """Everything about a series that its records do not repeat.

    Attributes:
        quantity: One of ``QUANTITIES``.
        optimizer: Number of the optimizer.
        session: Names the process that wrote it: a run that is resumed has several.
        started: When the session began, seconds since 1970.
        resolution: A record is a window of ``2**resolution`` readings, or fewer where an onset closed it early.
        layers: Names of the rows in registration order; for ``time`` those of the time steps.
        order: Indices of the rows in forward order, input first; all of them.
        kinds: Class of each layer's module, such as ``"Linear"``, or empty.
        module: For ``time`` the layer whose time steps are the rows.
        optimizer_label: Class of the optimizer, such as ``"Adam"``.
        vanishing_threshold: The person's own, in the gradient's unit.
        exploding_threshold: The person's own.

    Example:
        >>> about = SeriesMetadata("norms", 0, "a1", 0.0, 0, ("fc1", "fc2"), (0, 1))
        >>> about.tag
        'gradwatch/norms/optimizer_0/e99f4182/a1/0'
        >>> SeriesMetadata.from_content(about.content()) == about
        True
    """

    quantity: str
    optimizer: int
    session: str
    started: float
    resolution: int
    layers: tuple[str, ...]
    order: tuple[int, ...]
    kinds: tuple[str, ...] = ()
    module: str = ""
    optimizer_label: str = ""
    vanishing_threshold: float | None = None
    exploding_threshold: float | None = None

    @property
    def name(self) -> str:
        """Name of the series within its run: quantity, optimizer, and for ``time`` the layer."""
        return "/".join(part for part in (self.quantity, str(self.optimizer), self.module) if part)

    @property
    def rows(self) -> str:
        """Eight letters that stand for its rows."""
        return hash_of(self.layers, self.order, self.module)

    @property
    def tag(self) -> str:
        """Where its records stand; other layers, another order or module give another tag."""
        return f"{PLUGIN_NAME}/{self.quantity}/optimizer_{self.optimizer}/{self.rows}/{self.session}/{self.resolution}"

    def content(self) -> bytes:
        """Return it as the content of a summary's metadata."""
        return json.dumps({"format_version": FORMAT_VERSION, "kind": "series", **asdict(self)}).encode()

    @classmethod
    def from_content(cls, content: bytes) -> SeriesMetadata | None:
        """Read it back.

        Args:
            content: Of a summary's metadata.

        Returns:
            None where it is no series, of a newer format, or nonsense.
        """
        values = _read(content, "series")
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        lists = {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
        try:
            about = cls(**{**known, **lists})
            return about if about._is_sound() else None
        except TypeError:
            return None

    def _is_sound(self) -> bool:
        """Whether a viewer can rely on it; the file may be damaged or another program's."""
        numbers = (self.optimizer, self.resolution)
        texts = (self.session, self.module, self.optimizer_label, *self.layers, *self.kinds)
        thresholds = (self.vanishing_threshold, self.exploding_threshold)
        return (
            self.quantity in QUANTITIES
            and all(isinstance(rows, tuple) for rows in (self.layers, self.order, self.kinds))
            and all(isinstance(number, int) and number >= 0 for number in numbers)
            and all(isinstance(text, str) for text in texts)
            and sorted(self.order) == list(range(len(self.layers)))
            and _is_finite(self.started)
            and all(number is None or _is_finite(number) for number in thresholds)
        )


@dataclass(frozen=True)
class EventsMetadata:
    """Where the events of a session stand.

    Example:
        >>> EventsMetadata("a1", 0.0).tag
        'gradwatch/events/a1'
    """

    session: str
    started: float
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tag(self) -> str:
        """Where its records stand: JSON texts, each with ``event``.

        That is ``start``, ``onset``, ``update``, ``recovery``, ``off`` (GradWatch has switched itself off) or ``end``.
        """
        return f"{PLUGIN_NAME}/events/{self.session}"

    def content(self) -> bytes:
        """Return it as the content of a summary's metadata."""
        return json.dumps({"format_version": FORMAT_VERSION, "kind": "events", **asdict(self)}).encode()

    @classmethod
    def from_content(cls, content: bytes) -> EventsMetadata | None:
        """Read it back.

        Args:
            content: Of a summary's metadata.

        Returns:
            None where these are no events, of a newer format, or nonsense.
        """
        values = _read(content, "events")
        session, started, more = values.get("session"), values.get("started"), values.get("more", {})
        if not (isinstance(session, str) and _is_finite(started) and isinstance(more, dict)):
            return None
        return cls(session, float(started), more)


def _is_finite(value: object) -> TypeGuard[float]:
    # No whole number of JSON is too large for a comparison; some are for a float.
    return isinstance(value, (int, float)) and abs(value) <= _LARGEST


def _read(content: bytes, kind: str) -> dict[str, Any]:
    """Return the values of a content of this kind; none where it is another, of a newer format, or nonsense."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(values, dict) or values.get("kind") != kind:
        return {}
    version = values.get("format_version")
    return values if isinstance(version, int) and version <= FORMAT_VERSION else {}


def hash_of(layers: Sequence[str], order: Sequence[int], module: str = "") -> str:
    """Return eight letters that stand for a list of rows.

    Example:
        >>> hash_of(["fc1", "fc2"], [0, 1]) == hash_of(["fc1", "fc2"], [1, 0])
        False
    """
    text = json.dumps([list(layers), list(order), module])
    return hashlib.sha256(text.encode()).hexdigest()[:8]
