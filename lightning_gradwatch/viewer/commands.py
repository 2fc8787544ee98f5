"""What ``gradwatch report`` and ``gradwatch compare`` do: read, print, write a page, and say how it went."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_gradwatch.viewer.compare import comparison_lines, comparison_markdown, comparison_values
from lightning_gradwatch.viewer.finding import counted
from lightning_gradwatch.viewer.markdown import printable, to_markdown
from lightning_gradwatch.viewer.metadata import FORMAT_VERSION
from lightning_gradwatch.viewer.outfile import RefusedError, write_page
from lightning_gradwatch.viewer.page import finite, html_page
from lightning_gradwatch.viewer.reading import runs_in, selected, two_runs
from lightning_gradwatch.viewer.run import Run
from lightning_gradwatch.viewer.terminal import Paper, report_lines, say, warn
from lightning_gradwatch.viewer.values import run_values
from lightning_gradwatch.viewer.verdict import failing, why_not_measured

FINE, SICK, UNUSABLE = 0, 1, 2


def report(options: Namespace) -> int:
    """Print the diagnoses of the runs in a log directory, and write the page.

    Args:
        options: ``logdir``, ``run``, ``out``, ``json``, ``markdown``, ``no_page``, ``fail_on``.

    Returns:
        The exit status.
    """
    try:
        runs = selected(runs_in(Path(options.logdir)), options.run, options.logdir)
        sick = {run.name: sorted({f.symptom for f in failing(run, options.fail_on)}) for run in runs}
        if options.json:
            _print_json({"runs": [_values(run, sick[run.name]) for run in runs]})
        elif options.markdown:
            say("\n".join(to_markdown(run) for run in runs).rstrip("\n"))
        else:
            _print_report(runs, options.logdir)
        _page(options, runs, Path(options.logdir) / "gradwatch" / "report.html", f"GradWatch: {options.logdir}")
    except RefusedError as error:
        return _refused(error)
    return _status(runs, sick, gate=bool(options.fail_on))


def compare(options: Namespace) -> int:
    """Print two runs side by side, and write the page with both.

    Args:
        options: ``first``, ``second``, ``logdir``, ``out``, ``json``, ``markdown``, ``no_page``.

    Returns:
        The exit status.
    """
    try:
        first, second = two_runs(options.first, options.second, Path(options.logdir))
        if options.json:
            values = [_values(run, []) for run in (first, second)]
            _print_json({"runs": values, "compared": comparison_values(first, second)})
        elif options.markdown:
            say(comparison_markdown(first, second).rstrip("\n"))
        else:
            say(*comparison_lines(first, second, Paper.of(sys.stdout)))
        title = f"GradWatch: {first.name} beside {second.name}"
        _page(options, (first, second), Path("gradwatch-compare.html"), title)
    except RefusedError as error:
        return _refused(error)
    return FINE


def _print_report(runs: Sequence[Run], logdir: str) -> None:
    paper = Paper.of(sys.stdout)
    if len(runs) > 1:
        say(f"{counted(len(runs), 'run')} in {printable(logdir)}", "")
    say("\n\n".join("\n".join(report_lines(run, paper)) for run in runs))


def _print_json(values: dict[str, Any]) -> None:
    say(json.dumps(finite({"format_version": FORMAT_VERSION, **values}), indent=1, allow_nan=False))


def _values(run: Run, sick: Sequence[str]) -> dict[str, Any]:
    """Return a run as plain values, with the symptoms on which the gate fails."""
    return {**run_values(run), "failed_on": list(sick)}


def _page(options: Namespace, runs: Sequence[Run], default: Path, title: str) -> None:
    """Write the page and say where; a program that asked for JSON or Markdown gets one where it named the file."""
    if options.no_page or (not options.out and (options.json or options.markdown)):
        return
    try:
        page = html_page(runs, title)
    except ValueError as error:
        raise RefusedError(f"The page was not written: {error}") from None
    path = write_page(Path(options.out) if options.out else default, page)
    where = f"picture: {printable(str(path))}"
    if options.json or options.markdown:
        warn(where)
    else:
        say("", where)


def _status(runs: Sequence[Run], sick: dict[str, list[str]], *, gate: bool) -> int:
    """Decide the exit status; a gate asks for each run to be measured, a reader for one."""
    missing = [sentence for sentence in map(why_not_measured, runs) if sentence]
    for sentence in missing:
        warn(f"gradwatch: {printable(sentence)}")
    failed = {name: symptoms for name, symptoms in sick.items() if symptoms}
    for name, symptoms in failed.items():
        warn(f"gradwatch: failed on {', '.join(symptoms)} in {printable(name)}")
    if failed:
        return SICK
    return UNUSABLE if missing and (gate or len(missing) == len(runs)) else FINE


def _refused(error: RefusedError) -> int:
    warn(f"gradwatch: {error}")
    return UNUSABLE
