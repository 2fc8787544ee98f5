"""Test ``lightning_gradwatch.report.image``."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from lightning_gradwatch.report import image, palette
from lightning_gradwatch.report.image import Heatmap, Mark, draw_heatmap
from lightning_gradwatch.report.layout import Layout, plan_layout
from lightning_gradwatch.report.pen import WIDTH, Pen


def make(norms: object, names: tuple[str, ...] | None = None, steps: object = None, **more: object) -> Heatmap:
    """Make a heatmap in which every layer is present unless told otherwise."""
    table = np.asarray(norms, dtype=np.float64)
    names = tuple(f"layer{i}" for i in range(table.shape[1])) if names is None else names
    steps = np.arange(len(table)) if steps is None else np.asarray(steps)
    more.setdefault("present", np.ones(table.shape, dtype=np.bool_))
    return Heatmap(names, steps.astype(np.int64), table, **more)  # type: ignore[arg-type]


def layout_of(heatmap: Heatmap) -> Layout:
    """Return the layout of a heatmap's picture."""
    return plan_layout(heatmap.layers, heatmap.steps)


def pixels(heatmap: Heatmap, reading: int, layer: int) -> npt.NDArray[np.uint8]:
    """Return the pixels of one cell, [height, width, 3]."""
    return draw_heatmap(heatmap)[layout_of(heatmap).cell(reading, layer)]


def colors(heatmap: Heatmap, reading: int, layer: int) -> set[tuple[int, ...]]:
    """Return the set of colors in one cell."""
    return {tuple(pixel) for pixel in pixels(heatmap, reading, layer).reshape(-1, 3).tolist()}


def strip(heatmap: Heatmap) -> npt.NDArray[np.bool_]:
    """Return for each pixel column of the plot whether the strip below has a red tick."""
    layout = layout_of(heatmap)
    row = draw_heatmap(heatmap)[layout.row_edges[-1] + 6, layout.column_edges[0] : layout.column_edges[-1]]
    return (row == image.MARK_COLORS["warning"]).all(axis=1)


class TestColors:
    """Colors of single cells."""

    def test_norms_on_the_scale_get_the_colors_of_the_ramp(self) -> None:
        """A small norm is blue, one in the middle beige and a large one red, each in a solid color."""
        heatmap = make([[1e-7, 1e-1, 1e5]])
        assert colors(heatmap, 0, 0) == {(33, 80, 170)}
        assert np.ptp(list(colors(heatmap, 0, 1).pop())) < 30
        assert colors(heatmap, 0, 2) == {(196, 36, 32)}

    def test_norms_beyond_the_anchors_get_the_colors_of_the_caps(self) -> None:
        """Everything below the low anchor looks the same, and so does everything above the high one."""
        heatmap = make([[9e-8, 1e-300, 1.1e5, 1e300]])
        assert colors(heatmap, 0, 0) == colors(heatmap, 0, 1) == {palette.BELOW_COLOR}
        assert colors(heatmap, 0, 2) == colors(heatmap, 0, 3) == {palette.ABOVE_COLOR}

    def test_special_states_have_their_own_colors(self) -> None:
        """NaN is black and yellow, infinity yellow, zero gray, absent white with a light pattern."""
        present = np.array([[True, True, True, False]])
        heatmap = make([[np.nan, np.inf, 0.0, np.nan]], present=present)
        assert colors(heatmap, 0, 0) == {palette.NAN_COLOR, palette.NAN_HATCH}
        assert colors(heatmap, 0, 1) == {palette.INF_COLOR}
        assert colors(heatmap, 0, 2) == {palette.ZERO_COLOR}
        assert colors(heatmap, 0, 3) == {palette.ABSENT_COLOR, palette.ABSENT_HATCH}


class TestAnchors:
    """Ends of the color scale."""

    def test_the_scale_does_not_depend_on_the_data(self) -> None:
        """A cell keeps its color whatever the other cells hold."""
        assert colors(make([[0.1, 0.1]]), 0, 0) == colors(make([[0.1, 1e30]]), 0, 0)
        assert colors(make([[0.1, 0.1]]), 0, 0) == colors(make([[0.1, np.nan]]), 0, 0)

    def test_thresholds_of_the_user_move_the_anchors(self) -> None:
        """The user's thresholds become the two ends of the ramp."""
        heatmap = make([[1e-4, 9e-5, 10.0, 11.0]], vanishing_threshold=1e-4, exploding_threshold=10.0)
        assert colors(heatmap, 0, 0) == {(33, 80, 170)}
        assert colors(heatmap, 0, 1) == {palette.BELOW_COLOR}
        assert colors(heatmap, 0, 2) == {(196, 36, 32)}
        assert colors(heatmap, 0, 3) == {palette.ABOVE_COLOR}

    @pytest.mark.parametrize(
        ("vanishing", "exploding"),
        [(0.0, None), (-1.0, np.inf), (np.nan, None), (1e9, None), (None, 1e-9), (5.0, 5.0), (1.0, 1e-3)],
    )
    def test_useless_thresholds_still_give_a_scale(self, vanishing: float, exploding: float) -> None:
        """Zero, negative, infinite or reversed thresholds never break the picture."""
        anchors = palette.anchors_for(vanishing, exploding)
        assert np.isfinite(anchors.low)
        assert anchors.low < anchors.high
        draw_heatmap(make([[0.1]], vanishing_threshold=vanishing, exploding_threshold=exploding))


