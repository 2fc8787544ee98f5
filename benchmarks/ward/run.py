"""Runs cases with GradWatch and its rivals in the same training run, and writes down what each has said."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.ward.case import Case
from benchmarks.ward.cases import all_cases
from benchmarks.ward.outcomes import outcome
from benchmarks.ward.recording import Recorder
from benchmarks.ward.rivals import Flag, Rivals
from benchmarks.ward.train import PREFIX, train
from lightning_gradwatch import Diagnosis, GradWatch, default_rules

OURS = "GradWatch"


def run(case: Case, seed: int, record: Path | None = None, *, rivals: bool = True) -> dict[str, Any]:
    """Train a case once, watched by all, and label the run.

    Args:
        case: The case.
        seed: Which of its runs.
        record: Folder for what the rules have seen, to ask changed rules later; None for none.
        rivals: Whether the published rules watch as well, which takes as long again.

    Returns:
        The result as plain values.
    """
    recorder = Recorder()
    # A rule that only remembers changes nothing of what the others say.
    watch = GradWatch(rules=[*default_rules(), recorder]) if record is not None else GradWatch()
    others = Rivals() if rivals else None
    lesson, start = case.lesson(seed), time.perf_counter()
    score = train(lesson, [watch] if others is None else [watch, others])
    if watch.disabled_reason is not None:
        raise RuntimeError(f"GradWatch has switched itself off in {case.name}: {watch.disabled_reason}")
    if record is not None:
        recorder.save(record / f"{case.name.replace('/', '+')}+{seed}.pkl")
    return {
        "case": case.name,
        "seed": seed,
        "held_back": case.held_back,
        "claim": case.symptom.value if case.symptom is not None else None,
        "negative": case.negative,
        "culprits": list(case.culprits),
        "decided": case.decided,
        "event_step": case.event_step,
        "num_steps": len(lesson.batches) // lesson.accumulate,
        "detectors": {
            OURS: [_said(diagnosis) for diagnosis in watch.diagnoses],
            **({} if others is None else {name: _flags(flags) for name, flags in others.flags.items()}),
        },
        **outcome(case, seed, score),
        "seconds": round(time.perf_counter() - start, 1),
    }


def attempt(job: tuple[str, int], record: Path | None) -> dict[str, Any]:
    """Run a case in a process of its own; a case that breaks must not lose the others.

    Args:
        job: Name of the case, and which of its runs.
        record: As in ``run``.

    Returns:
        The result; where the run broke, ``failed`` says how.
    """
    torch.set_num_threads(1)
    name, seed = job
    case = next(case for case in all_cases() if case.name == name)
    try:
        return run(case, seed, record)
    except Exception:
        return {"case": name, "seed": seed, "failed": traceback.format_exc()}


def _said(diagnosis: Diagnosis) -> dict[str, Any]:
    layers = [name.removeprefix(PREFIX) for name in diagnosis.layers[:3]]
    return {
        "step": diagnosis.step,
        "symptom": diagnosis.symptom.value,
        "layers": layers,
        "severity": diagnosis.severity,
        "rule": diagnosis.rule,
    }


def _flags(flags: Iterable[Flag]) -> list[dict[str, Any]]:
    return [{**asdict(flag), "symptom": flag.symptom.value, "severity": "warning"} for flag in flags]
