"""What the tests of the support table share: one launch of real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from filelock import FileLock

SCRIPT = Path(__file__).with_name("several_processes.py")
LIMIT_SECONDS = 400
PROBED = ("ddp_probe", "ddp_probe_accumulation", "fsdp2_probe")


def launch(directory: Path, names: Sequence[str]) -> None:
    """Play scenarios, all without names; a hang ends with an error and leaves no process behind."""
    tests = SCRIPT.parents[1]
    paths = os.pathsep.join(map(str, (tests.parent, tests)))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(directory), *names]
    # A group of its own, so that what it forks can be ended with it.
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        assert process.wait(LIMIT_SECONDS) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="session")
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory with what the scenarios wrote; the workers of pytest-xdist share one launch.

    Where nobody but the tests of the probe asks, only its scenarios are played.
    """
    asking = {item.path.stem for item in request.session.items if "played" in getattr(item, "fixturenames", ())}
    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "several_processes"
    with FileLock(f"{directory}.lock"):
        if not directory.exists():
            directory.mkdir()
            launch(directory, PROBED if asking == {"test_probe"} else ())
    return directory
