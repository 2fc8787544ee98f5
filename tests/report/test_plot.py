"""Test ``lightning_gradwatch.report.plot``."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.report import palette
from lightning_gradwatch.report.plot import plot_run
from lightning_gradwatch.report.recorded import each_reading
from lightning_gradwatch.viewer.metadata import SeriesMetadata
from lightning_gradwatch.viewer.run import Run, Series
from lightning_gradwatch.viewer.windows import Windows


def series_of(values, quantity="norms", *, present=None, steps=None, layers=None, optimizer=0, module="", **thresholds):
    """Return a series of plain numbers ``[n, num_layers]``."""
    values = np.asarray(values, dtype=np.float64)
    present = np.ones(values.shape, dtype=np.bool_) if present is None else np.asarray(present)
    names = tuple(layers or (f"net.{number}" for number in range(values.shape[1])))
    about = SeriesMetadata(
        quantity, optimizer, "a1", 0.0, 0, names, tuple(range(len(names))), module=module, **thresholds
    )
    return Series(about, names, (), each_reading(np.arange(len(values)) if steps is None else steps, values, present))


def run_of(*series: Series, diagnoses=()) -> Run:
    """Return a run of some series."""
    return Run("mine", series, [{"event": "onset", "diagnosis": diagnosis.to_dict()} for diagnosis in diagnoses])


def mesh_of(figure: Figure):
    """Return the colored mesh of a figure."""
    return figure.axes[0].collections[0]


def pixels_of(figure: Figure) -> np.ndarray:
    """Return a figure as it is drawn, ``[height, width, 3]``."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]


def legend_of(figure: Figure) -> list[str]:
    """Return the words of the legend."""
    legend = figure.axes[0].get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def test_every_cell_has_the_color_of_the_other_pictures() -> None:
    """Rows are layers, input on top, columns steps, and the colors those of ``palette``, special states included."""
    values = np.array([[1e-7, 1e-1, 1e5, 0.0, np.nan], [1e-9, 1e9, np.inf, 1.0, 1.0]])
    present = np.array([[True] * 5, [True] * 4 + [False]])
    figure = plot_run(run_of(series_of(values, present=present)))
    codes = np.asarray(mesh_of(figure).get_array())
    expected = palette.color_codes(values, present, palette.Anchors(-7.0, 5.0)).T
    assert codes.tolist() == expected.tolist()
    assert (mesh_of(figure).to_rgba(codes)[..., :3] * 255).round().tolist() == palette.table()[codes].tolist()
    top, bottom = figure.axes[0].get_ylim()[::-1]
    assert top < bottom
    assert legend_of(figure) == ["NaN", "infinite", "exactly zero", "nothing measured"]


def test_what_is_drawn_has_the_special_colors() -> None:
    """A screen full of NaN is black with yellow stripes, one of nothing white with grey ones."""
    for value, there, wanted in (
        (np.nan, True, (palette.NAN_COLOR, palette.NAN_HATCH)),
        (np.nan, False, (palette.ABSENT_COLOR, palette.ABSENT_HATCH)),
        (np.inf, True, (palette.INF_COLOR,)),
        (0.0, True, (palette.ZERO_COLOR,)),
    ):
        figure = plot_run(run_of(series_of([[value]] * 3, present=[[there]] * 3)))
        middle = pixels_of(figure)[150:250, 200:600].reshape(-1, 3).astype(int)
        for color in wanted:
            assert (np.abs(middle - color).max(axis=1) < 40).mean() > 0.04, (value, there, color)


def test_columns_lie_at_their_true_steps() -> None:
    """Uneven steps are drawn uneven."""
    figure = plot_run(run_of(series_of(np.ones((3, 1)), steps=np.array([0, 10, 40]))))
    assert mesh_of(figure).get_coordinates()[0, :, 0].tolist() == [0, 10, 40, 60]


def test_thresholds_of_the_person_anchor_the_colors() -> None:
    """A norm below the person's own threshold has the color of the lower cap."""
    run = run_of(series_of([[1e-3, 1.0]], vanishing_threshold=1e-2, exploding_threshold=1e2))
    assert np.asarray(mesh_of(plot_run(run)).get_array())[0, 0] == palette.BELOW


def test_marks_point_at_their_step_and_are_listed() -> None:
    """A triangle stands above the onset; the legend has the words, what lasts before what is over."""
    sick = [Diagnosis("a", Symptom.VANISHING, layers=("net.0",), step=step, recovered_at=step + 1) for step in range(5)]
    lasting = Diagnosis("b", Symptom.NON_FINITE, layers=("net.0", "net.1"), step=9)
    other = Diagnosis("c", Symptom.DEAD, optimizer=1, layers=("net.0",), step=3)
    figure = plot_run(run_of(series_of(np.ones((20, 2))), diagnoses=[*sick, lasting, other]))
    assert legend_of(figure) == [
        "step 0: VANISHING, 1 layer, until step 1",
        "step 1: VANISHING, 1 layer, until step 2",
        "step 2: VANISHING, 1 layer, until step 3",
        "step 9: NON-FINITE, 2 layers",
        "and 2 more",
    ]
    triangles = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_marker() == "v"]
    assert sorted(triangles) == [0, 1, 2, 3, 4, 9]


