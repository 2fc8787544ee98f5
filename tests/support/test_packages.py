"""Test both names of Lightning: Trainers, LightningCLI as a person runs it, and checkpoints from one to the other."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from forked import python
from models import deep_net, module_in, trainer_in
from oracle import assert_same, norm, saves_gradients
from torch import nn

from lightning_gradwatch import GradWatch
from lightning_gradwatch.measure.norms import GradientNorms
from lightning_gradwatch.settings import Settings

# What a person writes; the last lines are for the tests.
SCRIPT = """
import json

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from PACKAGE import LightningDataModule, LightningModule
from PACKAGE.cli import LightningCLI
from lightning_gradwatch import GradWatch


class Model(LightningModule):
    def __init__(self, rate: float = 0.1):
        super().__init__()
        self.net, self.rate, self.used = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), rate, []

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def save_what_is_used(self, *args):
        used = torch.cat([parameter.grad.double().reshape(-1) for parameter in self.parameters()])
        self.used.append(float(used.norm()))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), self.rate)
        optimizer.register_step_post_hook(self.save_what_is_used)
        return optimizer


class Data(LightningDataModule):
    def train_dataloader(self):
        inputs = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(inputs, inputs[:, :3].argmax(dim=1)), batch_size=4)


if __name__ == "__main__":
    cli = LightningCLI(Model, Data)
    (watch,) = [callback for callback in cli.trainer.callbacks if isinstance(callback, GradWatch)]
    result = {
        "settings": repr(watch.settings),
        "steps": watch.history.steps.tolist(),
        "clipped": (watch.history.clipped_norms**2).sum(axis=1).tolist(),
        "used": [used**2 for used in cli.model.used],
        "diagnoses": [diagnosis.rule for diagnosis in watch.diagnoses],
        "disabled": watch.disabled_reason,
        "weights": [parameter.tolist() for parameter in cli.model.parameters()],
    }
    with open("result.json", "w") as file:
        json.dump(result, file)
"""

CONFIG = """
seed_everything: 7
trainer:
  accelerator: cpu
  max_steps: 6
  log_every_n_steps: 2
  enable_progress_bar: false
  enable_model_summary: false
  logger:
    class_path: CSVLogger
    init_args: {save_dir: ., name: table}
  callbacks:
    - class_path: lightning_gradwatch.GradWatch
      init_args:
        vanishing_threshold: 1.0e-9
        exploding_threshold: 50.0
        patience: 2
        clipper:
          class_path: lightning_gradwatch.ClipByGlobalNorm
          init_args: {max_norm: 0.25}
model:
  rate: 0.05
