"""Test ``lightning_gradwatch.report.depth_plot``."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from lightning_gradwatch import Report
from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom


def report_of(delta, signal=None, **more) -> Report:
    """Return a report with plain numbers."""
    delta = np.asarray(delta, dtype=np.float64)
    layers = tuple(f"net.{number}" for number in range(len(delta)))
    return Report(layers, np.ones(len(delta)) if signal is None else np.asarray(signal), delta, **more)


def line(figure: Figure, label: str) -> np.ndarray:
    """Return the points of a curve, ``[2, n]``."""
    (found,) = [one for one in figure.axes[0].lines if label in str(one.get_label())]
    return np.array(found.get_data(), dtype=np.float64)


def test_both_curves_and_the_line_are_the_numbers_of_the_report() -> None:
    """A gradient that falls by ten a layer is its own line; the signal is beside it, on one logarithmic scale."""
    delta = 10.0 ** np.arange(-7.0, 1.0)
    figure = report_of(delta, signal=np.linspace(1, 2, 8)).plot()
    assert line(figure, "gradient reaching").tolist() == [list(range(8)), delta.tolist()]
    assert line(figure, "signal").tolist() == [list(range(8)), np.linspace(1, 2, 8).tolist()]
    np.testing.assert_allclose(line(figure, "line through"), [np.arange(8), delta], rtol=1e-9)
    assert figure.axes[0].get_yscale() == "log"


def test_the_line_ignores_an_outlier() -> None:
    """It is the median slope of all pairs, as the rule's."""
    delta = 10.0 ** np.arange(-9.0, 1.0)
    delta[4] = 1e6
    places, values = line(report_of(delta).plot(), "line through")
    np.testing.assert_allclose(np.diff(np.log10(values)) / np.diff(places), 1.0, atol=0.05)


def test_zeros_and_infinities_are_marked_at_the_edge_and_leave_gaps() -> None:
    """What has no logarithm is not drawn as a number; what was not measured is not marked at all."""
    figure = report_of([0.0, 1e-3, np.inf, np.nan, 1e-1, 0.0]).plot()
    assert np.isnan(line(figure, "gradient reaching")[1]).tolist() == [True, False, True, True, False, True]
    assert line(figure, "exactly zero")[0].tolist() == [0, 5]
    assert line(figure, "infinite")[0].tolist() == [2]
    assert not any("line through" in str(one.get_label()) for one in figure.axes[0].lines)


def test_sick_layers_are_shaded_and_named_in_the_title() -> None:
    """The first diagnosis stands in the title, and its layers, in two groups, are shaded."""
    sick = Diagnosis("v", Symptom.VANISHING, layers=("net.4", "net.0", "net.1"), message="the first layers get nothing")
    axes = report_of(np.geomspace(1e-9, 1, 6), diagnoses=(sick,), factor=0.02).plot().axes[0]
    headline, named = axes.get_title(loc="left").split("\n")
    assert headline == "1 warning in 6 layers; the gradient is multiplied by 0.02 a layer back"
    assert named == "VANISHING: the first layers get nothing"
    spans = sorted((patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches)
    assert spans == [(-0.5, 1.5), (3.5, 4.5)]


@pytest.mark.parametrize("count", [0, 1, 500])
def test_any_number_of_layers_can_be_drawn(count: int) -> None:
    """None at all, a single one, and so many that only some can be named."""
    figure = report_of(np.full(count, 0.1)).plot()
    figure.canvas.draw()
    assert len(figure.axes[0].get_xticks()) <= 40


def test_axes_of_the_person_are_drawn_on() -> None:
    """With ``ax`` the figure is the person's own."""
    mine = Figure()
    axes = mine.subplots()
    assert report_of([0.1, 0.2]).plot(ax=axes) is mine
    assert axes.lines