def test_the_title_says_what_it_is_and_how_it_fared() -> None:
    """Quantity, optimizer where there are several, and the verdict."""
    sick = Diagnosis("a", Symptom.VANISHING, layers=("net.0",), step=1)
    run = run_of(series_of(np.ones((3, 2))), series_of(np.ones((3, 2)), optimizer=1), diagnoses=[sick])
    title = plot_run(run, optimizer=1).axes[0].get_title(loc="left")
    assert title == "gradient norm, optimizer 1\nVANISHING since step 1 (2 layers, steps 0 to 2)"


def test_a_large_run_is_drawn_within_bounds() -> None:
    """Of 2,000 layers and columns neither the cell that vanishes nor the one that is NaN is lost, nor a spike."""
    values = np.full((2000, 2000), 0.1)
    values[777, 1234], values[900, 300], values[50, 60] = 1e-9, np.nan, 1e4
    figure = plot_run(run_of(series_of(values)))
    codes = np.asarray(mesh_of(figure).get_array())
    assert codes.shape[0] <= 320
    assert codes.shape[1] <= 640
    assert palette.NAN in codes
    assert "peak > 100x median" in legend_of(figure)
    assert len(figure.axes[0].get_yticks()) <= 22
    assert "7 a row" in figure.axes[0].get_ylabel()


def test_a_median_that_vanishes_keeps_the_color_of_vanishing() -> None:
    """Where a window holds many readings, its median is drawn."""
    logs, high = np.full((1, 1), -9.0), np.full((1, 1), 3.0)
    windows = Windows(np.array([0]), logs, logs, high, np.ones((1, 1), dtype=np.uint8))
    run = run_of(Series(series_of([[1.0]]).about, ("net.0",), (), windows))
    assert np.asarray(mesh_of(plot_run(run)).get_array()).tolist() == [[palette.BELOW]]


@pytest.mark.parametrize(
    ("quantity", "optimizer", "words"),
    [
        ("norm", 0, "`quantity` must be one of norms, ratios, .* Got 'norm'"),
        ("delta", 0, "no 'delta' of optimizer 0 in this run. There are: norms/0"),
        ("norms", 7, "no 'norms' of optimizer 7 in this run. There are: norms/0"),
    ],
)
def test_what_was_not_measured_is_refused_with_what_there_is(quantity: str, optimizer: int, words: str) -> None:
    """The error names what can be asked for."""
    with pytest.raises(ValueError, match=words):
        plot_run(run_of(series_of([[1.0]])), quantity, optimizer)


def test_names_are_text() -> None:
    """A layer that is called like a formula is drawn as it is called, and a long one keeps both ends."""
    long = "block." + "x" * 60 + ".last"
    figure = plot_run(run_of(series_of([[1.0, 1.0]], layers=("$\\frac{$", long), module="$a$")))
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[0] == r"\$\frac{\$"
    assert labels[1].startswith("block.")
    assert labels[1].endswith("xx.last")
    assert len(labels[1]) <= 30
    figure.canvas.draw()


def test_axes_of_the_person_are_drawn_on() -> None:
    """With ``ax`` the figure is the person's own, and what else is on it stays."""
    mine = Figure()
    left, right = mine.subplots(1, 2)
    left.plot([1, 2])
    assert plot_run(run_of(series_of([[1.0]])), ax=right) is mine
    assert len(left.lines) == 1
    assert right.collections


def test_several_runs_share_a_figure_whose_layout_is_constrained() -> None:
    """A run without a peak has no mark, which a layout would take for one at the figure's corner."""
    figure = Figure(layout="constrained", figsize=(8, 3))
    for axes in figure.subplots(1, 2):
        plot_run(run_of(series_of([[0.1, 1.0]] * 3)), ax=axes)
    figure.draw_without_rendering()
    assert all(axes.get_position().width > 0.2 for axes in figure.axes[:2])


def test_pyplot_is_left_alone() -> None:
    """Drawing makes no figure that pyplot would show, and does not change which one is current."""
    mine = plt.figure()
    try:
        plot_run(run_of(series_of([[1.0]])))
        assert plt.get_fignums() == [mine.number]
        assert plt.gcf() is mine
        assert mine.axes == []
    finally:
        plt.close(mine)


def test_a_notebook_shows_the_figure_although_pyplot_was_never_imported() -> None:
    """The figure makes its own PNG."""
    assert plot_run(run_of(series_of([[1.0]])))._repr_png_().startswith(b"\x89PNG")
