"""Test ``lightning_gradwatch.report.palette``."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest

from lightning_gradwatch.report import palette
from lightning_gradwatch.report.layout import MIN_COLUMN_WIDTH

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


@pytest.mark.parametrize("offset", range(6))
def test_a_narrow_nan_cell_is_never_all_yellow(offset: int) -> None:
    """A NaN cell of the least width keeps a black pixel wherever it lies."""
    codes = np.full((1, 12), palette.NAN, dtype=np.uint8)
    cell = palette.paint(codes)[:, offset : offset + MIN_COLUMN_WIDTH]
    assert (cell == palette.NAN_COLOR).all(axis=2).any()


@pytest.mark.parametrize("vision", VISION)
def test_special_states_differ_from_each_other_and_from_the_ramp(vision: str) -> None:
    """No special state is taken for another, for the ramp's ends or for a cap in any color vision."""
    ends = [RAMP[0], RAMP[-1], palette.BELOW_COLOR, palette.ABOVE_COLOR]
    for one, other in combinations(SPECIAL.values(), 2):
        assert np.linalg.norm(lab(one, vision) - lab(other, vision)) > 35
    for special in SPECIAL.values():
        assert np.linalg.norm(lab(ends, vision) - lab(special, vision), axis=1).min() > 20
        assert np.linalg.norm(lab(RAMP, vision) - lab(special, vision), axis=1).min() > 14


@pytest.mark.parametrize("vision", VISION)
def test_the_ends_of_the_ramp_stay_apart(vision: str) -> None:
    """Vanishing and exploding differ strongly in any color vision."""
    low, high = lab(RAMP[0], vision), lab(RAMP[-1], vision)
    assert np.linalg.norm(low - high) > 60
    caps = lab([palette.BELOW_COLOR, palette.ABOVE_COLOR], vision)
    assert np.linalg.norm(caps[0] - caps[1]) > 40


def test_the_ramp_is_nowhere_flat() -> None:
    """Four tenths of a decade always change the color, in the usual band too."""
    seen = lab(RAMP, "normal")
    assert np.linalg.norm(seen[10:] - seen[:-10], axis=1).min() > 1.5


@pytest.mark.parametrize(("zeros", "expected"), [(1, 1e-2), (2, 1e-2), (3, 0.0)])
def test_zero_needs_the_majority(zeros: int, expected: float) -> None:
    """A column of four readings is exactly zero only where more than half of them are."""
    norms = np.array([[0.0]] * zeros + [[1e-2]] * (4 - zeros))
    value, _, _ = palette.reduce_readings(norms, norms >= 0, np.zeros(4, dtype=np.int64), 1)
    assert value[0, 0] == pytest.approx(expected)


def test_the_median_is_taken_on_the_log_scale() -> None:
    """Of two readings the cell shows the geometric mean."""
    norms = np.array([[1e-4], [1.0]])
    value, _, _ = palette.reduce_readings(norms, norms > 0, np.zeros(2, dtype=np.int64), 1)
    assert value[0, 0] == pytest.approx(1e-2)


def test_absent_readings_do_not_count() -> None:
    """A column with one reading in which the layer took part shows that one."""
    norms = np.array([[np.nan], [5.0], [np.nan], [0.0]])
    present = np.array([[False], [True], [False], [False]])
    value, seen, _ = palette.reduce_readings(norms, present, np.zeros(4, dtype=np.int64), 1)
    assert value[0, 0] == pytest.approx(5.0)
    assert seen.all()


def test_an_absent_layer_never_hides_a_present_one() -> None:
    """In a shared row the present layer is shown."""
    norms, present = np.array([[np.nan, 0.1]]), np.array([[False, True]])
    value, seen = palette.reduce_layers(norms, present, 2, palette.anchors_for(None, None))
    assert value[0, 0] == pytest.approx(0.1)
    assert seen.all()
