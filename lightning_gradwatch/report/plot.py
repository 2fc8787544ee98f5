"""The layer x step heatmap as a matplotlib figure, in the colors of all other pictures. Needs matplotlib."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path

from lightning_gradwatch.report import palette
from lightning_gradwatch.report.figure import (
    MAX_LABELS,
    mark_text,
    new_axes,
    plain,
    rgb_of,
    severity_color,
    short,
)
from lightning_gradwatch.report.image import MARK_COLORS
from lightning_gradwatch.report.layout import split_prefix
from lightning_gradwatch.viewer.metadata import QUANTITIES
from lightning_gradwatch.viewer.run import Run, Series
from lightning_gradwatch.viewer.verdict import verdict
from lightning_gradwatch.viewer.windows import INF, NAN, Windows, merge_pairs

# What the plot itself has room for at that size, in pixels.
_MAX_COLUMNS, _MAX_ROWS = 640, 320
_MAX_LISTED = 4
_STATES = {
    palette.NAN: ("NaN", palette.NAN_COLOR, palette.NAN_HATCH),
    palette.INF: ("infinite", palette.INF_COLOR, None),
    palette.ZERO: ("exactly zero", palette.ZERO_COLOR, None),
    palette.ABSENT: ("nothing measured", palette.ABSENT_COLOR, palette.ABSENT_HATCH),
}
# A peak so far above the median of its column is marked, as in the picture (report/palette.py).
_PEAK_DECADES = 2.0


def plot_run(run: Run, quantity: str = "norms", optimizer: int = 0, ax: Axes | None = None) -> Figure:
    r"""Draw one quantity of a run as layers (rows, input on top) by training steps (columns).

    Args:
        run: The run.
        quantity: One of ``viewer.metadata.QUANTITIES``; ``"time"`` is that of the first recurrent layer.
        optimizer: Number of the optimizer.
        ax: Where to draw; the axes of a new figure by default.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no such series.

    Example:
        >>> from lightning_gradwatch import Report
        >>> from lightning_gradwatch.report.recorded import examined_run
        >>> found = Report(("0", "2"), np.array([1.0, 2.0]), np.array([0.1, 0.2]))
        >>> plot_run(examined_run(found), "delta").axes[0].get_title(loc="left")
        'gradient reaching the layer\nno warning (2 layers, step 0)'
    """
    series = _chosen(run, quantity, optimizer)
    axes = new_axes() if ax is None else ax
    picture = _picture(series)
    _draw_cells(axes, picture)
    _name_rows(axes, picture, "first step" if quantity == "time" else "input")
    handles = [*_draw_marks(axes, run, series, picture), *_draw_states(axes, picture)]
    _draw_scale(axes, picture)
    axes.set_xlabel("training step")
    axes.set_title(_title(run, series), loc="left", pad=16, fontsize="medium")
    if handles:
        # Below the plot, where it hides nothing.
        axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(-0.02, -0.13), ncols=2, frameon=False)
    return cast("Figure", axes.figure)


def _title(run: Run, series: Series) -> str:
    """Name what is drawn, and how the run fared."""
    about, words = series.about, [QUANTITIES[series.about.quantity].title]
    words += [f" of {about.module}"] if about.module else []
    words += [f", optimizer {about.optimizer}"] if len({one.about.optimizer for one in run.series}) > 1 else []
    return plain("".join(words) + "\n" + textwrap.shorten(verdict(run), 100))


def _chosen(run: Run, quantity: str, optimizer: int) -> Series:
    if quantity not in QUANTITIES:
        raise ValueError(f"`quantity` must be one of {', '.join(QUANTITIES)}. Got {quantity!r}")
    if not run.series:
        raise ValueError("nothing was measured yet, so there is nothing to plot")
    found = [one for one in run.series if (one.about.quantity, one.about.optimizer) == (quantity, optimizer)]
    if not found:
        known = ", ".join(one.name for one in run.series)
        raise ValueError(f"there is no {quantity!r} of optimizer {optimizer} in this run. There are: {known}")
    return found[0]


@dataclass(frozen=True, eq=False)
class _Picture:
    """A series reduced to what a figure has room for.

    Attributes:
        labels: Names of the rows without their common prefix.
        prefix: That prefix.
        edges: Steps at which the columns begin, and where the last one ends, ``[num_columns + 1]``.
        codes: Color codes, ``[num_rows, num_columns]``.
        peaks: Whether a layer's largest value stands far above its median, ``[num_columns]``.
        layers_per_row: How many layers share a row.
        anchors: Ends of the color scale.
    """

    labels: tuple[str, ...]
    prefix: str
    edges: npt.NDArray[np.float64]
    codes: palette.Codes
    peaks: npt.NDArray[np.bool_]
    layers_per_row: int
    anchors: palette.Anchors


def _picture(series: Series) -> _Picture:
    windows = series.windows
    while len(windows) > _MAX_COLUMNS:
        windows = merge_pairs(windows)
    about, quantity = series.about, QUANTITIES[series.about.quantity]
    anchors = palette.Anchors(quantity.low, quantity.high)
    if about.vanishing_threshold is not None or about.exploding_threshold is not None:
        anchors = palette.anchors_for(about.vanishing_threshold, about.exploding_threshold)
    layers_per_row = -(-len(series.layers) // _MAX_ROWS)
    values, present = palette.reduce_layers(_values(windows), windows.state != 0, layers_per_row, anchors)
    prefix, labels = split_prefix(series.layers)
    with np.errstate(invalid="ignore"):
        peaks: npt.NDArray[np.bool_] = np.any(windows.high - windows.median > _PEAK_DECADES, axis=1)
    codes = palette.color_codes(values, present, anchors).T
    return _Picture(labels, prefix, _edges(windows.steps), codes, peaks, layers_per_row, anchors)


def _values(windows: Windows) -> npt.NDArray[np.float64]:
    """Return the medians as values, with NaN and infinity where there was one."""
    values = np.power(10.0, windows.median.astype(np.float64))
    values = np.where(windows.state & INF > 0, np.inf, values)
    return np.where(windows.state & NAN > 0, np.nan, values)


def _edges(steps: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return where columns begin and end; the last one is as wide as most are."""
    gaps = np.diff(steps)
    return np.append(steps, steps[-1] + (float(np.median(gaps)) if len(gaps) else 1.0)).astype(np.float64)


