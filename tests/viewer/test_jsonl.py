"""Test ``lightning_gradwatch.viewer.jsonl``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from viewer.planted import planted_run

from lightning_gradwatch import Diagnosis, Symptom
from lightning_gradwatch.report.jsonl_sink import JsonlSink
from lightning_gradwatch.viewer.jsonl import PLACE, read_events, with_files
from lightning_gradwatch.viewer.run import Run

SICK = Diagnosis("vanishing.depth", Symptom.VANISHING, layers=("a",), step=3, message="fades")
LINE = {"format_version": 1, "run": "r", "time": "t", "event": "onset", **SICK.to_dict()}


def write(directory: Path, *lines: object) -> Path:
    """Write a file of lines and return it."""
    path = directory / PLACE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def test_what_a_run_has_written_is_read(tmp_path):
    """By the sink of the training run."""
    sink = JsonlSink(tmp_path)
    over = replace(SICK, recovered_at=9)
    sink.write(SimpleNamespace(onsets=[SICK], recoveries=[], diagnoses=[SICK]))
    sink.write(SimpleNamespace(onsets=[], recoveries=[over], diagnoses=[over]))
    (told,) = Run("r", (), read_events(sink.path)).diagnoses
    assert told == {**SICK.to_dict(), "recovered_at": 9}


def test_damaged_and_foreign_lines_are_passed_over(tmp_path):
    """A run that was killed leaves half a line."""
    lines = [
        "",
        "{",
        "[1]",
        "7",
        '{"event": "onset"}',
        {**LINE, "step": "x"},
        {**LINE, "event": "note"},
        LINE,
        '{"run"',
    ]
    assert len(read_events(write(tmp_path, *lines))) == 1
    assert read_events(write(tmp_path, "nothing")) == ()
    assert read_events(tmp_path / "gone") == ()


def test_the_newest_session_counts(tmp_path):
    """A directory without versions has all runs in one file."""
    new = {**LINE, "run": "r2", "step": 7}
    (event,) = read_events(write(tmp_path, LINE, new))
    assert event["diagnosis"]["step"] == 7


def test_a_recovery_after_a_resume_has_its_onset(tmp_path):
    """The onset stands in the session before."""
    path = write(tmp_path, LINE, {**LINE, "run": "r2", "event": "recovery", "recovered_at": 9})
    (told,) = Run("r", (), read_events(path)).diagnoses
    assert (told["step"], told["recovered_at"]) == (3, 9)


def test_files_are_found_in_every_depth_and_links_in_a_circle_end(tmp_path):
    """Each is a run, named as TensorBoard would."""
    write(tmp_path / "logs" / "version_1", LINE)
    write(tmp_path, LINE)
    (tmp_path / "logs" / "up").symlink_to(tmp_path)
    assert [run.name for run in with_files([], tmp_path)] == [".", "logs/version_1"]


def test_events_of_event_files_go_first(tmp_path):
    """The file may be an older run's; where there are no events it is read."""
    write(tmp_path / "a", LINE)
    run = planted_run("a", kind="relu")
    assert with_files([run], tmp_path) == [run]
    silent = replace(run, events=())
    (told,) = with_files([silent], tmp_path)
    assert (told.series, [d["rule"] for d in told.diagnoses]) == (run.series, ["vanishing.depth"])


@pytest.mark.parametrize("events", [True, False])
def test_event_files_in_our_own_directory_belong_to_the_same_run(tmp_path, events):
    """Where there is no TensorBoard logger they stand beside the file."""
    write(tmp_path / "a", LINE)
    run = planted_run("a/gradwatch", kind="relu")
    (told,) = with_files([run if events else replace(run, events=())], tmp_path)
    assert (told.name, len(told.diagnoses)) == ("a", 0 if events else 1)


def test_a_log_directory_with_both_kinds_has_two_runs(tmp_path):
    """No run takes another one's name."""
    runs = [planted_run("a"), planted_run("a/gradwatch", kind="relu"), planted_run("gradwatch")]
    assert [run.name for run in with_files(runs, tmp_path)] == [".", "a", "a/gradwatch"]


def test_runs_are_counted_and_not_spelled(tmp_path):
    """The tenth version comes behind the second, wherever each was found."""
    write(tmp_path / "version_10", LINE)
    write(tmp_path / "version_1", LINE)
    assert [run.name for run in with_files([planted_run("version_2")], tmp_path)] == [
        "version_1",
        "version_2",
        "version_10",
    ]
