"""What a rule sees and what it says: observations, symptoms and diagnoses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np

from lightning_gradwatch.measure.history import Readings
from lightning_gradwatch.measure.snapshot import (
    BoolArray,
    FloatArray,
    IntArray,
    LayerDescription,
    OptimizerDescription,
    SignalSnapshot,
)

Severity: TypeAlias = Literal["warning", "notice"]


class Symptom(Enum):
    """What is wrong with a gradient.

    Example:
        >>> Symptom("vanishing") is Symptom.VANISHING
        True
    """

    VANISHING = "vanishing"
    EXPLODING = "exploding"
    NON_FINITE = "non_finite"
    SPIKE = "spike"
    DEAD = "dead"
    DISCONNECTED = "disconnected"


@dataclass(frozen=True)
class Diagnosis:
    """A symptom of some layers, with the numbers that gave it away.

    Attributes:
        rule: Id of the rule, its family first: ``"vanishing.depth"``.
        symptom: What is wrong.
        severity: ``"warning"`` where layers do not learn, ``"notice"`` where the profile is poor and training copes.
        optimizer: Number of the optimizer whose step it was.
        layers: Names of the sick layers, the one where it began or is worst first.
        step: The Trainer's ``global_step`` at the onset.
        message: What is wrong, in plain words.
        measured: The numbers, as a sentence.
        cause: The likely cause, from what the model is made of; empty where nothing is known.
        evidence: The numbers by name.
        remedies: Ways out, best first (``lightning_gradwatch.Remedy``).
        count: How often this fault has begun so far.
        recovered_at: The ``global_step`` at which it was gone, None while it lasts.

    Example:
        >>> Diagnosis("my.rule", Symptom.SPIKE, layers=("net.0",), step=7, message="too large").to_dict()["symptom"]
        'spike'
    """

    rule: str
    symptom: Symptom
    severity: Severity = "warning"
    optimizer: int = 0
    layers: tuple[str, ...] = ()
    step: int = 0
    message: str = ""
    measured: str = ""
    cause: str = ""
    # Not printed: a list of faults would fill the screen.
    evidence: Mapping[str, Any] = field(default_factory=dict, repr=False)
    remedies: tuple[Any, ...] = field(default=(), repr=False)
    count: int = 1
    recovered_at: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values that JSON can hold; numbers that are not finite become strings."""
        values = {name: plain(value) for name, value in self.__dict__.items() if name not in ("symptom", "remedies")}
        advice = [
            {"title": r.title, "reason": r.reason, "code": r.code} | ({"effect": plain(r.effect)} if r.effect else {})
            for r in self.remedies
        ]
        return {**values, "symptom": self.symptom.value, "remedies": advice}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Diagnosis:
        """Rebuild a diagnosis from ``to_dict``, without its remedies, which belong to a living model."""
        known = {**values, "symptom": Symptom(values["symptom"]), "layers": tuple(values["layers"]), "remedies": ()}
        return replace(cls(rule=values["rule"], symptom=known["symptom"]), **known)


