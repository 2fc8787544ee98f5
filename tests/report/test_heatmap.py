"""Test ``lightning_gradwatch.report.heatmap``."""

from __future__ import annotations

import json
import logging
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import python
from models import deep_net, healthy_net, module_in, trainer_in
from report import heatmap_run as planted
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lightning_gradwatch import GradWatch
from lightning_gradwatch.measure.history import GradientHistory
from lightning_gradwatch.measure.snapshot import GradientSnapshot, TimeProfile
from lightning_gradwatch.report import heatmap as module
from lightning_gradwatch.report.heatmap import HeatmapSink, told
from lightning_gradwatch.report.sink import SinkRow
from lightning_gradwatch.report.step_report import StepReport
from lightning_gradwatch.viewer.events import read_runs
from lightning_gradwatch.viewer.metadata import EventsMetadata, SeriesMetadata
from lightning_gradwatch.viewer.run import Run, Series
from lightning_gradwatch.viewer.verdict import verdict, why_not_measured
from lightning_gradwatch.viewer.windows import INF, NAN, PRESENT, ZERO, unbundle

GOLDEN = Path(__file__).parent / "golden"


class Kept:
    """An event file that keeps what it is given."""

    def __init__(self) -> None:
        self.values: list[tuple[int, Any]] = []
        self.calls: list[str] = []
        self.sizes: list[int] = []

    def add(self, summary, step):
        self.values += [(step, value) for value in summary.value]
        self.sizes.append(len(summary.value))

    def flush(self):
        self.calls.append("flush")

    def close(self):
        self.calls.append("close")

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events so far."""
        return [json.loads(v.tensor.string_val[0]) for _, v in self.values if v.tag.startswith("gradwatch/events/")]

    @property
    def series(self) -> dict[tuple[str, int], SeriesMetadata]:
        """What the series' tags say of themselves, by quantity and resolution."""
        contents = [v.metadata.plugin_data.content for _, v in self.values]
        found = [about for about in map(SeriesMetadata.from_content, filter(None, contents)) if about]
        return {(about.quantity, about.resolution): about for about in found}


def steps_of(file: Kept, about: SeriesMetadata) -> list[int]:
    """Return the steps of what was written under a tag."""
    return [step for step, _ in records_of(file, about)]


def records_of(file: Kept, about: SeriesMetadata) -> list[tuple[int, np.ndarray]]:
    """Return step and table of each window or reading that was written under a tag."""
    found = []
    for step, value in file.values:
        if value.tag == about.tag:
            shape = [dim.size for dim in value.tensor.tensor_shape.dim]
            table = np.frombuffer(value.tensor.tensor_content, "<f2").reshape(shape)
            found += zip(*unbundle(step, table), strict=True) if table.ndim == 3 else [(step, table)]
    return [(int(step), table) for step, table in found]


def fed(reports, **settings: Any) -> tuple[HeatmapSink, Kept]:
    """Give reports to a sink."""
    file = Kept()
    sink = HeatmapSink(file, **settings)
    for report in reports:
        sink.write(report)
    return sink, file


def only_run(directory: Path) -> Run:
    """Read the only run of a directory."""
    (run,) = read_runs(directory)
    return run


def named(run: Run, name: str) -> Series:
    """Return one of its series."""
    return next(series for series in run.series if series.name == name)


