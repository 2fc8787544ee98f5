"""Test ``lightning_gradwatch.report.loggers``."""

from __future__ import annotations

import csv
import logging
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.report.card import card
from lightning_gradwatch.report.image import draw_heatmap
from lightning_gradwatch.report.log import LogSink
from lightning_gradwatch.report.loggers import picture_place, sinks_for
from lightning_gradwatch.report.picture import heatmap_of
from lightning_gradwatch.report.scalars import SCALARS
from lightning_gradwatch.report.sink import SinkRow

SICK = Diagnosis("vanishing.depth", Symptom.VANISHING, layers=("fc0",), step=2, message="little")


@pytest.fixture
def run(reports_of):
    """Return the reports of a run of five readings with an onset in the third, each one due."""
    table = np.array([[1e-3, 1.0]] * 5)
    reports = list(reports_of(table, due=True))
    after = [replace(report, diagnoses=(SICK,)) for report in reports[2:]]
    return [*reports[:2], replace(after[0], onsets=(SICK,)), *after[1:]]


def play(run: list[Any], loggers: list[Any], directory: Path | None, **more: Any) -> list[str]:
    """Give the reports of a run to the sinks that it would have; return the sinks' names."""
    sinks = sinks_for(loggers, directory, **more)
    for report in run:
        for sink in sinks:
            sink.write(report)
    for sink in sinks:
        sink.close()
    return [type(sink).__name__ for sink in sinks]


def test_tensorboard_gets_scalars_picture_and_card(lightning, run, tmp_path: Path) -> None:
    """The event file holds every scalar at every step, the newest picture and the diagnoses as text."""
    logger = lightning.loggers.TensorBoardLogger(tmp_path, name="", version="")
    names = play(run, [logger], tmp_path)
    logger.finalize("success")
    assert names == ["LogSink", "ScalarSink", "PictureSink", "HeatmapSink", "CardSink", "JsonlSink"]
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0, "tensors": 0, "scalars": 0}).Reload()
    tags = events.Tags()
    assert set(SCALARS) <= set(tags["scalars"])
    assert [(event.step, event.value) for event in events.Scalars("gradwatch/open_warnings")] == [
        (0, 0),
        (1, 0),
        (2, 1),
        (3, 1),
        (4, 1),
    ]
    assert events.Scalars("gradwatch/global_norm")[0].value == pytest.approx(np.hypot(1e-3, 1.0))
    assert tags["images"] == ["gradwatch/heatmap"]
    images = events.Images("gradwatch/heatmap")
    assert [image.step for image in images] == [2, 4]
    assert (images[-1].height, images[-1].width) == draw_heatmap(heatmap_of(run[-1])).shape[:2]
    texts = events.Tensors("gradwatch/diagnoses/text_summary")
    assert [text.step for text in texts] == [2, 4]
    assert texts[-1].tensor_proto.string_val[0].decode() == card([SICK], 5)
    assert not (tmp_path / "gradwatch" / "heatmap.png").exists()
    assert (tmp_path / "gradwatch" / "diagnoses.jsonl").exists()


def test_a_picture_is_on_disk_as_soon_as_it_is_drawn(lightning, run, tmp_path: Path) -> None:
    """The writer is flushed at once: a person who looks during training sees the onset."""
    logger = lightning.loggers.TensorBoardLogger(tmp_path, name="", version="")
    sinks = sinks_for([logger], tmp_path)
    for sink in sinks:
        sink.write(run[2])
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [image.step for image in events.Images("gradwatch/heatmap")] == [2]
    logger.finalize("success")


def test_a_csv_logger_gets_fixed_keys_and_a_file(lightning, run, tmp_path: Path) -> None:
    """The table has the same columns from the first row on; the picture is a file beside it."""
    logger = lightning.loggers.CSVLogger(tmp_path, name="", version="")
    assert logger.experiment is not None
    names = play(run, [logger], tmp_path)
    logger.finalize("success")
    assert names == ["LogSink", "ScalarSink", "PictureSink", "HeatmapSink", "JsonlSink"]
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(rows[0]) == sorted([*SCALARS, "step"])
    assert [row["gradwatch/open_warnings"] for row in rows] == ["0.0", "0.0", "1.0", "1.0", "1.0"]
    assert all(row[name] for row in rows for name in SCALARS)
    pixels = np.asarray(Image.open(tmp_path / "gradwatch" / "heatmap.png"))
    assert (pixels == draw_heatmap(heatmap_of(run[-1]))).all()


def test_a_dummy_logger_gets_nothing(lightning, run) -> None:
    """In fast_dev_run there is the training log alone."""
    from_package = __import__(f"{lightning.__name__}.loggers.logger", fromlist=["DummyLogger"])
    assert play(run, [from_package.DummyLogger()], None) == ["LogSink"]