def plain(value: Any) -> Any:
    """Return plain values that JSON can hold; numbers that are not finite become strings.

    Example:
        >>> plain({"lr": float("inf"), "betas": (0.9, 0.99)})
        {'lr': 'inf', 'betas': [0.9, 0.99]}
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (np.generic, np.ndarray)):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value if isinstance(value, (str, int, float, type(None))) else str(value)


@dataclass(frozen=True, eq=False)
class Observations:
    """What a rule may look at: the readings of one optimizer, oldest first, the newest being judged.

    What was not measured is empty: without a signal probe ``signals`` is.

    Attributes:
        step: The Trainer's ``global_step`` before the step that is judged.
        optimizer: Number of the optimizer.
        optimizer_description: Its class, momentum and eps.
        layers: All layers of the model, in registration order, ``[num_layers]``.
        order: Indices of the layers in forward order, ``[num_layers]``.
        gradients: The newest readings of this optimizer.
        loss: The loss of each of its readings since the start of training, old ones thinned; NaN where it is not
            known, and throughout where several optimizers work against each other.
        signals: What the signal probe saw in steps of this optimizer, the newest last.
        num_present: In how many readings of this optimizer each layer had a gradient since the start of training,
            ``[num_layers]``; empty where nobody has counted.
        num_elsewhere: In how many readings another optimizer of the model had a gradient, the one with most.

    Example:
        >>> def tiny(observations):
        ...     smallest = observations.gradients.norms[-1].min()
        ...     if smallest < 1e-9:
        ...         yield Diagnosis("my.tiny", Symptom.VANISHING, layers=observations.names([0]))
        >>> from lightning_gradwatch import GradWatch
        >>> GradWatch(rules=[tiny]).settings.rules[0] is tiny
        True
    """

    step: int
    optimizer: int
    optimizer_description: OptimizerDescription
    layers: tuple[LayerDescription, ...]
    order: IntArray
    gradients: Readings
    loss: FloatArray
    signals: Sequence[SignalSnapshot] = ()
    num_present: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    num_elsewhere: int = 0

    @property
    def probe(self) -> SignalSnapshot | None:
        """What the signal probe saw in the very step that is judged, None in a step without a probe."""
        newest = self.signals[-1] if self.signals else None
        return newest if newest is not None and newest.step == self.step else None

    @property
    def updates(self) -> FloatArray:
        """How far the optimizer really moved each layer in the newest probe, ``[num_layers]``; empty without one."""
        return self.signals[-1].update_ratio if self.signals else np.empty(0)

    @property
    def learning_rate(self) -> FloatArray:
        """The newest learning rate of each layer, ``[num_layers]``."""
        newest: FloatArray = self.gradients.learning_rates[-1]
        return newest

    @cached_property
    def bias_sizes(self) -> FloatArray:
        """How many biases each layer has whose gradient is the batch sum of delta, ``[num_layers]``.

        0 without a bias, and for a bias that feeds a batch normalization, whose gradient cancels to rounding noise.
        """
        return np.array([0 if a.feeds_batch_norm else a.num_biases for a in self.layers], dtype=np.float64)

    @cached_property
    def sizes(self) -> FloatArray:
        """How many parameters each layer has, at least 1, ``[num_layers]``."""
        return np.maximum(np.array([layer.num_parameters for layer in self.layers], dtype=np.float64), 1)

    @cached_property
    def matrices(self) -> BoolArray:
        """Which layers have a weight of two or more dimensions, ``[num_layers]``."""
        return np.array([layer.has_matrix for layer in self.layers], dtype=np.bool_)

    @cached_property
    def chains(self) -> BoolArray:
        """Which layers each output of the network depends on, ``[num_outlets, num_layers]``.

        A layer of which that is not known belongs to every chain; where nothing is known, all layers are one.
        """
        rows = {end: row for row, end in enumerate(sorted({e for layer in self.layers for e in layer.outlets}))}
        chains = np.zeros((max(len(rows), 1), len(self.layers)), dtype=np.bool_)
        for column, layer in enumerate(self.layers):
            chains[[rows[end] for end in layer.outlets] or slice(None), column] = True
        return chains

    def names(self, layers: Iterable[int]) -> tuple[str, ...]:
        """Return the names of layers given by index."""
        return tuple(self.layers[layer].name for layer in layers)


# Called once a reading with one optimizer's rows; says what is sick now, not what is new.
Rule: TypeAlias = Callable[[Observations], Iterable[Diagnosis]]
"""What judges: a function, or a frozen dataclass that can be called, from observations to what is sick now.

It is asked once a reading with one optimizer's readings. Patience, onsets and recoveries are no business of its own.

Example:
    >>> from lightning_gradwatch import DepthRule, GradWatch, default_rules
    >>> stricter = [rule for rule in default_rules() if not isinstance(rule, DepthRule)] + [DepthRule(notice=4.0)]
    >>> len(GradWatch(rules=stricter).settings.rules) == len(default_rules())
    True
"""