def assert_is_the_planted_run(run: Run) -> None:
    """Hold what was read against the formulas."""
    assert [series.name for series in run.series] == [
        "norms/0",
        "ratios/0",
        "signal/0",
        "delta/0",
        "updates/0",
        "time/0/rnn",
    ]
    norms = named(run, "norms/0")
    assert (norms.layers, norms.kinds) == (("rnn", "frozen", "head"), ("LSTM", "Linear", "Linear"))
    about = norms.about
    assert (about.optimizer_label, about.vanishing_threshold, about.exploding_threshold) == ("Adam", 1e-8, None)
    assert named(run, "ratios/0").about.vanishing_threshold is None
    # Forty readings in at most sixteen columns: windows of four.
    for name, scale in (("norms/0", np.ones(3)), ("ratios/0", planted.WEIGHTS)):
        windows = named(run, name).windows
        assert windows.steps.tolist() == list(range(0, planted.NUM_READINGS, 4))
        for column, first in enumerate(windows.steps):
            table = np.stack([planted.norms(step) for step in range(first, first + 4)]) / scale
            rnn, frozen, head = (windows.state[column, row] for row in range(3))
            assert (rnn, frozen) == (PRESENT, 0)
            usual = table[:, 0][np.isfinite(table[:, 0])]
            with np.errstate(divide="ignore"):
                assert windows.high[column, 2] == pytest.approx(np.log10(usual.max()), rel=1e-3)
                assert windows.low[column, 2] == pytest.approx(np.log10(usual.min()), rel=1e-3)
            seen = PRESENT + NAN * np.isnan(table[:, 0]).any() + INF * np.isinf(table[:, 0]).any()
            assert head == seen + ZERO * (table[:, 0] == 0).any()
    for name, values in (("signal/0", [-1, -2, 0]), ("delta/0", [-6, np.nan, -2]), ("updates/0", [-7, np.nan, -3])):
        windows = named(run, name).windows
        assert windows.steps.tolist() == list(planted.PROBES)
        np.testing.assert_array_equal(windows.median, [values] * len(planted.PROBES))
    time = named(run, "time/0/rnn")
    assert time.layers == tuple(f"t {step}" for step in range(planted.TIME_STEPS))
    assert time.windows.median == pytest.approx(np.tile(np.linspace(-8, -3, 6), (4, 1)), rel=1e-3)
    assert [event["event"] for event in run.events] == ["start", "onset", "onset", "recovery", "end"]
    assert [event["step"] for event in run.events] == [0, planted.ONSET, planted.MUTED, planted.RECOVERY, 39]
    assert (run.events[-1]["reason"], run.events[-1]["error"]) == ("error", "KeyboardInterrupt")
    sick, muted = run.diagnoses
    assert (sick["rule"], sick["recovered_at"], sick.get("muted")) == ("vanishing.depth", planted.RECOVERY, None)
    assert (muted["rule"], muted["muted"]) == ("spike", True)
    (remedy,) = sick["remedies"]
    assert remedy == {
        "title": "ReLU in place of sigmoid",
        "reason": "its slope is 1",
        "code": "nn.ReLU()",
        "effect": {"loss_before": 1.0, "loss_after": 0.5},
        "where": "model.py:31",
        "needs_restart": True,
        "optimizer_changes": {"lr": 1e-3},
        "trainer_kwargs": {},
    }


def test_what_is_written_is_read_back(tmp_path: Path):
    """Every series and event of a run, through an event file and the viewer's own reader."""
    planted.write(tmp_path)
    assert_is_the_planted_run(only_run(tmp_path))


@pytest.mark.parametrize("version", sorted(path.name for path in GOLDEN.iterdir()))
def test_files_of_every_version_stay_readable(version: str):
    """The golden files are never written anew: a viewer of any later version shows the same run."""
    assert_is_the_planted_run(only_run(GOLDEN / version))


def test_there_is_a_golden_file_of_this_version():
    """Whoever raises the version keeps a file of it."""
    from lightning_gradwatch.viewer.metadata import FORMAT_VERSION

    assert (GOLDEN / f"format_{FORMAT_VERSION}").is_dir()


def test_only_the_first_record_of_a_tag_carries_its_content(reports_of):
    """Names of thousands of layers stand in the file once; plugin and class of data in every record."""
    sink, file = fed(reports_of([[1.0, 2.0]] * 100))
    sink.close()
    by_tag: dict[str, list[bytes]] = {}
    for _, value in file.values:
        by_tag.setdefault(value.tag, []).append(value.metadata.plugin_data.content)
        assert value.metadata.plugin_data.plugin_name == "gradwatch"
        assert value.metadata.data_class == 2
    assert len(by_tag) == 3
    assert all(contents[0] and not any(contents[1:]) for contents in by_tag.values())


def test_what_belongs_to_one_step_is_one_record_of_the_file(monkeypatch: pytest.MonkeyPatch, reports_of):
    """Norms and ratios go together, also as windows; after a merge each series writes its own past in order."""
    monkeypatch.setattr("lightning_gradwatch.report.pyramid.MAX_RECORDS", 8)
    monkeypatch.setattr(module, "_TOGETHER", 4)
    sink, file = fed(reports_of([[1.0, 2.0]] * 20))
    # The beginning alone; then a record for four readings, until four and then two of the past come with each.
    assert file.sizes[:3] == [1, 2, 2]
    assert set(file.sizes) == {1, 2}
    sink.close()
    for quantity in ("norms", "ratios"):
        for resolution in (0, 1, 2):
            steps = steps_of(file, file.series[quantity, resolution])
            assert steps == sorted(set(steps))


