"""Test ``benchmarks.ward.__main__``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ward import __main__ as command
from benchmarks.ward import run
from benchmarks.ward.case import Case
from benchmarks.ward.recipes import Recipe, well

_SHORT = Recipe(data="circle", depth=1, width=8, rate=1e-2, num_steps=8)
# Their names decide which of them is held back.
CASES = (well("first/a", _SHORT), well("first/b", _SHORT), well("second/a", _SHORT))


@pytest.fixture
def ward(monkeypatch, tmp_path: Path, capsys):
    """Return what runs the command on three short cases in this process, and what it has printed."""
    monkeypatch.setattr(command, "all_cases", lambda: CASES)
    monkeypatch.setattr(run, "all_cases", lambda: CASES)

    def call(*arguments: str) -> str:
        monkeypatch.setattr(
            sys, "argv", ["ward", "--processes", "1", "--out", str(tmp_path / "runs" / "out.jsonl"), *arguments]
        )
        command.main()
        return capsys.readouterr().out

    return call


def results(tmp_path: Path) -> list[dict[str, Any]]:
    """Return the lines of the file."""
    return [json.loads(line) for line in (tmp_path / "runs" / "out.jsonl").read_text().splitlines()]


def runs(tmp_path: Path) -> list[tuple[str, int]]:
    """Return which runs the file holds."""
    return [(result["case"], result["seed"]) for result in results(tmp_path)]


def test_every_case_runs_with_every_seed_and_the_table_is_printed(ward, tmp_path: Path) -> None:
    """Two seeds of three cases are six lines, and the table of detectors comes last."""
    out = ward("--seeds", "2")
    assert sorted(runs(tmp_path)) == [(case.name, seed) for case in CASES for seed in (0, 1)]
    assert "6 of 6 runs" in out
    assert "| GradWatch |" in out


def test_it_goes_on_where_it_stopped(ward, tmp_path: Path) -> None:
    """What the file holds is not run again."""
    ward("--seeds", "1", "--only", "first/*")
    before = results(tmp_path)
    assert "4 of 4 runs" in ward("--seeds", "2")
    assert results(tmp_path)[: len(before)] == before
    assert len(set(runs(tmp_path))) == len(runs(tmp_path)) == 6
    assert "of" not in ward("--seeds", "2").partition("|")[0]


def test_tuning_leaves_out_what_is_held_back(ward, tmp_path: Path) -> None:
    """With ``--tuning`` no case that is held back is run."""
    held = {case.name for case in CASES if case.held_back}
    assert 0 < len(held) < 3
    ward("--seeds", "1", "--tuning")
    assert {name for name, _ in runs(tmp_path)} == {case.name for case in CASES} - held


def test_the_page_holds_all_runs_in_the_order_of_the_cases(ward, tmp_path: Path) -> None:
    """The page is written where asked, names the command, and leaves out results of cases that are no more."""
    ward("--seeds", "1", "--only", "second/*")
    gone = results(tmp_path)[0] | {"case": "gone/x"}
    with (tmp_path / "runs" / "out.jsonl").open("a") as file:
        file.write(json.dumps(gone) + "\n")
    ward("--seeds", "1", "--table", str(tmp_path / "ward.md"))
    page = (tmp_path / "ward.md").read_text()
    assert "`make ward`" in page
    assert "3 cases, 3 runs" in page
    assert "gone/x" not in page
    places = [page.index(f"| {case.name}") for case in CASES]
    assert places == sorted(places)


def test_a_case_that_breaks_is_named_and_the_others_are_kept(ward, monkeypatch, tmp_path: Path) -> None:
    """The command fails, writes no page, and tries the broken case again in the next call."""

    def broken(seed: int) -> None:
        raise KeyError("a typing error")

    for owner in (command, run):
        monkeypatch.setattr(owner, "all_cases", lambda: (Case("bad/x", broken), *CASES))
    with pytest.raises(SystemExit, match=r"(?s)bad/x, seed 0:.*a typing error"):
        ward("--seeds", "1", "--table", str(tmp_path / "ward.md"))
    assert len(runs(tmp_path)) == 3
    assert not (tmp_path / "ward.md").exists()


def test_recordings_are_kept_where_asked(ward, tmp_path: Path) -> None:
    """With ``--record`` every run leaves a file to be replayed."""
    ward("--seeds", "1", "--record", str(tmp_path / "seen"))
    assert len(list((tmp_path / "seen").iterdir())) == 3


def test_processes_of_their_own_run_the_real_cases(monkeypatch, tmp_path: Path, capsys) -> None:
    """With two processes the same results come as with one."""
    name = "rest/head-on-frozen-trunk"

    def call(processes: int) -> list[tuple[str, int, str, Any]]:
        out = tmp_path / f"{processes}.jsonl"
        arguments = ["--seeds", "1", "--only", name, "--out", str(out), "--processes", str(processes)]
        monkeypatch.setattr(sys, "argv", ["ward", *arguments])
        command.main()
        assert "1 of 1 runs" in capsys.readouterr().out
        found = [json.loads(line) for line in out.read_text().splitlines()]
        return sorted((each["case"], each["seed"], each["label"], str(each["detectors"])) for each in found)

    both = call(2)
    assert [(case, seed) for case, seed, _, _ in both] == [(name, 0)]
    assert both == call(1)
