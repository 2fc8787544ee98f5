"""How a run fares, in a few words, for what has no room for sentences."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradwatch.detect.diagnosis import Diagnosis
from lightning_gradwatch.report.log import plural


def headline_of(diagnoses: Sequence[Diagnosis]) -> tuple[str, ...]:
    """Say how a run fares, in parts of a few words each, those first that matter most.

    Args:
        diagnoses: All faults so far.

    Returns:
        The parts.

    Example:
        >>> from lightning_gradwatch.detect.diagnosis import Symptom
        >>> headline_of([Diagnosis("dead", Symptom.DEAD, step=7), Diagnosis("spike", Symptom.SPIKE, recovered_at=9)])
        ('DEAD since step 7', '1 warning recovered')
        >>> headline_of([])
        ('no warning',)
    """
    warnings = [d for d in diagnoses if d.severity == "warning"]
    lasting = [f"{word_of(d)} since step {d.step}" for d in warnings if d.recovered_at is None]
    over, notices = len(warnings) - len(lasting), len(diagnoses) - len(warnings)
    parts = lasting or ["no warning now" if over else "no warning"]
    parts += [f"{over} {plural('warning', over)} recovered"] if over else []
    return (*parts, *([f"{notices} {plural('notice', notices)}"] if notices else []))


def word_of(diagnosis: Diagnosis) -> str:
    """Name a diagnosis by its symptom, as everywhere a person reads.

    Example:
        >>> from lightning_gradwatch.detect.diagnosis import Symptom
        >>> word_of(Diagnosis("non_finite", Symptom.NON_FINITE, severity="notice"))
        'NON-FINITE'
    """
    return diagnosis.symptom.value.upper().replace("_", "-")
