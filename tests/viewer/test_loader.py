"""Test ``lightning_gradwatch.viewer.loader``."""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import Namespace
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from viewer.hosts import TensorBoard
from viewer.planted import planted_logdir, planted_run

from lightning_gradwatch.viewer.loader import GradWatchLoader
from lightning_gradwatch.viewer.metadata import MAX_RECORDS

CONTEXT = SimpleNamespace(data_provider=None)


class TestFixFlags:
    """What is asked of TensorBoard."""

    @pytest.mark.parametrize("given", [{}, None, {"images": 3}])
    def test_all_records_are_kept(self, given: dict[str, int] | None) -> None:
        """As many as a tag can have, and other plugins' numbers stay."""
        flags = Namespace(samples_per_plugin=given)
        GradWatchLoader().fix_flags(flags)
        assert flags.samples_per_plugin["gradwatch"] >= MAX_RECORDS
        assert {**flags.samples_per_plugin, **(given or {})} == flags.samples_per_plugin

    def test_the_number_that_a_person_gives_holds(self) -> None:
        """Someone short of memory may want fewer."""
        flags = Namespace(samples_per_plugin={"gradwatch": 50})
        GradWatchLoader().fix_flags(flags)
        assert flags.samples_per_plugin == {"gradwatch": 50}

    @pytest.mark.parametrize("flags", [Namespace(), Namespace(samples_per_plugin=3), None])
    def test_flags_that_it_does_not_know_are_left_alone(self, flags: Any, caplog: pytest.LogCaptureFixture) -> None:
        """A TensorBoard to come may have others: it starts, and the person is told."""
        GradWatchLoader().fix_flags(flags)
        assert "the picture has gaps" in caplog.text

    def test_a_broken_module_of_ours_is_told(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The import of what we know ourselves may fail as well."""
        monkeypatch.setitem(sys.modules, "lightning_gradwatch.viewer.metadata", None)
        flags = Namespace(samples_per_plugin={})
        GradWatchLoader().fix_flags(flags)
        assert flags.samples_per_plugin == {}
        assert "the picture has gaps" in caplog.text


class TestLoad:
    """The plugin is made, or TensorBoard goes on without it."""

    def test_it_makes_the_plugin(self) -> None:
        """From what TensorBoard gives to all of them."""
        plugin = GradWatchLoader().load(CONTEXT)
        assert (plugin.plugin_name, type(plugin).__name__) == ("gradwatch", "GradWatchPlugin")

    def test_a_plugin_that_cannot_be_imported_is_none(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The person is told that the tab is missing, and why."""
        monkeypatch.setitem(sys.modules, "lightning_gradwatch.viewer.plugin", None)
        assert GradWatchLoader().load(CONTEXT) is None
        assert "ModuleNotFoundError" in caplog.text

    def test_a_plugin_that_raises_is_none(self, caplog: pytest.LogCaptureFixture) -> None:
        """Any error at all."""
        assert GradWatchLoader().load(object()) is None
        assert "AttributeError" in caplog.text


class TestTensorBoard:
    """A real TensorBoard meets the entry point."""

    def test_the_package_names_it(self) -> None:
        """TensorBoard finds the class by the package's entry point."""
        (found,) = entry_points(group="tensorboard_plugins", name="gradwatch")
        assert found.load() is GradWatchLoader

    def test_it_imports_nothing_of_ours_but_itself(self) -> None:
        """Everybody's TensorBoard pays for this import, whatever they came to look at; and it must not fail."""
        code = (
            "import sys; from tensorboard.plugins import base_plugin; before = set(sys.modules);"
            "import lightning_gradwatch.viewer.loader; print(*sorted(set(sys.modules) - before))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        ours = {name for name in done.stdout.split() if name.startswith("lightning_gradwatch")}
        home = "lightning_gradwatch"
        assert ours == {home, f"{home}.viewer", f"{home}.viewer.loader"}
        assert not {"torch", "numpy", "PIL"} & set(done.stdout.split())

    def test_it_starts_when_anything_of_ours_is_broken(self, tmp_path: Path) -> None:
        """Neither the plugin nor what we know of our own format can be imported: all other tabs are there."""
        planted_logdir(tmp_path / "logs", [planted_run("r", num_columns=2)])
        names = [f"lightning_gradwatch.viewer.{name}" for name in ("plugin", "metadata")]
        breaks = "\n".join(["import sys", *(f"sys.modules[{name!r}] = None" for name in names)])
        (tmp_path / "sitecustomize.py").write_text(breaks)
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        with TensorBoard(tmp_path / "logs", fast=False, environment=environment) as tensorboard:
            listing = tensorboard.get("data/plugins_listing")
            assert b'"scalars"' in listing
            assert b'"gradwatch"' not in listing
            assert "GradWatch's tab is missing, everything else works" in tensorboard.said
