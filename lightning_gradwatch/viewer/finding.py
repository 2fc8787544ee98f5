"""A diagnosis as it was written down, read with care: the file may be older, newer or another program's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_gradwatch.viewer.run import Run

_NAMED_LAYERS = 3


@dataclass(frozen=True)
class WayOut:
    """One way out, as it was advised.

    Attributes:
        title: What to do, in a line.
        reason: Why it should help.
        code: Lines to paste.
        effect: What it did when it was rehearsed, in words; empty where it was not.
    """

    title: str
    reason: str = ""
    code: str = ""
    effect: str = ""


@dataclass(frozen=True)
class Finding:
    """What was diagnosed, in words.

    Attributes:
        rule: Id of the rule.
        symptom: One of ``lightning_gradwatch.viewer.symptoms.SYMPTOMS``, or another program's word.
        is_warning: Whether it is a warning that was not muted; else it is a notice, or muted.
        is_muted: Whether the person had muted the rule.
        optimizer: Number of the optimizer.
        layers: The sick layers, the worst first.
        step: Step of the onset.
        recovered_at: Step at which it was gone, None while it lasts.
        message: What is wrong.
        measured: The numbers.
        cause: The likely cause.
        ways_out: Ways out, best first.
        values: Everything as it was written.

    Example:
        >>> found = Finding.read({"rule": "spike", "symptom": "spike", "severity": "notice", "step": 7})
        >>> found.word, found.until, found.is_warning
        ('notice, spike', 'lasts', False)
    """

    rule: str
    symptom: str
    is_warning: bool
    is_muted: bool
    optimizer: int
    layers: tuple[str, ...]
    step: int
    recovered_at: int | None
    message: str
    measured: str
    cause: str
    ways_out: tuple[WayOut, ...]
    values: Mapping[str, Any] = field(repr=False)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Finding:
        """Read a diagnosis; what is missing or odd is left out.

        Args:
            values: As ``Diagnosis.to_dict`` gives them, with ``muted`` where the person had muted the rule.
        """
        muted = bool(values.get("muted"))
        remedies = [way for way in _items(values.get("remedies")) if isinstance(way, Mapping)]
        rule = _text(values.get("rule"))
        return cls(
            rule=rule,
            symptom=_text(values.get("symptom")) or rule.partition(".")[0] or "unknown",
            is_warning=values.get("severity", "warning") == "warning" and not muted,
            is_muted=muted,
            optimizer=_number(values.get("optimizer")) or 0,
            layers=tuple(_text(name) for name in _items(values.get("layers"))),
            step=_number(values.get("step")) or 0,
            recovered_at=_number(values.get("recovered_at")),
            message=_text(values.get("message")),
            measured=_text(values.get("measured")),
            cause=_text(values.get("cause")),
            ways_out=tuple(_way_out(way) for way in remedies),
            values=values,
        )

    @property
    def word(self) -> str:
        """The symptom as the training log writes it: capitals for a warning."""
        word = self.symptom.replace("_", "-")
        return word.upper() if self.is_warning else f"{'muted' if self.is_muted else 'notice'}, {word}"

    @property
    def until(self) -> str:
        """When it was over."""
        return "lasts" if self.recovered_at is None else f"step {self.recovered_at}"


def findings(run: Run) -> list[Finding]:
    """Read a run's diagnoses: lasting warnings, warnings that are over, notices, then what was muted.

    Args:
        run: The run.
    """
    found = [Finding.read(values) for values in run.diagnoses]
    return sorted(found, key=lambda f: (not f.is_warning, f.is_muted, f.recovered_at is not None, f.step))


def named(layers: Sequence[str], shown: int = _NAMED_LAYERS) -> str:
    """Name the first layers and count the others.

    Example:
        >>> named(["net.0", "net.2", "net.4", "net.6"])
        'net.0, net.2, net.4 and 1 more'
    """
    rest = len(layers) - shown
    return ", ".join(layers[:shown]) + (f" and {rest} more" if rest > 0 else "")


def counted(count: int, word: str) -> str:
    """Write a count with its word.

    Example:
        >>> counted(1, "layer"), counted(1200, "layer")
        ('1 layer', '1,200 layers')
    """
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def _way_out(values: Mapping[str, Any]) -> WayOut:
    effect = values.get("effect")
    words = _effect_in_words(effect) if isinstance(effect, Mapping) else ""
    return WayOut(_text(values.get("title")), _text(values.get("reason")), _text(values.get("code")), words)


def _effect_in_words(effect: Mapping[str, Any]) -> str:
    """Say what a rehearsal measured; numbers that were not finite have been written as texts."""
    pairs = (
        ("what reaches the first time step, of the last one's,", "over_time_before", "over_time_after"),
        ("first/last gradient", "first_over_last_before", "first_over_last_after"),
        ("loss", "loss_before", "loss_after"),
    )
    parts = [
        f"{what} {_short(effect[before])} -> {_short(effect[after])}"
        for what, before, after in pairs
        if before in effect and after in effect and _short(effect[before]) != _short(effect[after])
    ]
    steps = _number(effect.get("steps"))
    if parts and steps:
        without = f" ({_short(effect['loss_untreated'])} without it)" if "loss_untreated" in effect else ""
        parts[-1] += f" in {counted(steps, 'step')}{without}"
    return ", ".join(parts)


def _short(value: Any) -> str:
    try:
        return f"{float(value):.3g}"
    except (TypeError, ValueError):
        return "unknown"


def _items(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _number(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None
