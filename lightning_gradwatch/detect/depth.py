"""Whether the gradient shrinks or grows from layer to layer on its way back to the input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lightning_gradwatch.detect.diagnosis import Diagnosis, Observations, Severity, Symptom
from lightning_gradwatch.detect.profile import MIN_LAYERS, DepthProfile, depth_profile, levels_of, may_be_steep
from lightning_gradwatch.detect.progress import RESCALING_OPTIMIZERS, loss_rests, outcome_of, steady_rate
from lightning_gradwatch.measure.history import WINDOW
from lightning_gradwatch.measure.snapshot import IntArray

# DeepDiagnosis calls an activation saturated when more than half of its inputs are.
_SATURATED = 0.5
_NO_ACTIVATIONS = (None, "linear", "output", "gate")


@dataclass(frozen=True)
class DepthRule:
    """Judge the depth profile of a signal probe, and whether the layers learn in spite of it.

    A profile is poor when *delta*, the gradient with respect to a layer's output, loses (vanishing) or gains
    (exploding) ``notice`` orders of magnitude from the last layer to the first, in two probes in a row. Whether that
    is a fault depends on the optimizer and the task. It is a warning

    * when the step really moved the poor layers by less than ``min_update`` of their weights, and the best layer
      either far more (``min_share``) or not at all (``unmoved``);
    * when the loss has not fallen after ``horizon`` readings, or after ``early_horizon`` where the profile loses, or
      lost in the first probe, ``severe`` orders of magnitude;
    * when, with a vanishing profile that lasts, it has fallen by less than ``min_fall`` after ``horizon`` readings, or
      by less than twice that and not at all over the newest ``horizon``;
    * when the profile exploded in the first probe and still gains ``lasting`` orders after ``horizon`` readings.

    Otherwise it is a notice. Between ``suspect`` and ``notice`` only a loss that does not fall speaks. Without a probe
    nothing is said.

    Attributes:
        notice: AUTOTRAINER calls a first/last ratio below 1e-3 vanishing.
        suspect: Ours: sick shallow networks start at 2.6, healthy ones whose loss stays flat end at 2.4.
        min_update: DeepDiagnosis takes a learning rate x gradient / weights below 1e-5 for too small.
        min_share: Ours: healthy networks with a poor profile stay above 2e-3.
        unmoved: float32 numbers are 6e-8 of themselves apart: smaller steps change nothing.
        lasting: Ours: healthy runs gained at most 1.6 orders of magnitude by then (and 1.2 at first), sick ones at
            least 3.0 (and 4.3 at first).
        severe: Ours: with fewer orders of magnitude runs have rested for 60 readings and learned all the same.
        min_fall: Ours: healthy runs had fallen by half or had a flat profile by then.
        horizon: Ours: networks that Adam saves show it within 100 readings.
        early_horizon: Ours: networks that Adam saves only after a long rest learn too little afterwards.
        min_r2: Share of the variance along depth that the fitted line has to explain; below it, single layers are odd
            and depth is not the reason. Ours: it silences no sick run.

    Raises:
        ValueError: If bounds contradict each other, or a horizon is longer than the readings that are kept.

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
    unmoved: float = 1e-7
    lasting: float = 2.3
    severe: float = 6.0
    min_fall: float = 0.25
    horizon: int = 100
    early_horizon: int = 60
    min_r2: float = 0.5

    def __post_init__(self) -> None:
        """Refuse bounds that contradict each other."""
        if not 0 < self.suspect <= self.notice:
            raise ValueError(f"`suspect` must be positive and at most `notice`. Got {self.suspect} and {self.notice}")
        for name in ("horizon", "early_horizon"):
            if not 30 <= getattr(self, name) <= WINDOW:
                raise ValueError(
                    f"`{name}` must be between 30, or no loss can be judged, and {WINDOW}, the readings that are "
                    f"kept. Got {getattr(self, name)!r}"
                )

    def __call__(self, observations: Observations) -> Iterator[Diagnosis]:
        """Yield at most one diagnosis, the layers with the least (or most) gradient first."""
        profile = self._poor_twice(observations) or self._exploding_since_the_start(observations)
        if profile is None:
            return
        if profile.attenuation >= self.suspect:
            yield from self._vanishing(observations, profile)
        elif profile.attenuation <= -self.notice or self._lasts(observations, profile):
            yield from self._exploding(observations, profile)

    def _poor_twice(self, observations: Observations) -> DepthProfile | None:
        """Return the newest profile where it and the one before are poor in the same direction."""
        newest: DepthProfile | None = None
        if len(observations.signals) < 2:
            return None
        for snapshot in observations.signals[:-3:-1]:
            layers, levels = levels_of(observations, snapshot)
            if len(layers) < MIN_LAYERS or not may_be_steep(levels, self.suspect):
                return None
            profile = depth_profile(observations, snapshot)
            if profile is None or profile.r2 < self.min_r2 or abs(profile.attenuation) < self.suspect:
                return None
            if newest is not None and np.sign(profile.attenuation) != np.sign(newest.attenuation):
                return None
            newest = newest or profile
        return newest

    def _exploding_since_the_start(self, observations: Observations) -> DepthProfile | None:
        """Return the newest profile where the first one exploded and training has mended less than all of it."""
        if len(observations.signals) < 2 or len(observations.loss) < self.horizon:
            return None
        for snapshot, least in ((observations.signals[0], self.notice), (observations.signals[-1], self.lasting)):
            layers, levels = levels_of(observations, snapshot)
            # The robust line may be steeper than what lies between the ends.
            if len(layers) < MIN_LAYERS or not may_be_steep(levels, least / 2):
                return None
        profile = depth_profile(observations, observations.signals[-1])
        found = profile is not None and profile.r2 >= self.min_r2 and self._lasts(observations, profile)
        return profile if found else None

    def _vanishing(self, observations: Observations, profile: DepthProfile) -> Iterator[Diagnosis]:
        starved = self._starved(observations, profile)
        outcome = self._outcome(observations, profile)
        if starved is not None or outcome is False:
            severity: Severity = "warning"
        elif profile.attenuation >= self.notice:
            severity = "notice"
        else:
            return
        yield Diagnosis(
            rule="vanishing.depth",
            symptom=Symptom.VANISHING,
            severity=severity,
            optimizer=observations.optimizer,
            layers=observations.names(poorest(self._first_poor(observations, profile))),
            step=observations.step,
            message=_vanishing_message(severity, observations.optimizer_description.kind, outcome),
            measured=_measured(observations, profile, starved),
            cause="; ".join(filter(None, [activations_in_words(observations, profile.layers), _flat(observations)])),
            evidence=_evidence(profile) | {"update_ratio": starved, "loss_has_fallen": outcome},
        )

    def _first_poor(self, observations: Observations, profile: DepthProfile) -> DepthProfile:
        """Return the profile of the first probe where that was poor already: it shows where the fault began."""
        first = depth_profile(observations, observations.signals[0])
        poor = first is not None and first.r2 >= self.min_r2 and first.attenuation >= self.notice
        return first if first is not None and poor else profile

    def _starved(self, observations: Observations, profile: DepthProfile) -> float | None:
        """Return how little the step moved the slowest of the first layers where that is next to nothing."""
        first = profile.layers[: max(1, len(profile.layers) // 2)]
        # A layer that begins at zero moves by infinitely many times its weights; one without a gradient, or with a
        # learning rate of zero, is at rest for other reasons.
        known = observations.learning_rate != 0
        newest = [
            np.where(known & np.isfinite(s.update_ratio) & np.isfinite(s.delta), s.update_ratio, np.nan)
            for s in observations.signals[-2:]
        ]
        if any(np.isnan(updates[first]).all() for updates in newest):
            return None
        least = max(float(np.nanmin(updates[first])) for updates in newest)
        most = min(float(np.nanmax(updates)) for updates in newest)
        # A learning rate that warms up moves nothing at first, whatever the gradients.
        resting = 0 < most < self.unmoved and steady_rate(observations)
        return least if least < self.min_update and (least < self.min_share * most or resting) else None

    def _outcome(self, observations: Observations, profile: DepthProfile) -> bool | None:
        """Tell whether training shows in the loss in spite of a vanishing profile."""
        first = depth_profile(observations, observations.signals[0])
        severe = max(profile.attenuation, first.attenuation if first else 0.0) >= self.severe
        fallen = outcome_of(observations, min(self.early_horizon, self.horizon) if severe else self.horizon)
        if fallen and profile.attenuation >= self.notice:
            # The profile lasts, so what has fallen so far is all that the last layers could do alone.
            if outcome_of(observations, self.horizon, by=self.min_fall) is False:
                return False
            return not loss_rests(observations, self.horizon, by=2 * self.min_fall)
        return fallen

    def _exploding(self, observations: Observations, profile: DepthProfile) -> Iterator[Diagnosis]:
        outcome = outcome_of(observations, self.horizon)
        lasts = self._lasts(observations, profile)
        yield Diagnosis(
            rule="exploding.depth",
            symptom=Symptom.EXPLODING,
            severity="warning" if outcome is False or lasts else "notice",
            optimizer=observations.optimizer,
            layers=observations.names(_richest(profile)),
            step=observations.step,
            message=_exploding_message(outcome, lasts),
            measured=_measured(observations, profile, None),
            cause=activations_in_words(observations, profile.layers),
            evidence=_evidence(profile) | {"loss_has_fallen": outcome, "lasts": lasts},
        )

    def _lasts(self, observations: Observations, profile: DepthProfile) -> bool:
        """Tell whether the gradient has exploded since the first probe, and still does after the horizon."""
        first = depth_profile(observations, observations.signals[0])
        if len(observations.loss) < self.horizon or first is None:
            return False
        return first.attenuation <= -self.notice and profile.attenuation <= -min(self.lasting, self.notice)


def poorest(profile: DepthProfile) -> IntArray:
    """Return the layers that get less than 1% of what the last ones get, the poorest first.

    Args:
        profile: A profile that loses on its way back.
    """
    top = float(np.median(profile.levels[-max(1, len(profile.levels) // 4) :]))
    sick = np.flatnonzero(profile.levels < 1e-2 * top)
    sick = sick if sick.size else np.array([int(np.argmin(profile.levels))])
    return profile.layers[sick[np.argsort(profile.levels[sick], kind="stable")]]


def _richest(profile: DepthProfile) -> IntArray:
    """Return the layers that get more than 100 times what the last one gets, the richest first."""
    sick = np.flatnonzero(profile.levels > 1e2 * profile.levels[-1])
    sick = sick if sick.size else np.array([int(np.argmax(profile.levels[:-1]))])
    return profile.layers[sick[np.argsort(-profile.levels[sick], kind="stable")]]


def _evidence(profile: DepthProfile) -> dict[str, float]:
    return {
        "factor": profile.factor,
        "r2": profile.r2,
        "attenuation": profile.attenuation,
        "signal_growth": profile.growth,
        "first_over_last": float(profile.levels[0] / profile.levels[-1]),
    }


def _exploding_message(outcome: bool | None, lasts: bool) -> str:
    text = "the gradient grows on its way back to the first layers"
    if outcome is False:
        return text + ", and the loss does not fall"
    return text + (", and training does not mend that" if lasts else "")


def _vanishing_message(severity: Severity, optimizer: str, outcome: bool | None) -> str:
    if severity == "warning" and outcome is False:
        return "the first layers get almost no gradient, and the loss does not fall"
    if severity == "warning":
        return "the first layers get almost no gradient and hardly move"
    if outcome:
        return "the first layers get little gradient, but the loss falls"
    copes = f"; {optimizer} rescales each step, so training may cope" if optimizer in RESCALING_OPTIMIZERS else ""
    return f"the first layers get little gradient; whether that matters, the loss will tell{copes}"


def _flat(observations: Observations) -> str:
    """Say where most units lie on the flat ends of their activation: there the weights are too large, not too small."""
    share = np.nan_to_num(observations.signals[-1].saturated)
    worst = int(np.argmax(share))
    if share[worst] < _SATURATED:
        return ""
    return f"{share[worst]:.0%} of the units behind {observations.layers[worst].name} are saturated for every sample"


def _measured(observations: Observations, profile: DepthProfile, update: float | None) -> str:
    names = observations.names(profile.layers[[0, -1]])
    text = (
        f"every layer back multiplies the gradient by {profile.factor:.2g} (R2 {profile.r2:.2f}); {names[0]} gets "
        f"{profile.levels[0] / profile.levels[-1]:.1g} of what {names[1]} gets"
    )
    if abs(profile.growth) >= 1:
        text += (
            f"; on the way forward the signal {'grows' if profile.growth > 0 else 'shrinks'} by 1e{profile.growth:+.0f}"
        )
    if update is not None:
        far = f"by {update:.1g} of its weights" if update > 0 else "by nothing: it is lost in rounding"
        text += f"; a step moves the slowest layer {far}"
    return text


def activations_in_words(observations: Observations, layers: Sequence[int] | IntArray) -> str:
    """Say which activations follow the layers, the most frequent first.

    Args:
        observations: Readings of one optimizer.
        layers: Indices of the layers.

    Returns:
        Such as ``"20 x sigmoid (slope at most 0.25), model.py:31"``; empty where none is known.
    """
    described = [observations.layers[layer] for layer in layers]
    counts = Counter(about.activation for about in described if about.activation not in _NO_ACTIVATIONS)
    parts = []
    for name, count in counts.most_common(2):
        slope = " (slope at most 0.25)" if name == "sigmoid" else ""
        places = dict.fromkeys(about.where for about in described if about.activation == name and about.where)
        parts.append(", ".join([f"{count} x {name}{slope}", *list(places)[:2]]))
    return "; ".join(parts)
