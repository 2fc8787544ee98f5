"""Test ``lightning_gradwatch.report.image``."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageFont

from lightning_gradwatch.report import image, palette
from lightning_gradwatch.report.image import Heatmap, Mark, draw_heatmap, plan_layout

Array = npt.NDArray[np.float64]

# Machado, Oliveira and Fernandes 2009, severity 1, applied to linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
}


def make(
    norms: object, names: tuple[str, ...] | None = None, steps: object = None, **more: object
) -> Heatmap:
    """Make a heatmap in which every layer is present unless told otherwise."""
    table = np.asarray(norms, dtype=np.float64)
    names = tuple(f"layer{i}" for i in range(table.shape[1])) if names is None else names
    steps = np.arange(len(table)) if steps is None else np.asarray(steps)
    more.setdefault("present", np.ones(table.shape, dtype=np.bool_))
    return Heatmap(names, steps.astype(np.int64), table, **more)  # type: ignore[arg-type]


def pixels(heatmap: Heatmap, reading: int, layer: int) -> npt.NDArray[np.uint8]:
    """Return the pixels of one cell, [height, width, 3]."""
    return draw_heatmap(heatmap)[plan_layout(heatmap).cell(reading, layer)]


def colors(heatmap: Heatmap, reading: int, layer: int) -> set[tuple[int, ...]]:
    """Return the set of colors in one cell."""
    return {tuple(pixel) for pixel in pixels(heatmap, reading, layer).reshape(-1, 3).tolist()}


def strip(heatmap: Heatmap) -> npt.NDArray[np.bool_]:
    """Return for each pixel column of the plot whether the strip below has a red tick."""
    layout = plan_layout(heatmap)
    row = draw_heatmap(heatmap)[layout.row_edges[-1] + 6, layout.column_edges[0] : layout.column_edges[-1]]
    return (row == image.MARK_COLORS["warning"]).all(axis=1)


def lab(rgb: object, vision: str) -> Array:
    """Convert sRGB as seen with a kind of color vision to CIE Lab, [..., 3]."""
    share = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ VISION[vision].T, 0, 1)
    to_xyz = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    xyz = linear @ to_xyz.T / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


SPECIAL = {
    "nan": palette.NAN_COLOR,
    "inf": palette.INF_COLOR,
    "zero": palette.ZERO_COLOR,
    "absent": palette.ABSENT_COLOR,
}
RAMP = palette.paint(palette.scale_codes(250)[None])[0]


class TestColors:
    """Colors of single cells."""

    def test_norms_on_the_scale_get_the_colors_of_the_ramp(self) -> None:
        """A small norm is blue, one in the middle beige and a large one red, each in a solid color."""
        heatmap = make([[1e-7, 1e-2, 1e3]])
        assert colors(heatmap, 0, 0) == {(33, 80, 170)}
        assert np.ptp(list(colors(heatmap, 0, 1).pop())) < 30
        assert colors(heatmap, 0, 2) == {(196, 36, 32)}

    def test_norms_beyond_the_anchors_get_the_colors_of_the_caps(self) -> None:
        """Everything below the low anchor looks the same, and so does everything above the high one."""
        heatmap = make([[9e-8, 1e-300, 1.1e3, 1e300]])
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

    @pytest.mark.parametrize("offset", range(6))
    def test_a_narrow_nan_cell_is_never_all_yellow(self, offset: int) -> None:
        """A NaN cell of the least width keeps a black pixel wherever it lies."""
        codes = np.full((1, 12), palette.NAN, dtype=np.uint8)
        cell = palette.paint(codes)[:, offset : offset + image.MIN_COLUMN_WIDTH]
        assert (cell == palette.NAN_COLOR).all(axis=2).any()

    @pytest.mark.parametrize("vision", VISION)
    def test_special_states_differ_from_each_other_and_from_the_ramp(self, vision: str) -> None:
        """No special state is taken for another, for the ramp's ends or for a cap in any color vision."""
        ends = [RAMP[0], RAMP[-1], palette.BELOW_COLOR, palette.ABOVE_COLOR]
        for one, other in combinations(SPECIAL.values(), 2):
            assert np.linalg.norm(lab(one, vision) - lab(other, vision)) > 35
        for special in SPECIAL.values():
            assert np.linalg.norm(lab(ends, vision) - lab(special, vision), axis=1).min() > 20
            assert np.linalg.norm(lab(RAMP, vision) - lab(special, vision), axis=1).min() > 14

    @pytest.mark.parametrize("vision", VISION)
    def test_the_ends_of_the_ramp_stay_apart(self, vision: str) -> None:
        """Vanishing and exploding differ strongly in any color vision."""
        low, high = lab(RAMP[0], vision), lab(RAMP[-1], vision)
        assert np.linalg.norm(low - high) > 60
        caps = lab([palette.BELOW_COLOR, palette.ABOVE_COLOR], vision)
        assert np.linalg.norm(caps[0] - caps[1]) > 40

    def test_the_ramp_is_nowhere_flat(self) -> None:
        """Four tenths of a decade always change the color, in the usual band too."""
        seen = lab(RAMP, "normal")
        assert np.linalg.norm(seen[10:] - seen[:-10], axis=1).min() > 1.5


