"""Test ``lightning_gradwatch.report.alert``."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from models import deep_net, module_in, trainer_in
from torch import nn

from lightning_gradwatch import Diagnosis, GradWatch, Symptom, WandbAlert


class Run:
    """Stands in for a run: it keeps its alerts, and holds wandb to what wandb says of them."""

    def __init__(self) -> None:
        self.alerts: list[dict[str, Any]] = []

    def alert(self, title: str, text: str, level: str, wait_duration: float) -> None:
        assert 0 < len(title) < 64
        assert level in {"INFO", "WARN", "ERROR"}
        # 0 means a minute there, in which an alert of the same title is dropped.
        assert 0 < wait_duration < 1
        self.alerts.append({"title": title, "text": text, "level": level})


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return the run that wandb says is under way."""
    import wandb

    run = Run()
    monkeypatch.setattr(wandb, "run", run)
    return run


def reports(report_of: Any) -> list[Any]:
    """Return a warning's onset, a reading in which it lasts, and a notice's onset."""
    warning = Diagnosis("vanishing.depth", Symptom.VANISHING, layers=("0",), step=3, message="no gradient " * 9)
    notice = replace(warning, rule="saturated", severity="notice", message="flat")
    reading = report_of([[1.0]])
    onsets = [(warning,), (), (notice,)]
    return [replace(reading, onsets=each, diagnoses=(warning,)) for each in onsets]


def test_a_warning_is_sent_once_and_a_notice_is_not(report_of, run):
    """One alert an onset, at level WARN, with the block of the log as its text."""
    sink = WandbAlert()
    for report in reports(report_of):
        sink.write(report)
    sink.close()
    assert [alert["level"] for alert in run.alerts] == ["WARN"]
    assert run.alerts[0]["title"].startswith("step 3  VANISHING: no gradient")
    assert "rule       vanishing.depth" in run.alerts[0]["text"]


def test_notices_are_sent_where_they_are_asked_for(report_of, run):
    """With `notices=True` they come at level INFO."""
    sink = WandbAlert(notices=True)
    for report in reports(report_of):
        sink.write(report)
    assert [alert["level"] for alert in run.alerts] == ["WARN", "INFO"]


def test_without_wandb_it_says_what_to_install(monkeypatch):
    """The error comes when the sink is made, before training."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match="pip install wandb"):
        WandbAlert()


def test_without_a_run_it_is_switched_off_at_the_first_reading(pl, tmp_path, data, caplog):
    """Nobody learns on the day of the fault that nobody was listening; training and the other sinks go on."""
    watch = GradWatch(sinks=[WandbAlert()])
    with caplog.at_level(logging.INFO, logger="lightning_gradwatch"):
        trainer = trainer_in(pl, tmp_path, watch, max_steps=6)
        trainer.fit(module_in(pl, deep_net(nn.Sigmoid, 12)), data)
    messages = [record.getMessage() for record in caplog.records]
    failures = [place for place, message in enumerate(messages) if "sink WandbAlert failed" in message]
    onsets = [place for place, message in enumerate(messages) if "VANISHING:" in message]
    assert len(failures) == 1
    assert failures[0] < onsets[0]
    assert "call wandb.init() before training, or give the Trainer a WandbLogger" in messages[failures[0]]
    assert trainer.global_step == len(watch.history.steps) == 6


def test_a_sick_run_with_a_wandb_logger_alerts_once(pl, tmp_path, data, monkeypatch):
    """In a real offline run the fault that lasts for twenty steps is one alert, which wandb takes."""
    places = {name: str(tmp_path / name) for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")}
    settings = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path)}
    for name, value in {**settings, **places}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    import wandb

    logger, alerts = pl.loggers.WandbLogger(save_dir=str(tmp_path), offline=True, project="gradwatch"), []
    alert = logger.experiment.alert
    # Its own checks are made, too.
    monkeypatch.setattr(logger.experiment, "alert", lambda **given: alerts.append(given) or alert(**given))
    watch = GradWatch(sinks=[WandbAlert()], heatmap=False)
    try:
        trainer_in(pl, tmp_path, watch, max_steps=20, logger=logger).fit(module_in(pl, deep_net(nn.Sigmoid, 12)), data)
    finally:
        wandb.finish()
    assert [given["title"][:19] for given in alerts] == ["step 3  VANISHING: "]
    assert SimpleNamespace(**alerts[0]).level == "WARN"


def test_making_one_does_not_import_wandb():
    """Whoever only writes it into a configuration does not wait for the library."""
    import subprocess
    import sys

    code = "from lightning_gradwatch import WandbAlert; WandbAlert(); import sys; print('wandb' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
