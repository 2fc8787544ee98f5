"""Test ``benchmarks.ward.recording``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.ward.case import Case
from benchmarks.ward.cases import all_cases
from benchmarks.ward.recording import Recorder, observed, replay
from benchmarks.ward.train import train
from lightning_gradwatch import Diagnosis, GradWatch, Observations, Symptom, default_rules

CASES = {case.name: case for case in all_cases()}
# A fault from the start, one that begins late, one with recoveries, two optimizers, and steps that a scaler drops.
NAMES = (
    "training/all-zero-weights",
    "training/root-of-zero",
    "training/poisoned-batch-momentum",
    "dense/sigmoid-6-default/sgd",
    "generative/gan-ring",
    "training/loss-scaler",
    "disconnected/data/adam",
)


def recorded(case: Case, path: Path, num_steps: int, *rules: Any) -> GradWatch:
    """Train the first steps of a case and write its recording."""
    recorder, lesson = Recorder(), case.lesson(0)
    watch = GradWatch(rules=[*default_rules(), recorder, *rules])
    train(replace(lesson, batches=lesson.batches[: num_steps * lesson.accumulate]), [watch])
    recorder.save(path)
    assert watch.disabled_reason is None
    return watch


def plain(diagnoses: list[Diagnosis]) -> list[tuple[Any, ...]]:
    """Return what a diagnosis says, without causes and ways out."""
    return [(d.rule, d.symptom, d.severity, d.optimizer, d.step, d.layers, d.count, d.recovered_at) for d in diagnoses]


@pytest.mark.parametrize("name", NAMES)
def test_a_replay_says_what_the_live_run_said(name: str, tmp_path: Path) -> None:
    """The default rules find the same in a recording as they did in the run: rule, layers, severity and step."""
    watch = recorded(CASES[name], tmp_path / "run.pkl", 170)
    # Names of the recording have the prefix of the LightningModule, as the live ones do.
    assert plain(replay(tmp_path / "run.pkl", default_rules())) == plain(watch.diagnoses)
    # A comparison of nothing with nothing would prove nothing.
    assert bool(watch.diagnoses) == (CASES[name].symptom is not None)


def test_a_run_longer_than_the_window_is_replayed_whole(tmp_path: Path) -> None:
    """After 256 readings the rules see the newest ones and the first losses; a replay shows them the same."""
    live: list[Observations] = []

    def witness(observations: Observations) -> tuple[()]:
        about = observations.gradients
        live.append(
            replace(
                observations,
                gradients=replace(about, **{name: np.copy(values) for name, values in vars(about).items()}),
                loss=np.copy(observations.loss),
                signals=list(observations.signals),
            )
        )
        return ()

    watch = recorded(CASES["training/drop-momentum"], tmp_path / "run.pkl", 290, witness)
    again = list(observed(tmp_path / "run.pkl"))
    assert len(again) == len(live) == 290
    for seen, told in zip(live, again, strict=True):
        assert (seen.step, seen.optimizer, seen.layers) == (told.step, told.optimizer, told.layers)
        assert np.array_equal(seen.loss, told.loss, equal_nan=True)
        assert np.array_equal(seen.order, told.order)
        assert [probe.step for probe in seen.signals] == [probe.step for probe in told.signals]
        for name, values in vars(seen.gradients).items():
            assert np.array_equal(values, vars(told.gradients)[name], equal_nan=values.dtype.kind == "f"), name
    assert plain(replay(tmp_path / "run.pkl", default_rules())) == plain(watch.diagnoses)


def test_changed_rules_are_asked_without_another_run(tmp_path: Path) -> None:
    """A rule that was not there in the run speaks in the replay, once its patience is over."""
    recorded(CASES["training/momentum-plain"], tmp_path / "run.pkl", 12)

    def always(observations: Observations) -> list[Diagnosis]:
        return [Diagnosis("mine", Symptom.SPIKE, layers=observations.names(np.array([0])))]

    (found,) = replay(tmp_path / "run.pkl", [always], patience=3)
    assert (found.rule, found.step, found.layers) == ("mine", 2, ("net.0",))
    assert replay(tmp_path / "run.pkl", [always], patience=20) == []


def test_a_recorder_says_nothing(tmp_path: Path) -> None:
    """The recorder is a rule without findings, and changes nothing of what the others say."""
    case = CASES["training/all-zero-weights"]
    watch = recorded(case, tmp_path / "deep" / "folder" / "run.pkl", 12)
    alone, lesson = GradWatch(), case.lesson(0)
    train(replace(lesson, batches=lesson.batches[:12]), [alone])
    assert plain(watch.diagnoses) == plain(alone.diagnoses)
