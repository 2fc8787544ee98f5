"""Test whole runs under each kind of logger: what arrives, at which steps, and what a logger that fails costs."""

from __future__ import annotations

import csv
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import deep_net, healthy_net, module_in, trainer_in
from oracle import assert_same, saves_gradients
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lightning_gradwatch import GradWatch
from lightning_gradwatch.report.scalars import SCALARS


def logs_its_loss(self: Any, batch: Any, batch_idx: int) -> Any:
    """Train as usual, with a value of the person's own beside ours."""
    loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
    self.log("loss", loss)
    return loss


def with_two_optimizers(package: Any) -> Any:
    """Return a module with an optimizer for each layer."""

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(self.net(batch[0]), batch[1]))
            optimizer.step()
        self.log("loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return [torch.optim.SGD(self.net[layer].parameters(), 0.1) for layer in (0, 2)]

    module = module_in(package, training_step=training_step, configure_optimizers=configure_optimizers)
    module.automatic_optimization = False
    return module


def weights_without_gradwatch(package: Any, directory: Any, data: Any, net: nn.Module, steps: int) -> dict[str, Any]:
    """Train a network with no logger and without GradWatch, and return its weights."""
    module = module_in(package, net)
    trainer_in(package, directory, max_steps=steps).fit(module, data)
    return module.state_dict()


def seeded(make: Any, *args: Any, **kwargs: Any) -> Any:
    """Make a network with the same weights each time."""
    torch.manual_seed(3)
    return make(*args, **kwargs)


def global_norms(watch: GradWatch) -> np.ndarray:
    """Return the norm of all gradients, a number for each reading."""
    return np.sqrt(np.nansum(watch.history.norms**2, axis=1))


def warnings_in(caplog: Any) -> list[str]:
    """Return what GradWatch has warned of."""
    ours = [record for record in caplog.records if record.name == "lightning_gradwatch"]
    return [record.getMessage() for record in ours if record.levelno >= logging.WARNING]


def keeping_logger(package: Any, **members: Any) -> Any:
    """Return a logger with the least that Lightning asks for, which keeps its rows; no directory of its own.

    Args:
        package: ``pytorch_lightning`` or ``lightning.pytorch``.
        members: Methods and properties in place of its own.
    """

    class KeepingLogger(package.loggers.Logger):
        name, version = "mine", "1"

        def __init__(self) -> None:
            super().__init__()
            self.rows: list[tuple[int | None, dict[str, float]]] = []

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            self.rows.append((step, dict(metrics)))

        def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
            pass

    for name, member in members.items():
        setattr(KeepingLogger, name, member)
    return KeepingLogger()


def steps_of(logger: Any, key: str) -> list[int | None]:
    """Return the steps at which a logger that keeps its rows got a value."""
    return [step for step, row in logger.rows if key in row]


class HeaderReader:
    """Writes a CSV logger's rows to disk after every batch and keeps the columns that the file has then."""

    def __init__(self, package: Any, logger: Any) -> None:
        self.headers: list[list[str]] = []

        class Reads(package.Callback):
            def on_train_batch_end(_, *args: Any) -> None:  # noqa: N805
                logger.save()
                path = Path(logger.log_dir) / "metrics.csv"
                if path.exists():
                    with path.open() as file:
                        self.headers.append(next(csv.reader(file)))

        self.callback = Reads()


@pytest.mark.supports("TensorBoardLogger")
def test_tensorboard_holds_scalars_picture_and_card_of_a_run(lightning, tmp_path, data):
    """Every scalar stands at the steps of ``self.log``, the norms are those that were measured, the onset is drawn."""
    logger = lightning.loggers.TensorBoardLogger(tmp_path)
    module = module_in(lightning, deep_net(nn.Sigmoid, 12), training_step=logs_its_loss)
    saved, watch = saves_gradients(module), GradWatch(per_layer_scalars=True)
    trainer_in(lightning, tmp_path, watch, max_steps=9, logger=logger, log_every_n_steps=3).fit(module, data)
    assert_same(watch.history, saved)
    assert watch.disabled_reason is None
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0, "tensors": 0, "scalars": 0}).Reload()
    layers = {f"gradwatch/norm/{layer}" for layer in watch.history.layers}
    ours = {tag for tag in events.Tags()["scalars"] if tag.startswith("gradwatch/")}
    assert ours == {*SCALARS, *layers}
    assert {tuple(event.step for event in events.Scalars(tag)) for tag in {*ours, "loss"}} == {(2, 5, 8)}
    logged = [event.value for event in events.Scalars("gradwatch/global_norm")]
    assert logged == pytest.approx(global_norms(watch)[[2, 5, 8]], rel=1e-5)
    (onset,) = watch.diagnoses
    assert [image.step for image in events.Images("gradwatch/heatmap")] == [onset.step, 8]
    ours = set(events.PluginTagToContent("gradwatch"))
    assert set(events.Tags()["tensors"]) - ours == {"gradwatch/diagnoses/text_summary"}
    assert {tag.split("/")[1] for tag in ours} == {"norms", "ratios", "signal", "delta", "updates", "events"}
    assert not (Path(logger.log_dir) / "gradwatch" / "heatmap.png").exists()