class TestReadings:
    """Readings put into columns."""

    def test_many_readings_show_their_median_and_mark_the_extreme(self) -> None:
        """A single spike leaves the cell at the median, and its column alone gets a red tick."""
        norms = np.full((3000, 1), 1e-2)
        norms[1500] = 1e3
        heatmap = make(norms)
        layout = layout_of(heatmap)
        assert colors(heatmap, 1500, 0) == colors(make([[1e-2]]), 0, 0)
        column = layout.cell(1500, 0)[1]
        expected = np.zeros(layout.column_edges[-1] - layout.column_edges[0], dtype=np.bool_)
        expected[column.start - layout.column_edges[0] : column.stop - layout.column_edges[0]] = True
        assert (strip(heatmap) == expected).all()

    def test_a_hundredfold_peak_is_not_yet_extreme(self) -> None:
        """The red tick needs more than 100 times the median."""
        norms = np.full((3000, 1), 1e-2)
        norms[1500] = 0.99
        assert not strip(make(norms)).any()

    def test_one_nan_or_infinity_takes_the_cell(self) -> None:
        """In a column of many readings NaN wins over infinity and infinity over numbers."""
        norms = np.full((3000, 3), 1e-2)
        norms[1500, 0] = norms[1501, 1] = np.inf
        norms[1500, 1] = np.nan
        heatmap = make(norms)
        column = layout_of(heatmap).column_of_reading
        assert column[1500] == column[1501]
        assert colors(heatmap, 1500, 0) == {palette.INF_COLOR}
        assert palette.NAN_COLOR in colors(heatmap, 1500, 1)
        assert colors(heatmap, 1500, 2) == colors(make([[1e-2]]), 0, 0)

    def test_unsorted_readings_are_put_in_order(self) -> None:
        """The picture does not depend on the order of the readings."""
        norms, steps = np.array([[1e-6], [1.0], [1e3]]), np.array([5, 6, 7])
        shuffled = make(norms[[2, 0, 1]], steps=steps[[2, 0, 1]])
        assert (draw_heatmap(shuffled) == draw_heatmap(make(norms, steps=steps))).all()


class TestLayers:
    """Layers put into rows, and their names."""

    def test_thousands_of_layers_share_rows_by_the_most_abnormal(self) -> None:
        """With 2,000 layers the picture stays bounded, and one vanishing or broken layer stays visible."""
        norms = np.full((2, 2000), 1e-2)
        norms[:, 777], norms[:, 1234], norms[:, 1500] = 1e-9, np.nan, np.inf
        heatmap = make(norms, marks=tuple(Mark(0, "x") for _ in range(9)))
        assert layout_of(heatmap).layers_per_row > 1
        assert draw_heatmap(heatmap).shape[0] <= 850
        assert palette.BELOW_COLOR in colors(heatmap, 1, 777)
        assert palette.NAN_COLOR in colors(heatmap, 1, 1234)
        assert colors(heatmap, 1, 1500) == {palette.INF_COLOR}