def test_readings_are_written_32_in_a_record_at_the_trainer_s_steps(reports_of):
    """Each keeps the step of its snapshot; the record stands at that of its last."""
    reports = [replace(r, snapshot=replace(r.snapshot, step=3 * r.snapshot.step)) for r in reports_of([[1.0]] * 70)]
    sink, file = fed(reports)
    about = file.series["norms", 0]
    assert steps_of(file, about) == list(range(0, 3 * 64, 3))
    sink.close()
    assert steps_of(file, about) == list(range(0, 3 * 70, 3))
    assert [step for step, value in file.values if value.tag == about.tag] == [3 * 31, 3 * 63, 3 * 69]


@pytest.mark.parametrize("steps", [[5, 6, 0, 1], [0, 2**31, 2**32], [7]])
def test_steps_may_begin_anew_or_lie_far_apart(reports_of, steps):
    """A second fit counts from 0 again; what 32 bits cannot hold goes into a record of its own."""
    reports = reports_of([[1.0]] * len(steps))
    sink, file = fed([replace(r, snapshot=replace(r.snapshot, step=s)) for r, s in zip(reports, steps, strict=True)])
    sink.close()
    assert steps_of(file, file.series["norms", 0]) == steps


def test_what_is_pending_is_written_before_the_next_resolution(monkeypatch: pytest.MonkeyPatch, reports_of):
    """While the past is written again the old tag is the picture, and whole."""
    monkeypatch.setattr("lightning_gradwatch.report.pyramid.MAX_RECORDS", 40)
    _, file = fed(reports_of([[1.0]] * 41))
    assert steps_of(file, file.series["norms", 0]) == list(range(40))
    assert len(steps_of(file, file.series["norms", 1])) < 20


def test_each_optimizer_has_series_of_its_own(reports_of):
    """Layers of another optimizer are absent in them, and each knows its class."""
    reports = list(reports_of([[1.0, 1.0]] * 6, optimizers=[0, 1] * 3))
    reports = [replace(r, optimizer_kind=("SGD", "Adam")[r.snapshot.optimizer]) for r in reports]
    sink, file = fed(reports)
    sink.close()
    contents = [SeriesMetadata.from_content(v.metadata.plugin_data.content) for _, v in file.values]
    found = [about for about in contents if about is not None and about.quantity == "norms"]
    assert [(about.optimizer, about.optimizer_label) for about in found] == [(0, "SGD"), (1, "Adam")]
    assert [steps_of(file, about) for about in found] == [[0, 2, 4], [1, 3, 5]]


def reading(history: GradientHistory, step: int, values: list[float], **more: Any) -> StepReport:
    """Return a report of plain norms."""
    row = np.array(values)
    blank = np.full(len(values), np.nan)
    return StepReport(GradientSnapshot(step, 0, row, row, blank, blank, ~np.isnan(row), blank), history, **more)


def test_a_layer_that_appears_begins_a_tag_that_holds_everything():
    """The names are others, so the tag is; what was there before is written again, without the new layer."""
    history, file = GradientHistory(("a", "b")), Kept()
    sink = HeatmapSink(file)
    for step in range(3):
        sink.write(reading(history, step, [1.0, 2.0]))
    history.add_layers(["c"])
    history.order = (2, 0, 1)
    sink.write(reading(history, 3, [1.0, 2.0, 3.0]))
    sink.close()
    about = file.series["norms", 0]
    assert (about.layers, about.order) == (("a", "b", "c"), (2, 0, 1))
    assert steps_of(file, about) == [0, 1, 2, 3]
    tables = [table.ravel() for _, table in records_of(file, about)]
    assert [table.size for table in tables] == [3] * 4
    assert tables[0][2] == tables[2][2] == 65504
    assert 10.0 ** tables[3] == pytest.approx([1, 2, 3], rel=0.01)


