"""Whether the gradient shrinks or grows from layer to layer on its way back to the input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lightning_gradwatch.detect.diagnosis import Diagnosis, Observations, Severity, Symptom
from lightning_gradwatch.detect.progress import (
    PLAIN_OPTIMIZERS,
    RESCALING_OPTIMIZERS,
    outcome_of,
    relative_updates,
)
from lightning_gradwatch.measure.history import WINDOW
from lightning_gradwatch.measure.snapshot import FloatArray, IntArray

# Fewer layers have no depth; AUTOTRAINER's shallowest vanishing network has more.
_MIN_LAYERS = 4
# Pairs of layers grow with the square of their number: above 32 they are taken as 32 groups of neighbors.
_MAX_POINTS = 32


@dataclass(frozen=True, eq=False)
class DepthProfile:
    """How the gradient that reaches a layer depends on the layer's depth.

    ``log10(level) = intercept + slope * depth``, where ``level`` is the root mean square of the gradient of a layer's
    bias: the batch sum of *delta*, the gradient with respect to the layer's output. The weights' gradient is delta
    times the layer's input and stays flat when both shrink together.

    Attributes:
        layers: Indices of the layers that have a level, in forward order, ``[n]``.
        levels: Their levels, ``[n]``.
        attenuation: ``slope * (n - 1)``, the orders of magnitude lost from the last layer to the first (negative:
            gained), with the robust slope of Theil and Sen.
        r2: Share of the variance of ``log10(level)`` that a straight line explains.

    References:
        Theil, A rank-invariant method of linear and polynomial regression analysis, 1950; Sen, Estimates of the
        regression coefficient based on Kendall's tau, 1968.
    """

    layers: IntArray
    levels: FloatArray
    attenuation: float
    r2: float

    @property
    def factor(self) -> float:
        """What the gradient is multiplied by when it goes one layer back."""
        return float(10.0 ** (-self.attenuation / max(len(self.layers) - 1, 1)))


def depth_profile(observations: Observations) -> DepthProfile | None:
    """Fit the depth profile of the newest reading.

    Biases that feed a batch normalization are left out: the normalization subtracts the batch mean, their gradient
    cancels to rounding noise. Exact zeros are dead, not small, and are left out as well.

    Args:
        observations: Readings of one optimizer.

    Returns:
        The profile, or None with fewer than four layers that have a bias gradient.
    """
    layers, levels = bias_levels(observations)
    if len(layers) < _MIN_LAYERS:
        return None
    logs = np.log10(levels)
    attenuation = _theil_sen(logs) * (len(logs) - 1)
    correlation = np.corrcoef(np.arange(len(logs)), logs)[0, 1] if np.ptp(logs) > 0 else 1.0
    return DepthProfile(layers, levels, float(attenuation), float(correlation**2))


def bias_levels(observations: Observations) -> tuple[IntArray, FloatArray]:
    """Return the layers that have a level in the newest reading, in forward order, and their levels; see above."""
    norms = observations.gradients.bias_norms[-1]
    usable = observations.bias_sizes > 0
    usable &= np.isfinite(norms) & (norms > 0)
    layers = observations.order[usable[observations.order]]
    return layers, norms[layers] / np.sqrt(observations.bias_sizes[layers])


def _may_be_steep(levels: FloatArray, suspect: float) -> bool:
    """Rule out, for a few microseconds, most profiles that are not worth a fit.

    The means of the first and the last quarter of a straight line differ by three quarters of its whole fall; half is
    asked for.
    """
    logs, quarter = np.log10(levels), max(1, len(levels) // 4)
    return bool(abs(logs[-quarter:].mean() - logs[:quarter].mean()) > suspect / 2)


def _theil_sen(logs: FloatArray) -> float:
    """Return the median slope over all pairs of points, groups of neighbors being one point where there are many."""
    starts = np.linspace(0, len(logs), min(len(logs), _MAX_POINTS), endpoint=False).astype(np.int64)
    counts = np.diff(starts, append=len(logs))
    values = np.add.reduceat(logs, starts) / counts
    places = starts + (counts - 1) / 2
    first, second = np.triu_indices(len(values), 1)
    return float(np.median((values[second] - values[first]) / (places[second] - places[first])))


@dataclass(frozen=True)
class DepthRule:
    """Judge the depth profile of the parameter gradients, and whether the layers learn in spite of it.

    A profile is poor when the gradient loses (vanishing) or gains (exploding) ``notice`` orders of magnitude from the
    last layer to the first. Whether that is a fault depends on the optimizer and the task: it is a warning when the
    poor layers are moved by less than ``min_update`` of their weights a step and by less than ``min_share`` of what
    the best layer is moved, or when the loss has not fallen after ``horizon`` readings; otherwise it is a notice.
    Between ``suspect`` and ``notice`` only such an outcome speaks.

    Attributes:
        notice: AUTOTRAINER calls a first/last ratio below 1e-3 vanishing.
        suspect: Ours: sick shallow networks start at 2.6, healthy ones whose loss stays flat end at 2.4.
        min_update: DeepDiagnosis takes a learning rate x gradient / weights below 1e-5 for too small.
        min_share: Ours: healthy networks with a poor profile stay above 2e-3.
        horizon: Ours: networks that Adam saves show it within 100 readings.
        min_level: Weight gradients below this share of the weights, in every layer and with a learning rate of up to
            1, change nothing in float32. Amazon SageMaker Debugger's WeightUpdateRatio flags 1e-8.
        min_r2: Share of the variance along depth that the fitted line has to explain; below it, single layers are odd
            and depth is not the reason. Ours: it silences no sick run.

    Example:
        >>> DepthRule().notice
        3.0

    References:
        Zhang et al., AUTOTRAINER: An Automatic DNN Training Problem Detection and Repair System, ICSE 2021.
        Wardat et al., DeepDiagnosis: Automatically Diagnosing Faults and Recommending Actionable Fixes in Deep
        Learning Programs, ICSE 2022.
    """

    notice: float = 3.0
    suspect: float = 2.5
    min_update: float = 1e-5
    min_share: float = 1e-3
    horizon: int = 100
    min_level: float = 1e-8
    min_r2: float = 0.5

    def __post_init__(self) -> None:
        """Refuse bounds that contradict each other."""
        if not 0 < self.suspect <= self.notice:
            raise ValueError(f"`suspect` must be positive and at most `notice`. Got {self.suspect} and {self.notice}")
        if not 30 <= self.horizon <= WINDOW:
            raise ValueError(
                f"`horizon` must be between 30, or no loss can be judged, and {WINDOW}, the readings that are kept. "
                f"Got {self.horizon!r}"
            )

    def __call__(self, observations: Observations) -> Iterator[Diagnosis]:
        """Yield at most one diagnosis, the layers with the least (or most) gradient first."""
        layers, levels = bias_levels(observations)
        if len(layers) < _MIN_LAYERS:
            yield from self._level(observations)
            return
        profile = depth_profile(observations) if _may_be_steep(levels, self.suspect) else None
        if profile is None or profile.r2 < self.min_r2:
            return
        if profile.attenuation >= self.suspect:
            yield from self._vanishing(observations, profile)
        elif profile.attenuation <= -self.notice:
            yield from self._exploding(observations, profile)

    def _vanishing(self, observations: Observations, profile: DepthProfile) -> Iterator[Diagnosis]:
        starved = self._starved(observations, profile)
        outcome = outcome_of(observations, self.horizon)
        if starved is not None or outcome is False:
            severity: Severity = "warning"
        elif profile.attenuation >= self.notice:
            severity = "notice"
        else:
            return
        top = float(np.median(profile.levels[-max(1, len(profile.levels) // 4) :]))
        sick = np.flatnonzero(profile.levels < 1e-2 * top)
        sick = sick if sick.size else np.array([int(np.argmin(profile.levels))])
        sick = sick[np.argsort(profile.levels[sick], kind="stable")]
        yield Diagnosis(
            rule="vanishing.depth",
            symptom=Symptom.VANISHING,
            severity=severity,
            optimizer=observations.optimizer,
            layers=observations.names(profile.layers[sick]),
            step=observations.step,
            message=_vanishing_message(severity, observations.optimizer_description.kind, outcome),
            measured=_measured(observations, profile, starved),
            cause=activations_in_words(observations, profile.layers),
            evidence={
                "factor": profile.factor,
                "r2": profile.r2,
                "attenuation": profile.attenuation,
                "first_over_last": float(profile.levels[0] / profile.levels[-1]),
                "update_ratio": starved,
                "loss_has_fallen": outcome,
            },
        )

    def _starved(self, observations: Observations, profile: DepthProfile) -> float | None:
        updates = relative_updates(observations)
        first = profile.layers[: max(1, len(profile.layers) // 2)]
        # The weights of a layer that has just appeared are not measured yet.
        if updates is None or np.isnan(updates[first]).all():
            return None
        least = float(np.nanmin(updates[first]))
        most = float(np.nanmax(updates))
        return least if least < self.min_update and least < self.min_share * most else None

    def _exploding(self, observations: Observations, profile: DepthProfile) -> Iterator[Diagnosis]:
        outcome = outcome_of(observations, self.horizon)
        # Late in training the last bias has settled and its gradient is small: only the start tells explosion.
        if outcome is not False and len(observations.loss) > self.horizon // 2:
            return
        bottom = float(profile.levels[-1])
        sick = np.flatnonzero(profile.levels > 1e2 * bottom)
        sick = sick if sick.size else np.array([int(np.argmax(profile.levels[:-1]))])
        sick = sick[np.argsort(-profile.levels[sick], kind="stable")]
        yield Diagnosis(
            rule="exploding.depth",
            symptom=Symptom.EXPLODING,
            severity="warning" if outcome is False else "notice",
            optimizer=observations.optimizer,
            layers=observations.names(profile.layers[sick]),
            step=observations.step,
            message="the gradient grows on its way back to the first layers"
            + (", and the loss does not fall" if outcome is False else ""),
            measured=_measured(observations, profile, None),
            cause=activations_in_words(observations, profile.layers),
            evidence={"factor": profile.factor, "r2": profile.r2, "attenuation": profile.attenuation},
        )

    def _level(self, observations: Observations) -> Iterator[Diagnosis]:
        """Judge a network without biases: every layer's gradient is nothing beside its weights."""
        if observations.optimizer_description.kind not in PLAIN_OPTIMIZERS:
            return
        readings = observations.gradients
        present = np.flatnonzero(readings.present[-1] & observations.matrices)
        ratios = readings.norms[-1][present] / np.maximum(readings.weight_norms[-1][present], 1e-30)
        rates = np.maximum(readings.learning_rates[-1][present], 1.0)
        small = np.isfinite(ratios) & (ratios > 0) & (ratios * rates < self.min_level)
        outcome = outcome_of(observations, self.horizon)
        if len(present) < _MIN_LAYERS or not small.all() or outcome:
            return
        worst = present[np.argsort(ratios, kind="stable")]
        yield Diagnosis(
            rule="vanishing.depth",
            symptom=Symptom.VANISHING,
            optimizer=observations.optimizer,
            layers=observations.names(worst),
            step=observations.step,
            message="no layer gets a gradient that could move its weights",
            measured=f"gradient over weights is at most {ratios.max():.2g} in all {len(present)} layers"
            + (", and the loss does not fall" if outcome is False else "")
            + " (parameter gradients only)",
            cause=activations_in_words(observations, worst),
            evidence={"largest_ratio": float(ratios.max())},
        )


