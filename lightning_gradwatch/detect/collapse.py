"""Whether a network whose gradient vanished from the start has died since, so that no profile is left to judge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lightning_gradwatch.detect.depth import activations_in_words, poorest
from lightning_gradwatch.detect.diagnosis import Diagnosis, Observations, Symptom
from lightning_gradwatch.detect.profile import MIN_LAYERS, DepthProfile, depth_profile, levels_of, may_be_steep
from lightning_gradwatch.detect.progress import outcome_of

# Two probes in a row, as in `DepthRule`, and a newest one that is neither.
_MIN_PROBES = 3


@dataclass(frozen=True)
class CollapseRule:
    """Name a gradient that vanished along depth from the first probes on, where by now none is left.

    ``DeadRule`` tells that the gradient is exactly zero; why, the first probes know. It is a warning when fewer than
    four layers get any gradient, the first two probes both lost ``severe`` orders of magnitude from the last layer to
    the first, and the loss has not fallen after ``horizon`` readings; before that nothing is said.

    Attributes:
        severe: As in ``DepthRule``.
        horizon: ``DepthRule.early_horizon``.
        min_r2: As in ``DepthRule``.

    Example:
        >>> CollapseRule().severe
        6.0
    """

    severe: float = 6.0
    horizon: int = 60
    min_r2: float = 0.5

    def __call__(self, observations: Observations) -> Iterator[Diagnosis]:
        """Yield at most one diagnosis, the layers that had the least gradient first."""
        if len(observations.signals) < _MIN_PROBES or len(observations.loss) < self.horizon:
            return
        if len(levels_of(observations, observations.signals[-1])[0]) >= MIN_LAYERS:
            return
        first, second = (self._profile(observations, number) for number in range(2))
        if first is None or second is None or outcome_of(observations, self.horizon) is not False:
            return
        names = observations.names(first.layers[[0, -1]])
        yield Diagnosis(
            rule="vanishing.depth",
            symptom=Symptom.VANISHING,
            severity="warning",
            optimizer=observations.optimizer,
            layers=observations.names(poorest(first)),
            step=observations.step,
            message="the first layers got almost no gradient from the start, now they get none, and the loss does not "
            "fall",
            measured=f"in the first step every layer back multiplied the gradient by {first.factor:.2g} "
            f"(R2 {first.r2:.2f}): {names[0]} got {first.levels[0] / first.levels[-1]:.1g} of what {names[1]} got",
            cause=activations_in_words(observations, first.layers),
            evidence={
                "factor": first.factor,
                "r2": first.r2,
                "attenuation": first.attenuation,
                "signal_growth": first.growth,
                "first_over_last": float(first.levels[0] / first.levels[-1]),
                "loss_has_fallen": False,
            },
        )

    def _profile(self, observations: Observations, number: int) -> DepthProfile | None:
        """Return the profile of a probe where it loses enough."""
        layers, levels = levels_of(observations, observations.signals[number])
        if len(layers) < MIN_LAYERS or not may_be_steep(levels, self.severe):
            return None
        profile = depth_profile(observations, observations.signals[number])
        enough = profile is not None and profile.r2 >= self.min_r2 and profile.attenuation >= self.severe
        return profile if enough else None
