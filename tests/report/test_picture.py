"""Test ``lightning_gradwatch.report.picture``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.report import picture
from lightning_gradwatch.report.image import Mark, draw_heatmap
from lightning_gradwatch.report.picture import MAX_PICTURES, PictureSink, heatmap_of, to_file

SICK = Diagnosis("dead", Symptom.DEAD, layers=("fc0", "fc1"), step=1)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch):
    """Return the list of tags and steps that are shown, the drawing itself being left out."""
    monkeypatch.setattr(picture, "draw_heatmap", lambda _: np.zeros((1, 1, 3), dtype=np.uint8))
    return []


def recording(shown: list[tuple[str, int]]) -> PictureSink:
    """Return a sink that keeps when it draws."""
    return PictureSink([lambda tag, _, step: shown.append((tag, step))])


def test_a_short_healthy_run_has_one_picture_at_its_end(reports_of, shown) -> None:
    """Forty readings, never due for logging, give one picture; closing twice gives no second."""
    sink = recording(shown)
    for report in reports_of(np.ones((40, 2))):
        sink.write(report)
    assert shown == []
    sink.close()
    sink.close()
    assert shown == [("gradwatch/heatmap", 39)]


def test_a_long_healthy_run_has_one_at_each_doubling(reports_of, shown) -> None:
    """Pictures come at readings 128, 256, 512, ... and at the end."""
    sink = recording(shown)
    for report in reports_of(np.ones((1100, 1))):
        sink.write(report)
    sink.close()
    assert [step for _, step in shown] == [127, 255, 511, 1023, 1099]


def test_an_onset_is_drawn_at_once(reports_of, shown) -> None:
    """A fault does not wait."""
    sink = recording(shown)
    for step, report in enumerate(reports_of(np.ones((6, 1)))):
        sink.write(replace(report, onsets=(SICK,) if step == 2 else ()))
    assert [step for _, step in shown] == [2]


@pytest.mark.parametrize("num_optimizers", [1, 3])
def test_the_number_of_pictures_is_bounded_and_the_last_is_kept(reports_of, shown, num_optimizers: int) -> None:
    """However many onsets there are, no more than the bound is drawn, and each optimizer's end among them."""
    sink = recording(shown)
    optimizers = [step % num_optimizers for step in range(300)]
    for report in reports_of(np.ones((300, 1)), optimizers=optimizers, onsets=(SICK,)):
        label = f"optimizer_{report.snapshot.optimizer}" if num_optimizers > 1 else ""
        sink.write(replace(report, optimizer_label=label))
    sink.close()
    assert len(shown) == MAX_PICTURES
    last = shown[-num_optimizers:]
    assert sorted(step for _, step in last) == list(range(300 - num_optimizers, 300))
    assert len({tag for tag, _ in last}) == num_optimizers


def test_a_run_without_a_reading_has_no_picture(shown) -> None:
    """Where nothing was measured nothing is drawn."""
    recording(shown).close()
    assert shown == []


def test_every_show_gets_the_same_picture(reports_of) -> None:
    """What is shown is the drawing of the run's heatmap, in the person's colors."""
    got = []
    shows = [lambda tag, pixels, step: got.append((tag, pixels, step))] * 2
    sink = PictureSink(shows, vanishing_threshold=1e-2, exploding_threshold=1e1)
    report = list(reports_of([[1e-3, 1.0]] * 3))[-1]
    sink.write(report)
    sink.close()
    expected = draw_heatmap(heatmap_of(report, 1e-2, 1e1))
    assert [(tag, step) for tag, _, step in got] == [("gradwatch/heatmap", 2)] * 2
    assert all((pixels == expected).all() for _, pixels, _ in got)
    assert (expected != draw_heatmap(heatmap_of(report))).any()


def test_the_heatmap_is_of_one_optimizer_in_forward_order(report_of) -> None:
    """Rows of the other optimizer and layers that it never touched are left out; marks are its own."""
    norms = np.arange(12.0).reshape(4, 3) + 1
    present = np.array([[True, False, True], [False, True, False]] * 2)
    report = report_of(norms, optimizers=[0, 1, 0, 1], present=present)
    report.history.order = (2, 1, 0)
    faults = (replace(SICK, optimizer=1, layers=("fc1",)), replace(SICK, optimizer=0))
    first = heatmap_of(
        replace(report, snapshot=replace(report.snapshot, optimizer=0), diagnoses=faults, optimizer_label="optimizer_0")
    )
    assert first.layers == ("fc2", "fc0")
    assert first.steps.tolist() == [0, 2]
    assert first.norms.tolist() == [[3.0, 1.0], [9.0, 7.0]]
    assert first.present.all()
    assert first.marks == (Mark(1, "DEAD 2 layers"),)
    assert first.title == "gradient norm per layer, optimizer 0"
    second = heatmap_of(replace(report, diagnoses=faults))
    assert second.layers == ("fc1",)
    assert second.marks == (Mark(1, "DEAD 1 layer"),)


def test_a_run_in_which_no_layer_is_ever_present_shows_all(report_of) -> None:
    """Where there was never a gradient the picture shows every layer as absent."""
    heatmap = heatmap_of(report_of([[np.nan, np.nan]], present=[[False, False]]))
    assert heatmap.layers == ("fc0", "fc1")
    assert not heatmap.present.any()


def test_a_file_holds_the_newest_picture(tmp_path: Path) -> None:
    """The file is made with its folder and overwritten."""
    show = to_file(tmp_path / "new")
    for level in (10, 200):
        show("gradwatch/heatmap", np.full((2, 3, 3), level, dtype=np.uint8), 0)
    pixels = np.asarray(Image.open(tmp_path / "new" / "gradwatch" / "heatmap.png"))
    assert (pixels == 200).all()
    assert pixels.shape == (2, 3, 3)
