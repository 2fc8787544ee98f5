"""Try advice on the ward: each sick run once more, on a fresh model, with the first remedy and with others' advice.

A sick run is trained as in the ward, watched by GradWatch. What is tried is ``watch.remedies[0]`` as it stands when
training has ended. Everything that the remedy says is done (``benchmarks/ward/treatment.py``) to a fresh lesson of the
same case and seed, which is trained to its end. Where the remedy is words that say between which two layers the source
cuts the graph, and they are right, the edit is played by the case's cure, which is that edit (``by hand``).

A run that trains is treated as well where GradWatch has a remedy for it: advice must not harm.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import time
import traceback
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from benchmarks.ward.case import Case, Lesson
from benchmarks.ward.cases import all_cases
from benchmarks.ward.grading import Grade, chance, grade
from benchmarks.ward.outcomes import outcome
from benchmarks.ward.repair_page import page, summary
from benchmarks.ward.rivals.autotrainer import AutoTrainer
from benchmarks.ward.rivals.callback import Rivals
from benchmarks.ward.strategies import STRATEGIES, Proposal, Seen, names_the_culprit
from benchmarks.ward.train import train
from benchmarks.ward.treatment import NeedsEditError
from lightning_gradwatch import GradWatch

COMMAND = "make repair"
DEFAULT = ("ours", "xavier", "he", "clip", "autotrainer")

# What came of each remedy in a run, by its id.
_Done = dict[int, tuple[float, bool, str]]
Job = tuple[str, int, tuple[str, ...]]


def repair(case: Case, seed: int, strategies: Sequence[str]) -> list[dict[str, Any]]:
    """Train a case, label the run, and treat it by each strategy; a healthy run by ours alone.

    Args:
        case: The case.
        seed: Which of its runs.
        strategies: Names out of ``STRATEGIES``.

    Returns:
        A result a strategy, of plain values.
    """
    watch, rivals = GradWatch(), Rivals(_published_rules)
    lesson, start = case.lesson(seed), time.perf_counter()
    by_chance = chance(case, lesson)
    score = train(lesson, [watch, rivals] if "autotrainer" in strategies else [watch])
    if watch.disabled_reason is not None:
        raise RuntimeError(f"GradWatch has switched itself off in {case.name}: {watch.disabled_reason}")
    found = outcome(case, seed, score)
    seen = Seen(watch, seed, rivals.flags)
    run = {
        "case": case.name,
        "seed": seed,
        "held_back": case.held_back,
        "claim": case.symptom.value if case.symptom is not None else None,
        "label": found["label"],
        "score": found["score"],
        "twin": found["cure_score"],
        "passes": lesson.passes,
        "chance": round(by_chance, 4),
        "said": [[d.rule, d.severity, d.step, d.recovered_at] for d in watch.diagnoses],
    }
    took, results, done = time.perf_counter() - start, [], _Done()
    for name in strategies:
        start = time.perf_counter()
        tried = _tried(case, seed, name, seen, run, done)
        # What the strategies share is counted once.
        results.append({**run, "strategy": name, **tried, "seconds": round(took + time.perf_counter() - start, 1)})
        took = 0.0
    return results


def _published_rules() -> list[AutoTrainer]:
    return [AutoTrainer(gate=True), AutoTrainer(gate=False)]


_NOTHING = {
    "grade": "",
    "title": None,
    "rule": "",
    "severity": "",
    "words_only": False,
    "by_hand": False,
    "after": None,
    "note": "",
}


def _tried(case: Case, seed: int, name: str, seen: Seen, run: dict[str, Any], done: _Done) -> dict[str, Any]:
    if run["label"] == "undecided" or (run["label"] == "healthy" and not name.startswith("ours")):
        return dict(_NOTHING)
    proposal = STRATEGIES[name](seen)
    if proposal is None:
        return {**_NOTHING, "grade": "no advice"}
    told = {
        **_NOTHING,
        "title": proposal.title,
        "rule": proposal.rule,
        "severity": proposal.severity,
        "words_only": proposal.words_only,
    }
    try:
        after, by_hand, note = _after(case, seed, proposal, run["score"], done)
    except NeedsEditError as refusal:
        return {**told, "grade": "needs an edit", "note": str(refusal)}
    if run["label"] == "healthy":
        verdict: Grade = "kept" if after >= run["passes"] else "worse"
    else:
        verdict = grade(run["score"], after, run["twin"], run["chance"])
    return {**told, "grade": verdict, "by_hand": by_hand, "after": round(after, 4), "note": note}


def _after(case: Case, seed: int, proposal: Proposal, score: float, done: _Done) -> tuple[float, bool, str]:
    """Return the score after a treatment, whether it was an edit by hand, and how training ended before its end."""
    if proposal.words_only and names_the_culprit(case, proposal):
        # The cure is the same lesson without what is to be removed there: the edit that the words ask for.
        assert case.cure is not None, "a sick case has a cure"
        return train(case.cure(seed), []), True, "edited by hand where the words say"
    if proposal.words_only:
        return score, False, "words only"
    known = done.get(id(proposal.remedy))
    if known is not None:
        return known
    found = _trained(case.lesson(seed), proposal)
    if proposal.remedy is not None:
        done[id(proposal.remedy)] = found
    return found


def _trained(lesson: Lesson, proposal: Proposal) -> tuple[float, bool, str]:
    treated = proposal.treat(lesson)
    watch = [GradWatch(**treated.watch)] if treated.watch else []
    try:
        with treated.swap:
            return train(treated.lesson, watch), treated.by_hand, ""
    except RuntimeError as error:
        # A remedy may end training on purpose, or leave a network that cannot run: either is no cure.
        return 0.0, treated.by_hand, f"training ended: {type(error).__name__}: {error}"


def attempt(job: Job) -> list[dict[str, Any]]:
    """Do a job in a process of its own; a case that breaks must not lose the others.

    Args:
        job: Name of the case, which of its runs, and the strategies.

    Returns:
        The results; where the job broke, one whose ``failed`` says how.
    """
    torch.set_num_threads(1)
    name, seed, strategies = job
    case = next(case for case in all_cases() if case.name == name)
    try:
        return repair(case, seed, strategies)
    except Exception:
        return [{"case": name, "seed": seed, "failed": traceback.format_exc()}]


def main() -> None:
    """Do what the module says; a case that breaks is named at the end, and tried again by the next call."""
    asked = _arguments()
    known = [json.loads(line) for line in asked.out.read_text().splitlines()] if asked.out.exists() else []
    jobs = _jobs(asked, {(result["case"], result["seed"], result["strategy"]) for result in known})
    broken = []
    for results in _results(jobs, asked.processes):
        broken += [f"{each['case']}, seed {each['seed']}:\n{each['failed']}" for each in results if "failed" in each]
        kept = [each for each in results if "failed" not in each]
        known += kept
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        with asked.out.open("a") as file:
            file.writelines(json.dumps(each) + "\n" for each in kept)
    order = {case.name: place for place, case in enumerate(all_cases())}
    known = [result for result in known if result["case"] in order]
    known.sort(key=lambda result: (order[result["case"]], result["seed"], list(STRATEGIES).index(result["strategy"])))
    print(summary(known))
    if broken:
        raise SystemExit("\n".join(broken))
    if asked.table is not None:
        asked.table.write_text(page(known, COMMAND, _took(known)))


def _jobs(asked: argparse.Namespace, done: set[tuple[str, int, str]]) -> list[Job]:
    jobs = []
    for case in all_cases():
        if not fnmatchcase(case.name, asked.only) or (asked.sick and case.symptom is None):
            continue
        if asked.tuning and case.held_back:
            continue
        for seed in range(asked.seeds):
            left = tuple(name for name in asked.strategies if (case.name, seed, name) not in done)
            jobs += [(case.name, seed, left)] if left else []
    return jobs


def _results(jobs: Sequence[Job], processes: int) -> Iterator[list[dict[str, Any]]]:
    """Do everything, in as many processes as asked for; with one, in this one."""
    if processes == 1:
        for number, job in enumerate(jobs, 1):
            yield attempt(job)
            print(f"\r{number} of {len(jobs)} runs", end="", flush=True)
    else:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            for number, results in enumerate(pool.imap_unordered(attempt, jobs), 1):
                yield results
                print(f"\r{number} of {len(jobs)} runs", end="", flush=True)
    print()


def _took(results: Sequence[dict[str, Any]]) -> str:
    """Say how long all runs have taken; a clock would leave out those of earlier calls."""
    minutes = sum(result["seconds"] for result in results) / 60
    return f"{minutes:.0f} minutes of a CPU core, torch {torch.__version__}, Python {platform.python_version()}"


def _strategies(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    unknown = [name for name in names if name not in STRATEGIES]
    if unknown:
        raise argparse.ArgumentTypeError(f"must be names out of {', '.join(STRATEGIES)}. Got {', '.join(unknown)}")
    return names


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ward.repair", description="Try advice on the ward.")
    parser.add_argument("--only", default="*", help="pattern of names of cases")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sick", action="store_true", help="leave out the cases that are claimed healthy")
    parser.add_argument("--tuning", action="store_true", help="leave out the cases that are held back")
    parser.add_argument("--strategies", type=_strategies, default=DEFAULT, help=f"out of {', '.join(STRATEGIES)}")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("runs/repair.jsonl"), help="results; gone on with")
    parser.add_argument("--table", type=Path, default=None, help="where the page goes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