class TestAnchors:
    """Ends of the color scale."""

    def test_the_scale_does_not_depend_on_the_data(self) -> None:
        """A cell keeps its color whatever the other cells hold."""
        assert colors(make([[0.1, 0.1]]), 0, 0) == colors(make([[0.1, 1e30]]), 0, 0)
        assert colors(make([[0.1, 0.1]]), 0, 0) == colors(make([[0.1, np.nan]]), 0, 0)

    def test_thresholds_of_the_user_move_the_anchors(self) -> None:
        """The user's thresholds become the two ends of the ramp."""
        heatmap = make([[1e-4, 9e-5, 10.0, 11.0]], vanishing_threshold=1e-4, exploding_threshold=10.0)
        assert colors(heatmap, 0, 0) == {tuple(RAMP[0].tolist())}
        assert colors(heatmap, 0, 1) == {palette.BELOW_COLOR}
        assert colors(heatmap, 0, 2) == {tuple(RAMP[-1].tolist())}
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

    @pytest.mark.parametrize(("log", "text"), [(-7.0, "1e-7"), (0.0, "1e0"), (np.log10(3e-5), "3e-5")])
    def test_powers_are_written_short(self, log: float, text: str) -> None:
        """Tick labels have no padding zeros."""
        assert image._power(log) == text


