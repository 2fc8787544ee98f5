"""Test that LightningCLI of both packages sets every argument of ``GradWatch`` from YAML."""

from __future__ import annotations

import importlib
from dataclasses import fields
from typing import Any

import pytest
from models import RecordingSink, module_in

from lightning_gradwatch import ClipByGlobalNorm, ClipByValue, DeadRule, DepthRule, GradWatch
from lightning_gradwatch.settings import Settings

CONFIG = """
trainer:
  logger: false
  accelerator: cpu
  callbacks:
    - class_path: lightning_gradwatch.GradWatch
      init_args:
        vanishing_threshold: 1.0e-8
        exploding_threshold: 1000.0
        patience: 5
        warmup_steps: 7
        rules:
          - class_path: lightning_gradwatch.DepthRule
            init_args: {horizon: 200}
          - class_path: lightning_gradwatch.DeadRule
        ignore: ["vanishing.depth:net.*"]
        sinks:
          - class_path: models.RecordingSink
        clipper:
          class_path: lightning_gradwatch.ClipByGlobalNorm
          init_args: {max_norm: 2.0}
        on_nonfinite: skip
        max_consecutive_skips: 4
        stop_on: [non_finite, exploding]
        every_n_steps: 2
        probe_every_n_steps: 25
        per_layer_scalars: true
        heatmap: false
        rehearse: true
"""


@pytest.fixture(autouse=True)
def _command_line_of_nobody(monkeypatch):
    """LightningCLI looks at the command line although it is given arguments, and calls what jsonargparse deprecates."""
    monkeypatch.setattr("sys.argv", ["train.py"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


def settings_from(package: Any, config: str, tmp_path: Any) -> Settings:
    """Return the settings of the GradWatch that a YAML file makes."""
    path = tmp_path / "config.yaml"
    path.write_text(config)
    cli = importlib.import_module(f"{package.__name__}.cli").LightningCLI(
        type(module_in(package)),
        run=False,
        args=["--config", str(path)],
        save_config_callback=None,
        seed_everything_default=False,
    )
    (watch,) = [callback for callback in cli.trainer.callbacks if isinstance(callback, GradWatch)]
    return watch.settings


def test_yaml_sets_every_argument(lightning, tmp_path):
    """Each argument arrives as it was written, rules, sinks and clipper by class path."""
    settings = settings_from(lightning, CONFIG, tmp_path)
    assert settings.vanishing_threshold == 1e-8
    assert settings.exploding_threshold == 1000.0
    assert (settings.patience, settings.warmup_steps) == (5, 7)
    assert (settings.every_n_steps, settings.probe_every_n_steps) == (2, 25)
    assert list(settings.rules) == [DepthRule(horizon=200), DeadRule()]
    assert list(settings.ignore) == ["vanishing.depth:net.*"]
    assert [type(sink).__name__ for sink in settings.sinks] == [RecordingSink.__name__]
    assert settings.clipper == ClipByGlobalNorm(2.0)
    assert (settings.on_nonfinite, settings.max_consecutive_skips) == ("skip", 4)
    assert list(settings.stop_on) == ["non_finite", "exploding"]
    assert (settings.per_layer_scalars, settings.heatmap) == (True, False)
    assert {field.name for field in fields(Settings)} == {line.split(":")[0].strip() for line in _arguments(CONFIG)}


def _arguments(config: str) -> list[str]:
    """Return the lines of the configuration that set an argument of GradWatch."""
    return [line for line in config.splitlines() if line.startswith(" " * 8) and line[8] not in " -"]


def test_the_defaults_of_yaml_are_those_of_python(lightning, tmp_path):
    """A GradWatch without arguments is the same from YAML and from Python."""
    config = "trainer:\n  logger: false\n  callbacks:\n    - class_path: lightning_gradwatch.GradWatch\n"
    assert settings_from(lightning, config, tmp_path) == GradWatch().settings


def test_another_clipper_comes_by_its_class_path(pl, tmp_path):
    """Any class with ``clip_`` fits."""
    config = CONFIG.replace("ClipByGlobalNorm", "ClipByValue").replace("max_norm", "max_value")
    assert settings_from(pl, config, tmp_path).clipper == ClipByValue(2.0)


@pytest.mark.parametrize("argument", ["--print_config", "--trainer.callbacks.help=lightning_gradwatch.GradWatch"])
def test_the_command_line_explains_itself(lightning, argument, capsys):
    """``--print_config`` and ``.help`` know the arguments of GradWatch."""
    cli = importlib.import_module(f"{lightning.__name__}.cli").LightningCLI
    arguments = ["--trainer.callbacks=lightning_gradwatch.GradWatch", argument]
    with pytest.raises(SystemExit, match="0"):
        cli(type(module_in(lightning)), run=False, args=arguments, save_config_callback=None)
    assert "vanishing_threshold" in capsys.readouterr().out