def test_without_a_logger_there_are_log_file_and_picture(run, tmp_path: Path) -> None:
    """With logger=False the log directory still gets the diagnoses and the picture."""
    assert play(run, [], tmp_path) == ["LogSink", "PictureSink", "HeatmapSink", "JsonlSink"]
    assert sorted(path.name.partition(".")[0] for path in (tmp_path / "gradwatch").iterdir()) == [
        "diagnoses",
        "events",
        "heatmap",
    ]


def test_the_picture_can_be_switched_off(lightning, run, tmp_path: Path) -> None:
    """With heatmap=False nothing is drawn anywhere, and no data of it written; the card stays."""
    logger = lightning.loggers.TensorBoardLogger(tmp_path, name="", version="")
    names = play(run, [logger], tmp_path, heatmap=False)
    assert names == ["LogSink", "ScalarSink", "CardSink", "JsonlSink"]
    logger.finalize("success")
    assert EventAccumulator(str(tmp_path)).Reload().Tags()["images"] == []


def test_two_loggers_both_get_the_numbers(lightning, run, tmp_path: Path) -> None:
    """Each real logger has its scalars, per layer where asked; the file is drawn where nobody else shows a picture."""
    first = lightning.loggers.CSVLogger(tmp_path / "1", name="", version="")
    second = lightning.loggers.CSVLogger(tmp_path / "2", name="", version="")
    names = play(run, [first, second], tmp_path, per_layer_scalars=True)
    assert names.count("ScalarSink") == 2
    assert names.count("PictureSink") == 1
    for logger in (first, second):
        logger.finalize("success")
        assert "gradwatch/norm/fc1" in (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()[0]


def test_thresholds_anchor_the_colors(run, tmp_path: Path) -> None:
    """The person's thresholds reach the picture."""
    play(run, [], tmp_path, vanishing_threshold=1e-2, exploding_threshold=1e1)
    pixels = np.asarray(Image.open(tmp_path / "gradwatch" / "heatmap.png"))
    assert (pixels == draw_heatmap(heatmap_of(run[-1], 1e-2, 1e1))).all()


def test_wandb_gets_scalars_and_pictures(lightning, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real run of Weights & Biases in offline mode keeps the pictures and the last scalars."""
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_SILENT", "true"), ("WANDB_DIR", str(tmp_path))):
        monkeypatch.setenv(name, value)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.chdir(tmp_path)
    import wandb

    logger = lightning.loggers.WandbLogger(save_dir=str(tmp_path), offline=True, project="gradwatch")
    try:
        assert play(run, [logger], tmp_path) == ["LogSink", "ScalarSink", "PictureSink", "HeatmapSink", "JsonlSink"]
        summary = dict(logger.experiment.summary)
        files = Path(logger.experiment.dir)
    finally:
        wandb.finish()
    assert {name: summary[name] for name in ("gradwatch/open_warnings", "gradwatch/active")} == {
        "gradwatch/open_warnings": 1.0,
        "gradwatch/active": 1.0,
    }
    pictures = sorted((files / "media" / "images" / "gradwatch").glob("heatmap*.png"), key=lambda p: p.stat().st_mtime)
    assert len(pictures) == 2
    assert (np.asarray(Image.open(pictures[-1]).convert("RGB")) == draw_heatmap(heatmap_of(run[-1]))).all()


def test_wandb_gets_the_page_once_at_the_end(lightning, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real offline run keeps the page as it was made, letter by letter, and one of it."""
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_SILENT", "true"), ("WANDB_DIR", str(tmp_path))):
        monkeypatch.setenv(name, value)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.chdir(tmp_path)
    import wandb

    page = "<!doctype html>\n<p>\u00e9 &lt;" + "x" * 300_000
    logger = lightning.loggers.WandbLogger(save_dir=str(tmp_path), offline=True, project="gradwatch")
    try:
        assert "PageSink" in play(run, [logger], tmp_path, page=lambda: page)
        told, files = logger.experiment.summary["gradwatch/report"], Path(logger.experiment.dir)
    finally:
        wandb.finish()
    (file,) = (files / "media" / "html" / "gradwatch").glob("report*.html")
    assert file.read_text(encoding="utf-8") == page
    assert told["_type"] == "html-file"


def test_the_page_is_for_wandb_alone(lightning, run, tmp_path: Path) -> None:
    """Other loggers have no place for it, and with heatmap=False it is not made."""
    table = lightning.loggers.CSVLogger(tmp_path / "table", name="", version="")
    assert "PageSink" not in play(run, [table], tmp_path, page=lambda: str(1 / 0))
    wandb = type("WandbLogger", (), {"log_metrics": lambda *_, **__: None})()
    assert "PageSink" not in play(run, [wandb], tmp_path, heatmap=False, page=lambda: str(1 / 0))


@pytest.mark.parametrize("fails", ["wandb", "page", "logger"])
def test_a_page_that_cannot_be_shown_costs_nothing_else(
    fails: str, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    """Without wandb, with a page that cannot be made or a logger that refuses it, that sink alone is switched off."""

    class WandbLogger:
        def __init__(self) -> None:
            self.pages, self.pictures, self.rows = 0, 0, 0

        def log_metrics(self, metrics: dict[str, Any], step: int) -> None:
            if "gradwatch/report" in metrics:
                raise ValueError("refused")
            self.rows += 1

        def log_image(self, **_: Any) -> None:
            self.pictures += 1

    def page() -> str:
        if fails == "page":
            raise MemoryError("too large")
        return "<p>"

    stand_in = None if fails == "wandb" else types.SimpleNamespace(Html=lambda *_, **__: "html")
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    logger = WandbLogger()
    row = SinkRow(sinks_for([logger], tmp_path, page=page), logging.getLogger("lightning_gradwatch"))
    for report in run:
        row.write(report)
    row.close()
    (failed,) = [message for message in caplog.messages if "failed and is switched off" in message]
    expected = {"wandb": "ModuleNotFoundError", "page": "MemoryError: too large", "logger": "ValueError: refused"}
    assert failed.startswith("GradWatch  sink PageSink failed")
    assert expected[fails] in failed
    assert logger.pictures == 2
    assert logger.rows == 5


def test_the_person_is_told_where_the_picture_is(lightning, tmp_path: Path) -> None:
    """The place follows from the loggers, and is honest where there is none."""
    tensorboard = lightning.loggers.TensorBoardLogger(tmp_path)
    table = lightning.loggers.CSVLogger(tmp_path)
    wandb = type("WandbLogger", (), {})()
    assert picture_place([table, tensorboard], tmp_path) == f"tensorboard --logdir {tensorboard.log_dir}"
    assert picture_place([table, wandb], tmp_path) == "gradwatch/heatmap in Weights & Biases"
    assert picture_place([table], tmp_path) == f"{tmp_path / 'gradwatch'} (gradwatch report {tmp_path} shows it)"
    assert picture_place([], None) == "none (this kind of run writes no files)"
    assert picture_place([tensorboard], tmp_path, heatmap=False) == "switched off (heatmap=False)"


def test_a_logger_whose_writer_fails_costs_what_it_would_have_shown(run, tmp_path: Path, caplog) -> None:
    """The writer is asked for only when something is written; what needs it goes, scalars, log and file go on."""

    class TensorBoardLogger:
        def __init__(self) -> None:
            self.steps: list[int] = []

        @property
        def experiment(self) -> Any:
            raise OSError("no writer")

        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            self.steps.append(step)

    logger = TensorBoardLogger()
    row = SinkRow(sinks_for([logger], tmp_path), logging.getLogger("lightning_gradwatch"))
    assert caplog.messages == []
    for report in run:
        row.write(report)
    row.close()
    failed = [message for message in caplog.messages if "failed and is switched off" in message]
    assert [message.split()[2] for message in failed] == ["HeatmapSink", "PictureSink", "CardSink"]
    assert all(message.endswith("OSError: no writer") for message in failed)
    assert logger.steps == [0, 1, 2, 3, 4]
    assert any("VANISHING" in message for message in caplog.messages)
    assert (tmp_path / "gradwatch" / "diagnoses.jsonl").read_text().count("vanishing.depth") >= 1


def test_the_log_names_the_command_that_shows_more(run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An onset tells where more is; without a directory it tells nothing."""
    play(run, [], tmp_path)
    play(run, [], None)
    assert f"more       gradwatch report {tmp_path}\n" in caplog.messages[0]
    assert "more  " not in caplog.messages[1]
    assert isinstance(sinks_for([], None)[0], LogSink)


def test_the_command_is_one_to_paste_and_reads_what_tensorboard_reads(lightning, run, tmp_path: Path, caplog) -> None:
    """A blank in a path does not break it; the first logger's directory has no picture beside a TensorBoardLogger."""
    table = lightning.loggers.CSVLogger(tmp_path / "table", name="", version="")
    board = lightning.loggers.TensorBoardLogger(tmp_path / "my runs", name="", version="")
    play(run, [table, board], Path(table.log_dir))
    quoted = f"'{tmp_path / 'my runs'}"
    assert f"more       gradwatch report {quoted}" in caplog.messages[0]
    assert picture_place([board], None).startswith(f"tensorboard --logdir {quoted}")
    assert f"(gradwatch report {quoted}' shows it)" in picture_place([table], tmp_path / "my runs")
