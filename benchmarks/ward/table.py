"""The ward's result as a page to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from benchmarks.ward.run import OURS
from benchmarks.ward.score import Result, Score, named, placed, score, warnings_of


def page(results: Sequence[Result], command: str, took: str) -> str:
    """Write the whole page.

    Args:
        results: All runs.
        command: What makes it.
        took: How long it took, and where.
    """
    tuned = [result for result in results if not result["held_back"]]
    held = [result for result in results if result["held_back"]]
    parts = [
        "# The ward",
        _INTRODUCTION.format(command=command, took=took),
        _counts(results),
        "## All runs",
        scores(results),
        "## Runs of the cases on which the numbers of the rules were chosen",
        scores(tuned),
        "## Runs of the cases that were held back",
        scores(held),
        "## What GradWatch got wrong",
        _mistakes(results),
        "## Runs without a label",
        _undecided(results),
        "## The cases",
        _cases(results),
    ]
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = """Small networks, sick and healthy, each trained with five seeds; made with `{command}` ({took}).

A run is **sick** where it fails to reach its score and the claimed fix, with nothing else changed, reaches it. It is
**healthy** where it reaches its score, whatever was claimed of it: a default ReLU stack that Adam saves is healthy.
Runs that are neither have no label, are named below and count nowhere. All detectors watch the same training run. A
detector finds a sick run when it warns at any time, and raises a false alarm when it warns in a healthy one;
GradWatch's notices are no warnings. *Symptom*: a warning has the right name. *Layer*: a culprit is among the first
three layers of the first such warning. *Steps*: median number of steps until then, for faults that show at the start
(or begin at a known step), and for those that only the outcome decides. A third of the cases, chosen by their names,
was held back while the rules' numbers were chosen."""


def scores(results: Sequence[Result]) -> str:
    """Write the table of detectors, ours first and the others by F1."""
    names = list(results[0]["detectors"]) if results else []
    found = [score(results, name) for name in names]
    found.sort(key=lambda each: (each.detector != OURS, -each.f1))
    head = (
        "| detector | precision | recall | F1 | symptom | layer | steps (start) | steps (outcome) | healthy runs "
        "without alarm | alarms per 1,000 healthy steps |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    return "\n".join([head, *map(_row, found)])


def _row(each: Score) -> str:
    start = "-" if each.steps_at_start is None else f"{each.steps_at_start:g}"
    outcome = "-" if each.steps_by_outcome is None else f"{each.steps_by_outcome:g}"
    cells = [
        each.detector,
        f"{each.precision:.3f}",
        f"{each.recall:.3f}",
        f"{each.f1:.3f}",
        f"{each.right_symptom / max(each.sick, 1):.1%}",
        f"{each.right_layer / max(each.sick, 1):.1%}",
        start,
        outcome,
        f"{each.silent:.1%}",
        f"{each.alarms_per_1000:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _counts(results: Sequence[Result]) -> str:
    labels = Counter(result["label"] for result in results)
    cases = {result["case"] for result in results}
    claims = Counter(result["claim"] for result in results if result["label"] == "sick")
    kinds = ", ".join(f"{count} {name}" for name, count in claims.most_common())
    labeled = labels["sick"] + labels["healthy"]
    return (
        f"{len(cases)} cases, {len(results)} runs: {labels['sick']} sick ({kinds}), {labels['healthy']} healthy "
        f"({labels['healthy'] / max(labeled, 1):.0%} of those with a label), {labels['undecided']} without a label."
    )


def _mistakes(results: Sequence[Result]) -> str:
    lines = []
    for result in results:
        said = ", ".join(f"{w['rule']} at step {w['step']}" for w in warnings_of(result, OURS)) or "nothing"
        run = f"`{result['case']}` seed {result['seed']}"
        if result["label"] == "healthy" and warnings_of(result, OURS):
            lines.append(f"- false alarm: {run} said {said} (score {result['score']})")
        elif result["label"] == "sick" and not warnings_of(result, OURS):
            lines.append(f"- missed: {run}, {result['claim']} (score {result['score']}, cured {result['cure_score']})")
        elif result["label"] == "sick" and named(result, OURS) is None:
            lines.append(f"- wrong symptom: {run} is {result['claim']}, said {said}")
        elif result["label"] == "sick" and not placed(result, OURS):
            lines.append(f"- wrong layer: {run}, {result['claim']}, said {said}")
    return "\n".join(lines) or "Nothing."


def _undecided(results: Sequence[Result]) -> str:
    lines = [
        f"- `{result['case']}` seed {result['seed']}: score {result['score']}, cured {result['cure_score']}"
        for result in results
        if result["label"] == "undecided"
    ]
    return "\n".join(lines) or "None."


def _cases(results: Sequence[Result]) -> str:
    lines = ["| case | claim | sick, healthy, no label | GradWatch warned |", "|---|---|---|---|"]
    for case in dict.fromkeys(result["case"] for result in results):
        runs = [result for result in results if result["case"] == case]
        labels = Counter(result["label"] for result in runs)
        claim = runs[0]["claim"] or f"healthy{': ' + runs[0]['negative'] if runs[0]['negative'] else ''}"
        warned = sum(bool(warnings_of(result, OURS)) for result in runs)
        marked = f"{case} *" if runs[0]["held_back"] else case
        numbers = f"{labels['sick']}, {labels['healthy']}, {labels['undecided']}"
        lines.append(f"| {marked} | {claim} | {numbers} | {warned} of {len(runs)} |")
    return "\n".join(lines) + "\n\n\\* held back"
