"""The error that ends a training run on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lightning_gradwatch.detect.diagnosis import Diagnosis


class GradientFault(RuntimeError):  # noqa: N818 - a public name: what is wrong with the gradient, not with the code
    """Training ended because ``on_nonfinite`` said so.

    It can be pickled, without the remedies of its diagnoses, which belong to a living model.

    Attributes:
        diagnoses: What was wrong.

    Example:
        >>> GradientFault("step 3: gradients are NaN", ()).diagnoses
        ()
    """

    def __init__(self, message: str, diagnoses: Sequence[Diagnosis]) -> None:
        super().__init__(message)
        self.diagnoses = tuple(diagnoses)

    def __reduce__(self) -> tuple[Any, ...]:
        """Tell how it is made again: an error is made of one argument otherwise."""
        return type(self), (str(self), tuple(replace(diagnosis, remedies=()) for diagnosis in self.diagnoses))