def test_another_forward_order_begins_a_tag_too_and_the_same_one_does_not():
    """An equal order that is another object is no change."""
    history, file = GradientHistory(("a", "b")), Kept()
    sink = HeatmapSink(file)
    for step, order in enumerate([[0, 1], [0, 1], [1, 0], [1, 0]]):
        history.order = tuple(order)
        sink.write(reading(history, step, [1.0, 2.0]))
    sink.close()
    contents = [SeriesMetadata.from_content(v.metadata.plugin_data.content) for _, v in file.values]
    found = [about for about in contents if about is not None and about.quantity == "norms"]
    assert [(about.order, steps_of(file, about)) for about in found] == [((0, 1), [0, 1]), ((1, 0), [0, 1, 2, 3])]


def test_a_model_that_never_stops_growing_is_not_written_again_for_ever():
    """After some changes the picture keeps its rows; what is written stays in proportion to the readings."""
    history, file = GradientHistory(("0",)), Kept()
    sink = HeatmapSink(file)
    for step in range(200):
        sink.write(reading(history, step, [1.0] * len(history.layers)))
        history.add_layers([str(step + 1)])
    sink.close()
    assert sum("/norms/" in value.tag for _, value in file.values) < 3 * 200
    assert max(len(about.layers) for about in file.series.values()) == module._MAX_FORMS


def test_an_onset_closes_the_window_and_is_on_disk_at_once(monkeypatch: pytest.MonkeyPatch, reports_of):
    """A person who is told of a fault and looks sees it, however long the run is by then."""
    monkeypatch.setattr("lightning_gradwatch.report.pyramid.MAX_RECORDS", 4)
    reports = list(reports_of([[1.0]] * 19))
    sink, file = fed(reports[:17])
    about = file.series["norms", 2]
    assert steps_of(file, about) == [0, 4, 8, 12]
    file.calls.clear()
    sick = replace(planted.SICK, step=17)
    sink.write(replace(reports[17], onsets=(sick,)))
    assert file.calls == ["flush"]
    # Four records are full: the next resolution has begun.
    assert steps_of(file, file.series["norms", 3]) == [0, 8, 16]
    sink.write(reports[18])
    sink.close()
    assert steps_of(file, file.series["norms", 3]) == [0, 8, 16, 18]


def test_after_a_merge_the_past_is_written_a_little_with_each_reading(monkeypatch: pytest.MonkeyPatch, reports_of):
    """No reading has to wait for a thousand records; whoever flushes gets all of them."""
    monkeypatch.setattr("lightning_gradwatch.report.pyramid.MAX_RECORDS", 40)
    reports = list(reports_of([[1.0]] * 43))
    sink, file = fed(reports[:41])
    about = file.series["norms", 1]
    written = [len(steps_of(file, about))]
    sink.write(reports[41])
    written.append(len(steps_of(file, about)))
    assert written == [module._AT_ONCE, 2 * module._AT_ONCE]
    sink.close()
    assert steps_of(file, about) == list(range(0, 42, 2))


def test_the_disk_is_written_at_most_every_ten_seconds(monkeypatch: pytest.MonkeyPatch, reports_of):
    """The first reading at once, so that the tab appears; nothing where nothing is new."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    sink, file = fed([])
    for report in reports_of([[1.0]] * 25):
        sink.write(report)
        sink.flush()
        now[0] += 1
    assert file.calls == ["flush"] * 3
    now[0] += 100
    sink.flush()
    sink.flush()
    assert file.calls == ["flush"] * 4


@pytest.mark.parametrize(
    ("ending", "told"),
    [
        ([], {"reason": "completed"}),
        (["completed"], {"reason": "completed"}),
        (["error", "ValueError: no"], {"reason": "error", "error": "ValueError: no"}),
        (["switched off", "it failed"], {"reason": "switched off", "disabled": "it failed"}),
    ],
)
def test_the_last_event_tells_why_a_run_has_ended(reports_of, ending, told):
    """``disabled`` is what ``gradwatch report`` takes for a run that must not count as healthy."""
    sink, file = fed(reports_of([[1.0]] * 3))
    if ending:
        sink.end(*ending)
    sink.close()
    last = {name: value for name, value in file.events[-1].items() if name != "time"}
    assert last == {"event": "end", "step": 2, "num_readings": 3, **told}
    assert file.calls == ["flush", "close"]


def test_a_run_without_a_reading_leaves_nothing():
    """Neither an event nor a file."""
    sink, file = fed([])
    sink.flush()
    sink.end("error", "ValueError: no")
    sink.close()
    assert (file.values, file.calls) == ([], [])


def test_a_watch_that_is_switched_off_before_its_first_reading_says_so_too():
    """Else the run would look like one without GradWatch; the end tells the reason."""
    sink, file = fed([])
    sink.deactivate(7)
    assert file.calls == ["flush"]
    run = Run("r", (), file.events)
    assert verdict(run) == "GradWatch was switched off before its first reading: the training log says why"
    sink.end("switched off", "ValueError: x")
    sink.close()
    run = Run("r", (), file.events)
    assert [(event["event"], event["step"], event["num_readings"]) for event in run.events] == [
        ("off", 7, 0),
        ("end", 7, 0),
    ]
    assert verdict(run) == "GradWatch was switched off before its first reading: ValueError: x"
    assert why_not_measured(run) == f"r: {verdict(run)}"
    assert file.calls == ["flush", "flush", "close"]


def test_events_are_numbered_so_that_two_at_one_step_are_two(reports_of):
    """TensorBoard's fast loader drops a record when another one of the same step follows."""
    (report,) = reports_of([[1.0]])
    sink, file = fed([replace(report, onsets=(planted.SICK,), muted=(planted.UNHEARD,), recoveries=(planted.SICK,))])
    sink.close()
    events = [step for step, value in file.values if value.tag.startswith("gradwatch/events/")]
    assert events == list(range(5))
    first = next(value for _, value in file.values if value.tag.startswith("gradwatch/events/"))
    assert EventsMetadata("x", 0.0).content()[:20] == first.metadata.plugin_data.content[:20]


