"""Runs Python as a person does from a shell, without waiting for imports each time.

Importing what Lightning needs takes longer than most scripts do. So each process is forked from one that has imported
these libraries, but neither Lightning nor GradWatch. It finds arguments, directory, environment and streams as if a
shell had started it, and ends as Python does: with its exit functions, and a traceback and status 1 after an error.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

# Of other people, and slow to import. What is missing is left to the script.
LIBRARIES = ["torch", "torch._dynamo", "torchmetrics", "torch.utils.tensorboard", "sklearn.datasets", "jsonargparse"]
# A process that hangs is to end.
LIMIT_SECONDS = 120.0
TESTS, ROOT = str(Path(__file__).parent), str(Path(__file__).parents[1])

_forking = multiprocessing.get_context("forkserver")
_forking.set_forkserver_preload(LIBRARIES)


def python(
    *arguments: object,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    stderr: int = subprocess.PIPE,
    timeout: float = LIMIT_SECONDS,
) -> subprocess.CompletedProcess[str]:
    """Run ``python ARGUMENTS`` and return what came of it.

    Args:
        arguments: ``SCRIPT ...``, ``-m MODULE ...`` or ``-c CODE ...``.
        cwd: Where it runs.
        environment: In place of this process's own.
        stderr: ``subprocess.PIPE`` keeps it apart, ``STDOUT`` puts it into the other stream, ``DEVNULL`` drops it.
        timeout: After how many seconds it is ended, and the test with it.
    """
    command, environment = [str(argument) for argument in arguments], dict(environment or os.environ)
    with tempfile.TemporaryDirectory() as streams:
        out, err = Path(streams) / "out", Path(streams) / "err"
        errors = {subprocess.PIPE: err, subprocess.STDOUT: out, subprocess.DEVNULL: os.devnull}[stderr]
        process = _forking.Process(target=_become, args=(command, str(cwd), environment, str(out), str(errors)))
        # The first one starts the process that the others are forked from.
        with patch.dict(os.environ, OMP_NUM_THREADS="1"):
            process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, timeout, out.read_bytes())
        told = [path.read_bytes().decode() if path.exists() else "" for path in (out, err)]
    return subprocess.CompletedProcess(command, process.exitcode or 0, *told)


def _become(command: list[str], directory: str, environment: dict[str, str], out: str, err: str) -> None:
    """Be the process that was asked for."""
    for stream, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, stream)
        os.close(file)
    # What both streams get stays in order.
    sys.stdout.reconfigure(write_through=True)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    if environment.get("PYTHONWARNINGS") == "ignore":
        warnings.simplefilter("ignore")
    paths = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    # Without what pytest has added; `make` installs the package so that the path ends with the root.
    sys.path[:] = [*paths, *(path for path in sys.path if path not in {TESTS, ROOT}), ROOT]
    # Each process draws its own.
    torch.seed()
    np.random.seed()  # noqa: NPY002 - what scripts may draw from
    try:
        _run(*command)
    finally:
        # A forked process leaves them out.
        atexit._run_exitfuncs()


def _run(first: str, *others: str) -> None:
    """Do what ``python`` does with its arguments."""
    if first == "-c":
        code, *rest = others
        sys.argv = ["-c", *rest]
        sys.path.insert(0, "")
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
    elif first == "-m":
        sys.argv = [*others]
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *others]
        sys.path.insert(0, str(Path(first).resolve().parent))
        runpy.run_path(first, run_name="__main__")
