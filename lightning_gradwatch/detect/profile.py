"""How the gradient that reaches a layer depends on the layer's depth: a robust line through the delta of the layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from lightning_gradwatch.detect.diagnosis import Observations
from lightning_gradwatch.measure.snapshot import BoolArray, FloatArray, IntArray, SignalSnapshot

# Fewer layers have no depth; AUTOTRAINER's shallowest vanishing network has more.
MIN_LAYERS = 4
# Pairs of layers grow with the square of their number: above 32 they are taken as 32 groups of neighbors.
_MAX_POINTS = 32
# Where branches lie side by side, one stretch of the forward order may fade although the whole does not. So short a
# one, or one that a line explains less well, is left alone (ours: query, key, value and output of an attention layer
# lie on a line by chance).
_MIN_STRETCH = 6
_MIN_STRETCH_R2 = 0.9
# Where no line explains half of the whole, side branches may hide the way that the gradient takes: of each so many
# neighbors the one that gets most lies on it. A block of attention written out has six layers, of which the keys and
# queries get a hundredth (ours: 100 post-norm blocks under Adam lose five orders of magnitude in 50 steps, and a line
# through all layers explains 3% of it).
_NEIGHBORS = 8
_EXPLAINS = 0.5
# So many of the longest chains are fitted (ours): with early exits there is one for each exit.
_MAX_CHAINS = 8


@dataclass(frozen=True, eq=False)
class DepthProfile:
    """A line through the logarithms of what reaches the layers.

    ``log10(level) = intercept + slope * depth``, where ``level`` is the norm of *delta*, the gradient with respect to
    a layer's output, over the whole output. He's initialization keeps this norm from layer to layer whatever their
    width, stride or number of channels. Neither the scale of the loss nor the optimizer nor the batch size matters.

    Attributes:
        layers: Indices of the layers that have a level, in forward order, ``[n]``.
        levels: Norm of delta of each of them, ``[n]``.
        signals: Root mean square of the output of each of them, ``[n]``.
        attenuation: ``slope * (n - 1)``, the orders of magnitude lost from the last layer to the first (negative:
            gained), with the robust slope of Theil and Sen.
        growth: The same for the signal on its way forward: the orders of magnitude gained (negative: lost).
        r2: Share of the variance of ``log10(level)`` that a straight line explains.
        stride: How many layers lie between two of ``layers``: 1, or 8 where only those are kept that get most.

    References:
        Theil, A rank-invariant method of linear and polynomial regression analysis, 1950; Sen, Estimates of the
        regression coefficient based on Kendall's tau, 1968.
    """

    layers: IntArray
    levels: FloatArray
    signals: FloatArray
    attenuation: float
    growth: float
    r2: float
    stride: int = 1

    @property
    def factor(self) -> float:
        """What the gradient is multiplied by when it goes one layer back."""
        return float(10.0 ** (-self.attenuation / max((len(self.layers) - 1) * self.stride, 1)))


def depth_profile(observations: Observations, snapshot: SignalSnapshot) -> DepthProfile | None:
    """Fit the depth profile of a probe.

    Layers that only scale and shift (normalizations) are left out. Exact zeros are dead, not small, and are left out
    as well.

    Args:
        observations: Readings of one optimizer.
        snapshot: One of its probes.

    Returns:
        The profile, or None with fewer than four layers that a gradient reached. Where the whole does not lie on a
        line and a stretch of it does, that of the stretch; where side branches hide the way that the gradient takes,
        that of the layers that get most. Where there are several chains, the steepest: what reaches an actor and a
        critic side by side is not one line.
    """
    return _fitted(snapshot, observations.matrices.tobytes(), observations.chains.tobytes())


# A probe is judged again at each reading until the next one comes; a fit takes longer than all other rules together.
@lru_cache(maxsize=16)
def _fitted(snapshot: SignalSnapshot, matrices: bytes, chains: bytes) -> DepthProfile | None:
    layers, levels = _levels(snapshot, np.frombuffer(matrices, dtype=np.bool_))
    if len(layers) < MIN_LAYERS:
        return None
    among = np.frombuffer(chains, dtype=np.bool_).reshape(-1, len(matrices))[:, layers]
    # Layers that have two heads in common are not fitted twice.
    distinct = sorted(np.unique(among, axis=0), key=np.count_nonzero, reverse=True)
    long = [chain for chain in distinct[:_MAX_CHAINS] if chain.sum() >= MIN_LAYERS]
    profiles = [_along(layers[chain], levels[chain], snapshot) for chain in long]
    return max(profiles, key=lambda profile: abs(profile.attenuation), default=None)


def _along(layers: IntArray, levels: FloatArray, snapshot: SignalSnapshot) -> DepthProfile:
    found = _whole_or_stretch(layers, levels, snapshot)
    if found.r2 >= _EXPLAINS or len(layers) < _NEIGHBORS * _MIN_STRETCH:
        return found
    edges = np.arange(0, len(layers), _NEIGHBORS)
    most = np.array([edge + int(np.argmax(levels[edge : edge + _NEIGHBORS])) for edge in edges])
    main = replace(_profile(layers[most], levels[most], snapshot), stride=_NEIGHBORS)
    return main if main.r2 >= _EXPLAINS else found


def _whole_or_stretch(layers: IntArray, levels: FloatArray, snapshot: SignalSnapshot) -> DepthProfile:
    whole = _profile(layers, levels, snapshot)
    start, stop = steepest_stretch(np.log10(levels))
    if stop - start == len(layers) or stop - start < _MIN_STRETCH:
        return whole
    stretch = _profile(layers[start:stop], levels[start:stop], snapshot)
    steeper = abs(stretch.attenuation) > abs(whole.attenuation) or whole.r2 < stretch.r2 / 2
    return stretch if steeper else whole


def _profile(layers: IntArray, levels: FloatArray, snapshot: SignalSnapshot) -> DepthProfile:
    logs = np.log10(levels)
    signals = snapshot.signal[layers]
    with np.errstate(divide="ignore", invalid="ignore"):
        forward = np.log10(signals)
    forward = forward[np.isfinite(forward)]
    correlation = np.corrcoef(np.arange(len(logs)), logs)[0, 1] if np.ptp(logs) > 0 else 1.0
    return DepthProfile(
        layers,
        levels,
        signals,
        attenuation=theil_sen(logs) * (len(logs) - 1),
        growth=theil_sen(forward) * (len(forward) - 1) if len(forward) >= MIN_LAYERS else 0.0,
        r2=float(correlation**2),
    )


def levels_of(observations: Observations, snapshot: SignalSnapshot) -> tuple[IntArray, FloatArray]:
    """Return the layers of a probe that a gradient reached, in forward order, and the norm of delta of each.

    Args:
        observations: Readings of one optimizer.
        snapshot: One of its probes.

    Returns:
        Indices and norms, ``[n]`` each.
    """
    return _levels(snapshot, observations.matrices)


def _levels(snapshot: SignalSnapshot, matrices: BoolArray) -> tuple[IntArray, FloatArray]:
    with np.errstate(invalid="ignore"):
        norms = snapshot.delta * np.sqrt(snapshot.sizes)
        usable = np.isfinite(norms) & (norms > 0) & matrices
    layers = snapshot.order[usable[snapshot.order]]
    return layers, norms[layers]


def may_be_steep(levels: FloatArray, suspect: float) -> bool:
    """Rule out, for a few microseconds, most profiles that are not worth a fit."""
    return bool(levels.max() > 10.0**suspect * levels.min())


def steepest_stretch(logs: FloatArray) -> tuple[int, int]:
    """Find the neighboring layers over which a line falls or rises most.

    ``|slope| * (n - 1)`` of the least squares line through each stretch of at least six layers that it explains well.

    Args:
        logs: Logarithms of the levels, ``[n]``.

    Returns:
        The first layer of the stretch, and the one behind its last; all where no line explains any.

    Example:
        >>> import numpy as np
        >>> steepest_stretch(np.array([0.0, 0.0, 0.0, -9.0, -8.0, -7.0, -6.0, -5.0, -4.0]))
        (3, 9)
    """
    edges = np.linspace(0, len(logs), min(len(logs), 2 * _MAX_POINTS) + 1).astype(np.int64)
    first, last = np.triu_indices(len(edges), 1)
    starts, stops = edges[first], edges[last]
    long = stops - starts >= _MIN_STRETCH
    starts, stops = starts[long], stops[long]
    if not len(starts):
        return 0, len(logs)
    fall, explained = _lines(logs, starts, stops)
    fall = np.where(explained >= _MIN_STRETCH_R2, np.abs(fall), -1.0)
    best = int(np.argmax(fall))
    return (int(starts[best]), int(stops[best])) if fall[best] >= 0 else (0, len(logs))


def _lines(logs: FloatArray, starts: IntArray, stops: IntArray) -> tuple[FloatArray, FloatArray]:
    """Fit a line to each stretch, all at once: its whole rise, and the share of the variance that it explains."""
    places = np.arange(len(logs), dtype=np.float64)
    sums = [np.concatenate([[0.0], np.cumsum(v)]) for v in (places, logs, places**2, places * logs, logs**2)]
    x, y, xx, xy, yy = (total[stops] - total[starts] for total in sums)
    n = (stops - starts).astype(np.float64)
    spread, together, scatter = xx - x * x / n, xy - x * y / n, np.maximum(yy - y * y / n, 1e-12)
    return together / spread * (n - 1), together**2 / (spread * scatter)


def theil_sen(logs: FloatArray) -> float:
    """Return the median slope over all pairs of points, groups of neighbors being one point where there are many.

    Example:
        >>> import numpy as np
        >>> theil_sen(np.array([0.0, 1.0, 2.0, 9.0]))
        2.0
    """
    starts = np.linspace(0, len(logs), min(len(logs), _MAX_POINTS), endpoint=False).astype(np.int64)
    counts = np.diff(starts, append=len(logs))
    values = np.add.reduceat(logs, starts) / counts
    places = starts + (counts - 1) / 2
    first, second = np.triu_indices(len(values), 1)
    return float(np.median((values[second] - values[first]) / (places[second] - places[first])))