class TestMarks:
    """Onsets."""

    def test_a_mark_points_at_its_step(self) -> None:
        """A warning draws a red triangle above the plot at its step."""
        heatmap = make(np.full((100, 2), 0.1), marks=(Mark(37, "VANISHING 18 layers"),))
        layout = layout_of(heatmap)
        above = draw_heatmap(heatmap)[layout.row_edges[0] - 8]
        red = np.flatnonzero((above == image.MARK_COLORS["warning"]).all(axis=1))
        assert abs(red.mean() - layout.x_of(37)) <= 1

    def test_a_mark_outside_of_the_steps_is_only_listed(self) -> None:
        """A mark that the readings no longer reach draws nothing above the plot but has its line."""
        plain, marked = make([[0.1]]), make([[0.1]], marks=(Mark(999, "gone", "notice"),))
        top = layout_of(plain).row_edges[-1]
        assert (draw_heatmap(plain)[:top] == draw_heatmap(marked)[:top]).all()
        assert draw_heatmap(marked).shape[0] > draw_heatmap(plain).shape[0]

    def test_warnings_are_listed_before_notices(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where only four fit, warnings stay, and the rest is counted."""
        written: list[str] = []

        def record(pen: Pen, x: int, y: int, text: str, *rest: object, **more: object) -> int:
            written.append(text)
            return 0

        monkeypatch.setattr(Pen, "text", record)
        marks = (*(Mark(i, "low", "notice") for i in range(6)), Mark(9, "VANISHING"))
        monkeypatch.setattr(image, "draw_scale", lambda *_: None)
        draw_heatmap(make(np.full((10, 1), 0.1), marks=marks))
        assert written[-6:-1] == ["step 0  low", "step 1  low", "step 2  low", "step 9  VANISHING", "+ 3 more"]

    def test_what_lasts_is_listed_before_what_is_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Four warnings that are over leave no doubt about the fifth, which lasts."""
        written: list[str] = []
        monkeypatch.setattr(Pen, "text", lambda *place, **_: written.append(place[3]) or 0)
        monkeypatch.setattr(image, "draw_scale", lambda *_: None)
        marks = (*(Mark(i, "over", lasts=False) for i in range(5)), Mark(9, "NON-FINITE"))
        draw_heatmap(make(np.full((10, 1), 0.1), marks=marks))
        assert written[-6:-1] == ["step 0  over", "step 1  over", "step 2  over", "step 9  NON-FINITE", "+ 2 more"]


class TestVerdict:
    """How the run fares, in large letters."""

    def test_the_verdict_is_shortened_by_whole_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What does not fit is counted, and the first part stays."""
        written: list[str] = []
        write = Pen.text

        def record(pen: Pen, x: int, y: int, text: str, *rest: object, **more: object) -> int:
            written.append(text)
            return write(pen, x, y, text, *rest, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(Pen, "text", record)
        parts = tuple(f"VANISHING since step {step}000" for step in range(5))
        draw_heatmap(make([[0.1]], verdict=parts, alarm=True))
        assert written[1] == "VANISHING since step 0000, VANISHING since step 1000, 3 more"


class TestDegenerate:
    """Input at the edge."""

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1.0, 0.0, 5e-324, 1.7e308])
    @pytest.mark.parametrize("n", [1, 1000])
    def test_any_single_value_can_be_drawn(self, value: float, n: int) -> None:
        """A table that holds one value everywhere is drawn within bounds."""
        picture = draw_heatmap(make(np.full((n, 3), value)))
        assert picture.dtype == np.uint8
        assert picture.shape[1:] == (WIDTH, 3)

    def test_all_absent_can_be_drawn(self) -> None:
        """A run without any gradient shows the absent pattern everywhere."""
        heatmap = make(np.zeros((400, 2)), present=np.zeros((400, 2), dtype=np.bool_))
        assert colors(heatmap, 399, 1) <= {palette.ABSENT_COLOR, palette.ABSENT_HATCH}

    @pytest.mark.parametrize("shape", [(0, 0), (0, 3), (2, 0)])
    def test_no_reading_and_no_layer_draw_a_frame(self, shape: tuple[int, int]) -> None:
        """Empty arrays give a frame with words in it, not an error."""
        heatmap = make(np.zeros(shape), marks=(Mark(3, "early"),))
        layout = layout_of(heatmap)
        inside = draw_heatmap(heatmap)[layout.row_edges[0] : layout.row_edges[-1], layout.column_edges[0] :]
        assert (inside < 100).all(axis=2).sum() > 50

    def test_strange_names_are_replaced(self) -> None:
        """Letters that the font lacks, line breaks and markup are drawn as plain text."""
        names = ("\u5c42.\u4e00", "<b>x</b>\n", "")
        heatmap = make(np.ones((1, 3)), names=names, title="\u00e9t\u00e9", marks=(Mark(0, "\u26a0\n"),))
        assert layout_of(heatmap).labels == ("?.?", "<b>x</b>?", "")
        draw_heatmap(heatmap)

    def test_very_long_text_stays_in_bounds(self) -> None:
        """Titles, marks and names longer than the picture are shortened: the right edge stays white."""
        names = tuple(f"{'p' * 300}.{i}.{'q' * 300}" for i in range(2))
        heatmap = make(np.ones((1, 2)), names=names, title="t" * 999, marks=(Mark(0, "m" * 999),))
        assert (draw_heatmap(heatmap)[:, WIDTH - 5 :] == 255).all()

    def test_the_same_step_twice_and_huge_steps(self) -> None:
        """Repeated steps share a column, and steps of billions keep their labels apart."""
        for steps in ([5, 5, 5], [10**12, 10**12 + 7]):
            picture = draw_heatmap(make(np.ones((len(steps), 1)), steps=steps))
            assert picture.shape[1:] == (WIDTH, 3)

    def test_shapes_that_disagree_are_refused(self) -> None:
        """A table that does not fit the names is an error that says so."""
        with pytest.raises(ValueError, match="both must be"):
            make(np.ones((2, 3)), names=("a", "b"))

    def test_input_is_left_alone(self) -> None:
        """Drawing twice gives the same picture and changes no array."""
        norms = np.array([[1e-9, np.nan], [np.inf, 0.0]])
        heatmap = make(norms.copy())
        assert (draw_heatmap(heatmap) == draw_heatmap(heatmap)).all()
        assert np.array_equal(heatmap.norms, norms, equal_nan=True)

    def test_the_picture_survives_a_round_trip_through_pillow(self) -> None:
        """What is drawn can be handed to Pillow, and so to a file."""
        assert Image.fromarray(draw_heatmap(make([[0.1]]))).size[0] == WIDTH
