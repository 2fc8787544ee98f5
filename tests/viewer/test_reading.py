"""Test ``lightning_gradwatch.viewer.reading``."""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import replace

import pytest
from viewer.planted import planted_diagnosis, planted_logdir, planted_run

from lightning_gradwatch.viewer import reading
from lightning_gradwatch.viewer.outfile import RefusedError
from lightning_gradwatch.viewer.reading import runs_in, selected, two_runs
from lightning_gradwatch.viewer.run import Run

RUNS = [Run(name) for name in ("lightning_logs/version_1", "lightning_logs/version_10", "other/version_1", "x")]


def names(*patterns: str) -> list[str]:
    """Return the names that patterns choose."""
    return [run.name for run in selected(RUNS, patterns or None, "logs")]


def test_a_run_is_chosen_by_its_name_the_end_of_its_path_or_a_pattern():
    """``version_1`` is not ``version_10``."""
    assert names() == [run.name for run in RUNS]
    assert names("lightning_logs/version_1") == ["lightning_logs/version_1"]
    assert names("version_1") == ["lightning_logs/version_1", "other/version_1"]
    assert names("version_1?", "x") == ["lightning_logs/version_10", "x"]
    assert names("lightning_logs/*/") == ["lightning_logs/version_1", "lightning_logs/version_10"]


def test_a_pattern_that_matches_nothing_is_refused():
    """Also beside one that does: a gate must not pass since a run was renamed."""
    with pytest.raises(RefusedError, match=r'"version_2" is none of the runs in logs: lightning_logs/version_1, .*x$'):
        names("x", "version_2")


def test_a_directory_that_is_a_run_has_its_name(tmp_path):
    """Not a dot."""
    (run,) = runs_in(planted_logdir(tmp_path / "version_0", [planted_run(".")]))
    assert run.name == "version_0"
    assert len(run.series) == 5


def test_a_run_without_a_tensorboard_logger_has_its_directorys_name(tmp_path):
    """Its event file stands in ``gradwatch/``, beside the diagnoses."""
    (run,) = runs_in(planted_logdir(tmp_path / "version_0", [planted_run("gradwatch")]))
    assert run.name == "version_0"


def test_a_run_below_does_not_lose_its_name_to_the_one_above(tmp_path):
    """Two runs of one name could not be told apart."""
    runs = runs_in(planted_logdir(tmp_path / "a", [planted_run("."), planted_run("a")]))
    assert [run.name for run in runs] == [".", "a"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gone", "gone does not exist"),
        ("file", "file is a file: give the directory"),
        ("empty", "nothing was measured"),
    ],
)
def test_where_there_is_nothing_a_person_is_told_what_to_do(tmp_path, path, message):
    """Not shown an empty report."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RefusedError, match=re.escape(message)):
        runs_in(tmp_path / path)


def test_diagnoses_of_a_file_are_read_where_there_are_no_events(tmp_path):
    """As of a run of an older version."""
    path = tmp_path / "version_0" / "gradwatch" / "diagnoses.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"event": "onset", "run": "r", **planted_diagnosis("spike", step=1, layers=["a"])}))
    assert [(run.name, len(run.diagnoses)) for run in runs_in(tmp_path)] == [("version_0", 1)]


def test_damaged_files_are_told_on_standard_error(tmp_path, capsys):
    """What is left is shown."""
    logdir = planted_logdir(tmp_path, [planted_run("a")])
    (path,) = (logdir / "a").iterdir()
    block = bytearray(path.read_bytes())
    block[len(block) // 2] ^= 0xFF
    path.write_bytes(bytes(block))
    (run,) = runs_in(logdir)
    assert run.series
    assert "damaged" in capsys.readouterr().err


class Terminal(io.StringIO):
    """A stream that is one."""

    def isatty(self):
        return True


def test_a_long_read_tells_how_far_it_is(tmp_path, monkeypatch):
    """In one line, gone at the end; in a terminal only, and a short read shows none."""
    logdir = planted_logdir(tmp_path, [planted_run(name) for name in "abc"])
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    runs_in(logdir)
    assert screen.getvalue() == ""
    clock = iter(range(1000))
    monkeypatch.setattr(reading.time, "monotonic", lambda: next(clock))
    runs_in(logdir)
    shown = screen.getvalue()
    assert re.findall(r"\((\d+)%\)", shown) == ["33", "66", "100"]
    assert shown.endswith("\r\x1b[K")
    assert "\n" not in shown
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    runs_in(logdir)
    assert sys.stderr.getvalue() == ""


def test_two_runs_are_named_by_directory_or_by_name(tmp_path, monkeypatch):
    """A name is looked up below ``--logdir``."""
    monkeypatch.chdir(planted_logdir(tmp_path, [planted_run("logs/a"), planted_run("logs/b", kind="relu")]))
    first, second = two_runs("logs/a", "logs/b", tmp_path / "nowhere")
    assert (first.name, second.name) == ("logs/a", "logs/b")
    first, second = two_runs("a", "b", tmp_path / "logs")
    assert (first.name, second.name) == ("a", "b")
    first, second = two_runs("logs/a", "b", tmp_path / "logs")
    assert (first.name, second.name) == ("logs/a", "b")


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("logs", "logs/b", "logs holds 2 runs. Name one of them, such as logs/a"),
        ("logs/a", "logs/a", "are the same run"),
        ("logs/a", "logs/none", "logs/none: nothing was measured"),
        ("logs/a", "gone", '"gone" is none of the runs in logs'),
        ("*", "logs/a", '"*" is the name of 3 runs'),
    ],
)
def test_what_is_not_two_runs_is_refused(tmp_path, monkeypatch, first, second, message):
    """With what there is."""
    runs = [planted_run("logs/a"), planted_run("logs/b"), replace(planted_run("logs/none", kind="relu"), series=())]
    monkeypatch.chdir(planted_logdir(tmp_path, runs))
    with pytest.raises(RefusedError, match=re.escape(message)):
        two_runs(first, second, type(tmp_path)("logs"))


def test_a_name_without_a_log_directory_is_refused(tmp_path):
    """Both places are told."""
    with pytest.raises(RefusedError, match=r"a is no directory, and there is no .*nowhere with runs"):
        two_runs("a", "b", tmp_path / "nowhere")
