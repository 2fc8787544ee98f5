"""Which of several faults is to be cured first."""

from __future__ import annotations

from collections.abc import Iterable

from lightning_gradwatch.detect.diagnosis import Diagnosis

# A fault that begins within so many steps after another has ended may be what came of it; as `DepthRule.horizon`.
_FOLLOWS = 100


def by_cause(diagnoses: Iterable[Diagnosis]) -> list[Diagnosis]:
    """Put faults into the order in which they are to be cured: what came first has led to what followed.

    Warnings that last come first, and with them those that had not been over for long when the first of them began: a
    step that overwrites the weights is over at once, and the dead network behind it lasts. Then come other warnings,
    which are over, notices that last, and notices that are over. Within each, the oldest first.

    Args:
        diagnoses: Faults, oldest first.

    Returns:
        All of them.

    Example:
        >>> from lightning_gradwatch.detect.diagnosis import Symptom
        >>> jump = Diagnosis("exploding.update", Symptom.EXPLODING, step=0, recovered_at=3)
        >>> dead = Diagnosis("dead", Symptom.DEAD, step=17)
        >>> [each.rule for each in by_cause([jump, dead])]
        ['exploding.update', 'dead']
    """
    diagnoses = list(diagnoses)
    warnings = [d for d in diagnoses if d.severity == "warning"]
    began = min((d.step for d in warnings if d.recovered_at is None), default=None)
    leading = [d for d in warnings if began is not None and _may_have_led_to(d, began)]
    over = [d for d in warnings if not any(d is each for each in leading)]
    notices = [d for d in diagnoses if d.severity == "notice"]
    last = [d for d in notices if d.recovered_at is None]
    ended = [d for d in notices if d.recovered_at is not None]
    return [d for group in (leading, over, last, ended) for d in sorted(group, key=lambda each: each.step)]


def _may_have_led_to(diagnosis: Diagnosis, began: int) -> bool:
    return diagnosis.recovered_at is None or diagnosis.recovered_at + _FOLLOWS >= began
