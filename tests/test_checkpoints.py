"""Test ``lightning_gradwatch.checkpoints``."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gradwatch.checkpoints import Checkpoints, SavedCheckpoint

CLOCK = itertools.count(1)


def write(path: Path, text: str = "weights") -> str:
    """Write a file that is newer than every other, however coarse the clock is."""
    path.write_text(text)
    os.utime(path, ns=(now := next(CLOCK) * 10**9, now))
    return str(path)


def test_the_newest_clean_one_is_found(tmp_path):
    """The one that was saved last, at the step or before it."""
    saves, paths = Checkpoints(), []
    for step in (2, 4, 6):
        saves.saved(step)
        paths.append(write(tmp_path / f"{step}.ckpt"))
        saves.look(paths)
    assert [saves.last_clean(until) for until in (1, 3, 4, 100)] == [
        None,
        SavedCheckpoint(paths[0], 2),
        SavedCheckpoint(paths[1], 4),
        SavedCheckpoint(paths[2], 6),
    ]


def test_a_file_that_was_written_again_is_as_new_as_its_last_save(tmp_path):
    """``last.ckpt`` keeps its name: it is clean only if it was not written since."""
    saves, path = Checkpoints(), tmp_path / "last.ckpt"
    for step in (2, 4):
        saves.saved(step)
        saves.look([write(path)])
    assert saves.last_clean(3) is None
    assert saves.last_clean(4) == SavedCheckpoint(str(path), 4)


def test_a_save_that_wrote_elsewhere_leaves_others_as_they_are(tmp_path):
    """A best checkpoint of long ago stays of that step."""
    saves = Checkpoints()
    saves.saved(2)
    best = write(tmp_path / "best.ckpt")
    saves.look([best])
    saves.saved(8)
    saves.look([best, write(tmp_path / "other.ckpt")])
    assert saves.last_clean(7) == SavedCheckpoint(best, 2)


def test_a_file_that_is_gone_is_not_named(tmp_path):
    """The callbacks remove what is no longer among the best, before or after we look."""
    saves, first, second = Checkpoints(), tmp_path / "1.ckpt", tmp_path / "2.ckpt"
    for step, path in ((1, first), (2, second)):
        saves.saved(step)
        saves.look([write(path)])
    second.unlink()
    assert saves.last_clean(9) == SavedCheckpoint(str(first), 1)
    first.unlink()
    assert saves.last_clean(9) is None


def test_nothing_is_looked_at_where_nothing_was_saved(tmp_path):
    """Files without a save, names without a file and empty names are no checkpoints."""
    saves = Checkpoints()
    saves.look([write(tmp_path / "old.ckpt")])
    assert saves.last_clean(9) is None
    saves.saved(1)
    saves.look(["", str(tmp_path / "missing.ckpt")])
    assert saves.last_clean(9) is None


def test_what_lies_elsewhere_counts_as_written_by_every_save():
    """A file that cannot be looked at is called too new rather than clean."""
    saves = Checkpoints()
    for step in (2, 4):
        saves.saved(step)
        saves.look(["s3://bucket/best.ckpt"])
    assert saves.last_clean(3) is None


def test_the_checkpoint_that_training_began_from_is_one(tmp_path):
    """Where nothing was saved since, it is the way back; one that does not exist is not."""
    saves = Checkpoints()
    saves.resumed(str(tmp_path / "missing.ckpt"), 3)
    assert saves.last_clean(9) is None
    path = write(tmp_path / "from.ckpt")
    saves.resumed(path, 3)
    assert saves.last_clean(9) == SavedCheckpoint(path, 3)


def test_a_file_that_another_save_has_written_over_since_is_not_named(tmp_path):
    """AsyncCheckpointIO: we look before the save lands, and what lands may be poisoned."""
    saves, path = Checkpoints(), tmp_path / "last.ckpt"
    saves.saved(300)
    saves.look([write(path)])
    saves.saved(400)
    saves.look([str(path)])
    assert saves.last_clean(350) == SavedCheckpoint(str(path), 300)
    write(path, "poisoned")
    assert saves.last_clean(350) is None


def test_a_directory_whose_files_were_written_over_is_not_named(tmp_path):
    """A distributed checkpoint keeps its directory, and the directory its time."""
    saves, path = Checkpoints(), tmp_path / "last.ckpt"
    path.mkdir()
    write(path / "__0_0.distcp")
    saves.saved(2)
    saves.look([str(path)])
    assert saves.last_clean(2) == SavedCheckpoint(str(path), 2)
    write(path / "__0_0.distcp", "longer than it was")
    assert saves.last_clean(2) is None


@pytest.mark.parametrize("error", [PermissionError(), OSError(116, "Stale file handle"), OSError(5, "I/O error")])
def test_a_file_that_cannot_be_looked_at_is_not_named(tmp_path, monkeypatch, error):
    """A network disk raises other errors than that a file is missing; none of them is one of training."""
    saves, near, far = Checkpoints(), write(tmp_path / "near.ckpt"), write(tmp_path / "far.ckpt")
    for step, path in ((1, near), (2, far)):
        saves.resumed(path, step)
    stat = Path.stat

    def breaks(self, **settings):
        if self.name == "far.ckpt":
            raise error
        return stat(self, **settings)

    monkeypatch.setattr(Path, "stat", breaks)
    assert saves.last_clean(9) == SavedCheckpoint(near, 1)
    saves.saved(5)
    saves.look([far])
    assert saves.last_clean(9) == SavedCheckpoint(near, 1)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=12), st.integers(-1, 13))
@settings(max_examples=50, deadline=None)
def test_what_is_called_clean_was_saved_in_time(tmp_path_factory: pytest.TempPathFactory, plan, until):
    """Whatever is saved, removed and written again: the answer holds what was in the file at that step."""
    directory = tmp_path_factory.mktemp("saves")
    saves = Checkpoints()
    for step, (name, gone) in enumerate(plan):
        path = directory / name
        if gone:
            path.unlink(missing_ok=True)
            continue
        saves.saved(step)
        write(path, str(step))
        saves.look([str(directory / each) for each in "abc"])
    found = saves.last_clean(until)
    truth = {path: int(path.read_text()) for path in directory.iterdir()}
    clean = [step for step in truth.values() if step <= until]
    assert (found.step if found else None) == max(clean, default=None)
    if found:
        assert truth[Path(found.path)] == found.step