def _draw_cells(axes: Axes, picture: _Picture) -> None:
    rows = np.arange(len(picture.codes) + 1) - 0.5
    colors = ListedColormap(palette.table() / 255)
    axes.pcolormesh(picture.edges, rows, picture.codes, cmap=colors, vmin=0, vmax=255, rasterized=True)
    axes.set_xlim(picture.edges[0], picture.edges[-1])
    axes.set_ylim(rows[-1], rows[0])
    for code, (_, _, hatch) in _STATES.items():
        if hatch is not None:
            _hatch(axes, picture, code, hatch)
    middles = (picture.edges[1:] + picture.edges[:-1]) / 2
    at = np.flatnonzero(picture.peaks)
    if not len(at):
        # A line without a point would count as one at the figure's corner, and a constrained layout would collapse.
        return
    below = axes.get_xaxis_transform()
    red = rgb_of(MARK_COLORS["warning"])
    axes.plot(middles[at], np.full(len(at), -0.012), "|", color=red, transform=below, clip_on=False, markersize=4)


def _hatch(axes: Axes, picture: _Picture, code: int, color: palette.Color) -> None:
    """Hatch the cells of a state, a box for each row of neighbors."""
    boxes = []
    for row, cells in enumerate(picture.codes == code):
        turns = np.flatnonzero(np.diff(np.concatenate([[False], cells, [False]]).astype(np.int8)))
        for start, stop in turns.reshape(-1, 2):
            left, right = picture.edges[start], picture.edges[stop]
            corners = [(left, row - 0.5), (right, row - 0.5), (right, row + 0.5), (left, row + 0.5), (left, row - 0.5)]
            boxes.append(Path(corners, closed=True))
    if boxes:
        pattern = {"hatch": "/////", "facecolor": "none", "edgecolor": rgb_of(color), "linewidth": 0}
        axes.add_patch(PathPatch(Path.make_compound_path(*boxes), **pattern))


