"""Run the ward: every case with every seed, watched by GradWatch and by its rivals, and write the page about it."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.ward.cases import all_cases
from benchmarks.ward.run import attempt
from benchmarks.ward.table import page, scores

COMMAND = "make ward"


def main() -> None:
    """Do what the module says; a case that breaks is named at the end, and tried again by the next call."""
    asked = _arguments()
    known = [json.loads(line) for line in asked.out.read_text().splitlines()] if asked.out.exists() else []
    done = {(result["case"], result["seed"]) for result in known}
    jobs = [
        (case.name, seed)
        for case in all_cases()
        for seed in range(asked.seeds)
        if fnmatchcase(case.name, asked.only) and (case.name, seed) not in done
        if not (asked.tuning and case.held_back)
    ]
    broken = []
    for result in _results(jobs, asked.processes, asked.record):
        if "failed" in result:
            broken.append(f"{result['case']}, seed {result['seed']}:\n{result['failed']}")
            continue
        known.append(result)
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        with asked.out.open("a") as file:
            file.write(json.dumps(result) + "\n")
    order = {case.name: place for place, case in enumerate(all_cases())}
    known = [result for result in known if result["case"] in order]
    known.sort(key=lambda result: (order[result["case"]], result["seed"]))
    print(scores(known))
    if broken:
        raise SystemExit("\n".join(broken))
    if asked.table is not None:
        asked.table.write_text(page(known, COMMAND, _took(known)))


def _results(jobs: Sequence[tuple[str, int]], processes: int, record: Path | None) -> Iterator[dict[str, Any]]:
    """Run everything, in as many processes as asked for; with one, in this one."""
    work = partial(attempt, record=record)
    if processes == 1:
        for number, job in enumerate(jobs, 1):
            yield work(job)
            print(f"\r{number} of {len(jobs)} runs", end="", flush=True)
    else:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            for number, result in enumerate(pool.imap_unordered(work, jobs), 1):
                yield result
                print(f"\r{number} of {len(jobs)} runs", end="", flush=True)
    print()


def _took(results: Sequence[dict[str, Any]]) -> str:
    """Say how long all runs have taken; a clock would leave out those of earlier calls."""
    minutes = sum(result.get("seconds", 0.0) for result in results) / 60
    return f"{minutes:.0f} minutes of a CPU core, torch {torch.__version__}, Python {platform.python_version()}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ward", description=__doc__)
    parser.add_argument("--only", default="*", help="pattern of names of cases")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tuning", action="store_true", help="leave out the cases that are held back")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("runs/ward.jsonl"), help="results, a line a run; gone on with")
    parser.add_argument("--table", type=Path, default=None, help="where the page goes")
    parser.add_argument("--record", type=Path, default=None, help="folder for what the rules saw, to be replayed")
    return parser.parse_args()


if __name__ == "__main__":
    main()
