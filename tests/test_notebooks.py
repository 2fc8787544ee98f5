"""Test the notebooks in ``examples/notebooks/``: each runs from its first cell to its last, and shows what it says."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "examples" / "notebooks"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.md"))
# Far more than they take: a kernel that hangs is to end.
LIMIT_SECONDS = 300


def builder() -> Any:
    """Return the script that makes them."""
    spec = importlib.util.spec_from_file_location("build", NOTEBOOKS / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def outputs(name: str, directory: Path) -> list[dict[str, Any]]:
    """Run a notebook in a kernel of its own, elsewhere, and return what its cells put out."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, timeout=LIMIT_SECONDS, resources={"metadata": {"path": str(directory)}}).execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def texts(shown: list[dict[str, Any]]) -> str:
    """Return all that was printed or logged."""
    return "".join(output["text"] for output in shown if output["output_type"] == "stream")


def pages(shown: list[dict[str, Any]]) -> list[str]:
    """Return the interactive pages: those of the tab, each in a frame of its own."""
    found = [output.get("data", {}).get("text/html", "") for output in shown]
    return [page for page in found if re.search(r'<iframe title="GradWatch[^>]* srcdoc="&lt;!doctype html&gt;', page)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the notebooks run: nothing of the repository is beside them."""
    return tmp_path_factory.mktemp("notebooks")


def test_there_are_three():
    """The tests below look at each of them."""
    assert NAMES == ["examined_and_cured", "powers_of_the_weight", "sigmoid_and_relu"]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_what_its_text_makes(name):
    """Whoever edits the text makes the notebook anew; no outputs are kept, and the format is valid."""
    text = (NOTEBOOKS / f"{name}.ipynb").read_text()
    assert text == builder().notebook((NOTEBOOKS / f"{name}.md").read_text()), "python examples/notebooks/build.py"
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") for cell in notebook.cells)
    assert notebook.cells[0].cell_type == "markdown"


@pytest.mark.supports("the notebooks")
def test_sigmoid_and_relu(place):
    """The sigmoid network guesses and is named, the ReLU network learns; each has its page."""
    shown = outputs("sigmoid_and_relu", place)
    accuracies = [int(share) for share in re.findall(r"accuracy (\d+)%", texts(shown))]
    assert accuracies[0] < 20
    assert accuracies[1] > 40
    assert "by 0.14, and after 20 layers" in texts(shown)
    assert texts(shown).count("VANISHING: the first layers get almost no gradient") == 1
    assert len(pages(shown)) == 2
    assert all("gradwatch-data" in page for page in pages(shown))


@pytest.mark.supports("the notebooks")
def test_powers_of_the_weight(place):
    """What was measured is what is computed by hand (the notebook asserts it), and both faults are named."""
    shown = outputs("powers_of_the_weight", place)
    for weight in (0.5, 1.0, 1.5):
        assert f"w = {weight}: the gradient is multiplied by {weight:.6f} a layer back (R2 1.000000)" in texts(shown)
        assert f"{weight**29:.3g} of the gradient; by hand {weight**29:.3g}" in texts(shown)
    data = [output.get("data", {}) for output in shown]
    reports = [each["text/html"] for each in data if each.get("text/plain", "").startswith("Report(")]
    assert ["VANISHING" in reports[0], "EXPLODING" in reports[1]] == [True, True]
    assert sum("image/png" in each for each in data) == 2
    assert len(pages(shown)) == 1
    smallest, largest = re.search(r"norms of all gradients: from (\S+) to (\S+)", texts(shown)).groups()
    assert smallest == largest


@pytest.mark.supports("the notebooks")
def test_examined_and_cured(place):
    """The network guesses before and learns after the first remedy, which is healthy then."""
    shown = outputs("examined_and_cured", place)
    losses = [float(loss) for loss in re.findall(r"loss [\d.]+ -> ([\d.]+)", texts(shown))]
    assert losses[0] > 1.3
    assert losses[1] < 1.2
    assert "healthy: no warning" in texts(shown)
    assert len(pages(shown)) == 2
