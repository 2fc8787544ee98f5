"""Test ``lightning_gradwatch``: what the package promises as a whole."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.metadata
import inspect
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

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


def docstring_of(name):
    """Return the docstring of a public name; that of a type alias stands below it in the source."""
    value = getattr(lightning_gradwatch, name)
    if isinstance(value, (type, types.FunctionType)):
        return inspect.getdoc(value)
    home = importlib.import_module(f"lightning_gradwatch.{lightning_gradwatch._HOMES[name]}")
    body = ast.parse(Path(home.__file__).read_text()).body
    place = next(i for i, node in enumerate(body) if isinstance(node, ast.AnnAssign) and node.target.id == name)
    return inspect.cleandoc(ast.literal_eval(body[place + 1].value))


@pytest.mark.parametrize("name", lightning_gradwatch._HOMES)
def test_every_public_name_has_an_example_that_runs(name):
    """It gives what it shows; doctest does not see that of a type alias, so it is run here."""
    text = docstring_of(name)
    example = doctest.DocTestParser().get_doctest(text, {}, name, None, None)
    assert "\nExample:\n" in text
    assert example.examples
    if not isinstance(getattr(lightning_gradwatch, name), (type, types.FunctionType)):
        assert doctest.DocTestRunner().run(example).failed == 0


def raises_itself(value):
    """Tell whether a function, or what makes an object of a class, raises on purpose."""
    makers = (
        [vars(value).get(method) for method in ("__init__", "__post_init__")] if inspect.isclass(value) else [value]
    )
    # What a dataclass gets by itself has no source.
    written = [inspect.getsource(maker) for maker in makers if maker and maker.__code__.co_filename != "<string>"]
    return any(re.search(r"\b(raise |check_)", source) for source in written)


# Aliases, names of results and what is only a form to follow are made of no arguments.
CALLED = sorted(set(lightning_gradwatch._HOMES) - {"Rule", "Symptom", "Clipper", "Sink"})


@pytest.mark.parametrize("name", CALLED)
def test_every_argument_of_a_public_name_is_explained(name):
    """Each one stands under Args or Attributes, and what is returned or raised on purpose under its own head."""
    value, text = getattr(lightning_gradwatch, name), docstring_of(name)
    arguments = list(inspect.signature(value).parameters)
    missing = [word for word in arguments if not re.search(rf"^    {word}: ", text, flags=re.MULTILINE)]
    # An error's message explains itself.
    assert not missing or (name, missing) == ("GradientFault", ["message"])
    assert "Raises:" in text or not raises_itself(value)
    assert "Returns:" in text or not inspect.isfunction(value) or not arguments


def test_every_public_name_is_on_the_page_of_the_api():
    """And no other: what the page shows can be imported."""
    page = (ROOT / "docs" / "api.md").read_text()
    assert sorted(re.findall(r"^::: lightning_gradwatch\.(\w+)$", page, flags=re.MULTILINE)) == sorted(
        lightning_gradwatch._HOMES
    )


def test_type_checkers_and_python_see_the_same_names():
    """The table of lazy names and the imports for type checkers agree, name by name and home by home."""
    tree = ast.parse(Path(lightning_gradwatch.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module != "__future__"]
    typed = {alias.name: node.module for node in imports for alias in node.names if "gradwatch" in node.module}
    assert typed == {name: f"lightning_gradwatch.{home}" for name, home in lightning_gradwatch._HOMES.items()}


def test_the_floors_import_downwards_only():
    """The import contracts in pyproject.toml hold."""
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_version_is_told_once():
    """What is installed has the version that stands in the package; ``tests/test_wheel.py`` looks at what is built."""
    assert importlib.metadata.version("lightning-gradwatch") == lightning_gradwatch.__version__


def test_the_changelog_speaks_of_this_version():
    """Whoever installs this version can read what is in it."""
    assert f"## {lightning_gradwatch.__version__}" in (ROOT / "CHANGELOG.md").read_text()
