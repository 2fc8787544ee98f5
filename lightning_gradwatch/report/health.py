"""Whether a run was healthy, as an assertion for a test suite."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.report.log import onset_text


def assert_healthy(
    diagnoses: Sequence[Diagnosis],
    num_readings: int,
    num_layers: int,
    symptoms: Sequence[str] | None = None,
    after_step: int = 0,
) -> None:
    """Fail where a warning was given, or nothing was measured.

    Args:
        diagnoses: All faults.
        num_readings: How many readings had a gradient.
        num_layers: How many layers there are.
        symptoms: Only these count; all by default.
        after_step: Only faults count that began at or after this step, or lasted beyond it.

    Raises:
        AssertionError: With what was found.
        ValueError: If a symptom does not exist.

    Example:
        >>> assert_healthy([], num_readings=10, num_layers=2)
    """
    if not num_readings:
        raise AssertionError(
            "GradWatch saw no gradient, so nothing is known. Was the model trained with it, and in this process? "
            "(With ddp_spawn and ddp_fork what was seen stays in the processes that trained.)"
        )
    wanted = set(Symptom) if symptoms is None else {Symptom(symptom) for symptom in symptoms}
    sick = [d for d in diagnoses if d.severity == "warning" and d.symptom in wanted]
    sick = [d for d in sick if d.recovered_at is None or d.recovered_at > after_step or d.step >= after_step]
    if sick:
        raise AssertionError("\n".join(onset_text(diagnosis, num_layers) for diagnosis in sick))