def test_sequences_of_another_length_keep_the_rows_of_the_first(reports_of):
    """A longer batch is brought to as many rows; a fade over all of them stays one."""
    probe = planted.probe(0)
    reports = [
        replace(report, signals=replace(probe, time=(TimeProfile(0, 10.0 ** np.linspace(-8, -3, length)),)))
        for report, length in zip(reports_of([[1.0] * 3] * 3), (80, 640, 20), strict=True)
    ]
    sink, file = fed(reports)
    sink.close()
    about = file.series["time", 0]
    assert (len(about.layers), about.layers[0], about.layers[-1], about.module) == (64, "t 0", "t 79", "head")
    tables = [table.ravel() for _, table in records_of(file, about)]
    assert len(tables) == 3
    for table in tables:
        assert table == pytest.approx(np.linspace(-8, -3, 64), abs=0.01)


def test_a_file_that_fails_costs_the_heatmap_only(reports_of, caplog: pytest.LogCaptureFixture):
    """The row names it once, and goes on without it."""

    class Full(Kept):
        def add(self, summary, step):
            raise OSError("disk full")

    row = SinkRow([HeatmapSink(Full())], logging.getLogger("lightning_gradwatch"))
    for report in reports_of([[1.0]] * 3):
        row.write(report)
    row.close()
    assert caplog.messages == [
        "GradWatch  sink HeatmapSink failed and is switched off, training goes on: OSError: disk full"
    ]


# ---- with a Trainer


def heatmap_of(directory: Path, watch: GradWatch) -> Run:
    """Read a run back and hold its norms against the history."""
    run = only_run(directory)
    norms, history = named(run, "norms/0"), watch.history
    assert norms.layers == tuple(history.layers[column] for column in history.order)
    assert norms.windows.steps.tolist() == history.steps.tolist()
    with np.errstate(divide="ignore"):
        expected = np.log10(history.norms[:, list(history.order)])
    np.testing.assert_allclose(norms.windows.median, expected, rtol=1e-3, atol=1e-3)
    return run


