"""What a person may set, checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

from lightning_gradwatch.detect.diagnosis import Rule, Symptom
from lightning_gradwatch.detect.rules import check_ignored, default_rules
from lightning_gradwatch.detect.thresholds import ThresholdRule, check_thresholds
from lightning_gradwatch.remedy.clipping import Clipper
from lightning_gradwatch.report.sink import Sink

OnNonFinite = Literal["warn", "skip", "raise"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments of ``GradWatch``, which documents them.

    Raises:
        TypeError: If a clipper, rule or sink lacks the method that it is called by, or one thing stands where a list
            belongs.
        ValueError: If a value is out of range; the message names the argument, what is expected and what came.
    """

    vanishing_threshold: float | None = None
    exploding_threshold: float | None = None
    patience: int = 3
    warmup_steps: int = 0
    rules: Sequence[Rule] | None = None
    ignore: Sequence[str] = ()
    sinks: Sequence[Sink] = ()
    clipper: Clipper | None = None
    on_nonfinite: OnNonFinite = "warn"
    max_consecutive_skips: int = 10
    stop_on: Sequence[str] = ()
    rehearse: bool = False
    every_n_steps: int = 1
    probe_every_n_steps: int | None = 50
    per_layer_scalars: bool = False
    heatmap: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check_thresholds(
            self.vanishing_threshold, self.exploding_threshold, "vanishing_threshold", "exploding_threshold"
        )
        for name, least in (("patience", 1), ("warmup_steps", 0), ("max_consecutive_skips", 1), ("every_n_steps", 1)):
            _check_integer(name, getattr(self, name), least)
        if self.probe_every_n_steps is not None:
            _check_integer("probe_every_n_steps", self.probe_every_n_steps, 1)
        if self.on_nonfinite not in ("warn", "skip", "raise"):
            raise ValueError(f'`on_nonfinite` must be "warn", "skip" or "raise". Got {self.on_nonfinite!r}')
        for name in ("rules", "ignore", "stop_on", "sinks"):
            value = getattr(self, name)
            if value is not None:
                _check_list(name, value)
                object.__setattr__(self, name, tuple(value))
        symptoms = [symptom.value for symptom in Symptom]
        for symptom in self.stop_on:
            if symptom not in symptoms:
                raise ValueError(f"`stop_on` must name symptoms out of {', '.join(symptoms)}. Got {symptom!r}")
        check_ignored(self.ignore, own_rules=self.rules is not None)
        self._check_parts()

    def _check_parts(self) -> None:
        if not isinstance(self.rehearse, bool):
            raise TypeError(f"`rehearse` must be True or False. Got {self.rehearse!r}")
        if self.clipper is not None and not isinstance(self.clipper, Clipper):
            raise TypeError(f"`clipper` must have a method clip_(norms). Got {self.clipper!r}")
        for rule in self.rules or ():
            if not callable(rule):
                raise TypeError(f"`rules` must hold callables that take observations. Got {rule!r}")
        for sink in self.sinks:
            if not isinstance(sink, Sink):
                raise TypeError(f"`sinks` must hold objects with write(report) and close(). Got {sink!r}")

    @property
    def all_rules(self) -> tuple[Rule, ...]:
        """The rules that run: the person's own or the default ones, and the thresholds on top."""
        rules = default_rules() if self.rules is None else tuple(self.rules)
        if self.vanishing_threshold is None and self.exploding_threshold is None:
            return rules
        return *rules, ThresholdRule(self.vanishing_threshold, self.exploding_threshold)

    @property
    def acts(self) -> bool:
        """Whether gradients are clipped or a step may be dropped, so that every step has to be measured."""
        return self.clipper is not None or self.on_nonfinite != "warn"


def _check_list(name: str, value: object) -> None:
    if isinstance(value, str):
        raise TypeError(f"`{name}` must be a list, not a single string. Got {value!r}")
    if not isinstance(value, Iterable):
        raise TypeError(f"`{name}` must be a list. Got {value!r}")


def _check_integer(name: str, value: object, least: int) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"`{name}` must be an integer of at least {least}. Got {value!r}")
