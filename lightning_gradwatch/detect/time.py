"""Whether the gradient that reaches a recurrent layer fades or grows from time step to time step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lightning_gradwatch.detect.diagnosis import Diagnosis, Observations, Symptom
from lightning_gradwatch.detect.profile import theil_sen
from lightning_gradwatch.detect.progress import outcome_of
from lightning_gradwatch.measure.snapshot import TimeProfile

# Over fewer steps nothing has time to fade.
_MIN_STEPS = 8


@dataclass(frozen=True, eq=False)
class TimeFit:
    """How the gradient depends on the time step.

    Attributes:
        num_steps: Steps from the first to the one with the largest gradient (vanishing), or to the last (exploding).
        attenuation: Orders of magnitude lost on the way back over them (negative: gained).
        factor: What one step back multiplies the gradient by.
        r2: Share of the variance that a straight line through the logarithms explains.
    """

    num_steps: int
    attenuation: float
    factor: float
    r2: float


# A profile is judged again at each reading until the next probe comes.
@lru_cache(maxsize=64)
def time_fit(profile: TimeProfile) -> TimeFit | None:
    """Fit a line through the logarithms of the gradient along time.

    Steps behind the answer get nothing, and neither does padding: what fades is judged back from the step that gets
    most, what grows from the last step that gets anything. A layer that reads in both directions may fade in either
    one, and of it nothing can be said to grow.

    Args:
        profile: The gradient that reaches each step, first step first.

    Returns:
        The fit; None for fewer than eight steps.
    """
    reached = np.flatnonzero(np.isfinite(profile.delta) & (profile.delta > 0))
    if len(reached) < _MIN_STEPS:
        return None
    logs = np.log10(profile.delta[reached])
    if profile.both_ways and np.argmax(logs) < len(logs) // 2:
        # What reads backwards forgets the last steps.
        logs = logs[::-1]
    peak = int(np.argmax(logs))
    stretch = logs[: peak + 1] if peak >= len(logs) // 2 else logs
    if len(stretch) < _MIN_STEPS:
        return None
    quarter = max(1, len(stretch) // 8)
    slope = theil_sen(stretch)
    correlation = float(np.corrcoef(np.arange(len(stretch)), stretch)[0, 1]) if np.ptp(stretch) > 0 else 1.0
    lost = float(np.median(stretch[-quarter:]) - np.median(stretch[:quarter]))
    return TimeFit(len(stretch), lost, float(10.0**-slope), correlation**2)


@dataclass(frozen=True)
class TimeRule:
    """Judge the gradient that reaches each time step of a recurrent layer, in two probes in a row.

    A network that forgets is sick only where the answer lies far back: one whose gradient fades by 1e-13 over 60 steps
    learns perfectly what the last steps tell. So fading by ``notice`` orders of magnitude is a notice, and fading by
    ``suspect`` a warning once the loss has not fallen after ``horizon`` readings. The same for growing by
    ``growth`` orders. Weight sharing over depth has fewer calls than ``min_calls``.

    Attributes:
        notice: Orders of magnitude. Ours: half of what float32 can add to a sum (1e-7) is lost in rounding.
        suspect: AUTOTRAINER calls a ratio of 1e-3 vanishing.
        growth: The same for exploding.
        horizon: How many readings it takes to tell that the loss does not fall; as in ``DepthRule``.
        min_calls: Calls in one forward pass from which on a module's calls count as time steps. Ours.

    Example:
        >>> TimeRule().suspect
        3.0

    References:
        Pascanu et al., On the difficulty of training recurrent neural networks, ICML 2013.
    """

    notice: float = 5.0
    suspect: float = 3.0
    growth: float = 3.0
    horizon: int = 100
    min_calls: int = 8

    def __call__(self, observations: Observations) -> Iterator[Diagnosis]:
        """Yield a diagnosis for the layers that forget, and one for those in which the gradient grows."""
        if len(observations.signals) < 2 or not observations.signals[-1].time:
            return
        found: dict[Symptom, list[tuple[TimeProfile, TimeFit]]] = {}
        before = {profile.column: profile for profile in observations.signals[-2].time}
        for profile in observations.signals[-1].time:
            fit, earlier = self._fit(profile), self._fit(before.get(profile.column))
            if fit is not None and earlier is not None:
                symptom = self._symptom(observations, profile, fit, earlier)
                if symptom is not None:
                    found.setdefault(symptom, []).append((profile, fit))
        for symptom, sick in found.items():
            # Layers of one recurrence fade together: they are one fault, the worst first.
            sick.sort(key=lambda pair: -abs(pair[1].attenuation))
            yield self._diagnosis(observations, sick, symptom)

    def _fit(self, profile: TimeProfile | None) -> TimeFit | None:
        if profile is None or not (profile.recurrent or len(profile.delta) >= self.min_calls):
            return None
        return time_fit(profile)

    def _symptom(
        self, observations: Observations, profile: TimeProfile, fit: TimeFit, earlier: TimeFit
    ) -> Symptom | None:
        fades = min(fit.attenuation, earlier.attenuation)
        grows = -max(fit.attenuation, earlier.attenuation)
        if fades < self.suspect and grows < self.growth:
            return None
        outcome = outcome_of(observations, self.horizon)
        if fades >= (self.suspect if outcome is False else self.notice):
            return Symptom.VANISHING
        return Symptom.EXPLODING if grows >= self.growth and outcome is not True and not profile.both_ways else None

    def _diagnosis(
        self, observations: Observations, sick: Sequence[tuple[TimeProfile, TimeFit]], symptom: Symptom
    ) -> Diagnosis:
        profile, fit = sick[0]
        outcome = outcome_of(observations, self.horizon)
        return Diagnosis(
            rule=f"{symptom.value}.time",
            symptom=symptom,
            severity="warning" if outcome is False else "notice",
            optimizer=observations.optimizer,
            layers=observations.names(each.column for each, _ in sick),
            step=observations.step,
            message=_message(symptom, outcome),
            measured=f"every step back multiplies the gradient by {fit.factor:.2g} (R2 {fit.r2:.2f}): over "
            f"{fit.num_steps} steps by {10.0**-fit.attenuation:.0e}",
            cause=f"{observations.layers[profile.column].kind} used over {len(profile.delta)} steps",
            evidence={
                "factor": fit.factor,
                "r2": fit.r2,
                "attenuation": fit.attenuation,
                "num_steps": len(profile.delta),
                "loss_has_fallen": outcome,
            },
        )


def _message(symptom: Symptom, outcome: bool | None) -> str:
    if symptom is Symptom.EXPLODING:
        text = "the gradient grows on its way back through time"
        return text + (", and the loss does not fall" if outcome is False else "")
    if outcome is False:
        return "the early time steps get almost no gradient, and the loss does not fall"
    return "the early time steps get almost no gradient; that matters only if the answer lies there"
