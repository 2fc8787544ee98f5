"""The scripts in ``examples/``: each run as a person runs it, and what ``docs/gallery.md`` shows of what it prints."""

from __future__ import annotations

import logging
import os
import re
import runpy
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from pages.sick import told

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
_FEW = ("--max_steps=8",)
# What GradWatch says of a step, within what other programs write to standard error.
_TOLD = re.compile(r"^GradWatch  step .*\n(?:  +\S.*\n)*", flags=re.MULTILINE)
# A cell that shows the page of the Gradients tab, which is for a browser.
_SHOWS = re.compile(r"\S+\.show\(\)")


@dataclass(frozen=True)
class Script:
    """A script, or the text of a notebook.

    Attributes:
        path: Where it lies, from ``examples/``.
        arguments: Those of the command on the page.
        quick: More of them, with which it prints the same lines, with other numbers, and has less to do.
        prints: Whether what it prints is its own. What GradWatch says in the log is shown in any case.
        others: How those lines begin that it prints and another library has written.
        processes: Whether it starts others.
    """

    path: str
    arguments: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    prints: bool = True
    others: str = r"(?!)"
    processes: bool = False

    @property
    def name(self) -> str:
        """Name it by its file, or by its folder where the file is called as in every folder."""
        path = Path(self.path)
        return path.parent.name if path.stem == "main" else path.stem


GALLERY = {
    script.name: script
    for script in (
        Script("linear_factor.py"),
        Script("activations.py", quick=("--depth=4",)),
        Script("initializations.py", quick=("--depths", "2", "2", "2")),
        Script("deep_sigmoid.py", quick=("--max_steps=4",)),
        Script("recurrent.py", quick=("--lengths", "10", "20")),
        Script("optimizers.py", quick=("--max_steps=5",)),
        Script("clipping.py", quick=_FEW),
        Script("clipping_compared.py", quick=("--max_steps=3",)),
        Script("sigmoid_vs_relu.py", quick=_FEW),
        Script("examine_sick_model.py"),
        Script("own_rule_and_sink.py"),
        Script(
            "cli_yaml/main.py",
            arguments=("fit", f"--config={EXAMPLES / 'cli_yaml' / 'config.yaml'}"),
            quick=("--trainer.max_steps=8",),
            prints=False,
        ),
        Script("several_processes.py", quick=("--devices=1", *_FEW), processes=True),
        Script("loops/fabric_loop.py", quick=_FEW),
        Script("loops/accelerate_loop.py", quick=_FEW),
        Script("loops/hugging_face_trainer.py", quick=_FEW, others=r"\{'"),
        Script("loops/two_optimizers.py", quick=_FEW),
        Script("loops/mixed_precision.py", quick=_FEW),
        Script("notebooks/sigmoid_and_relu.md", quick=_FEW),
        Script("notebooks/powers_of_the_weight.md"),
        Script("notebooks/examined_and_cured.md", quick=("--steps=20",)),
    )
}


class Ran(NamedTuple):
    """What a script has left.

    Attributes:
        text: What the page shows of what it printed.
        names: Its functions and variables; none where it ran in processes of its own.
        folder: Where it ran and wrote its files.
    """

    text: str
    names: dict[str, Any]
    folder: Path


def run(name: str, folder: Path, *, quick: bool = False) -> Ran:
    """Run a script.

    Args:
        name: One of ``GALLERY``.
        folder: Where: a new one.
        quick: Whether the numbers do not matter.

    Returns:
        What it has left.
    """
    script = GALLERY[name]
    arguments = (*script.arguments, *(script.quick if quick else ()))
    if script.processes:
        return Ran(_shown(script, _in_processes(script, arguments, folder), folder), {}, folder)
    with alone(folder, [script.path, *arguments]), _terminal(script.prints) as screen:
        path = EXAMPLES / script.path
        names = _cells(path, arguments) if path.suffix == ".md" else runpy.run_path(str(path), run_name="__main__")
    return Ran(_shown(script, screen.getvalue(), folder), names, folder)


def _shown(script: Script, text: str, folder: Path) -> str:
    """Leave out what is another library's, and where the script happened to run."""
    lines = [line.rstrip() for line in text.splitlines() if not re.match(script.others, line)]
    return "\n".join(lines).strip("\n").replace(f"{folder.resolve()}/", "")


@contextmanager
def alone(folder: Path, command: Sequence[str]) -> Iterator[None]:
    """Give a script the folder and the command line that it would have, and leave no trace of it in this process.

    Args:
        folder: Where it runs.
        command: Its name and arguments.
    """
    home, logger = Path.cwd(), logging.getLogger("lightning_gradwatch")
    # The same that GradWatch sets where nobody has.
    level = logger.level or logging.INFO
    os.chdir(folder)
    logger.setLevel(logging.INFO)
    try:
        # What others warn of, some scripts on purpose, is not shown.
        with patch.object(sys, "argv", list(command)), patch.dict(os.environ), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        os.chdir(home)


@contextmanager
def _terminal(prints: bool) -> Iterator[StringIO]:
    """Collect what is printed and what GradWatch says of steps, in the order in which it comes."""
    screen, logger = StringIO(), logging.getLogger("lightning_gradwatch")
    log = logging.StreamHandler(screen)
    log.addFilter(lambda record: bool(told([record.getMessage()])))
    logger.addHandler(log)
    try:
        with redirect_stdout(screen if prints else StringIO()), redirect_stderr(StringIO()):
            yield screen
    finally:
        logger.removeHandler(log)


def _in_processes(script: Script, arguments: Sequence[str], folder: Path) -> str:
    """Run a script as a program, and return what GradWatch said of steps, and what it printed."""
    command = [sys.executable, str(EXAMPLES / script.path), *arguments]
    # The package beside this folder, whatever is installed.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(  # noqa: S603 - our own script
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{script.path} has failed:\n{done.stderr}")
    return "".join(_TOLD.findall(done.stderr)) + done.stdout


def _cells(page: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Run the cells of a notebook, in which arguments are written into the text, and return its variables."""
    text = page.read_text()
    for argument in arguments:
        name, value = argument.removeprefix("--").split("=")
        text = re.sub(rf"\b{name}=\d+", f"{name}={value}", text)
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        if not _SHOWS.fullmatch(cell.strip()):
            # Where GradWatch names a line it names the file: in Jupyter, one for each cell.
            exec(compile(cell, "cell.py", "exec"), names)  # noqa: S102 - our own notebook
    return names