class TestReadings:
    """Readings put into columns."""

    def test_many_readings_show_their_median_and_mark_the_extreme(self) -> None:
        """A single spike leaves the cell at the median, and its column alone gets a red tick."""
        norms = np.full((3000, 1), 1e-2)
        norms[1500] = 1e3
        heatmap = make(norms)
        layout = plan_layout(heatmap)
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
        column = plan_layout(heatmap).column_of_reading
        assert column[1500] == column[1501]
        assert colors(heatmap, 1500, 0) == {palette.INF_COLOR}
        assert palette.NAN_COLOR in colors(heatmap, 1500, 1)
        assert colors(heatmap, 1500, 2) == colors(make([[1e-2]]), 0, 0)

    @pytest.mark.parametrize(("zeros", "expected"), [(1, 1e-2), (2, 1e-2), (3, 0.0)])
    def test_zero_needs_the_majority(self, zeros: int, expected: float) -> None:
        """A column of four readings is exactly zero only where more than half of them are."""
        norms = np.array([[0.0]] * zeros + [[1e-2]] * (4 - zeros))
        value, _, _ = palette.reduce_readings(norms, norms >= 0, np.zeros(4, dtype=np.int64), 1)
        assert value[0, 0] == pytest.approx(expected)

    def test_the_median_is_taken_on_the_log_scale(self) -> None:
        """Of two readings the cell shows the geometric mean."""
        norms = np.array([[1e-4], [1.0]])
        value, _, _ = palette.reduce_readings(norms, norms > 0, np.zeros(2, dtype=np.int64), 1)
        assert value[0, 0] == pytest.approx(1e-2)

    def test_absent_readings_do_not_count(self) -> None:
        """A column with one reading in which the layer took part shows that one."""
        norms = np.array([[np.nan], [5.0], [np.nan], [0.0]])
        present = np.array([[False], [True], [False], [False]])
        value, seen, _ = palette.reduce_readings(norms, present, np.zeros(4, dtype=np.int64), 1)
        assert value[0, 0] == pytest.approx(5.0)
        assert seen.all()

    def test_uneven_readings_lie_at_their_true_steps(self) -> None:
        """Every cell contains its step, and the border lies halfway between two steps."""
        heatmap = make(np.full((4, 1), 0.1), steps=[0, 10, 20, 100])
        layout = plan_layout(heatmap)
        for reading, step in enumerate(heatmap.steps):
            columns = layout.cell(reading, 0)[1]
            assert columns.start <= layout.x_of(step) < columns.stop
        assert abs(int(layout.column_edges[3]) - layout.x_of(60)) <= 1

    def test_unsorted_readings_are_put_in_order(self) -> None:
        """The picture does not depend on the order of the readings."""
        norms, steps = np.array([[1e-6], [1.0], [1e3]]), np.array([5, 6, 7])
        shuffled = make(norms[[2, 0, 1]], steps=steps[[2, 0, 1]])
        assert (draw_heatmap(shuffled) == draw_heatmap(make(norms, steps=steps))).all()

    @pytest.mark.parametrize("n", [1, 2, 7, 240, 281, 300, 5000])
    def test_columns_cover_the_plot(self, n: int) -> None:
        """Columns of any number of readings are at least a pixel wide and leave no gap."""
        steps = np.cumsum(np.random.default_rng(n).integers(1, 50, n))
        layout = plan_layout(make(np.full((n, 1), 0.1), steps=steps))
        assert (np.diff(layout.column_edges) >= 1).all()
        assert set(layout.column_of_reading) == set(range(len(layout.column_edges) - 1))
        assert layout.column_edges[-1] == image.WIDTH - image.MARGIN


