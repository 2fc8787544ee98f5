"""What a published rule may look at in one step, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lightning_gradwatch import Symptom

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Flag:
    """That a rule has spoken.

    Attributes:
        step: The Trainer's ``global_step`` at the time.
        symptom: Which of our symptoms its words mean.
        layers: Where, at most three; empty where the rule does not say.
    """

    step: int
    symptom: Symptom
    layers: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Units:
    """What the units of one activation did since the last step, averaged over the batch and over all calls.

    Attributes:
        layer: Name of the last layer with a weight before it in the network, where the fault would lie.
        off: Share of the samples for which a ReLU put out nothing, ``[num_units]``; empty for others.
        beyond_5: Share of the inputs of a sigmoid or tanh of at least 5, ``[num_units]``; empty for others.
        beyond_bounds: The same beyond the bounds of Amazon SageMaker Debugger.
    """

    layer: str
    off: FloatArray = field(default_factory=lambda: np.empty(0))
    beyond_5: FloatArray = field(default_factory=lambda: np.empty(0))
    beyond_bounds: FloatArray = field(default_factory=lambda: np.empty(0))


@dataclass(frozen=True, eq=False)
class Look:
    """One step of one optimizer; only weights of two or more dimensions that have a gradient, in registration order.

    What a rule does not ask for is not computed. The tensors are read when asked for, so a look is good for its own
    step only.

    Attributes:
        step: The Trainer's ``global_step``.
        number: How many steps this optimizer has made before.
        progress: Share of the training that is over at the end of this step.
        names: Names of the layers, ``[n]``.
        read_gradients: Returns their gradients, flat.
        read_weights: Returns their weights, flat.
        loss: The loss, without its scale.
        accuracy: Share of the batch that was right; NaN where it is no classification.
        units: What the activations did, by name.
    """

    step: int
    number: int
    progress: float
    names: tuple[str, ...]
    read_gradients: Callable[[], list[FloatArray]]
    read_weights: Callable[[], list[FloatArray]]
    loss: float
    accuracy: float = float("nan")
    units: Mapping[str, Units] = field(default_factory=dict)

    @cached_property
    def gradients(self) -> list[FloatArray]:
        """The gradients, ``[n][size]``."""
        return self.read_gradients()

    @cached_property
    def weights(self) -> list[FloatArray]:
        """The weights, ``[n][size]``."""
        return self.read_weights()

    @cached_property
    def norms(self) -> FloatArray:
        """L2 norms of the gradients, ``[n]``."""
        return np.array([np.sqrt(each @ each) for each in self.gradients])

    @cached_property
    def global_norm(self) -> float:
        """Norm of all gradients as one vector."""
        return float(np.sqrt(self.norms @ self.norms))

    @cached_property
    def sizes(self) -> FloatArray:
        """Mean absolute values of the gradients, ``[n]``."""
        return np.array([np.abs(each).mean() for each in self.gradients])

    @cached_property
    def finite(self) -> BoolArray:
        """Which gradients are finite throughout, ``[n]``; in float64 the norm of a finite one is finite."""
        return np.isfinite(self.norms)

    def flag(self, symptom: Symptom, which: BoolArray | None = None) -> Flag:
        """Return a flag at this step.

        Args:
            symptom: What the rule's words mean.
            which: The layers that it names, ``[n]``; None where it names none.
        """
        named = () if which is None else tuple(self.names[place] for place in np.flatnonzero(which)[:3])
        return Flag(self.step, symptom, named)


class Rival(Protocol):
    """A published rule."""

    @property
    def name(self) -> str:
        """What it is called in the table."""
        ...

    def observe(self, look: Look) -> list[Flag]:
        """Say what it finds in a step; called once a step, in order."""
        ...
