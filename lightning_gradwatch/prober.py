"""In which batches the signal probe runs, and for which optimizer's step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from lightning_gradwatch.measure.compiled import is_compiled
from lightning_gradwatch.measure.layers import Layer
from lightning_gradwatch.measure.probing import ProbeReading
from lightning_gradwatch.measure.reader import Reader
from lightning_gradwatch.measure.signals import SignalProbe, Signals
from lightning_gradwatch.measure.updates import WeightSample
from lightning_gradwatch.steps import OptimizerStep

# The first steps decide most faults, and patience asks for several readings in a row.
_FIRST_PROBES = 5
# An optimizer that has not stepped for so many batches may have done its work; no probe waits for it.
_MAX_IDLE = 20
COMPILED = "torch.compile: hooks would make the model compile again"
_WITHOUT_PROBE = (
    "parameter gradients (not finite, zero, spikes, your thresholds) and, under SGD, steps that overwrite weights; "
    "nothing is said about depth and time"
)


class ProbeSchedule:
    """Which of an optimizer's steps are probed: the first ones, and then every n-th.

    Args:
        every_n_steps: Every n-th step of each optimizer.

    Example:
        >>> schedule = ProbeSchedule(every_n_steps=50)
        >>> probed = []
        >>> for step in range(120):
        ...     probed += [step] if schedule.wants(0) else []
        ...     schedule.stepped(0, probed=schedule.wants(0))
        >>> probed
        [0, 1, 2, 3, 4, 50, 100]
    """

    def __init__(self, every_n_steps: int) -> None:
        self._every = every_n_steps
        self._steps: dict[int, int] = {}
        self._next: dict[int, int] = {}
        self._left: dict[int, int] = {}
        self._idle: dict[int, int] = {}

    @property
    def known(self) -> list[int]:
        """The optimizers that have stepped so far."""
        return list(self._steps)

    def wants(self, number: int) -> bool:
        """Tell whether the next step of an optimizer is to be probed."""
        if self._idle.get(number, 0) > _MAX_IDLE:
            return False
        return self._left.get(number, _FIRST_PROBES) > 0 or self._steps[number] >= self._next[number]

    def stepped(self, number: int, *, probed: bool) -> None:
        """Note that an optimizer has stepped, and whether that was probed, perhaps in vain."""
        self._idle[number] = 0
        if probed:
            self._left[number] = max(self._left.get(number, _FIRST_PROBES) - 1, 0)
            self._next[number] = (self._steps.get(number, 0) // self._every + 1) * self._every
        self._steps[number] = self._steps.get(number, 0) + 1
        self._next.setdefault(number, 0)

    def again(self, number: int) -> None:
        """Probe the next step as well: this one told nothing, or something that has to be seen twice."""
        self._left[number] = self._left.get(number, 0) + 1

    def batch_over(self) -> None:
        """Note that a batch is over."""
        for number in self._idle:
            self._idle[number] += 1

    def state_dict(self) -> list[list[int]]:
        """Return the counts as plain values."""
        return [[number, steps, self._next[number], self._left.get(number, 0)] for number, steps in self._steps.items()]

    def load_state_dict(self, state: Sequence[Sequence[int]]) -> None:
        """Take back the counts."""
        self._steps = {number: steps for number, steps, _, _ in state}
        self._next = {number: following for number, _, following, _ in state}
        self._left = {number: left for number, _, _, left in state}


class Prober:
    """Runs the signal probe around some batches.

    Args:
        every_n_steps: How often, after the first steps; None for never.
    """

    def __init__(self, every_n_steps: int | None) -> None:
        self.schedule = ProbeSchedule(every_n_steps or 1)
        self._probe = SignalProbe()
        # Why nothing is probed; empty while probes run.
        self.off = "" if every_n_steps else "switched off: probe_every_n_steps=None"
        self._told_off = False

    def start(self, reader: Reader) -> None:
        """Step aside where the model is compiled."""
        if not self.off and is_compiled(reader.model):
            self.off = COMPILED

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to a fit under way."""
        return self.__dict__ | {"_probe": SignalProbe()}

    @property
    def places(self) -> dict[int, str]:
        """The line that calls each layer's activation, where it is called as a function."""
        return self._probe.places

    @property
    def shapes(self) -> dict[int, tuple[int, ...]]:
        """Shape of each layer's output in its first call."""
        return self._probe.shapes

    def begin_batch(self, layers: Sequence[Layer], *, due: bool) -> None:
        """Put the hooks in place where a probe is due.

        Args:
            layers: The model's layers.
            due: Whether any optimizer's next step is to be probed.
        """
        if due and not self.off and not self._probe.holds:
            self._probe.begin(layers)
            self._check()

    def entered(self, module: nn.Module, args: Any) -> Any:
        """Probe a call that began before the batch did; returns other arguments for it, or None."""
        if self._probe.running and is_compiled(module):
            self.off = COMPILED
            self._probe.end()
            return None
        return self._probe.entered(module, args)

    def before_backward(self, *, opaque: bool) -> None:
        """Note that the backward pass begins.

        Args:
            opaque: Whether the graph shows that a function of the model is compiled.
        """
        self._probe.pause()
        if opaque and not self.off:
            self.off = COMPILED
            self._probe.end()

    def after_backward(self) -> None:
        """Note that the backward pass is over."""
        self._probe.resume()

    def at_rest(self) -> AbstractContextManager[None]:
        """Probe nothing while gradients are read."""
        return self._probe.at_rest()

    def take(self, about: OptimizerStep, reader: Reader, *, wanted: bool) -> ProbeReading | None:
        """Take what was recorded for the step that is about to be made.

        Args:
            about: The step.
            reader: Knows the layers.
            wanted: Whether the step is judged at all.

        Returns:
            The reading, None where nothing was recorded.
        """
        probed = self._probe.running or self._probe.holds
        self.schedule.stepped(about.number, probed=probed and wanted)
        signals = self._probe.take() if probed else None
        if not wanted:
            # Of a step that nobody wants to see there comes no word when it is over.
            self._probe.go_on()
        self._check()
        if signals is None or not wanted or self.off:
            return None
        try:
            return self._reading(about, reader, signals)
        except Exception as error:
            self._fail(error)
            return None

    def _fail(self, error: Exception) -> None:
        self.off = self.off or f"failed: {type(error).__name__}: {error}"
        self._probe.end()

    def _reading(self, about: OptimizerStep, reader: Reader, signals: Signals) -> ProbeReading:
        columns = reader.columns_of(about.number, about.optimizer)
        sample = WeightSample(reader.layers, columns)
        names = [layer.name for layer in reader.layers]
        return ProbeReading(about.number, about.step, names, signals, sample, about.scale())

    def forget(self) -> None:
        """Drop what was recorded of passes whose gradients no step will use."""
        self._probe.forget()

    def after_step(self) -> None:
        """Note that an optimizer has stepped; the batch may go on with another forward pass."""
        self._probe.go_on()

    def end_batch(self) -> None:
        """Remove the hooks."""
        self._probe.end()
        self.schedule.batch_over()
        self._check()

    def stop(self) -> None:
        """Leave nothing behind."""
        self._probe.end()

    def why_none(self) -> str:
        """Say, once, that there are no probes, and what is left without them; empty where there is nothing to say."""
        if not self.off or self._told_off:
            return ""
        self._told_off = True
        return f"no signal probe ({self.off}); what is still judged: {_WITHOUT_PROBE}"

    def _check(self) -> None:
        if self._probe.failure and not self.off:
            self.off = f"failed: {self._probe.failure}"
            self._probe.end()
