"""The error that ends a training run on purpose."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradwatch.detect.diagnosis import Diagnosis


class GradientFault(RuntimeError):  # noqa: N818 - a public name: what is wrong with the gradient, not with the code
    """Training ended because ``on_nonfinite`` said so.

    Attributes:
        diagnoses: What was wrong.

    Example:
        >>> GradientFault("step 3: gradients are NaN", ()).diagnoses
        ()
    """

    def __init__(self, message: str, diagnoses: Sequence[Diagnosis]) -> None:
        super().__init__(message)
        self.diagnoses = tuple(diagnoses)
