"""Test the scripts in ``examples/``: each runs as a person would run it, most in a forked process."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked import python

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(script: str, *arguments: str, directory: Path, start: Callable[..., Any] = python) -> str:
    """Run an example and return what it prints, log included."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    done = start(EXAMPLES / script, *arguments, environment=environment, cwd=directory)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def from_a_shell(*command: object, environment: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python anew, all imports included."""
    started = [sys.executable, *map(str, command)]
    return subprocess.run(started, capture_output=True, text=True, check=False, env=environment, cwd=cwd)


def test_sigmoid_vs_relu_tells_the_networks_apart(tmp_path):
    """The sigmoid network and the default ReLU network vanish and stay at chance; the He network learns quietly."""
    arguments = ["--max_steps=300", f"--directory={tmp_path}"]
    out = run("sigmoid_vs_relu.py", *arguments, directory=tmp_path, start=from_a_shell)
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
    out = run("clipping.py", "--max_steps=500", f"--directory={tmp_path}", directory=tmp_path)
    rows = {line.split()[0]: line for line in out.splitlines() if line.startswith(("unclipped ", "clipped "))}
    assert "exploding since step 1" in rows["unclipped"]
    assert rows["clipped"].endswith("quiet")
    assert float(rows["clipped"].split()[1].rstrip("%")) >= 90
    assert float(rows["unclipped"].split()[1].rstrip("%")) < 40


# The least that each of the others can do, and what its table then must hold.
QUICK = {
    "linear_factor.py": (["--depth=10"], ["factor 1.5, 10 layers", "L = 219"]),
    "activations.py": (["--depth=4"], ["largest", "dead ReLU units"]),
    "initializations.py": (["--depths", "4"], ["2 x he_init_", "SELU"]),
    "deep_sigmoid.py": (["--max_steps=6"], ["with LayerNorm", "vanishing.depth (warning)"]),
    "recurrent.py": (
        ["--lengths", "10"],
        ["GRU, orthogonal", "the output of memory was the first that was not finite"],
    ),
    "optimizers.py": (["--depths", "4", "--max_steps=6"], ["SGD, momentum", "Adam"]),
    "clipping_compared.py": (["--max_steps=3"], ["by value", "still NaN after 7 of 7 clippers"]),
    "examine_sick_model.py": ([], ["VANISHING", "try 1", "Lines to paste", "healthy: no warning"]),
    "own_rule_and_sink.py": (["--max_steps=4"], ["one layer has 100.0% of the gradient", "exploding.dominant"]),
}


@pytest.mark.parametrize("script", QUICK)
def test_an_example_prints_its_table(script, tmp_path):
    """A short run shows what the script is there to show."""
    arguments, expected = QUICK[script]
    out = run(script, *arguments, directory=tmp_path)
    assert [text for text in expected if text not in out] == []


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_several_processes_tell_the_same(strategy, tmp_path):
    """The launch line of the docstring runs on a CPU, and both ways of sharing the work find the same fault."""
    arguments = [f"--strategy={strategy}", "--devices=2", "--max_steps=6"]
    out = run("several_processes.py", *arguments, directory=tmp_path)
    assert f"{strategy}, 2 processes: vanishing.depth in 9 layers since step 3" in out
    assert out.count("VANISHING: the first layers get almost no gradient") == 1


def test_lightning_cli_trains_from_yaml(tmp_path):
    """The command of the docstring trains, clips and finds no fault."""
    folder = EXAMPLES / "cli_yaml"
    arguments = ["fit", f"--config={folder / 'config.yaml'}", "--trainer.max_steps=20"]
    out = run("cli_yaml/main.py", *arguments, directory=tmp_path)
    assert "GradWatch  seen       no fault in 20 readings" in out


def test_every_example_is_run():
    """No script of the gallery is left out."""
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        *QUICK,
        "sigmoid_vs_relu.py",
        "clipping.py",
        "several_processes.py",
    }


@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_an_example_explains_its_arguments(script, monkeypatch, capsys):
    """``--help`` says what the script does, how it is run, and what can be changed."""
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    out = capsys.readouterr().out
    assert re.search(r"^  --\w+", out, flags=re.MULTILINE)
    assert f"python examples/{script}" in out
    assert "GradWatch" in out
