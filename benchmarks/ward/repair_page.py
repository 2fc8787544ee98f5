"""What treatments did to the ward, as a page to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.ward.grading import MEAN_PICTURE

Result = dict[str, Any]

_OURS = "ours"
_NAMES = {
    "ours": "GradWatch's first remedy",
    "xavier": "Xavier on all weight matrices",
    "he": "He on all weight matrices",
    "clip": "clip by global norm 1",
    "autotrainer": "AUTOTRAINER's first repair",
    "ours-told": "what GradWatch's log told first",
    "ours-second": "GradWatch's second remedy",
    "ours-third": "GradWatch's third remedy",
}
_INTRODUCTION = """Each sick run of [the ward](ward.md), treated once; made with `{command}` ({took}).

A sick run is trained with GradWatch watching. When it has ended, `watch.remedies[0]` is carried out, with all that it
says and nothing else, on a fresh model of the same seed, and that is trained to the end. The others' advice is tried on
the same runs: an initialization of all weight matrices, clipping, and the first repair in AUTOTRAINER's published
order for what its own rules have found in the same run. AUTOTRAINER searches by training again until a repair works;
here everybody has one try.

The *gain* of a run's healthy twin is its score over what chance gives (1 / number of classes; 0 of an R2; the mean
picture's {mean_picture} for autoencoders). A treatment has **cured** a run that has 95% of that gain, has **helped**
one that has at least half of it more than before, and has **not helped** any other. *By hand*: only a person
can edit the source. Where it calls an activation as a function, that function was swapped; where it cuts the graph
(`detach()`, `.data`, `no_grad()`, numpy) or makes it flat (`round()`), and the remedy names the two layers between
which that happens, the cut was taken out there and nowhere else, which is what the case's own cure does.
*Words only*: the remedy asks a person to look or to edit and changes nothing itself, which counts as not helped.
*Needs an edit*: `apply_` has refused and the edit could not be made so. *No advice*: nothing was diagnosed, or no
diagnosis had a remedy.

Advice was changed after it had been seen on these cases, those that are held back from the rules among them; so this
is no measure of how it does elsewhere."""


def page(results: Sequence[Result], command: str, took: str) -> str:
    """Write the whole page.

    Args:
        results: All results, one a run and strategy.
        command: What makes it.
        took: How long it took, and where.
    """
    sick = [result for result in results if result["label"] == "sick"]
    ours = [result for result in sick if result["strategy"] == _OURS]
    parts = [
        "# Advice, tried",
        _INTRODUCTION.format(command=command, took=took, mean_picture=MEAN_PICTURE),
        f"{len({result['case'] for result in sick})} cases, {len(ours)} sick runs.",
        summary(results),
        "## By family of networks: runs cured",
        _by(sick, lambda result: result["case"].split("/")[0], "family"),
        "## By symptom: runs cured",
        _by(sick, lambda result: result["claim"], "symptom"),
        "## Runs that were held back while the rules' numbers were chosen",
        summary([result for result in results if result["held_back"]]),
        "## Healthy runs",
        _healthy(results),
        "## Sick runs that the first remedy has not cured",
        uncured(ours),
    ]
    return "\n\n".join(parts) + "\n"


def summary(results: Sequence[Result]) -> str:
    """Write the table of strategies, over all sick runs."""
    head = (
        "| advice | sick runs | cured | of these by hand | helped | not helped | of these words only | no advice "
        "| needs an edit |\n|---|---|---|---|---|---|---|---|---|"
    )
    rows = []
    for strategy in _strategies(results):
        runs = [r for r in results if r["strategy"] == strategy and r["label"] == "sick"]
        counts = Counter(run["grade"] for run in runs)
        words = sum(run["words_only"] and run["grade"] == "not helped" for run in runs)
        cells = [
            _NAMES[strategy],
            str(len(runs)),
            f"{counts['cured']} ({counts['cured'] / max(len(runs), 1):.1%})",
            str(sum(run["by_hand"] and run["grade"] == "cured" for run in runs)),
            str(counts["helped"]),
            str(counts["not helped"]),
            str(words),
            str(counts["no advice"]),
            str(counts["needs an edit"]),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join([head, *rows])


def _strategies(results: Sequence[Result]) -> list[str]:
    found = {result["strategy"] for result in results}
    return [name for name in _NAMES if name in found]


def _by(sick: Sequence[Result], kind: Callable[[Result], str], name: str) -> str:
    strategies = _strategies(sick)
    lines = [
        f"| {name} | sick runs | " + " | ".join(_NAMES[strategy] for strategy in strategies) + " |",
        "|---" * (len(strategies) + 2) + "|",
    ]
    for value in dict.fromkeys(kind(result) for result in sick):
        runs = [result for result in sick if kind(result) == value]
        number = len({(result["case"], result["seed"]) for result in runs})
        shares = [_share([run for run in runs if run["strategy"] == strategy]) for strategy in strategies]
        lines.append(f"| {value} | {number} | " + " | ".join(shares) + " |")
    return "\n".join(lines)


def _share(runs: Sequence[Result]) -> str:
    return f"{sum(run['grade'] == 'cured' for run in runs) / len(runs):.0%}" if runs else "-"


def _healthy(results: Sequence[Result]) -> str:
    runs = [result for result in results if result["label"] == "healthy" and result["strategy"] == _OURS]
    counts = Counter(run["grade"] for run in runs)
    text = (
        f"{len(runs)} runs reached their score. {counts['kept'] + counts['worse']} of them had a remedy that was "
        f"carried out, or that was words only; with it {counts['kept']} reached their score again and "
        f"{counts['worse']} did not. {counts['needs an edit']} needed an edit, {counts['no advice']} had no remedy."
    )
    return "\n".join([text, *(f"\n{_line(run)}" for run in runs if run["grade"] == "worse")])


def uncured(ours: Sequence[Result]) -> str:
    """List the runs that the first remedy has not cured, by the rule whose remedy it was."""
    runs = [run for run in ours if run["grade"] != "cured"]
    lines = []
    for rule in sorted({run["rule"] for run in runs}, key=lambda rule: (rule == "", rule)):
        lines.append(f"\n### {rule or 'No advice'}\n")
        lines += [_line(run) for run in runs if run["rule"] == rule]
    return "\n".join(lines).strip() or "None."


def _line(run: Result) -> str:
    scores = f"score {run['score']}" + (f", treated {run['after']}" if run["after"] is not None else "")
    twin = f", twin {run['twin']}" if run["twin"] is not None else f", asked for {run['passes']}"
    said = "; ".join(
        f"{rule} ({severity}, step {step}{'' if end is None else f' to {end}'})"
        for rule, severity, step, end in run["said"]
    )
    advice = f"*{run['title']}*" if run["title"] else f"no remedy; said {said or 'nothing'}"
    note = " (by hand)" if run["by_hand"] else ""
    note += f" ({run['note'].splitlines()[0]})" if run["note"] else ""
    held = " (held back)" if run["held_back"] else ""
    return f"- {run['grade']}: `{run['case']}`{held} seed {run['seed']}, {run['claim']}: {advice}{note}; {scores}{twin}"