@pytest.mark.supports("TensorBoardLogger")
def test_the_default_logger_is_tensorboard(lightning, tmp_path, data):
    """``Trainer(logger=True)`` needs nothing else, and what the log says of the place of the picture is true."""
    watch = GradWatch()
    trainer = trainer_in(lightning, tmp_path, watch, logger=True, log_every_n_steps=1)
    trainer.fit(module_in(lightning), data)
    events = EventAccumulator(trainer.log_dir, size_guidance={"images": 0}).Reload()
    assert [event.step for event in events.Scalars("gradwatch/active")] == [0, 1, 2, 3, 4]
    assert events.Tags()["images"] == ["gradwatch/heatmap"]
    assert watch.diagnoses == []


@pytest.mark.supports("CSVLogger")
@pytest.mark.parametrize("per_layer", [False, True])
def test_the_columns_of_a_csv_file_are_there_from_the_first_row(lightning, tmp_path, data, per_layer):
    """A diagnosis, a recovery or the end of a run adds no column, with the layers' norms and without."""
    logger = lightning.loggers.CSVLogger(tmp_path)
    reader, watch = HeaderReader(lightning, logger), GradWatch(per_layer_scalars=per_layer)
    module = module_in(lightning, deep_net(nn.Sigmoid, 12))
    trainer = trainer_in(lightning, tmp_path, watch, reader.callback, max_steps=8, logger=logger, log_every_n_steps=1)
    trainer.fit(module, data)
    layers = [f"gradwatch/norm/{layer}" for layer in watch.history.layers] if per_layer else []
    assert [diagnosis.step for diagnosis in watch.diagnoses] == [3]
    assert len(reader.headers) == 8
    assert {tuple(sorted(header)) for header in reader.headers} == {tuple(sorted([*SCALARS, *layers, "step"]))}
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["gradwatch/open_warnings"]) for row in rows] == [0, 0, 0, 1, 1, 1, 1, 1]
    assert [float(row["gradwatch/global_norm"]) for row in rows] == pytest.approx(global_norms(watch), rel=1e-5)


@pytest.mark.supports("CSVLogger")
def test_the_columns_of_two_optimizers_are_there_from_the_first_batch(lightning, tmp_path, data):
    """Each optimizer has its own columns, fixed, beside those that the person logs."""
    logger = lightning.loggers.CSVLogger(tmp_path)
    reader, watch = HeaderReader(lightning, logger), GradWatch(per_layer_scalars=True)
    trainer = trainer_in(lightning, tmp_path, watch, reader.callback, max_steps=16, logger=logger, log_every_n_steps=2)
    trainer.fit(with_two_optimizers(lightning), data)
    assert watch.disabled_reason is None
    names = [*SCALARS, *(f"gradwatch/norm/{layer}" for layer in watch.history.layers)]
    ours = sorted(f"{name}/optimizer_{number}" for name in names for number in (0, 1))
    assert reader.headers
    assert all(sorted(name for name in header if "gradwatch" in name) == ours for header in reader.headers)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {name for name in rows[0] if "gradwatch" not in name} == {"epoch", "loss", "step"}
    for key in ("gradwatch/active/optimizer_0", "gradwatch/active/optimizer_1", "loss"):
        assert [int(row["step"]) for row in rows if row[key]] == [1, 3, 5, 7]