class TestLayers:
    """Layers put into rows, and their names."""

    def test_the_first_layer_is_on_top(self) -> None:
        """Rows go from the input at the top to the output at the bottom."""
        layout = plan_layout(make([[0.1, 0.1]]))
        assert layout.cell(0, 0)[0].stop <= layout.cell(0, 1)[0].start

    def test_thousands_of_layers_share_rows_by_the_most_abnormal(self) -> None:
        """With 2,000 layers the picture stays bounded, and one vanishing or broken layer stays visible."""
        norms = np.full((2, 2000), 1e-2)
        norms[:, 777], norms[:, 1234], norms[:, 1500] = 1e-9, np.nan, np.inf
        heatmap = make(norms, marks=tuple(Mark(0, "x") for _ in range(9)))
        assert plan_layout(heatmap).layers_per_row > 1
        assert draw_heatmap(heatmap).shape[0] <= 760
        assert palette.BELOW_COLOR in colors(heatmap, 1, 777)
        assert palette.NAN_COLOR in colors(heatmap, 1, 1234)
        assert colors(heatmap, 1, 1500) == {palette.INF_COLOR}

    def test_an_absent_layer_never_hides_a_present_one(self) -> None:
        """In a shared row the present layer is shown."""
        norms, present = np.array([[np.nan, 0.1]]), np.array([[False, True]])
        value, seen = palette.reduce_layers(norms, present, 2, palette.anchors_for(None, None))
        assert value[0, 0] == pytest.approx(0.1)
        assert seen.all()

    def test_the_common_prefix_is_dropped_once(self) -> None:
        """Whole dotted parts that all names share are named once."""
        layout = plan_layout(make([[1.0, 1.0]], names=("net.model.block1.fc", "net.model.block2.fc")))
        assert (layout.prefix, layout.labels) == ("net.model.", ("block1.fc", "block2.fc"))

    def test_equal_or_nested_names_keep_a_label(self) -> None:
        """Dropping the prefix leaves no name empty."""
        for names in (("a.b", "a.b"), ("a", "a.b"), ("", "a"), ("x.", "x.")):
            labels = plan_layout(make([[1.0, 1.0]], names=names)).labels
            assert len(labels) == 2
        assert plan_layout(make([[1.0, 1.0]], names=("a.b", "a.b"))).labels == ("b", "b")

    @pytest.mark.parametrize(
        ("name", "length", "expected"),
        [
            ("encoder.blocks.3.mlp.fc1", 40, "encoder.blocks.3.mlp.fc1"),
            ("encoder.blocks.3.attention.self.query", 32, "encoder.blocks.3...self.query"),
            ("encoder.blocks.3.attention.self.query", 20, "...blocks.3...query"),
            ("encoder.blocks.3.attention.self.query", 14, "...3...query"),
            ("stages.1.blocks.12.mlp.fc1", 16, "...1...12...fc1"),
            ("abcdefghijklmnopqrstuvwxyz", 11, "abcd...wxyz"),
            ("abcdefghijklmnopqrstuvwxyz", 3, "..."),
        ],
    )
    def test_long_names_keep_the_block_number_and_the_end(
        self, name: str, length: int, expected: str
    ) -> None:
        """Names lose words in the middle and in front before they lose a number or the end."""
        assert image._elide(name, lambda text: len(text) <= length) == expected

    @pytest.mark.parametrize("count", [1, 2, 19, 20, 33, 60, 431, 2000])
    def test_labels_never_touch_and_keep_both_ends(self, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Labels stay 13 pixels apart and inside the left margin, the first and the last among them."""
        written: list[tuple[int, str]] = []
        write = image._Pen.text

        def record(pen: image._Pen, x: int, y: int, text: str, *rest: object, **more: object) -> int:
            if text.startswith("fc"):
                written.append((y, text))
                assert x - pen.width(text, image.LABEL_SIZE) >= image.MARGIN
            return write(pen, x, y, text, *rest, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(image._Pen, "text", record)
        draw_heatmap(make(np.ones((1, count)), names=tuple(f"fc{i}" for i in range(count))))
        assert (written[0][1], written[-1][1]) == ("fc0", f"fc{count - 1}")
        assert all(low[0] - high[0] >= image.LABEL_SPACING for high, low in pairwise(written))
        assert len(written) == count or count > 30


class TestMarks:
    """Onsets."""

    def test_a_mark_points_at_its_step(self) -> None:
        """A warning draws a red triangle above the plot at its step."""
        heatmap = make(np.full((100, 2), 0.1), marks=(Mark(37, "VANISHING 18 layers"),))
        layout = plan_layout(heatmap)
        above = draw_heatmap(heatmap)[layout.row_edges[0] - 8]
        red = np.flatnonzero((above == image.MARK_COLORS["warning"]).all(axis=1))
        assert abs(red.mean() - layout.x_of(37)) <= 1

    def test_a_mark_outside_of_the_steps_is_only_listed(self) -> None:
        """A mark that the readings no longer reach draws nothing above the plot but has its line."""
        plain, marked = make([[0.1]]), make([[0.1]], marks=(Mark(999, "gone", "notice"),))
        top = plan_layout(plain).row_edges[-1]
        assert (draw_heatmap(plain)[:top] == draw_heatmap(marked)[:top]).all()
        assert draw_heatmap(marked).shape[0] > draw_heatmap(plain).shape[0]

    def test_warnings_are_listed_before_notices(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where only four fit, warnings stay, and the rest is counted."""
        written: list[str] = []
        monkeypatch.setattr(
            image._Pen, "text", lambda pen, x, y, text, *rest, **more: written.append(text) or 0
        )
        marks = (*(Mark(i, "low", "notice") for i in range(6)), Mark(9, "VANISHING"))
        monkeypatch.setattr(image, "_draw_scale", lambda *rest: None)
        draw_heatmap(make(np.full((10, 1), 0.1), marks=marks))
        assert written[-5:] == ["step 0  low", "step 1  low", "step 2  low", "step 9  VANISHING", "+ 3 more"]


class TestDegenerate:
    """Input at the edge."""

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1.0, 0.0, 5e-324, 1.7e308])
    @pytest.mark.parametrize("n", [1, 1000])
    def test_any_single_value_can_be_drawn(self, value: float, n: int) -> None:
        """A table that holds one value everywhere is drawn within bounds."""
        picture = draw_heatmap(make(np.full((n, 3), value)))
        assert picture.dtype == np.uint8
        assert picture.shape[1:] == (image.WIDTH, 3)

    def test_all_absent_can_be_drawn(self) -> None:
        """A run without any gradient shows the absent pattern everywhere."""
        heatmap = make(np.zeros((400, 2)), present=np.zeros((400, 2), dtype=np.bool_))
        assert colors(heatmap, 399, 1) <= {palette.ABSENT_COLOR, palette.ABSENT_HATCH}

    @pytest.mark.parametrize("shape", [(0, 0), (0, 3), (2, 0)])
    def test_no_reading_and_no_layer_draw_a_frame(self, shape: tuple[int, int]) -> None:
        """Empty arrays give a frame with words in it, not an error."""
        heatmap = make(np.zeros(shape), marks=(Mark(3, "early"),))
        layout = plan_layout(heatmap)
        inside = draw_heatmap(heatmap)[layout.row_edges[0] : layout.row_edges[-1], layout.column_edges[0] :]
        assert (inside < 100).all(axis=2).sum() > 50

    def test_strange_names_are_replaced(self) -> None:
        """Letters that the font lacks, line breaks and markup are drawn as plain text."""
        names = ("\u5c42.\u4e00", "<b>x</b>\n", "")
        heatmap = make(np.ones((1, 3)), names=names, title="\u00e9t\u00e9", marks=(Mark(0, "\u26a0\n"),))
        assert plan_layout(heatmap).labels == ("?.?", "<b>x</b>?", "")
        draw_heatmap(heatmap)

    def test_very_long_text_stays_in_bounds(self) -> None:
        """Titles, marks and names longer than the picture are shortened: the right edge stays white."""
        names = tuple(f"{'p' * 300}.{i}.{'q' * 300}" for i in range(2))
        heatmap = make(np.ones((1, 2)), names=names, title="t" * 999, marks=(Mark(0, "m" * 999),))
        assert (draw_heatmap(heatmap)[:, image.WIDTH - 5 :] == 255).all()

    def test_the_same_step_twice_and_huge_steps(self) -> None:
        """Repeated steps share a column, and steps of billions keep their labels apart."""
        draw_heatmap(make(np.ones((3, 1)), steps=[5, 5, 5]))
        draw_heatmap(make(np.ones((2, 1)), steps=[10**12, 10**12 + 7]))

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

    def test_an_old_pillow_falls_back_to_its_only_font(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the font cannot be scaled, the picture is drawn with the small one."""
        small = ImageFont.load_default_imagefont()
        monkeypatch.setattr(ImageFont, "load_default", lambda: small)
        draw_heatmap(make(np.ones((2, 2)), marks=(Mark(0, "x"),)))

    def test_the_picture_survives_a_round_trip_through_pillow(self) -> None:
        """What is drawn can be handed to Pillow, and so to a file."""
        assert Image.fromarray(draw_heatmap(make([[0.1]]))).size[0] == image.WIDTH
