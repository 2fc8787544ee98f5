"""Test ``lightning_gradwatch``: what the package promises as a whole."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from mypy import api

import lightning_gradwatch

ROOT = Path(__file__).parents[1]


def test_importing_the_package_imports_neither_torch_nor_lightning():
    """TensorBoard, which may import a part of the package at every start, does not wait for torch."""
    heavy = ("torch", "pytorch_lightning", "numpy")
    code = f"import lightning_gradwatch, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there_and_documented():
    """Each name in the lazy table loads, has a docstring or is a type alias, and is in ``dir``."""
    for name, home in lightning_gradwatch._HOMES.items():
        value = getattr(lightning_gradwatch, name)
        assert value is getattr(importlib.import_module(f"lightning_gradwatch.{home}"), name)
        assert name == "Rule" or value.__doc__
        assert name in dir(lightning_gradwatch)
    with pytest.raises(AttributeError, match="GradWatsch"):
        lightning_gradwatch.GradWatsch  # noqa: B018


def test_type_checkers_and_python_see_the_same_names():
    """The table of lazy names and the imports for type checkers agree, name by name and home by home."""
    tree = ast.parse(Path(lightning_gradwatch.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module != "__future__"]
    typed = {alias.name: node.module for node in imports for alias in node.names if "gradwatch" in node.module}
    assert typed == {name: f"lightning_gradwatch.{home}" for name, home in lightning_gradwatch._HOMES.items()}


def test_a_type_checker_sees_the_names_and_rejects_a_misspelt_one(tmp_path):
    """The lazy names are as typed as if they were imported plainly."""
    (tmp_path / "mine.py").write_text(
        "from lightning_gradwatch import GradWatch, GradWatsch\nreveal_type(GradWatch())\n"
    )
    out, _, _ = api.run([str(tmp_path / "mine.py"), "--cache-dir", str(tmp_path / "cache"), "--follow-imports=silent"])
    assert 'has no attribute "GradWatsch"' in out
    assert 'Revealed type is "lightning_gradwatch.callback.GradWatch"' in out


def test_the_floors_import_downwards_only():
    """The import contracts in pyproject.toml hold."""
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_version_is_told_once():
    """pyproject.toml and ``__version__`` agree."""
    assert f'version = "{lightning_gradwatch.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_the_changelog_speaks_of_this_version():
    """Whoever installs this version can read what is in it."""
    assert f"## {lightning_gradwatch.__version__}" in (ROOT / "CHANGELOG.md").read_text()
