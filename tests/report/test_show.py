"""Test ``lightning_gradwatch.report.show``."""

from __future__ import annotations

import html
import json
import re
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest

from lightning_gradwatch import Report
from lightning_gradwatch.report.recorded import each_reading, examined_run
from lightning_gradwatch.report.show import FRAME_BYTES, frame, in_notebook, page_of, save_run, show_run
from lightning_gradwatch.viewer import commands
from lightning_gradwatch.viewer.markdown import to_markdown
from lightning_gradwatch.viewer.metadata import SeriesMetadata
from lightning_gradwatch.viewer.page import finite, html_page
from lightning_gradwatch.viewer.run import Run, Series
from lightning_gradwatch.viewer.windows import Windows

RUN = examined_run(Report(("fc1", "<img src=x onerror=alert(1)>"), np.ones(2), np.array([1e-9, np.nan])), "my run")


def series_of_norms(values: object) -> Series:
    """Return gradient norms of two layers, a row a reading."""
    table = np.asarray(values, dtype=np.float64)
    about = SeriesMetadata("norms", 0, "a1", 0.0, 0, ("fc1", "fc2"), (0, 1))
    windows = each_reading(np.arange(len(table)), table, np.ones(table.shape, dtype=np.bool_))
    return Series(about, about.layers, (), windows)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch):
    """Pretend to be in a notebook; return the list of what is displayed."""
    displayed: list[str] = []
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    display = types.ModuleType("IPython.display")
    display.HTML = lambda text: text  # type: ignore[attr-defined]
    display.display = displayed.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return displayed


def test_a_notebook_displays_the_page_itself(notebook: list[str], tmp_path: Path) -> None:
    """The frame holds the very page that a file would hold, no file is written, and nothing is returned."""
    assert show_run(RUN, tmp_path) is None
    (shown,) = notebook
    (page,) = re.findall(r'srcdoc="([^"]*)"', shown)
    assert html.unescape(page) == html_page([RUN], "my run", max_bytes=FRAME_BYTES)
    assert list(tmp_path.iterdir()) == []


def test_the_frame_keeps_the_notebook_from_the_page() -> None:
    """Its scripts run without the notebook's rights, and nothing of a name leaves the attribute that it stands in."""
    shown = frame(RUN)
    assert 'sandbox="allow-scripts allow-downloads"' in shown
    assert len(re.findall("<[a-z]", shown)) == 2
    assert not shown.startswith("<iframe")


@pytest.mark.parametrize("shell", [None, types.SimpleNamespace()], ids=["imported only", "terminal"])
def test_ipython_without_a_kernel_is_no_notebook(shell: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """In IPython's terminal, and where IPython was only imported, HTML cannot be shown."""
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: shell  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert not in_notebook()


def test_elsewhere_the_page_is_a_file_in_the_log_directory(tmp_path: Path) -> None:
    """It stands beside what else is written of a run, and is written anew the next time."""
    path = show_run(RUN, tmp_path / "logs")
    assert path == tmp_path / "logs" / "gradwatch" / "report.html"
    assert path.read_text(encoding="utf-8") == html_page([RUN], "my run")
    assert show_run(RUN, tmp_path / "logs") == path


def test_without_a_log_directory_each_page_is_a_file_of_its_own(tmp_path: Path, monkeypatch) -> None:
    """Two pages in the temporary directory do not overwrite each other."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first, second = show_run(RUN), show_run(RUN)
    assert first is not None
    assert second is not None
    assert first != second
    assert {first.name, second.name} == {"report.html"}
    assert tmp_path in first.parents


def test_the_suffix_says_what_is_written(tmp_path: Path) -> None:
    """A page, the viewer's Markdown, or what ``gradwatch report --json`` prints; folders are made, case is ignored."""
    page, text, data = (save_run(RUN, tmp_path / "new" / "folder" / name) for name in ("a.HTML", "a.md", "a.json"))
    assert page.read_text(encoding="utf-8") == html_page([RUN], "my run")
    assert text.read_text(encoding="utf-8") == to_markdown(RUN)
    told = json.loads(data.read_text(encoding="utf-8"))
    assert (told["generator"], told["format_version"], len(told["runs"])) == ("gradwatch", 1, 1)


def test_the_json_of_a_run_is_that_of_the_command(tmp_path: Path) -> None:
    """Every key and value is the same as in ``gradwatch report --json``, but which symptoms a gate fails on."""
    norms = series_of_norms([[1e-3, 0.0], [1e-9, np.nan]])
    event = {"event": "onset", "diagnosis": {"rule": "dead", "symptom": "dead", "step": 3, "evidence": {"x": np.inf}}}
    run = Run("sick", (norms,), [event])
    (told,) = json.loads(save_run(run, tmp_path / "a.json").read_text(encoding="utf-8"))["runs"]
    expected = commands._values(run, [])
    del expected["failed_on"]
    assert told == finite(expected)
    assert told["norms"][0]["layers"] == {"fc1": pytest.approx(1e-9), "fc2": None}


@pytest.mark.parametrize("name", ["report", "report.png", "report.htm", ".html"])
def test_another_suffix_is_refused(name: str, tmp_path: Path) -> None:
    """The error says which there are, and nothing is written, no folder either."""
    with pytest.raises(ValueError, match=r"must end in \.html .*\.md .*\.json.* Got '.*'"):
        save_run(RUN, tmp_path / "folder" / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.html", "a.md", "a.json"])
def test_only_a_file_of_ours_is_replaced(name: str, tmp_path: Path) -> None:
    """What was saved before is written anew; somebody else's file, or a directory, is left alone."""
    path = tmp_path / name
    path.touch()
    save_run(Run("older"), path)
    assert save_run(RUN, str(path)) == path
    assert "my run" in path.read_text(encoding="utf-8")
    path.write_text("mine")
    with pytest.raises(FileExistsError, match=r"not written, so it is left alone: .* Choose another name"):
        save_run(RUN, path)
    assert path.read_text() == "mine"
    path.unlink()
    path.mkdir()
    with pytest.raises(FileExistsError):
        save_run(RUN, path)


def test_a_file_of_ours_of_another_kind_is_not_taken_for_the_same(tmp_path: Path) -> None:
    """A page that somebody renamed to .json is no JSON of ours."""
    page = save_run(RUN, tmp_path / "a.html")
    page.rename(tmp_path / "a.json")
    with pytest.raises(FileExistsError):
        save_run(RUN, tmp_path / "a.json")


def test_what_is_kept_in_a_notebook_or_sent_away_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of numbers that would take more, columns are merged, and the page says so."""
    assert FRAME_BYTES == 5_000_000
    monkeypatch.setattr("lightning_gradwatch.report.show.FRAME_BYTES", 50_000)
    logs = np.random.default_rng(0).normal(size=(2048, 20)).astype(np.float32)
    layers = tuple(f"layer{number}" for number in range(20))
    about = SeriesMetadata("norms", 0, "a1", 0.0, 0, layers, tuple(range(20)))
    windows = Windows(np.arange(2048), logs, logs - 1, logs + 1, np.ones(logs.shape, dtype=np.uint8))
    run = Run("large", (Series(about, layers, (), windows),))
    assert len(page_of(run)) < len(html_page([Run("empty")])) + 60_000
    assert "columns were merged" in page_of(run)
    assert "columns were merged" not in html_page([run])


def test_nothing_warns_in_a_notebook_of_the_real_ipython() -> None:
    """IPython, where it is installed, takes the HTML without a word."""
    display = pytest.importorskip("IPython.display", reason="IPython is no dependency of ours")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert display.HTML(frame(RUN)).data.startswith("<div><iframe")
