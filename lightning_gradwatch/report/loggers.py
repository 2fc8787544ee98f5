"""Which sinks a run gets, by what its loggers can do.

Loggers are told apart by the names of their classes: both Lightning packages have classes of their own, and GradWatch
imports neither for this.
"""

from __future__ import annotations

import importlib
import io
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from lightning_gradwatch.report.card import CardSink
from lightning_gradwatch.report.heatmap import HeatmapSink
from lightning_gradwatch.report.jsonl_sink import JsonlSink
from lightning_gradwatch.report.log import LogSink
from lightning_gradwatch.report.page_sink import PageSink
from lightning_gradwatch.report.picture import PictureSink, Show, to_file
from lightning_gradwatch.report.scalars import ScalarSink
from lightning_gradwatch.report.sink import Sink
from lightning_gradwatch.report.summaries import EventFile, LoggerFile, OwnFile


def is_a(logger: object, name: str) -> bool:
    """Tell whether an object's class, or one that it inherits from, has this name.

    Example:
        >>> is_a(True, "int")
        True
    """
    return any(cls.__name__ == name for cls in type(logger).__mro__)


def sinks_for(
    loggers: Sequence[Any],
    directory: Path | None,
    *,
    heatmap: bool = True,
    per_layer_scalars: bool = False,
    vanishing_threshold: float | None = None,
    exploding_threshold: float | None = None,
    page: Callable[[], str] | None = None,
) -> list[Sink]:
    """Make the sinks of a run: log, scalars, picture, heatmap, card and file.

    Args:
        loggers: The Trainer's loggers.
        directory: The log directory, None where nothing may be written (``fast_dev_run``).
        heatmap: Whether the picture is drawn, and its data written.
        per_layer_scalars: Whether each layer's norm is logged.
        vanishing_threshold: The person's own; anchors the colors of the picture.
        exploding_threshold: The person's own; anchors the colors of the picture.
        page: Makes the interactive page, for Weights & Biases at the end of training; None for none.

    Returns:
        The sinks, the training log first.
    """
    real = [logger for logger in loggers if not is_a(logger, "DummyLogger")]
    sinks: list[Sink] = [LogSink(_more(real, directory))]
    sinks += [_scalars(logger, per_layer_scalars) for logger in real]
    if heatmap:
        shows = _shows(real, directory)
        if shows:
            sinks.append(PictureSink(shows, vanishing_threshold, exploding_threshold))
        sinks += [HeatmapSink(file, vanishing_threshold, exploding_threshold) for file in _files(real, directory)]
    sinks += [_card(logger) for logger in real if is_a(logger, "TensorBoardLogger")]
    if heatmap and page is not None:
        sinks += [PageSink(_wandb_page(logger), page) for logger in real if is_a(logger, "WandbLogger")]
    if directory is not None:
        sinks.append(JsonlSink(directory))
    return sinks


def picture_place(loggers: Sequence[Any], directory: Path | None, *, heatmap: bool = True) -> str:
    """Say where the person finds the picture: a command to copy, or a path and a command."""
    if not heatmap:
        return "switched off (heatmap=False)"
    for logger in loggers:
        if is_a(logger, "TensorBoardLogger"):
            return f"tensorboard --logdir {shlex.quote(str(logger.log_dir))}"
    if any(is_a(logger, "WandbLogger") for logger in loggers):
        return "gradwatch/heatmap in Weights & Biases"
    if directory is None:
        return "none (this kind of run writes no files)"
    return f"{directory / 'gradwatch'} (gradwatch report {shlex.quote(str(directory))} shows it)"


def _more(loggers: Sequence[Any], directory: Path | None) -> str:
    """Say where all numbers are: beside the TensorBoardLogger's, which need not be the first logger."""
    if directory is None:
        return ""
    boards = [getattr(logger, "log_dir", directory) for logger in loggers if is_a(logger, "TensorBoardLogger")]
    return f"gradwatch report {shlex.quote(str(boards[0] if boards else directory))}"


def _files(loggers: Sequence[Any], directory: Path | None) -> list[EventFile]:
    files: list[EventFile] = [LoggerFile(logger) for logger in loggers if is_a(logger, "TensorBoardLogger")]
    return files or ([] if directory is None else [OwnFile(directory / "gradwatch")])


def _scalars(logger: Any, per_layer: bool) -> ScalarSink:
    def log(values: Mapping[str, float], step: int) -> None:
        logger.log_metrics(dict(values), step=step)

    return ScalarSink(log, per_layer)


def _shows(loggers: Sequence[Any], directory: Path | None) -> list[Show]:
    shows = [_tensorboard_show(logger) for logger in loggers if is_a(logger, "TensorBoardLogger")]
    shows += [_wandb_show(logger) for logger in loggers if is_a(logger, "WandbLogger")]
    return shows or ([] if directory is None else [to_file(directory)])


def _tensorboard_show(logger: Any) -> Show:
    # The writer is asked for when it is needed: making it may fail, and that shall cost this picture only.
    def show(tag: str, picture: npt.NDArray[np.uint8], step: int) -> None:
        writer = logger.experiment
        writer.add_image(tag, picture, step, dataformats="HWC")
        # The writer would keep it for up to two minutes; a person who looks now should see it.
        writer.flush()

    return show


def _wandb_show(logger: Any) -> Show:
    def show(tag: str, picture: npt.NDArray[np.uint8], step: int) -> None:
        # As a picture: of an array wandb before 0.21 makes one by dividing it by its range.
        logger.log_image(key=tag, images=[Image.fromarray(picture)], step=step)

    return show


def _wandb_page(logger: Any) -> Callable[[str, int], None]:
    def show(page: str, step: int) -> None:
        # As a stream: of a text wandb first asks whether it is the name of a file.
        wandb: Any = importlib.import_module("wandb")
        logger.log_metrics({"gradwatch/report": wandb.Html(io.StringIO(page), inject=False)}, step=step)

    return show


def _card(logger: Any) -> CardSink:
    return CardSink(lambda text, step: logger.experiment.add_text("gradwatch/diagnoses", text, step))