def test_a_run_with_tensorboard_has_the_heatmap_in_the_logger_s_own_file(lightning, tmp_path: Path, data):
    """Norms are those of the history, the probe's series are there, and what was diagnosed with its ways out."""
    logger, watch = lightning.loggers.TensorBoardLogger(tmp_path, name="", version=""), GradWatch()
    trainer = trainer_in(lightning, tmp_path, watch, max_steps=8, logger=logger)
    trainer.fit(module_in(lightning, deep_net(nn.Sigmoid, 12)), data)
    run = heatmap_of(tmp_path, watch)
    assert run.name == "."
    assert len(list(tmp_path.glob("**/events.out.tfevents.*"))) == 1
    assert [series.name for series in run.series] == ["norms/0", "ratios/0", "signal/0", "delta/0", "updates/0"]
    assert named(run, "norms/0").kinds == ("Linear",) * 13
    assert named(run, "norms/0").about.optimizer_label == "SGD"
    probes = named(run, "delta/0").windows
    assert probes.steps.tolist() == [probe.step for probe in watch.probes]
    with np.errstate(divide="ignore"):
        delta = np.log10(np.stack([probe.delta for probe in watch.probes]))
    np.testing.assert_allclose(probes.median, delta[:, list(watch.history.order)], rtol=1e-3, atol=1e-3)
    (diagnosis,) = run.diagnoses
    assert diagnosis["step"] == watch.diagnoses[0].step
    assert [remedy["where"] for remedy in diagnosis["remedies"]] == [r.where for r in watch.remedies]
    assert run.events[-1]["reason"] == "completed"


def test_a_run_without_tensorboard_has_an_event_file_of_ours(pl, tmp_path: Path, data):
    """Beside the picture and the diagnoses; TensorBoard on the log directory shows it as a run."""
    watch = GradWatch()
    trainer_in(pl, tmp_path, watch).fit(module_in(pl, healthy_net()), data)
    assert heatmap_of(tmp_path, watch).name == "gradwatch"


@pytest.mark.parametrize("more", [{"fast_dev_run": 3, "max_steps": -1}, {}])
def test_fast_dev_run_and_heatmap_false_write_none(pl, tmp_path: Path, data, more):
    """No event file anywhere."""
    trainer_in(pl, tmp_path, GradWatch(heatmap=bool(more)), **more).fit(module_in(pl, healthy_net()), data)
    assert list(tmp_path.rglob("*tfevents*")) == []


def test_what_is_muted_is_drawn_and_nowhere_told(pl, tmp_path: Path, data, caplog: pytest.LogCaptureFixture):
    """Its onset is an event with a flag; diagnoses, remedies, log and file of diagnoses know nothing of it."""
    watch = GradWatch(ignore=["vanishing"])
    with caplog.at_level(logging.INFO):
        trainer_in(pl, tmp_path, watch, max_steps=8).fit(module_in(pl, deep_net(nn.Sigmoid, 12)), data)
    assert (watch.diagnoses, watch.remedies) == ([], [])
    assert "VANISHING" not in caplog.text
    assert not (tmp_path / "gradwatch" / "diagnoses.jsonl").exists()
    (muted,) = only_run(tmp_path).diagnoses
    assert (muted["rule"], muted["muted"], muted["remedies"]) == ("vanishing.depth", True, [])
    watch.assert_healthy()


def test_what_was_muted_is_not_drawn_again_after_a_checkpoint(pl, tmp_path: Path, data):
    """A run that goes on knows that the fault lasts."""
    net = deep_net(nn.Sigmoid, 12)
    first = trainer_in(pl, tmp_path / "1", GradWatch(ignore=["vanishing"]), max_steps=8)
    first.fit(module_in(pl, net), data)
    first.save_checkpoint(tmp_path / "last.ckpt")
    second = trainer_in(pl, tmp_path / "2", GradWatch(ignore=["vanishing"]), max_steps=16)
    second.fit(module_in(pl, net), data, ckpt_path=tmp_path / "last.ckpt")
    assert len(only_run(tmp_path / "1").diagnoses) == 1
    assert only_run(tmp_path / "2").diagnoses == []
    assert named(only_run(tmp_path / "2"), "norms/0").windows.steps.tolist() == list(range(8, 16))