def _name_rows(axes: Axes, picture: _Picture, first: str) -> None:
    num_rows = len(picture.codes)
    stride = -(-num_rows // MAX_LABELS)
    rows = list(range(0, num_rows, stride))
    names = [plain(short(picture.labels[row * picture.layers_per_row])) for row in rows]
    axes.set_yticks(rows, names, fontsize="small")
    prefix = f"{picture.prefix}*, " if picture.prefix else ""
    shared = f", {picture.layers_per_row} a row, the most abnormal" if picture.layers_per_row > 1 else ""
    axes.set_ylabel(f"{plain(prefix)}{first} on top{shared}")


def _draw_marks(axes: Axes, run: Run, series: Series, picture: _Picture) -> list[Any]:
    """Point at each onset of the optimizer from above, and return what the most severe are listed by."""
    own = [d for d in run.diagnoses if d.get("optimizer", 0) == series.about.optimizer]
    # What lasts comes before what is over.
    severe = sorted(
        own, key=lambda d: (d.get("severity") != "warning", d.get("recovered_at") is not None, d.get("step", 0))
    )
    above, last = axes.get_xaxis_transform(), picture.edges[-1]
    for diagnosis in reversed(severe):
        color, step = severity_color(diagnosis), diagnosis.get("step", 0)
        if picture.edges[0] <= step <= last:
            axes.axvline(step, color="white", linewidth=1)
            axes.axvline(step, color=color, linewidth=1, linestyle=(0, (4, 3)))
            axes.plot(step, 1.02, "v", color=color, transform=above, clip_on=False, markersize=8)
    listed = sorted(severe[:_MAX_LISTED], key=lambda d: d.get("step", 0))
    style: Mapping[str, Any] = {"marker": "v", "linestyle": "none"}
    handles = [Line2D([], [], color=severity_color(d), label=plain(mark_text(d)), **style) for d in listed]
    rest = len(severe) - len(listed)
    return [*handles, *([Line2D([], [], linestyle="none", label=f"and {rest} more")] if rest else [])]


def _draw_states(axes: Axes, picture: _Picture) -> list[Any]:
    """Return what the states that occur are named by."""
    handles: list[Any] = []
    for code, (name, color, hatch) in _STATES.items():
        if (picture.codes == code).any():
            more = {"hatch": "/////", "edgecolor": rgb_of(hatch)} if hatch else {"edgecolor": "grey"}
            handles.append(Patch(facecolor=rgb_of(color), label=name, linewidth=0.5, **more))
    if picture.peaks.any():
        red = rgb_of(MARK_COLORS["warning"])
        handles.append(Line2D([], [], color=red, marker="|", linestyle="none", label="peak > 100x median"))
    return handles


def _draw_scale(axes: Axes, picture: _Picture) -> None:
    ends = {"under": rgb_of(palette.BELOW_COLOR), "over": rgb_of(palette.ABOVE_COLOR)}
    colors = ListedColormap(palette.table()[: palette.BELOW] / 255).with_extremes(**ends)
    low, high = picture.anchors.low, picture.anchors.high
    scale = axes.figure.colorbar(ScalarMappable(Normalize(low, high), colors), ax=axes, extend="both", pad=0.02)
    decades = np.arange(np.ceil(low), np.floor(high) + 1, 2)
    scale.set_ticks(decades.tolist(), labels=[f"1e{int(decade)}" for decade in decades])
    for place, word, color in ((1.07, "exploding", palette.ABOVE_COLOR), (-0.07, "vanishing", palette.BELOW_COLOR)):
        middle: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": "small", "transform": scale.ax.transAxes}
        scale.ax.text(0.5, place, word, color=rgb_of(color), **middle)
