"""Watch gradients while a PyTorch Lightning model trains.

    from lightning_gradwatch import GradWatch

    trainer = Trainer(callbacks=[GradWatch()])

The names are loaded on first use: TensorBoard may import a part of this package at every start, and must not wait for
torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "GradWatch": "callback",
    "GradientFault": "fault",
    "Symptom": "detect.diagnosis",
    "Diagnosis": "detect.diagnosis",
    "Observations": "detect.diagnosis",
    "Rule": "detect.diagnosis",
    "default_rules": "detect.rules",
    "examine": "examining",
    "DepthRule": "detect.depth",
    "ThresholdRule": "detect.thresholds",
    "NonFiniteRule": "detect.nonfinite",
    "UpdateRule": "detect.update",
    "DeadRule": "detect.dead",
    "GradientHistory": "measure.history",
    "GradientNorms": "measure.norms",
    "GradientSnapshot": "measure.snapshot",
    "Clipper": "remedy.clipping",
    "ClipByGlobalNorm": "remedy.clipping",
    "ClipByLayerNorm": "remedy.clipping",
    "ClipByValue": "remedy.clipping",
    "AdaptiveClip": "remedy.adaptive",
    "ClipByQuantile": "remedy.quantile",
    "ClipByZScore": "remedy.zscore",
    "InitializedLayer": "remedy.initialized",
    "he_init_": "remedy.initializers",
    "lecun_init_": "remedy.initializers",
    "lsuv_init_": "remedy.lsuv",
    "orthogonal_init_": "remedy.initializers",
    "xavier_init_": "remedy.initializers",
    "Remedy": "remedy.remedy",
    "Report": "report.report",
    "Sink": "report.sink",
    "StepReport": "report.step_report",
    "WandbAlert": "report.alert",
}

if TYPE_CHECKING:
    from lightning_gradwatch.callback import GradWatch as GradWatch
    from lightning_gradwatch.detect.dead import DeadRule as DeadRule
    from lightning_gradwatch.detect.depth import DepthRule as DepthRule
    from lightning_gradwatch.detect.diagnosis import Diagnosis as Diagnosis
    from lightning_gradwatch.detect.diagnosis import Observations as Observations
    from lightning_gradwatch.detect.diagnosis import Rule as Rule
    from lightning_gradwatch.detect.diagnosis import Symptom as Symptom
    from lightning_gradwatch.detect.nonfinite import NonFiniteRule as NonFiniteRule
    from lightning_gradwatch.detect.rules import default_rules as default_rules
    from lightning_gradwatch.detect.thresholds import ThresholdRule as ThresholdRule
    from lightning_gradwatch.detect.update import UpdateRule as UpdateRule
    from lightning_gradwatch.examining import examine as examine
    from lightning_gradwatch.fault import GradientFault as GradientFault
    from lightning_gradwatch.measure.history import GradientHistory as GradientHistory
    from lightning_gradwatch.measure.norms import GradientNorms as GradientNorms
    from lightning_gradwatch.measure.snapshot import GradientSnapshot as GradientSnapshot
    from lightning_gradwatch.remedy.adaptive import AdaptiveClip as AdaptiveClip
    from lightning_gradwatch.remedy.clipping import ClipByGlobalNorm as ClipByGlobalNorm
    from lightning_gradwatch.remedy.clipping import ClipByLayerNorm as ClipByLayerNorm
    from lightning_gradwatch.remedy.clipping import ClipByValue as ClipByValue
    from lightning_gradwatch.remedy.clipping import Clipper as Clipper
    from lightning_gradwatch.remedy.initialized import InitializedLayer as InitializedLayer
    from lightning_gradwatch.remedy.initializers import he_init_ as he_init_
    from lightning_gradwatch.remedy.initializers import lecun_init_ as lecun_init_
    from lightning_gradwatch.remedy.initializers import orthogonal_init_ as orthogonal_init_
    from lightning_gradwatch.remedy.initializers import xavier_init_ as xavier_init_
    from lightning_gradwatch.remedy.lsuv import lsuv_init_ as lsuv_init_
    from lightning_gradwatch.remedy.quantile import ClipByQuantile as ClipByQuantile
    from lightning_gradwatch.remedy.remedy import Remedy as Remedy
    from lightning_gradwatch.remedy.zscore import ClipByZScore as ClipByZScore
    from lightning_gradwatch.report.alert import WandbAlert as WandbAlert
    from lightning_gradwatch.report.report import Report as Report
    from lightning_gradwatch.report.sink import Sink as Sink
    from lightning_gradwatch.report.step_report import StepReport as StepReport
else:
    # Only at run time: a type checker that saw it would accept any misspelt name.
    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
