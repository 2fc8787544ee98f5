"""Answer which color each cell of a gradient-norm picture gets, on a scale that never moves with the data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.uint8]
Norms = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Color = tuple[int, int, int]

# Fixed ends of the scale where the user gave none, so that pictures of two runs can be compared.
VANISHING_ANCHOR = 1e-7  # what Amazon SageMaker Debugger and DeepDiagnosis call vanishing (mean |g|)
# Ours: puts the neutral middle at 0.1. The layers of 755 healthy runs have a median norm of 0.18 (5% to 95%: 0.004 to
# 1.9), and the 1e3 that comparable tools call exploding is orange.
EXPLODING_ANCHOR = 1e5
_DEFAULT_SPAN = 12.0  # decades between the two

# Blue to red stays apart in every common color blindness. The middle is beige, not white, so that "usual" is
# not taken for "absent"; lightness has a kink there, not a plateau, so that structure shows.
# The strong colors keep to the outer thirds: a healthy norm of 1 is sand, not salmon.
_RAMP: tuple[tuple[float, Color], ...] = (
    (0.0, (33, 80, 170)),
    (0.2, (104, 150, 210)),
    (0.35, (172, 196, 218)),
    (0.5, (226, 218, 200)),
    (0.65, (234, 200, 160)),
    (0.8, (228, 142, 98)),
    (1.0, (196, 36, 32)),
)
_LEVELS = 250
# One step darker than the ends of the ramp: the edge shows where a threshold was crossed.
BELOW_COLOR: Color = (8, 24, 92)
ABOVE_COLOR: Color = (122, 16, 26)
# Special states: none of these colors is on the ramp, and two of the four also carry a pattern.
ZERO_COLOR: Color = (128, 128, 128)  # no hue at all
INF_COLOR: Color = (255, 214, 0)  # brighter than anything on the ramp
NAN_COLOR: Color = (0, 0, 0)  # darker than anything on the ramp, hatched like hazard tape
NAN_HATCH: Color = INF_COLOR
ABSENT_COLOR: Color = (255, 255, 255)  # empty paper: nothing was measured
ABSENT_HATCH: Color = (190, 190, 190)

BELOW, ABOVE, ZERO, INF, NAN, ABSENT = range(_LEVELS, _LEVELS + 6)


def _lookup_table() -> Codes:
    """Build the table of color codes, [256, 3]."""
    stops, colors = zip(*_RAMP, strict=True)
    places = np.linspace(0.0, 1.0, _LEVELS)
    ramp = np.stack([np.interp(places, stops, channel) for channel in np.array(colors).T], axis=1)
    special = [BELOW_COLOR, ABOVE_COLOR, ZERO_COLOR, INF_COLOR, NAN_COLOR, ABSENT_COLOR]
    table: Codes = np.rint(np.concatenate([ramp, np.asarray(special, dtype=np.float64)])).astype(np.uint8)
    return table


_TABLE = _lookup_table()
_TABLE.setflags(write=False)


@dataclass(frozen=True)
class Anchors:
    """Hold the two ends of the color scale as log10 of the norm.

    Example:
        >>> Anchors(-7.0, 3.0).center
        -2.0
    """

    low: float
    high: float

    @property
    def center(self) -> float:
        """Return log10 of the neutral norm, the geometric middle of the ends."""
        return (self.low + self.high) / 2


def anchors_for(vanishing: float | None, exploding: float | None) -> Anchors:
    """Choose the ends of the color scale from the user's thresholds, never from the data.

    Args:
        vanishing: Norm below which the user calls a gradient vanishing; None, zero, not finite: the default.
        exploding: Norm above which the user calls a gradient exploding; None, zero, not finite: the default.

    Returns:
        The anchors; where the two are in the wrong order, one moves so that the scale keeps a direction.

    Example:
        >>> anchors_for(None, None), anchors_for(1e-4, 1e2)
        (Anchors(low=-7.0, high=5.0), Anchors(low=-4.0, high=2.0))
    """
    vanishing_given = vanishing is not None and math.isfinite(vanishing) and vanishing > 0
    exploding_given = exploding is not None and math.isfinite(exploding) and exploding > 0
    low = math.log10(vanishing if vanishing is not None and vanishing_given else VANISHING_ANCHOR)
    high = math.log10(exploding if exploding is not None and exploding_given else EXPLODING_ANCHOR)
    if low >= high and exploding_given:
        low = high - _DEFAULT_SPAN
    elif low >= high:
        high = low + _DEFAULT_SPAN
    return Anchors(low, high)


def reduce_readings(
    norms: Norms, present: Mask, column_of_reading: npt.NDArray[np.int64], columns: int
) -> tuple[Norms, Mask, Mask]:
    """Reduce the readings that share a column to their median, keeping every NaN and infinity.

    Args:
        norms: Gradient norms, [n, layers].
        present: Whether the layer had a gradient, [n, layers].
        column_of_reading: Column of each reading, ascending, [n]; every column has at least one.
        columns: Number of columns.

    Returns:
        Norms [columns, layers], present [columns, layers], and whether a layer's largest finite norm in the
        column is more than 100 times its median [columns].

    Example:
        >>> norms, seen = np.array([[1.0], [1.0], [900.0]]), np.ones((3, 1), dtype=bool)
        >>> value, _, extreme = reduce_readings(norms, seen, np.zeros(3, dtype=np.int64), 1)
        >>> float(value[0, 0]), bool(extreme[0])
        (1.0, True)
    """
    if len(norms) == columns:
        return norms, present, np.zeros(columns, dtype=np.bool_)
    value = np.empty((columns, norms.shape[1]))
    seen = np.empty(value.shape, dtype=np.bool_)
    extreme = np.empty(columns, dtype=np.bool_)
    edges = np.searchsorted(column_of_reading, np.arange(columns + 1))
    for column in range(columns):
        rows = slice(edges[column], edges[column + 1])
        value[column], peaked = _typical(norms[rows], present[rows])
        seen[column] = present[rows].any(axis=0)
        extreme[column] = peaked.any()
    return value, seen, extreme


def _typical(norms: Norms, present: Mask) -> tuple[Norms, Mask]:
    """Return the typical norm of each layer in one column and whether its peak is 100 times that."""
    finite = present & np.isfinite(norms) & (norms >= 0)
    count = finite.sum(axis=0)
    ordered = np.sort(np.where(finite, norms, np.inf), axis=0)
    layers = np.arange(norms.shape[1])
    last = np.maximum(count - 1, 0)
    lower, upper, peak = ordered[last // 2, layers], ordered[(last + 1) // 2, layers], ordered[last, layers]
    # The middle of two on a log scale is their geometric mean; half zeros is no majority, so not a zero.
    median = np.where(lower > 0, np.sqrt(lower) * np.sqrt(upper), upper)
    median = np.where(2 * (finite & (norms == 0)).sum(axis=0) > count, 0.0, median)
    median = np.where((present & np.isposinf(norms)).any(axis=0), np.inf, median)
    broken = (present & (np.isnan(norms) | (norms < 0))).any(axis=0)
    return np.where(broken, np.nan, median), (count > 0) & (peak / 100 > median)


def reduce_layers(norms: Norms, present: Mask, layers_per_row: int, anchors: Anchors) -> tuple[Norms, Mask]:
    """Reduce the neighboring layers that share a pixel row to the most abnormal of them.

    Args:
        norms: Gradient norms, [columns, layers].
        present: Whether the layer had a gradient, [columns, layers].
        layers_per_row: Number of neighboring layers in a row.
        anchors: Color scale; abnormal is far from its center, then zero, then infinity, then NaN.

    Returns:
        Norms [columns, rows] and present [columns, rows].

    Example:
        >>> norms, seen = np.array([[1e-2, 1e-9, 1.0, np.inf]]), np.ones((1, 4), dtype=bool)
        >>> reduce_layers(norms, seen, 2, Anchors(-7.0, 3.0))[0].tolist()
        [[1e-09, inf]]
    """
    if layers_per_row == 1:
        return norms, present
    columns, layers = norms.shape
    padding = ((0, 0), (0, -layers % layers_per_row))
    norms = np.pad(norms, padding).reshape(columns, -1, layers_per_row)
    present = np.pad(present, padding).reshape(norms.shape)
    positive = np.isfinite(norms) & (norms > 0)
    distance = np.abs(np.log10(np.where(positive, norms, 1.0)) - anchors.center)
    rank = np.select([norms == 0, np.isposinf(norms), ~positive], [1e6, 1e7, 1e8], distance)
    worst = np.argmax(np.where(present, rank, -1.0), axis=2)[:, :, None]
    return np.take_along_axis(norms, worst, 2)[:, :, 0], np.take_along_axis(present, worst, 2)[:, :, 0]


def color_codes(norms: Norms, present: Mask, anchors: Anchors) -> Codes:
    """Turn gradient norms into codes of the color table.

    Args:
        norms: Gradient norms, any shape.
        present: Whether there was a gradient, the same shape.
        anchors: Ends of the color scale; norms beyond them get the code BELOW or ABOVE.

    Returns:
        Codes of the same shape.

    Example:
        >>> codes = color_codes(np.array([0.0, np.inf, np.nan, 1e9]), np.ones(4, dtype=bool), Anchors(-7, 3))
        >>> codes.tolist() == [ZERO, INF, NAN, ABOVE]
        True
    """
    positive = np.isfinite(norms) & (norms > 0)
    logs = np.log10(np.where(positive, norms, 1.0))
    place = np.clip((logs - anchors.low) / (anchors.high - anchors.low), 0.0, 1.0)
    codes: Codes = np.rint(place * (_LEVELS - 1)).astype(np.uint8)
    codes[logs < anchors.low] = BELOW
    codes[logs > anchors.high] = ABOVE
    codes[~positive] = NAN
    codes[norms == 0] = ZERO
    codes[np.isposinf(norms)] = INF
    codes[~present] = ABSENT
    return codes


def table() -> Codes:
    """Return the color of each code, ``[256, 3]``; not to be changed.

    Example:
        >>> table()[INF].tolist()
        [255, 214, 0]
    """
    return _TABLE


def scale_codes(length: int) -> Codes:
    """Return the codes of the whole ramp, from small to large, for a color bar.

    Args:
        length: Number of codes wanted.

    Returns:
        Codes [length].

    Example:
        >>> scale_codes(3).tolist()
        [0, 124, 249]
    """
    return np.rint(np.linspace(0, _LEVELS - 1, length)).astype(np.uint8)


def paint(codes: Codes) -> Codes:
    """Paint a pixel grid of codes, with the patterns of NaN and of absent gradients.

    Args:
        codes: One code a pixel, [height, width].

    Returns:
        Colors [height, width, 3].

    Example:
        >>> paint(np.full((1, 1), INF, dtype=np.uint8)).tolist()
        [[[255, 214, 0]]]
    """
    pixels = _TABLE.take(codes, axis=0)
    # Patterns only where they are: most pictures have none, and a remainder takes longer than the colors.
    down, right = np.nonzero(codes == NAN)
    # Two pixels of six: even a cell of three pixels cannot come out all yellow, as if it were infinite.
    hatched = (down + right) % 6 < 2
    pixels[down[hatched], right[hatched]] = NAN_HATCH
    down, right = np.nonzero(codes == ABSENT)
    hatched = (down - right) % 8 == 0
    pixels[down[hatched], right[hatched]] = ABSENT_HATCH
    return pixels