"""

QUIET = [
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=4",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.enable_checkpointing=false",
    "--seed_everything=3",
]
SHORT = [
    "--trainer.callbacks=GradWatch",
    "--trainer.callbacks.patience=5",
    "--trainer.callbacks.exploding_threshold=1e3",
    "--trainer.callbacks.clipper=ClipByValue",
    "--trainer.callbacks.clipper.max_value=0.01",
]


class Person:
    """Runs the script from the shell, in a directory of its own.

    Args:
        package: The name of the package that the script imports.
        directory: Where script and configuration stand.
    """

    def __init__(self, package: str, directory: Path) -> None:
        self.directory = directory
        (directory / "train.py").write_text(SCRIPT.replace("PACKAGE", package))
        (directory / "watched.yaml").write_text(CONFIG)

    def runs(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command line and return what it printed."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "COLUMNS": "200"}
        return python("train.py", "fit", *arguments, environment=environment, cwd=self.directory)

    def trains(self, *arguments: str) -> tuple[dict[str, Any], str]:
        """Run a command line that trains; return what the script found in GradWatch at the end, and the log."""
        done = self.runs(*arguments)
        assert done.returncode == 0, done.stderr
        return json.loads((self.directory / "result.json").read_text()), done.stderr


@pytest.fixture
def person(lightning: Any, tmp_path: Path) -> Person:
    """Return a person who uses one of the packages."""
    return Person(lightning.__name__, tmp_path)


@pytest.mark.supports("LightningCLI from YAML")
def test_a_config_file_trains_watched_and_clipped(person):
    """``fit --config`` gives thresholds and clipper, and the config.yaml that Lightning saves has them."""
    result, told = person.trains("--config", "watched.yaml")
    for setting in ("vanishing_threshold=1e-09", "exploding_threshold=50.0", "patience=2", "max_norm=0.25"):
        assert setting in result["settings"]
    assert result["steps"] == [0, 1, 2, 3, 4, 5]
    assert result["used"] == pytest.approx([0.25**2] * 6, rel=1e-4)
    assert result["clipped"] == pytest.approx(result["used"], rel=1e-5)
    assert (result["diagnoses"], result["disabled"]) == ([], None)
    assert "GradWatch  watching 2 layers, 99 parameters" in told
    assert "no fault in 6 readings" in told
    header = (person.directory / "table" / "version_0" / "metrics.csv").read_text().splitlines()[0]
    assert "gradwatch/clipped_global_norm" in header
    kept = yaml.safe_load((person.directory / "table" / "version_0" / "config.yaml").read_text())
    (callback,) = kept["trainer"]["callbacks"]
    assert callback["init_args"]["clipper"]["init_args"] == {"max_norm": 0.25}


@pytest.mark.supports("LightningCLI with short names and --print_config")
def test_short_names_make_a_config_that_trains(person):
    """``--trainer.callbacks=GradWatch --trainer.callbacks.patience=5`` needs no file; ``--print_config`` writes one."""
    printed = person.runs(*QUIET, *SHORT, "--print_config")
    assert printed.returncode == 0, printed.stderr
    (callback,) = yaml.safe_load(printed.stdout)["trainer"]["callbacks"]
    assert callback["class_path"] == "lightning_gradwatch.GradWatch"
    assert set(callback["init_args"]) == {field.name for field in fields(Settings)}
    (person.directory / "printed.yaml").write_text(printed.stdout)
    result, _ = person.trains("--config", "printed.yaml")
    for setting in ("patience=5", "exploding_threshold=1000.0", "ClipByValue(max_value=0.01)"):
        assert setting in result["settings"]
    assert result["steps"] == [0, 1, 2, 3]
    assert result["clipped"] == pytest.approx(result["used"], rel=1e-5)
    assert max(result["used"]) <= 99 * 0.01**2 * (1 + 1e-6)
    assert (result["diagnoses"], result["disabled"]) == ([], None)


@pytest.mark.supports("LightningCLI help")
def test_the_command_line_knows_each_argument_and_what_it_is_for(tmp_path):
    """``--trainer.callbacks.help=GradWatch`` has each argument with its text."""
    done = Person("pytorch_lightning", tmp_path).runs("--trainer.callbacks.help=GradWatch")
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    described = {
        "vanishing_threshold": "is vanishing",
        "exploding_threshold": "The same for a norm above it",
        "patience": "Readings in a row before a layer counts as sick",
        "warmup_steps": "that are not judged",
        "rules": "in place of ``default_rules()``",
        "ignore": "Muted rules",
        "sinks": "Further places where reports go",
        "clipper": "Clips every step",
        "on_nonfinite": "What a NaN or infinite gradient does",
        "max_consecutive_skips": "may be dropped in a row",
        "stop_on": "Symptoms that end training",
        "every_n_steps": "Judge and remember every n-th step",
        "per_layer_scalars": "Whether each layer's norm is logged",
        "heatmap": "Whether the layer x step picture is drawn",
    }
    for argument, words in described.items():
        assert f"--trainer.callbacks.{argument}" in text
        assert words in text


@pytest.mark.refuses("a wrong argument in LightningCLI")
def test_a_value_out_of_range_is_refused_before_training(tmp_path):
    """The command ends with an error that says which argument is wrong and what is right."""
    arguments = ["--trainer.callbacks=GradWatch", "--trainer.callbacks.patience=0"]
    done = Person("pytorch_lightning", tmp_path).runs(*QUIET, *arguments)
    assert done.returncode != 0
    assert "`patience` must be an integer of at least 1. Got 0" in done.stderr
    assert "watching" not in done.stderr


@pytest.mark.supports("pytorch_lightning and lightning.pytorch in one program")
def test_one_class_serves_the_trainers_of_both_packages(tmp_path, data):
    """In one process GradWatch is a callback of both packages, and one object trains under one after the other."""
    packages = [importlib.import_module(name) for name in ("pytorch_lightning", "lightning.pytorch")]
    watch = GradWatch()
    histories = []
    for package in packages:
        assert isinstance(watch, package.Callback)
        torch.manual_seed(0)
        module = module_in(package)
        saved = saves_gradients(module)
        trainer_in(package, tmp_path, watch, max_steps=4).fit(module, data)
        assert_same(watch.history, saved)
        assert watch.disabled_reason is None
        assert watch.diagnoses == []
        histories.append(watch.history.norms)
    assert np.array_equal(*histories)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("pytorch_lightning", marks=pytest.mark.supports("pytorch_lightning Trainer")),
        pytest.param("lightning.pytorch", marks=pytest.mark.supports("lightning.pytorch Trainer")),
    ],
)
def test_each_package_trains_the_same_with_and_without(name, tmp_path, data):
    """Under each name of the Trainer norms are true, a healthy model is quiet, and the weights do not know."""
    package = importlib.import_module(name)
    ends = []
    for callbacks in ([], [GradWatch()]):
        torch.manual_seed(1)
        module = module_in(package, optimizer=lambda parameters: torch.optim.AdamW(parameters, 0.01))
        saved = saves_gradients(module)
        trainer_in(package, tmp_path, *callbacks, max_steps=12).fit(module, data)
        ends.append(module.state_dict())
    (watch,) = callbacks
    assert_same(watch.history, saved)
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())
    assert watch.diagnoses == []
    assert watch.disabled_reason is None


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("pytorch_lightning", marks=pytest.mark.supports("pytorch_lightning Trainer")),
        pytest.param("lightning.pytorch", marks=pytest.mark.supports("lightning.pytorch Trainer")),
    ],
)
def test_the_callback_stands_beside_lightnings_own(name, tmp_path, data):
    """With progress bar, summary, checkpoints, learning rates and validation, as a Trainer has them by default."""
    package = importlib.import_module(name)
    callbacks = package.callbacks

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    watch = GradWatch()
    own = [callbacks.LearningRateMonitor(), callbacks.ModelCheckpoint(monitor="gradwatch/global_norm")]
    own.append(callbacks.EarlyStopping("val_loss", patience=10))
    module = module_in(package, validation_step=validation_step)
    saved = saves_gradients(module)
    trainer = package.Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        callbacks=[*own, watch],
        max_epochs=2,
        log_every_n_steps=2,
        enable_progress_bar=False,
    )
    trainer.fit(module, data, data)
    assert_same(watch.history, saved)
    assert len(watch.history) == 16
    ends_of_epochs = np.sqrt((watch.history.norms[[7, 15]] ** 2).sum(axis=1))
    assert float(own[1].best_model_score) == pytest.approx(ends_of_epochs.min(), rel=1e-5)
    assert watch.diagnoses == []
    assert watch.disabled_reason is None


class ClipToAverage:
    """A clipper that remembers: each optimizer's norm is held to the mean of its norms so far."""

    def __init__(self) -> None:
        self.norms: dict[int, list[float]] = {}

    def clip_(self, norms: GradientNorms) -> torch.Tensor:
        seen = self.norms.setdefault(norms.optimizer, [])
        total = norm(*norms.gradients)
        if not np.isfinite(total):
            return norms.norms
        seen.append(total)
        factor = min(1.0, sum(seen) / len(seen) / total)
        for gradient in norms.gradients:
            gradient.mul_(factor)
        return norms.norms * factor

    def state_dict(self) -> dict[str, Any]:
        return {"norms": self.norms}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.norms = {number: list(seen) for number, seen in state["norms"].items()}