@pytest.mark.supports("CSVLogger")
def test_a_csv_file_keeps_its_columns_when_gradwatch_switches_itself_off(pl, tmp_path, data, monkeypatch):
    """The last row says 0 under a name that was there from the first row."""
    from lightning_gradwatch.judging import Judge

    def fail(self: Any, snapshot: Any, *args: Any) -> Any:
        if snapshot.step == 3:
            raise ZeroDivisionError("ours")
        return judge(self, snapshot, *args)

    judge = Judge.judge
    monkeypatch.setattr(Judge, "judge", fail)
    logger = pl.loggers.CSVLogger(tmp_path)
    reader, watch = HeaderReader(pl, logger), GradWatch()
    trainer_in(pl, tmp_path, watch, reader.callback, max_steps=6, logger=logger, log_every_n_steps=1).fit(
        module_in(pl), data
    )
    assert watch.disabled_reason == "ZeroDivisionError: ours"
    assert {tuple(sorted(header)) for header in reader.headers} == {tuple(sorted([*SCALARS, "step"]))}
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = [(int(row["step"]), float(row["gradwatch/active"])) for row in csv.DictReader(file)]
    assert rows == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 0.0)]


@pytest.mark.supports("the x axis of self.log")
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"log_every_n_steps": 1},
        {"log_every_n_steps": 3},
        {"accumulate_grad_batches": 4, "log_every_n_steps": 1},
        {"accumulate_grad_batches": 3},
        {"limit_train_batches": 3},
        {"log_every_n_steps": 0},
    ],
)
def test_our_values_stand_at_the_steps_of_self_log(lightning, tmp_path, data, kwargs):
    """Over several epochs, with accumulation and at each interval a logger gets ours where it gets the person's own."""
    logger, watch = keeping_logger(lightning), GradWatch()
    kwargs = {"logger": logger, "max_steps": 10, "log_every_n_steps": 2, **kwargs}
    trainer = trainer_in(lightning, tmp_path, watch, **kwargs)
    trainer.fit(module_in(lightning, training_step=logs_its_loss), data)
    interval = kwargs["log_every_n_steps"]
    assert steps_of(logger, "gradwatch/active") == steps_of(logger, "loss")
    assert steps_of(logger, "loss") == (list(range(interval - 1, 10, interval)) if interval else [])
    assert watch.disabled_reason is None
    assert watch.diagnoses == []


@pytest.mark.supports("the x axis of self.log")
def test_values_of_two_optimizers_stand_at_the_steps_of_self_log(lightning, tmp_path, data):
    """``global_step`` counts both optimizers' steps; the loggers' axis counts batches, ours as well."""
    logger, watch = keeping_logger(lightning), GradWatch()
    trainer_in(lightning, tmp_path, watch, max_steps=20, logger=logger, log_every_n_steps=3).fit(
        with_two_optimizers(lightning), data
    )
    assert watch.history.steps.tolist() == list(range(20))
    for number in (0, 1):
        assert steps_of(logger, f"gradwatch/global_norm/optimizer_{number}") == steps_of(logger, "loss") == [2, 5, 8]
        norms = global_norms(watch)[watch.history.optimizers == number][[2, 5, 8]]
        key = f"gradwatch/global_norm/optimizer_{number}"
        assert [row[key] for _, row in logger.rows if key in row] == pytest.approx(norms, rel=1e-5)