def test_recurrent_layers_have_a_picture_along_time(pl, tmp_path: Path):
    """Rows are the time steps of the batch, columns the probes; values those of the probe."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(2, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, inputs):
            return self.head(self.rnn(inputs)[0][:, -1])

    batches = [(torch.randn(4, 7, 2), torch.tensor([0, 1, 2, 0])) for _ in range(5)]
    watch = GradWatch()
    trainer_in(pl, tmp_path, watch).fit(module_in(pl, Net()), torch.utils.data.DataLoader(batches, batch_size=None))
    time = named(only_run(tmp_path), "time/0/net.rnn")
    assert time.layers == tuple(f"t {step}" for step in range(7))
    expected = np.stack([probe.time[0].delta for probe in watch.probes])
    np.testing.assert_allclose(time.windows.median, np.log10(expected), rtol=1e-3, atol=1e-3)


def test_an_error_in_training_leaves_everything_and_its_name(pl, tmp_path: Path, data):
    """All readings up to it, and an end that tells what ended the run."""

    def training_step(self, batch, batch_idx):
        if batch_idx == 5:
            raise ValueError("no")
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    watch = GradWatch()
    with pytest.raises(ValueError, match="no"):
        trainer_in(pl, tmp_path, watch, max_steps=8).fit(module_in(pl, training_step=training_step), data)
    run = heatmap_of(tmp_path, watch)
    assert len(named(run, "norms/0").windows) == 5
    assert (run.events[-1]["reason"], run.events[-1]["error"]) == ("error", "ValueError: no")


def test_a_gradwatch_that_switched_itself_off_says_so(pl, tmp_path: Path, data):
    """What was seen until then is there, and the end tells why nothing follows."""

    class Breaks(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 3:
                watch.core.disable("a test")

    watch = GradWatch()
    trainer_in(pl, tmp_path, watch, Breaks(), max_steps=8).fit(module_in(pl), data)
    run = heatmap_of(tmp_path, watch)
    assert (run.events[-1]["reason"], run.events[-1]["disabled"]) == ("switched off", "a test")


@pytest.mark.parametrize("logger", [True, False])
def test_a_gradwatch_that_switched_itself_off_before_its_first_reading_is_a_run(pl, tmp_path: Path, data, logger: bool):
    """With a logger and without one, ``gradwatch report`` finds it and says why there is nothing."""

    class Breaks(pl.Callback):
        def on_train_start(self, trainer, *args):
            watch.core.disable("a test")

    watch = GradWatch()
    trainer_in(pl, tmp_path, watch, Breaks(), logger=logger).fit(module_in(pl), data)
    run = only_run(tmp_path)
    assert (run.series, [event["event"] for event in run.events]) == ((), ["off", "end"])
    assert verdict(run) == "GradWatch was switched off before its first reading: a test"


def test_a_gradwatch_that_cannot_begin_says_why(pl, tmp_path: Path, data, monkeypatch: pytest.MonkeyPatch):
    """What fails before the first batch is in the report as well, not in the log alone."""

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("a test")

    monkeypatch.setattr("lightning_gradwatch.watching.Stepper", fails)
    trainer_in(pl, tmp_path, GradWatch()).fit(module_in(pl), data)
    run = only_run(tmp_path)
    assert verdict(run) == "GradWatch was switched off before its first reading: RuntimeError: a test"


SCRIPT = """
import os, signal, sys
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import pytorch_lightning as pl
from lightning_gradwatch import GradWatch

# A shell that runs the tests in the background has its processes ignore Ctrl+C.
signal.signal(signal.SIGINT, signal.default_int_handler)

class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == 6:
            os.kill(os.getpid(), int(sys.argv[1]))
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

data = DataLoader(TensorDataset(torch.randn(32, 8), torch.randint(3, (32,))), batch_size=4)
trainer = pl.Trainer(
    accelerator="cpu", default_root_dir=sys.argv[2], callbacks=[GradWatch()], max_steps=10_000,
    logger=sys.argv[3] == "logger", enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
)
trainer.fit(Module(), data)
"""


@pytest.mark.parametrize("logger", ["logger", "none"])
@pytest.mark.parametrize(
    ("number", "readings", "error"),
    # Lightning ends a run at SIGTERM after the batch, and at Ctrl+C at once.
    [(signal.SIGTERM, 7, "SIGTERMException"), (signal.SIGINT, 6, "KeyboardInterrupt")],
)
def test_a_real_signal_loses_no_reading(tmp_path: Path, number, readings: int, error: str, logger: str):
    """The process is gone, and every reading before it is on disk, with the end that it came to."""
    (tmp_path / "script.py").write_text(SCRIPT)
    python(tmp_path / "script.py", int(number), tmp_path, logger, cwd=tmp_path)
    run = only_run(tmp_path)
    assert named(run, "norms/0").windows.steps.tolist() == list(range(readings))
    assert run.events[-1]["reason"] == "error"
    assert run.events[-1]["error"].startswith(error)
    assert run.name == ("gradwatch" if logger == "none" else "lightning_logs/version_0")


def test_training_is_the_same_to_the_last_bit_with_and_without_the_heatmap(pl, tmp_path: Path, data):
    """Weights, optimizer state and random numbers."""
    states = []
    for heatmap in (True, False):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(8, 8), nn.Dropout(), nn.ReLU(), nn.Linear(8, 3))
        trainer = trainer_in(pl, tmp_path / str(heatmap), GradWatch(heatmap=heatmap), max_steps=16, logger=True)
        trainer.fit(module_in(pl, net, torch.optim.Adam), data)
        state = trainer.optimizers[0].state_dict()["state"]
        moments = [value for each in state.values() for value in each.values()]
        states.append([*net.state_dict().values(), *moments, torch.get_rng_state()])
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))


def test_built_in_dashboards_of_tensorboard_are_not_disturbed(pl, tmp_path: Path, data):
    """Our tags are of our plugin's: no scalar, image or histogram comes of them."""
    logger = pl.loggers.TensorBoardLogger(tmp_path, name="", version="")
    trainer_in(pl, tmp_path, GradWatch(), logger=logger).fit(module_in(pl), data)
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    ours = events.PluginTagToContent("gradwatch")
    assert len(ours) == 6
    tags = events.Tags()
    assert not any(tag in tags[kind] for tag in ours for kind in ("scalars", "images", "histograms", "audio"))


