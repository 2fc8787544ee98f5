"""When the heatmap is drawn, and where the drawing goes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from lightning_gradwatch.detect.diagnosis import Diagnosis
from lightning_gradwatch.report.headline import headline_of, word_of
from lightning_gradwatch.report.image import Heatmap, Mark, draw_heatmap
from lightning_gradwatch.report.log import plural
from lightning_gradwatch.report.step_report import StepReport

# TensorBoard keeps ten pictures of a tag; a run draws at most twice as many, the last one always.
MAX_PICTURES = 20
# The first picture without a fault, then one at each doubling. A picture costs about 0.1 s: a shorter run has one at
# its end.
_FIRST = 128

Show = Callable[[str, npt.NDArray[np.uint8], int], None]


class PictureSink:
    """Draw the layer x step heatmap at onsets, at doubling numbers of readings, and at the end.

    It does not follow the logging interval: a run of 40 steps has its picture.

    Args:
        shows: Each takes a tag, the picture ``[height, width, 3]`` and the step: a TensorBoard writer's
            ``add_image``, a logger's ``log_image``, a file.
        vanishing_threshold: The person's own, anchors the colors.
        exploding_threshold: The person's own, anchors the colors.
    """

    def __init__(
        self,
        shows: list[Show],
        vanishing_threshold: float | None = None,
        exploding_threshold: float | None = None,
    ) -> None:
        self._shows = shows
        self._thresholds = (vanishing_threshold, exploding_threshold)
        self._left = MAX_PICTURES
        self._next: dict[str, int] = {}
        self._counts: dict[str, int] = {}
        self._latest: dict[str, StepReport] = {}

    def write(self, report: StepReport) -> None:
        """Draw where it is time to."""
        label = report.optimizer_label
        self._latest[label] = report
        self._counts[label] = self._counts.get(label, 0) + 1
        doubled = self._counts[label] >= self._next.get(label, _FIRST)
        if doubled:
            self._next[label] = 2 * self._counts[label]
        # What is left for the end is one picture for each optimizer.
        if (report.onsets or doubled) and self._left > len(self._latest):
            self._draw(report)

    def close(self) -> None:
        """Draw the last picture of each optimizer."""
        for report in self._latest.values():
            self._draw(report)
        self._latest.clear()

    def _draw(self, report: StepReport) -> None:
        self._left -= 1
        tag = "gradwatch/heatmap" + (f"/{report.optimizer_label}" if report.optimizer_label else "")
        picture = draw_heatmap(heatmap_of(report, *self._thresholds))
        for show in self._shows:
            show(tag, picture, report.log_step)


def heatmap_of(report: StepReport, vanishing: float | None = None, exploding: float | None = None) -> Heatmap:
    """Collect what a picture of one optimizer shows.

    Args:
        report: The newest reading of the optimizer.
        vanishing: The person's lower threshold.
        exploding: The person's upper threshold.

    Returns:
        The layers in forward order, those that no optimizer step ever touched left out.
    """
    history, number = report.history, report.snapshot.optimizer
    rows = np.flatnonzero(history.optimizers == number)
    ever: npt.NDArray[np.bool_] = np.logical_or.reduce(history.present[rows], axis=0)
    order = np.array(history.order, dtype=np.int64)
    columns = order[ever[order]] if ever.any() else order
    own = [d for d in report.diagnoses if d.optimizer == number]
    label = f", {report.optimizer_label.replace('_', ' ')}" if report.optimizer_label else ""
    return Heatmap(
        layers=tuple(history.layers[column] for column in columns),
        steps=history.steps[rows],
        norms=history.norms[np.ix_(rows, columns)],
        present=history.present[np.ix_(rows, columns)],
        vanishing_threshold=vanishing,
        exploding_threshold=exploding,
        marks=tuple(map(_mark, own)),
        title=f"gradient norm per layer{label}",
        verdict=headline_of(own),
        alarm=any(d.severity == "warning" and d.recovered_at is None for d in own),
    )


def _mark(diagnosis: Diagnosis) -> Mark:
    count = f"{len(diagnosis.layers)} {plural('layer', len(diagnosis.layers))}"
    lasts = diagnosis.recovered_at is None
    until = "" if lasts else f", until step {diagnosis.recovered_at}"
    return Mark(diagnosis.step, f"{word_of(diagnosis)} {count}{until}", diagnosis.severity, lasts)


def to_file(directory: str | Path) -> Show:
    """Return a show that keeps the newest picture as ``gradwatch/heatmap.png`` in a directory.

    Args:
        directory: The log directory.
    """

    def show(tag: str, picture: npt.NDArray[np.uint8], step: int) -> None:
        path = Path(directory) / f"{tag}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)

    return show
