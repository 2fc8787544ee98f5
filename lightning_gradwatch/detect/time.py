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
        attenuation: Orders of magnitude lost on the way back from the last eighth of them to the first (negative:
            gained).
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
    ``growth`` orders.

    What grows saturates its own units within a few steps, and fades from then on. So where the first probe saw the
    gradient grow by ``began`` orders, a later fading is called exploding; and where it saw it grow by ``growth``, and
    after ``horizon`` readings it still does, or fades as fast, or reaches nothing, that is a warning whatever the loss.

    Weight sharing over depth has fewer calls than ``min_calls``.

    Attributes:
        notice: Orders of magnitude. Ours: half of what float32 can add to a sum (1e-7) is lost in rounding.
        suspect: AUTOTRAINER calls a ratio of 1e-3 vanishing.
        growth: The same for exploding. Ours: healthy runs grew by at most 2.2 orders in the first probe, sick ones that
            are not mended by at least 4.1.
        began: Ours: what fades by nature does not grow at first, and what saturated had grown by 1.6.
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
    began: float = 1.0
    horizon: int = 100
    min_calls: int = 8

    def __call__(self, observations: Observations) -> Iterator[Diagnosis]:
        """Yield a diagnosis for the layers that forget, and one for those in which the gradient grows."""
        if len(observations.signals) < 2 or not observations.signals[-1].time:
            return
        found: dict[tuple[Symptom, bool], list[_Sick]] = {}
        before, first = ({each.column: each for each in observations.signals[place].time} for place in (-2, 0))
        for profile in observations.signals[-1].time:
            profiles = (profile, before.get(profile.column), first.get(profile.column))
            sick = _Sick(profile, profiles[1], *map(self._fit, profiles))
            symptom, lasts = self._symptom(observations, sick)
            if symptom is not None:
                found.setdefault((symptom, lasts), []).append(sick)
        for (symptom, lasts), several in found.items():
            # Layers of one recurrence fade together: they are one fault, the worst first.
            several.sort(key=lambda sick: -abs(sick.worst.attenuation))
            yield self._diagnosis(observations, several, symptom, lasts=lasts)

    def _fit(self, profile: TimeProfile | None) -> TimeFit | None:
        if profile is None or not (profile.recurrent or len(profile.delta) >= self.min_calls):
            return None
        return time_fit(profile)

    def _symptom(self, observations: Observations, sick: _Sick) -> tuple[Symptom | None, bool]:
        """Return what it is, and whether it is an explosion that lasts."""
        if self._lasts(observations, sick):
            return Symptom.EXPLODING, True
        if sick.newest is None or sick.before is None:
            return None, False
        fades = min(sick.newest.attenuation, sick.before.attenuation)
        grows = -max(sick.newest.attenuation, sick.before.attenuation)
        if fades < self.suspect and grows < self.growth:
            return None, False
        outcome = outcome_of(observations, self.horizon)
        if fades >= (self.suspect if outcome is False else self.notice):
            exploded = outcome is False and sick.first is not None and sick.first.attenuation <= -self.began
            return (Symptom.EXPLODING if exploded and not sick.profile.both_ways else Symptom.VANISHING), False
        exploding = grows >= self.growth and outcome is not True and not sick.profile.both_ways
        return (Symptom.EXPLODING if exploding else None), False

    def _lasts(self, observations: Observations, sick: _Sick) -> bool:
        """Tell whether the gradient exploded in the first probe, and training has not mended that."""
        exploded = sick.first is not None and sick.first.attenuation <= -self.growth
        if not exploded or len(observations.loss) < self.horizon or sick.profile.both_ways:
            return False
        return all(
            _underflows(profile) if fit is None else abs(fit.attenuation) >= self.growth
            for profile, fit in ((sick.profile, sick.newest), (sick.earlier, sick.before))
        )

    def _diagnosis(
        self, observations: Observations, several: Sequence[_Sick], symptom: Symptom, *, lasts: bool
    ) -> Diagnosis:
        profile, fit = several[0].profile, several[0].worst
        outcome = outcome_of(observations, self.horizon)
        flipped = symptom is Symptom.EXPLODING and (several[0].newest is None or several[0].newest.attenuation > 0)
        shown = several[0].first if flipped and several[0].first is not None else fit
        get, times = ("got" if flipped else "get"), f"{10.0**-shown.attenuation:.0e} times"
        return Diagnosis(
            rule=f"{symptom.value}.time",
            symptom=symptom,
            severity="warning" if outcome is False or lasts else "notice",
            optimizer=observations.optimizer,
            layers=observations.names(sick.profile.column for sick in several),
            step=observations.step,
            message=_message(symptom, outcome, flipped=flipped),
            measured=f"{'in the first step ' if flipped else ''}every step back "
            f"{'multiplied' if flipped else 'multiplies'} the gradient by {shown.factor:.2g} (R2 {shown.r2:.2f}); the "
            f"first of {shown.num_steps} steps {get} {times} what the last ones {get}"
            f"{_now(several[0].newest) if flipped else ''}",
            cause=f"{observations.layers[profile.column].kind} used over {len(profile.delta)} steps",
            evidence={
                "factor": shown.factor,
                "r2": shown.r2,
                "attenuation": shown.attenuation,
                "num_steps": len(profile.delta),
                "loss_has_fallen": outcome,
                "lasts": lasts,
            },
        )


@dataclass(frozen=True)
class _Sick:
    """A layer's newest profile and the one before, with the fits of both and of the first."""

    profile: TimeProfile
    earlier: TimeProfile | None
    newest: TimeFit | None
    before: TimeFit | None
    first: TimeFit | None

    @property
    def worst(self) -> TimeFit:
        """The newest fit, the first one where nothing is left to fit."""
        fit = self.newest or self.first
        assert fit is not None, "only what was fitted is sick"
        return fit


def _underflows(profile: TimeProfile | None) -> bool:
    """Tell whether so many steps are reached by exact zeros that no line is left; a short sequence has none."""
    return profile is not None and int(np.isfinite(profile.delta).sum()) >= _MIN_STEPS


def _now(newest: TimeFit | None) -> str:
    return ", by now nothing comes back" if newest is None else f", by now {10.0**-newest.attenuation:.0e} times"


def _message(symptom: Symptom, outcome: bool | None, *, flipped: bool) -> str:
    flat = ", and the loss does not fall" if outcome is False else ""
    if flipped:
        return f"the gradient grew on its way back through time, and its steps made the layer forget{flat}"
    if symptom is Symptom.EXPLODING:
        return f"the gradient grows on its way back through time{flat}"
    if outcome is False:
        return "the early time steps get almost no gradient, and the loss does not fall"
    return "the early time steps get almost no gradient; that matters only if the answer lies there"
