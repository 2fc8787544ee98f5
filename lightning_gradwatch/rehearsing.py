"""When remedies are rehearsed during training, and what of it the diagnosis carries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lightning_gradwatch.detect.diagnosis import Diagnosis
from lightning_gradwatch.remedy.rehearsal import Rehearsal, rehearse
from lightning_gradwatch.remedy.trial import NotRehearsedError, Stage
from lightning_gradwatch.report.log import training_logger

# Makes the place where remedies are tried, with the batch of the moment; raises ``NotRehearsedError`` where it cannot.
MakeStage = Callable[[], Stage]

# What one rehearsal may take of a training run. Ours: as long as a person waits without wondering; a step of 0.05 s
# lets four copies make all ten steps in 2 s.
_SECONDS = 10.0
# As many onsets as are told one by one; a fault that flaps costs no more than that.
_MOST = 3


def rehearsed(diagnosis: Diagnosis, make_stage: MakeStage) -> Diagnosis:
    """Try the ways out of a diagnosis and rank them by what they did.

    It may take ten seconds, with fewer steps and fewer remedies where a step is slow. A notice is no fault and is
    left as it is, and so is a fault that comes and goes, after its third onset.

    Args:
        diagnosis: What has begun, with its remedies.
        make_stage: Makes the place where they are tried.

    Returns:
        The diagnosis with the remedies in their new order; ``evidence["rehearsal"]`` says what was not tried, and why.

    Example:
        >>> from lightning_gradwatch.detect.diagnosis import Symptom
        >>> rehearsed(Diagnosis("spike", Symptom.SPIKE), make_stage=lambda: None).remedies
        ()
    """
    if diagnosis.severity != "warning" or not diagnosis.remedies or diagnosis.count > _MOST:
        return diagnosis
    result = _result(diagnosis, make_stage)
    evidence = {**diagnosis.evidence, "rehearsal": "; ".join(result.notes)} if result.notes else diagnosis.evidence
    return replace(diagnosis, remedies=result.remedies, evidence=evidence)


def _result(diagnosis: Diagnosis, make_stage: MakeStage) -> Rehearsal:
    try:
        stage = make_stage()
        if stage.seconds is None:
            stage = replace(stage, seconds=_SECONDS, say=training_logger().info)
        return rehearse(diagnosis.remedies, stage)
    except NotRehearsedError as reason:
        return Rehearsal(diagnosis.remedies, (f"not rehearsed: {reason}",))
    except Exception as error:
        # Advice that nobody has tried is better than none.
        return Rehearsal(diagnosis.remedies, (f"not rehearsed: {type(error).__name__}: {error}",))
