"""Test ``tests/forked.py``: what it runs cannot be told from what a shell has started."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from forked import python

TELLS = """
import os, sys
print(__name__, sys.argv, os.getcwd(), os.environ["MINE"], sys.stdin.read())
print("to the other stream", file=sys.stderr)
print("again")
"""
COMMANDS = {
    "code": ["-c", TELLS, "one", "two"],
    "script": ["tells.py", "one"],
    "module": ["-m", "json.tool", "given.json"],
    "status": ["-c", "raise SystemExit(3)"],
    "words": ["-c", "raise SystemExit('no')"],
    "exit functions": ["-c", "import atexit; atexit.register(print, 'last'); print('first')"],
    "signal": ["-c", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"],
    "neighbor": ["imports.py"],
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_it_does_what_python_does(command, tmp_path):
    """Arguments, directory, environment, streams in their order, and the status."""
    (tmp_path / "tells.py").write_text(TELLS)
    (tmp_path / "imports.py").write_text("import neighbor\nprint(neighbor.__file__)")
    (tmp_path / "neighbor.py").write_text("")
    (tmp_path / "given.json").write_text("[1]")
    environment = {**os.environ, "MINE": "x", "PYTHONUNBUFFERED": "1"}
    for stderr in (subprocess.PIPE, subprocess.STDOUT):
        expected = subprocess.run(
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            check=False,
            env=environment,
            cwd=tmp_path,
        )
        done = python(*command, cwd=tmp_path, environment=environment, stderr=stderr)
        assert (done.returncode, done.stdout) == (expected.returncode, expected.stdout)
        assert done.stderr == (expected.stderr or "")


def test_an_error_is_told_and_is_status_one(tmp_path):
    """The last line of the traceback is Python's."""
    done = python("-c", "1 / 0", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"


def test_each_process_draws_random_numbers_of_its_own(tmp_path):
    """Nothing is left of what the process before has drawn, and Lightning and GradWatch are imported anew."""
    code = (
        "import sys\nprint([name for name in ('lightning_gradwatch', 'pytorch_lightning') if name in sys.modules])\n"
        "import numpy, random, torch\nprint(torch.rand(1).item(), numpy.random.rand(), random.random())"
    )
    first, second = [python("-c", code, cwd=tmp_path).stdout.splitlines() for _ in range(2)]
    assert first[0] == second[0] == "[]"
    assert not set(first[1].split()) & set(second[1].split())


def test_a_process_that_hangs_is_ended(tmp_path):
    """With what it had told."""
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        python("-c", "print('begun'); import time; time.sleep(60)", cwd=tmp_path, timeout=2)
    assert caught.value.output == b"begun\n"
