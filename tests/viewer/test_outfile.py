"""Test ``lightning_gradwatch.viewer.outfile``."""

from __future__ import annotations

import os
import re
import stat
import threading

import pytest

from lightning_gradwatch.viewer.outfile import RefusedError, write_page
from lightning_gradwatch.viewer.page import MARK

PAGE = f"<!doctype html>\n{MARK}\nnew"


def test_directories_are_made_and_a_page_of_ours_is_written_anew(tmp_path):
    """With the rights of any new file, and nothing left beside it."""
    path = tmp_path / "a" / "b" / "report.html"
    assert write_page(path, PAGE.replace("new", "old")) == path.resolve()
    write_page(path, PAGE)
    assert path.read_text() == PAGE
    assert list(path.parent.iterdir()) == [path]
    (tmp_path / "any").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "any").stat().st_mode)


def test_a_file_of_somebody_else_is_left_alone(tmp_path):
    """Also where it is another page."""
    path = tmp_path / "index.html"
    path.write_text("<!doctype html><title>mine</title>")
    with pytest.raises(RefusedError, match="was not written by gradwatch and is left as it is"):
        write_page(path, PAGE)
    assert "mine" in path.read_text()


def test_an_empty_file_is_nobodys(tmp_path):
    """As ``mktemp`` makes them."""
    path = tmp_path / "empty"
    path.touch()
    write_page(path, PAGE)
    assert path.read_text() == PAGE


def test_a_link_stays_one(tmp_path):
    """What it leads to is written."""
    target, link = tmp_path / "target.html", tmp_path / "link.html"
    target.write_text(PAGE)
    link.symlink_to(target)
    write_page(link, PAGE + "er")
    assert link.is_symlink()
    assert target.read_text() == PAGE + "er"


def test_a_pipe_is_written_to(tmp_path):
    """As ``--out /dev/stdout``."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(path.read_text()))
    reader.start()
    write_page(path, PAGE)
    reader.join(10)
    assert read == [PAGE]


def test_what_cannot_be_written_is_told_with_a_way_out(tmp_path):
    """A directory, or a file where a directory should be."""
    with pytest.raises(RefusedError, match=re.escape(f"--out {tmp_path / 'report.html'}")):
        write_page(tmp_path, PAGE)
    (tmp_path / "file").write_text("x")
    with pytest.raises(RefusedError, match="cannot be written"):
        write_page(tmp_path / "file" / "report.html", PAGE)


def test_a_page_is_whole_or_not_at_all(tmp_path, monkeypatch):
    """A full disk leaves the old one, and no draft."""
    path = tmp_path / "report.html"
    write_page(path, PAGE)
    monkeypatch.setattr(
        "pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(RefusedError, match="No space left on device"):
        write_page(path, PAGE + "er")
    assert [file.read_text() for file in tmp_path.iterdir()] == [PAGE]