def poisoned_step(self: Any, batch: Any, batch_idx: int) -> Any:
    """Train as usual, but the third batch of each epoch has no finite loss."""
    loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
    return loss * float("nan") if batch_idx == 2 else loss


@pytest.mark.supports("a checkpoint of one package resumed under the other")
def test_a_run_goes_on_under_the_other_package_as_if_it_had_not_changed(lightning, tmp_path, data):
    """Weights, history, diagnoses, dropped steps and the clipper's memory are those of one run without a break."""
    names = ("pytorch_lightning", "lightning.pytorch")
    (other,) = [importlib.import_module(name) for name in names if name != lightning.__name__]

    def fit(package: Any, epochs: int, checkpoint: Path | None) -> tuple[Any, GradWatch, Any]:
        torch.manual_seed(5)
        module = module_in(
            package,
            deep_net(nn.Sigmoid, 12),
            lambda parameters: torch.optim.AdamW(parameters, 0.01),
            training_step=poisoned_step,
        )
        watch = GradWatch(clipper=ClipToAverage(), on_nonfinite="skip")
        trainer = trainer_in(package, tmp_path, watch, max_steps=-1, max_epochs=epochs)
        trainer.fit(module, data, ckpt_path=checkpoint)
        assert watch.disabled_reason is None
        return trainer, watch, module

    _, straight, expected = fit(lightning, 3, None)
    trainer, before, _ = fit(lightning, 1, None)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert before.skipped_steps == 1
    _, watch, module = fit(other, 3, tmp_path / "last.ckpt")
    assert watch.history.steps.tolist() == list(range(24))
    for column in ("norms", "clipped_norms", "present", "losses", "learning_rates"):
        assert np.array_equal(getattr(watch.history, column), getattr(straight.history, column), equal_nan=True), column
    assert [(d.rule, d.step, d.layers, d.recovered_at) for d in watch.diagnoses] == [
        (d.rule, d.step, d.layers, d.recovered_at) for d in straight.diagnoses
    ]
    assert {d.rule for d in watch.diagnoses} >= {"non_finite", "vanishing.depth"}
    assert watch.skipped_steps == straight.skipped_steps == 3
    assert watch.settings.clipper.norms == straight.settings.clipper.norms
    assert len(watch.settings.clipper.norms[0]) == 24 - 3
    assert all(torch.equal(value, module.state_dict()[key]) for key, value in expected.state_dict().items())


@pytest.mark.supports("a checkpoint of one package resumed under the other")
def test_a_checkpoint_goes_there_and_back(lightning, tmp_path, data):
    """Three parts of a run, under one package, the other and the first again, are one run."""
    names = ("pytorch_lightning", "lightning.pytorch")
    (other,) = [importlib.import_module(name) for name in names if name != lightning.__name__]
    checkpoint, used = None, []
    for epochs, package in ((1, lightning), (2, other), (3, lightning)):
        torch.manual_seed(5)
        module = module_in(package)
        saved, watch = saves_gradients(module), GradWatch()
        trainer = trainer_in(package, tmp_path, watch, max_steps=-1, max_epochs=epochs)
        trainer.fit(module, data, ckpt_path=checkpoint)
        used += saved.steps
        checkpoint = tmp_path / f"{epochs}.ckpt"
        trainer.save_checkpoint(checkpoint)
    saved.steps = used
    assert_same(watch.history, saved)
    assert watch.history.steps.tolist() == list(range(24))
    assert watch.diagnoses == []
    assert watch.disabled_reason is None
