"""Test ``lightning_gradwatch.viewer.events``."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from viewer.planted import HOSTILE_NAME, planted_logdir, planted_run

from lightning_gradwatch.viewer.events import LogDirectory, read_runs
from lightning_gradwatch.viewer.run import Run


def event_file(logdir: Path, run: str) -> Path:
    """Return the one event file of a run."""
    (path,) = (logdir / run).glob("*tfevents*")
    return path


def write_scalars(path: Path) -> None:
    """Write what every other program writes."""
    writer = EventFileWriter(str(path))
    for step in range(5):
        value = summary_pb2.Summary.Value(tag="loss", simple_value=1.0)
        writer.add_event(event_pb2.Event(step=step, summary=summary_pb2.Summary(value=[value])))
    writer.close()


def assert_same(run: Run, planted: Run) -> None:
    """Assert that a run has what was planted, to the precision of the file."""
    assert (run.name, list(run.events)) == (planted.name, list(planted.events))
    assert [series.about for series in run.series] == [series.about for series in planted.series]
    for found, expected in zip(run.series, planted.series, strict=True):
        assert (found.layers, found.kinds) == (expected.layers, expected.kinds)
        for name in ("steps", "state"):
            np.testing.assert_array_equal(getattr(found.windows, name), getattr(expected.windows, name))
        for name in ("median", "low", "high"):
            np.testing.assert_allclose(getattr(found.windows, name), getattr(expected.windows, name), rtol=1e-3)


def columns(run: Run) -> list[int]:
    """Return how many columns each series has."""
    return [len(series.windows) for series in run.series]


class TestReadRuns:
    """All runs of a log directory."""

    def test_runs_are_counted_and_not_spelled(self, tmp_path: Path) -> None:
        """The tenth version comes behind the second."""
        names = ["logs/version_2", "logs/version_10"]
        planted_logdir(tmp_path, [planted_run(name, num_layers=1, num_columns=1) for name in reversed(names)])
        assert [run.name for run in read_runs(tmp_path)] == names

    def test_what_was_planted_is_read(self, tmp_path: Path) -> None:
        """Every cell, name and event of several runs, at any depth."""
        planted = [
            planted_run("a", kind="mixed", hostile=True),
            planted_run("b/c/d", kind="recurrent", num_columns=30),
            planted_run("b/x<i>", num_columns=3, resolution=3),
        ]
        runs = read_runs(planted_logdir(tmp_path, planted))
        assert HOSTILE_NAME in runs[0].series[0].layers
        for run, expected in zip(runs, planted, strict=True):
            assert_same(run, expected)

    def test_a_directory_that_is_a_run_has_the_name_that_tensorboard_gives_it(self, tmp_path: Path) -> None:
        """Its path from itself is a dot."""
        planted_logdir(tmp_path, [planted_run(".", num_columns=2)])
        assert [run.name for run in read_runs(str(tmp_path))] == ["."]

    def test_what_is_not_ours_is_passed_over(self, tmp_path: Path) -> None:
        """Runs with scalars alone, empty files and files of other programs are no runs, and no problem."""
        write_scalars(tmp_path / "scalars")
        for name, content in (("empty.tfevents.1", b""), ("notes.txt", b"tfevents"), ("x.png", bytes(99))):
            (tmp_path / "scalars" / name).write_bytes(content)
        os.mkfifo(tmp_path / "scalars" / "pipe.tfevents")
        (tmp_path / "scalars" / "gone.tfevents").symlink_to(tmp_path / "nowhere")
        directory = LogDirectory(tmp_path)
        assert (directory.read(), directory.problems) == ([], [])

    def test_scalars_in_the_same_directory_and_file_do_no_harm(self, tmp_path: Path) -> None:
        """A logger writes all into one file, another program one beside it."""
        planted = planted_run("r", num_columns=4)
        planted_logdir(tmp_path, [planted])
        write_scalars(tmp_path / "other")
        ours, other = event_file(tmp_path, "r"), event_file(tmp_path, "other")
        shutil.copy(other, tmp_path / "r" / "0.tfevents")
        ours.write_bytes(other.read_bytes() + ours.read_bytes() + other.read_bytes())
        (run,) = read_runs(tmp_path)
        assert_same(run, planted)

    def test_links_that_lead_in_a_circle_come_to_an_end(self, tmp_path: Path) -> None:
        """A link to a directory is followed once."""
        planted_logdir(tmp_path / "logs", [planted_run("r", num_columns=2)])
        (tmp_path / "logs" / "r" / "up").symlink_to(tmp_path / "logs", target_is_directory=True)
        planted_logdir(tmp_path / "elsewhere", [planted_run("s", num_columns=2)])
        (tmp_path / "logs" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        assert [run.name for run in read_runs(tmp_path / "logs")] == ["linked/s", "r"]

    def test_a_run_that_was_resumed_is_one(self, tmp_path: Path) -> None:
        """Sessions of one directory follow each other, the later one from its first step on, in pictures and events."""
        first = planted_run("r", num_columns=10, ended=False)
        second = planted_run("r", num_columns=6, first_step=8, session="b2", started=2e9)
        planted_logdir(tmp_path, [first])
        planted_logdir(tmp_path, [second])
        (run,) = read_runs(tmp_path)
        assert len(list((tmp_path / "r").iterdir())) == 2
        assert run.series[0].windows.steps.tolist() == list(range(14))
        assert [(event["event"], event["step"]) for event in run.events] == [
            ("start", 0),
            ("onset", 3),
            ("start", 8),
            ("onset", 11),
            ("end", 13),
        ]
        assert [diagnosis["recovered_at"] for diagnosis in run.diagnoses] == [11, None]

    def test_a_run_without_series_is_shown_by_its_events(self, tmp_path: Path) -> None:
        """What was diagnosed is worth reading without a picture."""
        planted = replace(planted_run("r", num_columns=1), series=())
        (run,) = read_runs(planted_logdir(tmp_path, [planted]))
        assert_same(run, planted)

    def test_it_tells_how_far_it_is(self, tmp_path: Path) -> None:
        """Bytes that were read, of all there are, never fewer than before."""
        planted_logdir(tmp_path, [planted_run(name, num_columns=20) for name in "abc"])
        told: list[tuple[int, int]] = []
        read_runs(tmp_path, lambda done, total: told.append((done, total)))
        size = sum(path.stat().st_size for path in tmp_path.rglob("*tfevents*"))
        assert told == sorted(told)
        assert told[-1] == (size, size)

    def test_it_loads_no_framework(self, tmp_path: Path) -> None:
        """The command has to start at once: no torch, no Lightning, no TensorFlow, and none of the other floors."""
        planted_logdir(tmp_path, [planted_run("r", num_columns=2)])
        code = (
            "import sys; from lightning_gradwatch.viewer.events import read_runs; assert read_runs(sys.argv[1]);"
            "print('\\n'.join(sys.modules))"
        )
        done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
        loaded = set(done.stdout.split())
        heavy = {"torch", "pytorch_lightning", "lightning", "tensorflow", "pandas", "grpc", "PIL", "matplotlib"}
        assert not loaded & heavy
        ours = {name for name in loaded if name.startswith("lightning_gradwatch.")}
        assert all(name.startswith("lightning_gradwatch.viewer") for name in ours)


class TestLogDirectory:
    """A log directory that grows or is in a bad state."""

    def test_a_run_that_grows_is_read_on(self, tmp_path: Path) -> None:
        """Cut off anywhere, read, and read again when the rest has come: the same as read at once."""
        planted = planted_run("r", num_columns=12)
        planted_logdir(tmp_path / "whole", [planted])
        whole = event_file(tmp_path / "whole", "r").read_bytes()
        (tmp_path / "logs" / "r").mkdir(parents=True)
        growing = tmp_path / "logs" / "r" / "events.tfevents"
        directory, cuts = LogDirectory(tmp_path / "logs"), sorted(random.Random(0).sample(range(len(whole)), 25))
        sizes = []
        for cut in [*cuts, len(whole)]:
            growing.write_bytes(whole[:cut])
            sizes.append([sum(columns(run)) for run in directory.read()])
            assert directory.problems == []
        assert sizes == sorted(sizes)
        assert_same(directory.read()[0], planted)

    def test_a_run_that_has_not_grown_is_the_same_object(self, tmp_path: Path) -> None:
        """Whoever polls can tell at once that there is nothing new; new runs are found."""
        directory = LogDirectory(planted_logdir(tmp_path, [planted_run("b", num_columns=2)]))
        (before,) = directory.read()
        planted_logdir(tmp_path, [planted_run("a", num_columns=2)])
        new, after = directory.read()
        assert (new.name, after) == ("a", before)
        shutil.rmtree(tmp_path / "a")
        assert [run.name for run in directory.read()] == ["a", "b"]

    def test_a_damaged_record_is_left_out_and_told(self, tmp_path: Path) -> None:
        """A byte that has turned over costs one column of one series."""
        planted_logdir(tmp_path, [planted_run("r", num_columns=12)])
        path = event_file(tmp_path, "r")
        content = bytearray(path.read_bytes())
        content[len(content) // 4] ^= 1
        path.write_bytes(content)
        directory = LogDirectory(tmp_path)
        (run,) = directory.read()
        assert sorted(_missing(run)) == [0, 0, 0, 0, 1]
        assert directory.problems == [f"{path} has 1 damaged records, which were left out"]

    def test_behind_a_damaged_length_nothing_is_found_and_that_is_told(self, tmp_path: Path) -> None:
        """What lies before it is shown."""
        planted_logdir(tmp_path, [planted_run("r", num_columns=12)])
        path = event_file(tmp_path, "r")
        half = path.stat().st_size // 2
        path.write_bytes(path.read_bytes()[:half] + bytes(2000))
        directory = LogDirectory(tmp_path)
        (run,) = directory.read()
        assert 0 < sum(columns(run)) < 33
        # What was cut in two looks like a damaged record, or like a damaged length.
        assert any("is lost" in problem for problem in directory.problems)

    def test_random_bytes_are_survived(self, tmp_path: Path) -> None:
        """Whatever is overwritten, reading comes to an end without an error and with no more than was written."""
        planted_logdir(tmp_path, [planted_run("r", num_columns=6)])
        path = event_file(tmp_path, "r")
        whole, rng = path.read_bytes(), random.Random(0)
        for _ in range(60):
            content = bytearray(whole)
            start = rng.randrange(len(whole))
            for place in range(start, min(start + rng.randrange(40), len(whole))):
                content[place] = rng.randrange(256)
            path.write_bytes(content[: rng.randrange(len(whole))])
            assert sum(sum(columns(run)) for run in read_runs(tmp_path)) <= 15

    def test_what_may_not_be_read_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file or directory without permission hides nothing else."""
        planted_logdir(tmp_path, [planted_run(name, num_columns=2) for name in ("file", "directory", "fine")])
        scan, opened = os.scandir, Path.open

        def refuse(path: Any) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        def scandir(path: Any) -> Any:
            return refuse(path) if str(path).endswith("directory") else scan(path)

        def open_(self: Path, *args: Any) -> Any:
            return refuse(self) if self.parent.name == "file" else opened(self, *args)

        monkeypatch.setattr(os, "scandir", scandir)
        monkeypatch.setattr(Path, "open", open_)
        directory = LogDirectory(tmp_path)
        assert [run.name for run in directory.read()] == ["fine"]
        assert [text.rsplit(": ", 1)[1] for text in directory.problems] == ["Permission denied"] * 2

    def test_a_tag_without_its_first_record_is_passed_over(self, tmp_path: Path) -> None:
        """Nobody knows what its rows are; the others are shown."""
        planted_logdir(tmp_path, [planted_run("r", num_columns=4)])
        path = event_file(tmp_path, "r")
        content = path.read_bytes()
        place = content.index(b'"quantity": "norms"')
        path.write_bytes(content[:place] + b"?" + content[place + 1 :])
        (run,) = read_runs(tmp_path)
        assert [series.name for series in run.series] == ["ratios/0", "signal/0", "delta/0", "updates/0"]

    def test_other_programs_under_our_name_do_no_harm(self, tmp_path: Path) -> None:
        """Tensors of another type or shape, texts that are no JSON and a newer format are passed over."""
        planted = planted_run("r", num_columns=2)
        planted_logdir(tmp_path, [planted])
        about = planted.series[0].about
        writer = EventFileWriter(str(tmp_path / "r"), filename_suffix=".odd")
        newer = about.content().replace(b'"format_version": 1', b'"format_version": 9')
        for tag, content in (("gradwatch/newer", newer), ("gradwatch/odd", b"\x00"), (about.tag, b"")):
            plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="gradwatch", content=content)
            for tensor in ({"dtype": 1, "tensor_content": b"123"}, {"dtype": 7, "string_val": [b"{"]}, {"dtype": 19}):
                value = summary_pb2.Summary.Value(
                    tag=tag, metadata=summary_pb2.SummaryMetadata(plugin_data=plugin), tensor=tensor
                )
                writer.add_event(event_pb2.Event(step=9, summary=summary_pb2.Summary(value=[value])))
        writer.close()
        (run,) = read_runs(tmp_path)
        assert_same(run, planted)


def _missing(run: Run) -> list[int]:
    """Return how many columns each series lacks of what was planted."""
    return [expected - found for expected, found in zip([12, 12, 3, 3, 3], columns(run), strict=True)]
