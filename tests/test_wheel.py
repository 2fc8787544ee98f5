"""Test what is published: the wheel and the sdist that ``pyproject.toml`` describes."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import lightning_gradwatch

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_gradwatch"


def run(*command: object, cwd: Path) -> str:
    """Run a command that has to succeed, and return what it prints."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def sources() -> set[str]:
    """Return what has to be in the package: all of its modules, the mark of its types, and the tab's files."""
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(ROOT).as_posix() for path in files}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """Build the sdist and unpack it."""
    directory = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", directory, cwd=ROOT)
    (archive,) = directory.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(directory, filter="data")
    return directory / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """Build the wheel as an installer does that finds no wheel: from the sdist."""
    directory = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", directory, cwd=sdist)
    (path,) = directory.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def stranger(wheel, tmp_path_factory):
    """Install the wheel into an environment of its own that sees the libraries of this one, but not this checkout."""
    directory = tmp_path_factory.mktemp("stranger")
    venv.create(directory / "venv", with_pip=False)
    python = directory / "venv" / "bin" / "python"
    install = ["install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", wheel]
    run(sys.executable, "-m", "pip", "--python", python, *install, cwd=directory)
    # A line of a .pth file is a folder to look into; the .pth files in that folder, such as the one that leads to this
    # checkout, are not read.
    folder = next((directory / "venv").glob("lib/python*/site-packages"))
    (folder / "libraries.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")) + "\n")
    return python


def test_the_sdist_has_what_builds_tests_and_documents_the_package(sdist):
    """A distributor finds the package with all of its files, the tests, the docs and the license."""
    assert all((sdist / name).is_file() for name in sources())
    for name in ("LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "Makefile", "mkdocs.yml", "tests/conftest.py"):
        assert (sdist / name).is_file(), name
    assert not list(sdist.rglob("*.pyc"))


def test_the_wheel_has_the_package_and_nothing_else(wheel):
    """Every file of the package is in the wheel; tests and benchmarks are not installed."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == sources()
    assert {"lightning_gradwatch/py.typed", "lightning_gradwatch/viewer/static/index.js"} <= names


def test_the_version_is_that_of_the_package(wheel):
    """It stands once, in the package."""
    assert wheel.name == f"lightning_gradwatch-{lightning_gradwatch.__version__}-py3-none-any.whl"
    assert "version = " not in (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[0]


def test_the_command_of_the_wheel_tells_its_version(stranger):
    """``gradwatch --version`` works where only the wheel is installed."""
    told = run(stranger.parent / "gradwatch", "--version", cwd=stranger.parent)
    assert told.strip() == f"gradwatch {lightning_gradwatch.__version__}"


def test_tensorboard_finds_the_tab_of_the_wheel(stranger):
    """TensorBoard loads the entry point from the wheel, and the files of the tab lie beside it."""
    code = (
        "import lightning_gradwatch as package, pathlib\n"
        "from tensorboard.default import get_dynamic_plugins\n"
        "(loader,) = [one for one in get_dynamic_plugins() if one.__module__.startswith(package.__name__)]\n"
        "print(loader.__name__, pathlib.Path(package.__file__).parent)\n"
        "print(*sorted(p.name for p in pathlib.Path(package.__file__).parent.glob('viewer/static/*')))"
    )
    loader, static = run(stranger, "-W", "ignore", "-c", code, cwd=stranger.parent).strip().splitlines()[-2:]
    assert loader.startswith("GradWatchLoader ")
    assert str(ROOT / "lightning_gradwatch") not in loader
    assert static.split() == sorted(path.name for path in (PACKAGE / "viewer" / "static").iterdir())


def test_the_wheel_trains_and_reports(stranger, tmp_path):
    """A run that is watched by the installed package is told of by the installed command."""
    code = (
        "import pathlib, torch\n"
        "from lightning_gradwatch import GradWatch\n"
        "model = torch.nn.Linear(4, 1)\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.01)\n"
        "with GradWatch().attach(model, optimizer, log_dir='run'):\n"
        "    for _ in range(6):\n"
        "        optimizer.zero_grad()\n"
        "        model(torch.randn(8, 4)).square().mean().backward()\n"
        "        optimizer.step()\n"
    )
    assert "gradients reach" in run(stranger, "-c", code, cwd=tmp_path)
    told = run(stranger.parent / "gradwatch", "report", "run", cwd=tmp_path)
    assert "no warning" in told
    assert (tmp_path / "run" / "gradwatch" / "report.html").stat().st_size > 50_000
