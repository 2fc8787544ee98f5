"""Signal and gradient along the depth of a model, as a matplotlib figure. Needs matplotlib."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_gradwatch.detect.profile import MIN_LAYERS, theil_sen
from lightning_gradwatch.measure.snapshot import FloatArray
from lightning_gradwatch.report.figure import new_axes, plain, rgb_of, severity_color, short
from lightning_gradwatch.report.layout import split_prefix
from lightning_gradwatch.report.palette import NAN_COLOR, ZERO_COLOR, Color

if TYPE_CHECKING:
    from lightning_gradwatch.report.report import Report

# The ends of our color scale: apart in every common color blindness, and told apart by their markers as well.
_SIGNAL_COLOR: Color = (33, 80, 170)
_DELTA_COLOR: Color = (196, 36, 32)
_MAX_NAMED = 40


def plot_report(report: Report, title: str, ax: Axes | None = None) -> Figure:
    """Draw the signal and the gradient that reaches each layer, input on the left, on a logarithmic scale.

    The dashed line is the robust line (Theil and Sen) through the points that are drawn; ``report.factor`` weighs each
    layer by the size of its output and leaves normalizations out.

    Args:
        report: What ``examine`` found.
        title: What was found, in a line; the first diagnosis stands below it.
        ax: Where to draw; the axes of a new figure by default.

    Returns:
        The figure.
    """
    axes = new_axes() if ax is None else ax
    axes.set_yscale("log")
    _draw_sick(axes, report)
    _draw_curve(axes, report.signal, _SIGNAL_COLOR, "s", "signal (root mean square of the output)")
    _draw_curve(axes, report.delta, _DELTA_COLOR, "o", "gradient reaching the layer (root mean square)")
    _draw_line(axes, report.delta)
    _draw_special(axes, report.delta)
    _name_layers(axes, report.layers)
    lines = [title, *(f"{d.symptom.value.upper()}: {d.message}" for d in report.diagnoses[:1])]
    axes.set_title(plain("\n".join(textwrap.shorten(line, 110) for line in lines)), loc="left", fontsize="medium")
    axes.grid(visible=True, axis="y", alpha=0.3)
    handles, _ = axes.get_legend_handles_labels()
    if handles and ax is None:
        # Below the names of the layers, however long they are.
        axes.figure.legend(handles=handles, loc="outside lower left", ncols=2, frameon=False, fontsize="small")
    elif handles:
        axes.legend(handles=handles, fontsize="small")
    return cast("Figure", axes.figure)


def _draw_curve(axes: Axes, values: FloatArray, color: Color, marker: str, label: str) -> None:
    """Draw what has a logarithm; a layer that has none leaves a gap."""
    shown = np.where(np.isfinite(values) & (values > 0), values, np.nan)
    if np.isfinite(shown).any():
        axes.plot(np.arange(len(shown)), shown, marker=marker, markersize=4, color=rgb_of(color), label=label)


def _draw_line(axes: Axes, delta: FloatArray) -> None:
    places = np.flatnonzero(np.isfinite(delta) & (delta > 0))
    if len(places) < MIN_LAYERS:
        return
    logs = np.log10(delta[places])
    slope = theil_sen(logs)
    middle = float(np.median(logs - slope * np.arange(len(logs))))
    with np.errstate(over="ignore", under="ignore"):
        line = np.power(10.0, middle + slope * np.arange(len(logs)))
    label = "line through the gradient"
    axes.plot(places, line, "--", color=rgb_of(_DELTA_COLOR), alpha=0.6, label=label)


def _draw_special(axes: Axes, delta: FloatArray) -> None:
    """Mark along the lower edge where the gradient has no logarithm."""
    edge = axes.get_xaxis_transform()
    for what, found, color in (("exactly zero", delta == 0, ZERO_COLOR), ("infinite", np.isposinf(delta), NAN_COLOR)):
        at = np.flatnonzero(found)
        if len(at):
            low = np.full(len(at), 0.03)
            axes.plot(at, low, "X", color=rgb_of(color), label=f"gradient {what}", transform=edge, clip_on=False)


def _draw_sick(axes: Axes, report: Report) -> None:
    """Shade the layers of the first diagnosis."""
    places = {name: place for place, name in enumerate(report.layers)}
    for diagnosis in report.diagnoses[:1]:
        color, label = severity_color(diagnosis.to_dict()), f"layers of the {diagnosis.severity}"
        at = sorted(places[name] for name in diagnosis.layers if name in places)
        for group in np.split(np.array(at, dtype=np.int64), np.flatnonzero(np.diff(at) > 1) + 1) if at else ():
            axes.axvspan(group[0] - 0.5, group[-1] + 0.5, color=color, alpha=0.1, linewidth=0, label=label)
            label = ""


def _name_layers(axes: Axes, layers: tuple[str, ...]) -> None:
    prefix, labels = split_prefix(layers)
    stride = max(1, -(-len(labels) // _MAX_NAMED))
    named = [short(label) for label in labels[::stride]]
    turned = 90 if sum(map(len, named)) > 100 else 0
    axes.set_xticks(range(0, len(labels), stride), [plain(name) for name in named], rotation=turned, fontsize="small")
    axes.set_xlim(-0.7, max(len(layers), 1) - 0.3)
    axes.set_xlabel(plain(f"{prefix}*, input on the left, output on the right" if prefix else "input on the left"))