def test_layers_that_join_a_fault_later_are_told_before_the_end(reports_of) -> None:
    """An onset is told once; when all is written to disk, a fault that has grown is told again, with all its layers."""
    grown = replace(planted.SICK, layers=(*planted.SICK.layers, "late"))
    first, second, third = reports_of([[1.0, 1.0, 1.0]] * 3)
    known = [replace(first, onsets=(planted.SICK,), diagnoses=(planted.SICK,))]
    known += [replace(report, diagnoses=(grown,)) for report in (second, third)]
    sink, file = fed(known)
    sink.close()
    assert [event["event"] for event in file.events] == ["start", "onset", "update", "end"]
    assert Run("r", (), file.events).diagnoses[0]["layers"] == list(grown.layers)


def test_what_came_back_unheard_and_lasts_is_told_before_the_end(reports_of) -> None:
    """Of a fault that flaps not every onset is told, but a page must not say that it is over while it lasts."""
    over, again = replace(planted.SICK, recovered_at=planted.SICK.step + 9), replace(planted.SICK, step=700, count=4)
    first, second, third = reports_of([[1.0, 1.0, 1.0]] * 3)
    known = [
        replace(first, onsets=(planted.SICK,), diagnoses=(planted.SICK,)),
        replace(second, recoveries=(over,), diagnoses=(over,)),
        replace(third, diagnoses=(over, replace(again, step=600, recovered_at=610), again)),
    ]
    sink, file = fed(known)
    sink.close()
    assert [event["event"] for event in file.events] == ["start", "onset", "recovery", "onset", "end"]
    told_of = [(d["step"], d["recovered_at"]) for d in Run("r", (), file.events).diagnoses]
    assert told_of == [(planted.SICK.step, over.recovered_at), (700, None)]


def test_a_fault_of_before_a_checkpoint_is_told_again_when_it_grows(reports_of) -> None:
    """A resumed run has a sink that has told of nothing; the layers that join belong to the onset told before it."""
    grown = replace(planted.SICK, layers=(*planted.SICK.layers, "late"))
    first, second = reports_of([[1.0, 1.0, 1.0]] * 2)
    sink, file = fed([replace(first, diagnoses=(planted.SICK,)), replace(second, diagnoses=(grown,))])
    sink.close()
    assert [event["event"] for event in file.events] == ["start", "update", "end"]
    earlier = {"event": "onset", "diagnosis": told(planted.SICK)}
    assert Run("r", (), [earlier, *file.events]).diagnoses[0]["layers"] == list(grown.layers)


def test_a_watch_that_is_switched_off_says_so_at_once(reports_of) -> None:
    """The run may go on for days, and until its end nobody must take it for a healthy one; the end tells the reason."""
    sink, file = fed(reports_of([[1.0]] * 3))
    sink.deactivate(0)
    assert file.calls[-1] == "flush"
    assert why_not_measured(Run("r", (), file.events)) == (
        "r: GradWatch switched itself off during the run: the training log says why"
    )
    sink.end("switched off", "ValueError: x")
    sink.close()
    assert why_not_measured(Run("r", (), file.events)).endswith("during the run: ValueError: x")
