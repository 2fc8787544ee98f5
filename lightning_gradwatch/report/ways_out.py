"""The ways out of a diagnosis as a person reads them, with what each did where it was rehearsed."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradwatch.remedy.rehearsal import effect_in_words
from lightning_gradwatch.remedy.remedy import Remedy

# A person reads no more.
SHOWN = 3
HOW = "rehearsed on this batch, each on a copy of the model"
_NOT_TRIED = "not rehearsed"
_LEGEND = "first/last gradient: what reaches the first layer, as a share of what reaches the last"


def ways_out(remedies: Sequence[Remedy], notes: str = "", *, alternatives: bool = False) -> list[tuple[str, str]]:
    """Write remedies as rows of a key and a text.

    Args:
        remedies: The remedies of a diagnosis, best first.
        notes: What was not rehearsed, and why.
        alternatives: Whether more than the first one is shown where none was rehearsed.

    Returns:
        The rows; a second line of a text says what the remedy did.

    Example:
        >>> from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
        >>> sick = Diagnosis("vanishing.depth", Symptom.VANISHING)
        >>> remedies = [Remedy("ReLU and He", "", sick), Remedy("BatchNorm", "", sick)]
        >>> ways_out(remedies, "not rehearsed: a lock", alternatives=True)
        [('do', 'ReLU and He'), ('or', 'BatchNorm'), ('tried', 'not rehearsed: a lock')]
    """
    shown = remedies[:SHOWN]
    did = {number: did_in_words(remedy) for number, remedy in enumerate(shown, 1)}
    if not any(did_in_words(remedy) for remedy in remedies):
        keys = ("do", *("or" for _ in shown[1:] if alternatives))
        return [*((key, remedy.title) for key, remedy in zip(keys, shown, strict=False)), ("tried", notes)]
    legend = _LEGEND if any("first/last" in words for words in did.values()) else ""
    tries = [(f"try {n}", f"{remedy.title}\n{did[n] or _NOT_TRIED}") for n, remedy in enumerate(shown, 1)]
    return [("tried", "; ".join(filter(None, [HOW, legend, notes]))), *tries]


def did_in_words(remedy: Remedy) -> str:
    """Say what a remedy did; empty where it was not rehearsed."""
    return "" if remedy.effect is None else effect_in_words(remedy.effect)
