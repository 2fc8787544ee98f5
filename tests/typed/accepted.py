"""What the docs show, with types: a type checker accepts all of it, and sees these types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from typing_extensions import assert_type

from lightning_gradwatch import (
    AdaptiveClip,
    ClipByGlobalNorm,
    ClipByLayerNorm,
    ClipByQuantile,
    ClipByValue,
    ClipByZScore,
    Clipper,
    DepthRule,
    Diagnosis,
    GradientFault,
    GradientHistory,
    GradientNorms,
    GradWatch,
    InitializedLayer,
    Observations,
    Remedy,
    Report,
    Rule,
    Sink,
    StepReport,
    Symptom,
    default_rules,
    examine,
    he_init_,
    lsuv_init_,
)


def one_line() -> pl.Trainer:
    """Add the callback as the first page does."""
    return pl.Trainer(callbacks=[GradWatch()])


def all_settings() -> GradWatch:
    """Set everything that can be set."""
    return GradWatch(
        vanishing_threshold=1e-7,
        exploding_threshold=1e3,
        patience=3,
        warmup_steps=10,
        rules=[*default_rules(), head_too_loud, DepthRule(notice=4.0)],
        ignore=["vanishing.depth:encoder.*"],
        sinks=[Beep()],
        clipper=ClipByGlobalNorm(max_norm=1.0),
        on_nonfinite="skip",
        max_consecutive_skips=10,
        stop_on=["non_finite"],
        rehearse=True,
        every_n_steps=10,
        probe_every_n_steps=None,
        per_layer_scalars=True,
        heatmap=False,
    )


def head_too_loud(observations: Observations) -> Iterator[Diagnosis]:
    """Judge as the rule in the reference does."""
    norms = observations.gradients.norms[-1]
    if norms[-1] > 10 * norms[:-1].max():
        layers = (observations.layers[-1].name,)
        yield Diagnosis("head.loud", Symptom.EXPLODING, layers=layers, message="the head drowns the rest")


class Beep:
    """Report as the sink in the reference does."""

    def write(self, report: StepReport) -> None:
        """Ring at an onset."""
        for diagnosis in report.onsets:
            assert_type(diagnosis, Diagnosis)

    def close(self) -> None:
        """Do nothing."""


class ClipOnePart:
    """Clip as the clipper in the docs does."""

    def clip_(self, norms: GradientNorms) -> Tensor:
        """Clip the second optimizer's steps."""
        return ClipByValue(max_value=0.1).clip_(norms) if norms.optimizer else norms.norms


def what_it_knows(watch: GradWatch) -> None:
    """Read everything that it knows."""
    assert_type(watch.history, GradientHistory)
    assert_type(watch.history.norms, npt.NDArray[np.float64])
    assert_type(watch.history.layers, tuple[str, ...])
    assert_type(watch.diagnoses, list[Diagnosis])
    assert_type(watch.diagnoses[0].symptom, Symptom)
    assert_type(watch.diagnoses[0].layers, tuple[str, ...])
    assert_type(watch.diagnoses[0].evidence, Mapping[str, Any])
    assert_type(watch.remedies, list[Remedy])
    assert_type(watch.remedies[0].code, str)
    assert_type(watch.disabled_reason, str | None)
    assert_type(watch.skipped_steps, int)
    watch.assert_healthy(["vanishing"], after_step=100)
    watch.plot("delta").savefig("delta.png")
    watch.save("report.html")


def a_loop(model: nn.Module) -> list[Diagnosis]:
    """Watch a loop without a Trainer."""
    optimizer = torch.optim.Adam(model.parameters())
    with GradWatch().attach(model, optimizer, log_dir="runs/mine") as watch:
        optimizer.step()
    assert_type(watch, GradWatch)
    return watch.diagnoses


def once(model: nn.Module, batch: Tensor) -> bool:
    """Examine a model, and initialize it."""
    report = examine(model, lambda model: model(batch).mean())
    assert_type(report, Report)
    assert_type(report.delta, npt.NDArray[np.float64])
    assert_type(he_init_(model, batch), tuple[InitializedLayer, ...])
    lsuv_init_(model, batch)
    report.assert_healthy()
    return report.healthy


def the_protocols() -> tuple[list[Clipper], list[Rule], Sink]:
    """Take what follows a protocol, ours or not."""
    clippers: list[Clipper] = [
        ClipOnePart(),
        AdaptiveClip(),
        ClipByLayerNorm(1.0),
        ClipByQuantile(),
        ClipByZScore(max_norm=1.0),
    ]
    rules: list[Rule] = [head_too_loud, DepthRule()]
    return clippers, rules, Beep()


class Pager(GradWatch):
    """Override the one method that is meant for it."""

    def on_diagnosis(self, trainer: pl.Trainer, pl_module: pl.LightningModule, diagnosis: Diagnosis) -> None:
        """Send a message."""


def what_it_raises(fault: GradientFault) -> Iterable[str]:
    """Read what ended a run."""
    return [diagnosis.message for diagnosis in fault.diagnoses]
