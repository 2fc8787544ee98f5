"""Which runs are sick: the outcome decides, whatever was claimed."""

from __future__ import annotations

import argparse
import json
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from benchmarks.ward.case import Case
from benchmarks.ward.cases import all_cases
from benchmarks.ward.train import train


def outcome(case: Case, seed: int, score: float | None = None) -> dict[str, Any]:
    """Train a case, and its cure where it claims a fault, and label the run.

    Args:
        case: The case.
        seed: Which of its runs.
        score: How well the case itself did, where that is known.

    Returns:
        ``label``: ``"sick"`` where it failed and the cure alone trains, ``"healthy"`` where it trained, whatever was
        claimed, and ``"undecided"`` where a healthy claim failed or a cure did; with the scores, that of the cure
        only where the case failed, since nothing else asks for it.
    """
    lesson = case.lesson(seed)
    passes = lesson.passes
    score = train(lesson) if score is None else score
    cured = train(case.cure(seed)) if case.cure is not None and not score >= passes else None
    failed = "sick" if cured is not None and cured >= passes else "undecided"
    label = "healthy" if score >= passes else failed
    return {"label": label, "score": round(score, 4), "cure_score": None if cured is None else round(cured, 4)}


def main() -> None:
    """Label the runs of all cases and print a line for each."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--only", default="*", help="pattern of names of cases")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None, help="JSON file that is read and added to")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(asked.out.read_text()) if asked.out and asked.out.exists() else {}
    for case in all_cases():
        for seed in range(asked.seeds):
            key = f"{case.name}:{seed}"
            if not fnmatchcase(case.name, asked.only) or key in known:
                continue
            start = time.perf_counter()
            known[key] = outcome(case, seed)
            took = time.perf_counter() - start
            print(
                f"{key:45} {known[key]['label']:10} {known[key]['score']} {known[key]['cure_score']} {took:.1f} s",
                flush=True,
            )
            if asked.out:
                asked.out.write_text(json.dumps(known, indent=1))


if __name__ == "__main__":
    main()
