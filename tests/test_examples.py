"""Test the scripts in ``examples/``: each runs as a person would run it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(script: str, directory: Path, steps: int) -> str:
    """Run an example and return what it prints, log included."""
    command = [sys.executable, str(EXAMPLES / script), f"--max_steps={steps}", f"--directory={directory}"]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=directory)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_sigmoid_vs_relu_tells_the_networks_apart(tmp_path):
    """The sigmoid network and the default ReLU network vanish and stay at chance; the He network learns quietly."""
    out = run("sigmoid_vs_relu.py", tmp_path, 500)
    rows = {line.split()[0]: line for line in out.splitlines() if line.startswith(("sigmoid ", "relu-"))}
    accuracies = {name: float(row.split()[1].rstrip("%")) for name, row in rows.items()}
    assert accuracies["relu-he"] >= 90
    assert accuracies["sigmoid"] < 20
    assert accuracies["relu-default"] < 20
    assert rows["relu-he"].endswith("quiet")
    assert "vanishing since step 3" in rows["sigmoid"]
    assert "vanishing since step 3" in rows["relu-default"]
    assert out.count("GradWatch  step 4  gradients reach all 21 layers") == 1
    assert out.count("VANISHING: the first layers get almost no gradient") == 2
    assert "make dashboard" in out


def test_clipping_tames_the_recurrent_network(tmp_path):
    """Without a clipper the network is told to explode and learns nothing; with one it learns, and nothing is told."""
    out = run("clipping.py", tmp_path, 800)
    rows = {line.split()[0]: line for line in out.splitlines() if line.startswith(("unclipped ", "clipped "))}
    assert "exploding since step 1" in rows["unclipped"]
    assert rows["clipped"].endswith("quiet")
    assert float(rows["clipped"].split()[1].rstrip("%")) >= 90
    assert float(rows["unclipped"].split()[1].rstrip("%")) < 40


@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_an_example_explains_its_arguments(script):
    """``--help`` says what the script does."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), "--help"], capture_output=True, text=True, check=True
    )
    assert "--max_steps" in done.stdout
    assert "GradWatch" in done.stdout
