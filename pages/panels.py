"""GradWatch's own drawings side by side: each in its own axes, under its own name, on one scale."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from PIL import Image

from lightning_gradwatch import GradWatch, Report
from lightning_gradwatch.report.plot import plot_run
from lightning_gradwatch.viewer.events import read_runs
from lightning_gradwatch.viewer.run import Run
from pages.pictures import Note, annotate

Notes = Mapping[str, Sequence[Note]]
# Inches, and dots an inch: as wide as the other pictures of the site, at which nothing has to be made smaller.
_WIDTH, _HEIGHT, _DPI = 10.0, 3.8, 100


def profiles(reports: Mapping[str, Report], notes: Notes | None = None, columns: int = 2) -> Figure:
    """Draw what ``examine`` found of some networks: ``report.plot()``, all on one scale.

    Args:
        reports: By what the reader is to call the network.
        notes: What is to be seen, by the same names.
        columns: How many stand side by side.

    Returns:
        The figure.
    """
    figure, panels = _grid(len(reports), columns)
    legend: dict[str, Artist] = {}
    for axes, (name, report) in zip(panels, reports.items(), strict=True):
        report.plot(ax=axes)
        axes.set_title(f"{name}\nx {report.factor:.2g} a layer back: {_word(report)}", loc="left", fontsize="medium")
        _name_few(axes, 18 // columns)
        handles, labels = axes.get_legend_handles_labels()
        legend |= dict(zip(labels, handles, strict=True))
        if (own := axes.get_legend()) is not None:
            own.remove()
    lowest, highest = zip(*(axes.get_ylim() for axes in panels), strict=True)
    for axes, name in zip(panels, reports, strict=True):
        axes.set_ylim(min(lowest), max(highest))
        _note(axes, name, notes)
    legend.pop("line through the gradient", None)
    _explain(figure, {label.split(" (")[0]: handle for label, handle in legend.items()})
    return figure


def heatmaps(
    watched: Mapping[str, GradWatch | Run], quantity: str = "norms", notes: Notes | None = None, columns: int = 2
) -> Figure:
    """Draw a quantity of some runs: ``watch.plot(quantity)``.

    Args:
        watched: What watched them, or what a run has written, by what the reader is to call it.
        quantity: One of those of ``watch.plot``.
        notes: What is to be seen, by the same names.
        columns: How many stand side by side.

    Returns:
        The figure.
    """
    figure, panels = _grid(len(watched), columns)
    states: dict[str, Artist] = {}
    for number, (axes, (name, run)) in enumerate(zip(panels, watched.items(), strict=True)):
        if isinstance(run, GradWatch):
            run.plot(quantity, ax=axes)
        else:
            plot_run(run, quantity, ax=axes)
        what, found = axes.get_title(loc="left").split("\n")
        found = re.sub(r" \([^)]*\)$", "", found)
        axes.set_title(f"{name}\n{found}" if len(panels) > 1 else found, loc="left", pad=16, fontsize="medium")
        figure.suptitle(what, x=0.01, ha="left", fontsize="medium", fontweight="bold")
        states |= _states(axes)
        axes.xaxis.set_major_locator(MaxNLocator(12 // min(len(panels), columns), integer=True))
        if number % columns:
            axes.set_ylabel("")
        if (number + 1) % columns and number + 1 < len(panels):
            _without_scale(axes)
        _note(axes, name, notes)
    _explain(figure, states)
    return figure


def runs_in(folder: Path, names: Mapping[str, str]) -> dict[str, Run]:
    """Read what a script has written below a folder.

    Args:
        folder: Where the script ran.
        names: Directories of the runs, without those above them, with what the reader is to call each.

    Returns:
        The runs in this order.
    """
    found = {Path(run.name).name: run for run in read_runs(folder)}
    return {name: found[directory] for directory, name in names.items()}


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG, of few colors where it is made of lines: that is half as large."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    colors = Image.open(picture).convert("RGB")
    if not any(axes.collections for axes in figure.axes):
        colors = colors.quantize(256, dither=Image.Dither.NONE)
    colors.save(path, optimize=True)


def _grid(number: int, columns: int) -> tuple[Figure, list[Axes]]:
    columns = min(number, columns)
    rows = -(-number // columns)
    figure = Figure(figsize=(_WIDTH, _HEIGHT * rows), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _explain(figure: Figure, handles: Mapping[str, Artist]) -> None:
    """Say below all panels what is drawn, where there is something to say."""
    if handles:
        place: Any = "outside lower left"
        names = list(handles)
        figure.legend(list(handles.values()), names, loc=place, ncols=len(names), frameon=False, fontsize="small")


def _states(axes: Axes) -> dict[str, Artist]:
    """Take the legend off, and return what in it names a color; faults are named in the title."""
    legend = axes.get_legend()
    if legend is None:
        return {}
    legend.remove()
    handles = zip(legend.get_texts(), legend.legend_handles, strict=True)
    return {text.get_text(): handle for text, handle in handles if isinstance(handle, Patch)}


def _name_few(axes: Axes, most: int) -> None:
    """Name only as many layers as there is room for, side by side."""
    ticks, names = axes.get_xticks(), [label.get_text() for label in axes.get_xticklabels()]
    # A small letter is as wide as a seventieth of the picture.
    stride = max(-(-len(names) // most), -(-sum(len(name) + 2 for name in names) // (4 * most)))
    axes.set_xticks(ticks[::stride], names[::stride], rotation=0, fontsize="small")
    axes.set_xlabel("input on the left, output on the right")


def _without_scale(axes: Axes) -> None:
    """Take off the color scale, which is that of the last one in the row; the layout would keep its place."""
    scales: list[Axes] = vars(axes).pop("_colorbars")
    vars(axes)["_colorbars"] = []
    for scale in scales:
        scale.remove()


def _word(report: Report) -> str:
    """Return the symptom as GradWatch writes it."""
    for diagnosis in report.diagnoses:
        word = diagnosis.symptom.value.replace("_", "-")
        return word.upper() if diagnosis.severity == "warning" else f"notice, {word}"
    return "healthy"


def _note(axes: Axes, name: str, notes: Notes | None) -> None:
    for note in (notes or {}).get(name, ()):
        annotate(axes, note)