@pytest.mark.supports("several loggers at once")
def test_every_logger_of_a_trainer_gets_the_same_numbers(lightning, tmp_path, data):
    """TensorBoard, CSV and a person's own logger side by side hold the same values at the same steps."""
    tensorboard, table = (
        lightning.loggers.TensorBoardLogger(tmp_path / "1"),
        lightning.loggers.CSVLogger(tmp_path / "2"),
    )
    mine, watch = keeping_logger(lightning), GradWatch()
    loggers = [table, mine, tensorboard]
    trainer_in(lightning, tmp_path, watch, max_steps=6, logger=loggers, log_every_n_steps=2).fit(
        module_in(lightning), data
    )
    events = EventAccumulator(tensorboard.log_dir, size_guidance={"images": 0, "scalars": 0}).Reload()
    with (Path(table.log_dir) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in SCALARS:
        expected = [(step, row[name]) for step, row in mine.rows]
        assert [step for step, _ in expected] == [1, 3, 5]
        assert [(int(row["step"]), float(row[name])) for row in rows] == expected
        assert [event.step for event in events.Scalars(name)] == [1, 3, 5]
        values = [value for _, value in expected]
        assert [event.value for event in events.Scalars(name)] == pytest.approx(values, rel=1e-5)
    assert len(events.Images("gradwatch/heatmap")) == 1
    assert watch.disabled_reason is None


@pytest.mark.supports("no logger (logger=False)")
def test_a_run_without_a_logger_is_watched_and_leaves_its_files(lightning, tmp_path, data):
    """The readings are true, diagnosis and picture are files in the Trainer's directory, and nothing is warned of."""
    module = module_in(lightning, deep_net(nn.Sigmoid, 12))
    saved, watch = saves_gradients(module), GradWatch(per_layer_scalars=True)
    trainer = trainer_in(lightning, tmp_path, watch, max_steps=8, logger=False)
    trainer.fit(module, data)
    assert_same(watch.history, saved)
    assert trainer.loggers == []
    assert float(trainer.callback_metrics["gradwatch/global_norm"]) == pytest.approx(global_norms(watch)[-1], rel=1e-5)
    files = sorted(path.name for path in (tmp_path / "gradwatch").iterdir())
    assert [name.partition(".")[0] for name in files] == ["diagnoses", "events", "heatmap"]
    assert watch.disabled_reason is None


@pytest.mark.supports("fast_dev_run (DummyLogger)")
def test_fast_dev_run_is_watched_and_writes_nothing(lightning, tmp_path, data):
    """Lightning's DummyLogger takes any call; it is given none, and no file is written, though the model is sick."""
    module = module_in(lightning, deep_net(nn.Sigmoid, 12))
    saved, watch = saves_gradients(module), GradWatch(per_layer_scalars=True)
    called = []

    def log_metrics(metrics, step=None):
        called.append(metrics)

    trainer = trainer_in(lightning, tmp_path, watch, logger=True, fast_dev_run=8, max_steps=-1, log_every_n_steps=1)
    (dummy,) = trainer.loggers
    dummy.log_metrics = log_metrics
    trainer.fit(module, data)
    assert type(dummy).__name__ == "DummyLogger"
    assert_same(watch.history, saved)
    assert [diagnosis.rule for diagnosis in watch.diagnoses] == ["vanishing.depth"]
    assert not any("gradwatch" in name for metrics in called for name in metrics)
    assert list(tmp_path.rglob("*")) == []
    assert watch.disabled_reason is None


@pytest.mark.supports("WandbLogger")
def test_weights_and_biases_holds_scalars_and_picture_of_a_run(lightning, tmp_path, data, monkeypatch):
    """A real offline run has ours at the steps of ``self.log``, and the picture as a file of its own."""
    settings = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path)}
    places = {name: str(tmp_path / name) for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")}
    for name, value in {**settings, **places}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    import wandb

    rows = []
    logger = lightning.loggers.WandbLogger(save_dir=str(tmp_path), offline=True, project="gradwatch")
    log = logger.experiment.log
    monkeypatch.setattr(
        logger.experiment, "log", lambda row, *args, **kwargs: rows.append(row) or log(row, *args, **kwargs)
    )
    watch = GradWatch()
    trainer = trainer_in(lightning, tmp_path, watch, max_steps=6, logger=logger, log_every_n_steps=2)
    try:
        trainer.fit(module_in(lightning, training_step=logs_its_loss), data)
        summary, files = dict(logger.experiment.summary), Path(logger.experiment.dir)
    finally:
        wandb.finish()
    assert watch.disabled_reason is None
    assert watch.diagnoses == []
    ours = [row["trainer/global_step"] for row in rows if "gradwatch/active" in row]
    assert ours == [row["trainer/global_step"] for row in rows if "loss" in row] == [1, 3, 5]
    assert summary["gradwatch/global_norm"] == pytest.approx(global_norms(watch)[5], rel=1e-5)
    assert len(list((files / "media" / "images" / "gradwatch").glob("heatmap*.png"))) == 1
    (page,) = (files / "media" / "html" / "gradwatch").glob("report*.html")
    assert page.read_text(encoding="utf-8") == watch.core.page()


@pytest.mark.supports("MLFlowLogger")
def test_mlflow_takes_every_name_and_value(lightning, tmp_path, data):
    """A stand-in with MLflow's rules (plain characters, numbers, a step) and no directory gets every row."""

    def log_metrics(self, metrics, step=None):
        for name, value in metrics.items():
            assert re.fullmatch(r"[a-zA-Z0-9_/. -]+", name), name
            assert type(value) is float
        assert type(step) is int
        self.rows.append((step, dict(metrics)))

    logger, watch = keeping_logger(lightning, log_metrics=log_metrics), GradWatch(per_layer_scalars=True)
    trainer_in(lightning, tmp_path, watch, max_steps=6, logger=logger, log_every_n_steps=2).fit(
        module_in(lightning), data
    )
    assert [step for step, _ in logger.rows] == [1, 3, 5]
    assert set(logger.rows[0][1]) == {*SCALARS, "gradwatch/norm/net.0", "gradwatch/norm/net.2"}
    assert watch.disabled_reason is None


@pytest.mark.supports("a logger without a directory")
def test_a_logger_without_a_directory_gets_the_numbers(lightning, tmp_path, data, caplog):
    """The least logger there is (no ``save_dir``, no ``experiment``) gets its rows; nothing is claimed."""
    logger, watch = keeping_logger(lightning), GradWatch()
    trainer = trainer_in(lightning, tmp_path, watch, max_steps=8, logger=logger, log_every_n_steps=4)
    with caplog.at_level(logging.INFO):
        trainer.fit(module_in(lightning, deep_net(nn.Sigmoid, 12)), data)
    assert logger.save_dir is None
    assert steps_of(logger, "gradwatch/open_warnings") == [3, 7]
    assert watch.disabled_reason is None
    (onset,) = warnings_in(caplog)
    assert "VANISHING" in onset
    told = re.findall(r"picture +(\S+)", caplog.text)
    assert told
    assert all(place == "none" or Path(place).exists() for place in told)


@pytest.mark.supports("a logger that fails")
def test_a_logger_that_cannot_log_costs_its_own_numbers(lightning, tmp_path, data, caplog):
    """Training goes on to the same weights, the other logger gets everything, and one warning tells what failed."""

    def log_metrics(self, metrics, step=None):
        raise ConnectionError("no server")

    plain = weights_without_gradwatch(lightning, tmp_path, data, seeded(healthy_net), steps=8)
    broken, other = keeping_logger(lightning, log_metrics=log_metrics), keeping_logger(lightning)
    module, watch = module_in(lightning, seeded(healthy_net)), GradWatch()
    trainer = trainer_in(lightning, tmp_path, watch, max_steps=8, logger=[broken, other], log_every_n_steps=1)
    trainer.fit(module, data)
    assert trainer.global_step == 8
    assert all(torch.equal(plain[name], value) for name, value in module.state_dict().items())
    assert warnings_in(caplog) == [
        "GradWatch  sink ScalarSink failed and is switched off, training goes on: ConnectionError: no server"
    ]
    assert steps_of(other, "gradwatch/global_norm") == list(range(8))
    assert len(watch.history) == 8
    assert watch.disabled_reason is None


@pytest.mark.supports("a logger that fails")
def test_a_logger_that_fails_in_the_middle_of_a_run_is_told_once(lightning, tmp_path, data, caplog):
    """A server that goes away after some steps costs the numbers from then on, and one warning."""

    def log_metrics(self, metrics, step=None):
        if step >= 3:
            raise ConnectionError("server went away")
        self.rows.append((step, metrics))

    logger, watch = keeping_logger(lightning, log_metrics=log_metrics), GradWatch()
    trainer = trainer_in(lightning, tmp_path, watch, max_steps=8, logger=logger, log_every_n_steps=1)
    trainer.fit(module_in(lightning), data)
    assert trainer.global_step == 8
    assert steps_of(logger, "gradwatch/active") == [0, 1, 2]
    assert [text.rpartition(": ")[2] for text in warnings_in(caplog)] == ["server went away"]
    assert watch.disabled_reason is None


@pytest.mark.supports("a logger that fails")
def test_a_logger_whose_experiment_fails_costs_picture_and_card(lightning, tmp_path, data, caplog):
    """TensorBoard's writer that fails after the start takes what needs it; the file of diagnoses and training go on."""

    class Fails(lightning.loggers.TensorBoardLogger):
        started = False

        @property
        def experiment(self):
            if self.started:
                raise OSError("disk full")
            return super().experiment

        def log_metrics(self, metrics, step=None):
            self.experiment.add_scalars("all", metrics, step)

        def log_graph(self, *args):
            self.started = True

        def save(self):
            pass

        def finalize(self, status):
            pass

    plain = weights_without_gradwatch(lightning, tmp_path, data, seeded(deep_net, nn.Sigmoid, 12), steps=8)
    fails = Fails(tmp_path)
    module, watch = module_in(lightning, seeded(deep_net, nn.Sigmoid, 12)), GradWatch()
    trainer = trainer_in(lightning, tmp_path, watch, max_steps=8, logger=fails, log_every_n_steps=1)
    trainer.fit(module, data)
    assert trainer.global_step == 8
    assert all(torch.equal(plain[name], value) for name, value in module.state_dict().items())
    failures = [text for text in warnings_in(caplog) if "VANISHING" not in text]
    assert sorted(text.split()[2] for text in failures) == ["CardSink", "HeatmapSink", "PictureSink", "ScalarSink"]
    assert all(text.endswith("training goes on: OSError: disk full") for text in failures)
    assert watch.disabled_reason is None
    assert (Path(fails.log_dir) / "gradwatch" / "diagnoses.jsonl").read_text().count('"onset"') == 1


@pytest.mark.supports("a log directory that cannot be written")
def test_a_directory_that_cannot_be_written_costs_its_files(lightning, tmp_path, data, caplog):
    """Where a file stands in the directory's place, each kind of file costs one warning; training goes on."""
    plain = weights_without_gradwatch(lightning, tmp_path, data, seeded(deep_net, nn.Sigmoid, 12), steps=8)
    (tmp_path / "taken").write_text("a file")
    module, watch = module_in(lightning, seeded(deep_net, nn.Sigmoid, 12)), GradWatch()
    trainer = trainer_in(lightning, tmp_path / "taken", watch, max_steps=8)
    trainer.fit(module, data)
    assert trainer.global_step == 8
    assert all(torch.equal(plain[name], value) for name, value in module.state_dict().items())
    failures = [text for text in warnings_in(caplog) if "VANISHING" not in text]
    assert sorted(text.split()[2] for text in failures) == ["HeatmapSink", "JsonlSink", "PictureSink"]
    assert all("NotADirectoryError" in text for text in failures)
    assert [diagnosis.rule for diagnosis in watch.diagnoses] == ["vanishing.depth"]
    assert watch.disabled_reason is None


@pytest.mark.supports("a log directory that cannot be written")
def test_the_closing_lines_name_no_picture_that_could_not_be_written(pl, tmp_path, data, caplog):
    """Who looks for the picture after a long run is not sent to a file that is not there."""
    (tmp_path / "taken").write_text("a file")
    trainer = trainer_in(pl, tmp_path / "taken", GradWatch(), max_steps=8)
    with caplog.at_level(logging.INFO):
        trainer.fit(module_in(pl, deep_net(nn.Sigmoid, 12)), data)
    (closing,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("GradWatch  seen")]
    assert "heatmap.png" not in closing


@pytest.mark.parametrize("name", ["CometLogger", "NeptuneLogger"])
@pytest.mark.supports("loggers of other services")
def test_loggers_of_other_services_get_numbers_and_no_surprises(pl, tmp_path, data, name):
    """A stand-in whose experiment answers every call gets scalars alone, and the picture is a file."""
    calls = []

    class Experiment:
        def __getattr__(self, method):
            calls.append(method)

    members = {"experiment": Experiment(), "save_dir": str(tmp_path)}
    logger = keeping_logger(pl, **members)
    logger.__class__ = type(name, (type(logger),), {})
    watch = GradWatch()
    trainer_in(pl, tmp_path, watch, max_steps=4, logger=logger, log_every_n_steps=2).fit(module_in(pl), data)
    assert steps_of(logger, "gradwatch/active") == [1, 3]
    assert calls == []
    assert (tmp_path / "gradwatch" / "heatmap.png").stat().st_size > 1000
    assert watch.disabled_reason is None


@pytest.mark.supports("Trainer(barebones=True)")
def test_barebones_is_watched_and_logs_nothing(lightning, tmp_path, data):
    """``Trainer(barebones=True)`` has no logger at all; the readings are true all the same."""
    module = module_in(lightning)
    saved, watch = saves_gradients(module), GradWatch()
    trainer = lightning.Trainer(
        accelerator="cpu", default_root_dir=tmp_path, callbacks=[watch], max_steps=5, barebones=True
    )
    trainer.fit(module, data)
    assert_same(watch.history, saved)
    assert watch.diagnoses == []
    assert watch.disabled_reason is None