def _vanishing_message(severity: Severity, optimizer: str, outcome: bool | None) -> str:
    if severity == "warning" and outcome is False:
        return "the first layers get almost no gradient, and the loss does not fall"
    if severity == "warning":
        return "the first layers get almost no gradient and hardly move"
    if outcome:
        return "the first layers get little gradient, but the loss falls"
    copes = f"; {optimizer} rescales each step, so training may cope" if optimizer in RESCALING_OPTIMIZERS else ""
    return f"the first layers get little gradient; whether that matters, the loss will tell{copes}"


def _measured(observations: Observations, profile: DepthProfile, update: float | None) -> str:
    names = observations.names(profile.layers[[0, -1]])
    text = (
        f"every layer back multiplies the gradient by {profile.factor:.2g} (R2 {profile.r2:.2f}); {names[0]} gets "
        f"{profile.levels[0] / profile.levels[-1]:.1g} of what {names[1]} gets"
    )
    if update is not None:
        text += f"; a step moves the slowest layer by {update:.1g} of its weights"
    return text + " (parameter gradients only: those of the biases)"


def activations_in_words(observations: Observations, layers: Sequence[int] | IntArray) -> str:
    """Say which activations follow the layers, the most frequent first.

    Args:
        observations: Readings of one optimizer.
        layers: Indices of the layers.

    Returns:
        Such as ``"20 x sigmoid (slope at most 0.25)"``; empty where none is known.
    """
    names = [observations.layers[layer].activation for layer in layers]
    counts = Counter(name for name in names if name not in (None, "linear", "output", "gate"))
    parts = []
    for name, count in counts.most_common(2):
        slope = " (slope at most 0.25)" if name == "sigmoid" else ""
        parts.append(f"{count} x {name}{slope}")
    return ", ".join(parts)
