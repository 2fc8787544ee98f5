"""Mistakes that a type checker names; behind each line stands the code of its error. Nothing of this is ever called."""

from __future__ import annotations

import torch
from torch import nn

from lightning_gradwatch import ClipByGlobalNorm, Diagnosis, GradWatch, examine


class NoSink:
    """Lacks ``close``."""

    def write(self, report: object) -> None:
        """Take a report."""


class NoClipper:
    """Returns nothing."""

    def clip_(self, norms: object) -> None:
        """Clip."""


def judges_nothing(observations: object) -> int:
    """Return a number where diagnoses are expected."""
    return 0


def misspelt() -> object:
    """Import what is not there."""
    from lightning_gradwatch import GradWatsch  # error: attr-defined

    return GradWatsch


def settings() -> None:
    """Set what cannot be set."""
    GradWatch(1e-7)  # error: call-arg
    GradWatch(patience="3")  # error: arg-type
    GradWatch(on_nonfinite="ignore")  # error: arg-type
    GradWatch(clip=ClipByGlobalNorm(max_norm=1.0))  # error: call-arg
    GradWatch(clipper=1.0)  # error: arg-type
    GradWatch(clipper=NoClipper())  # error: arg-type
    GradWatch(sinks=[NoSink()])  # error: list-item
    GradWatch(rules=[judges_nothing])  # error: list-item
    ClipByGlobalNorm()  # error: call-arg
    ClipByGlobalNorm(max_norm="1")  # error: arg-type


def results(watch: GradWatch) -> None:
    """Use what is known as what it is not."""
    _ = watch.history.norm  # error: attr-defined
    _ = watch.diagnoses[0].layer  # error: attr-defined
    watch.diagnoses = []  # error: misc
    watch.diagnoses[0].step = 3  # error: misc
    watch.disabled_reason.upper()  # error: union-attr
    watch.plot(0)  # error: arg-type


def calls(model: nn.Module) -> None:
    """Leave out what is needed."""
    examine(model)  # error: call-arg
    examine(model, torch.zeros(1))  # error: arg-type
    GradWatch().attach(model)  # error: call-arg
    Diagnosis("my.rule", "vanishing")  # error: arg-type
