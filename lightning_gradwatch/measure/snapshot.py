"""Plain numbers of one reading, with no torch in them: what the rules and the reports work on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class Curve(NamedTuple):
    """One activation function, with the number that shapes it.

    Attributes:
        operation: Its name in ``torch.nn.functional``; leaky, parametric and randomized ReLU are all ``"leaky_relu"``.
        parameter: The negative slope of a leaky ReLU, ``alpha`` of ELU and CELU, ``beta`` of softplus; 0 elsewhere.
    """

    operation: str
    parameter: float = 0.0


@dataclass(frozen=True)
class LayerDescription:
    """What a layer is, in words and numbers that outlive the model.

    Attributes:
        name: The layer's name.
        kind: Class name of its module.
        num_parameters: How many numbers it has.
        num_biases: How many of them are its bias.
        has_matrix: Whether it has a weight of two or more dimensions: it multiplies signals, and does not only scale
            or shift them.
        trainable: Whether it asked for a gradient when it was described.
        activation: Name of the activation that follows it (``"relu"``); ``"linear"`` where the next layer follows
            directly, ``"output"`` where the loss does, ``"gate"`` where it is multiplied with something; None where it
            is not known.
        curve: Which function exactly that is; None where it is not known.
        where: The line that calls that activation, where it is called as a function (``"model.py:31"``).
        feeds_batch_norm: Whether a batch normalization follows directly: it subtracts the batch mean, so the
            gradient of this layer's bias cancels to rounding noise and says nothing.
        outlets: Indices of the layers that depend on it and on which no other layer depends, itself where it is one;
            empty where that is not known.
        shape: Shape of its output in a batch; empty where no probe has seen it.
        left_out: Whether it asked for a gradient, no optimizer held it and its weights stood as PyTorch draws them
            when training began.
    """

    name: str
    kind: str
    num_parameters: int = 0
    num_biases: int = 0
    has_matrix: bool = True
    trainable: bool = True
    activation: str | None = None
    where: str = ""
    feeds_batch_norm: bool = False
    outlets: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    left_out: bool = False
    curve: Curve | None = None


@dataclass(frozen=True)
class OptimizerDescription:
    """What the rules need to know of an optimizer.

    Attributes:
        kind: Class name, such as ``"SGD"``.
        momentum: ``momentum`` of its first group, 0 where it has none.
        eps: ``eps`` of its first group, 0 where it has none.
    """

    kind: str
    momentum: float = 0.0
    eps: float = 0.0


@dataclass(frozen=True, eq=False)
class GradientSnapshot:
    """The gradients of one optimizer's step as plain numbers.

    Attributes:
        step: The Trainer's ``global_step`` before the step.
        optimizer: Number of the optimizer.
        norms: L2 norm of each layer's gradient as the optimizer got it, before clipping, ``[num_layers]``; NaN for a
            layer without a gradient (then not ``present``) and for a NaN gradient (then ``present``).
        clipped_norms: The same after clipping; equal to ``norms`` where nothing clips.
        bias_norms: L2 norm of the gradient of each layer's bias, NaN without one, ``[num_layers]``.
        weight_norms: L2 norm of each layer's parameters, the newest that was measured, ``[num_layers]``.
        present: Whether the layer had a gradient in this step, ``[num_layers]``.
        learning_rates: Learning rate of each layer, NaN where the optimizer does not hold it, ``[num_layers]``.
        loss: The loss, without loss scaling and accumulation; NaN where it is not known.

    Example:
        >>> norms, unknown = np.array([3.0, 4.0]), np.full(2, np.nan)
        >>> snapshot = GradientSnapshot(0, 0, norms, norms, unknown, unknown, np.ones(2, dtype=bool), unknown)
        >>> snapshot.global_norm, snapshot.finite
        (5.0, True)
    """

    step: int
    optimizer: int
    norms: FloatArray
    clipped_norms: FloatArray
    bias_norms: FloatArray
    weight_norms: FloatArray
    present: BoolArray
    learning_rates: FloatArray
    loss: float = field(default=float("nan"))

    @cached_property
    def global_norm(self) -> float:
        """Norm of all gradients seen as one vector, before clipping; 0 where there is no gradient at all."""
        return global_norm(self.norms, self.present)

    @cached_property
    def clipped_global_norm(self) -> float:
        """The same after clipping."""
        if self.clipped_norms is self.norms:
            return self.global_norm
        return global_norm(self.clipped_norms, self.present)

    @property
    def finite(self) -> bool:
        """Whether every gradient is finite as the optimizer uses it, so after clipping."""
        return bool(np.isfinite(self.clipped_norms[self.present]).all())


@dataclass(frozen=True, eq=False)
class TimeProfile:
    """The gradient that reaches each time step of a layer that is used step after step.

    Attributes:
        column: Index of the layer.
        delta: Root mean square of the gradient with respect to the input of each time step (``nn.RNN``, ``nn.LSTM``,
            ``nn.GRU``), or to the output of each call of a module that one forward pass calls many times; first step
            first, ``[num_steps]``.
        recurrent: Whether the layer is one of torch's recurrent modules.
        both_ways: Whether it reads the sequence in both directions.
    """

    column: int
    delta: FloatArray
    recurrent: bool = True
    both_ways: bool = False


@dataclass(frozen=True, eq=False)
class SignalSnapshot:
    """What a signal probe saw in one step, one value a layer; NaN where nothing was measured.

    Attributes:
        step: The Trainer's ``global_step`` before the step.
        optimizer: Number of the optimizer that used the gradients.
        layers: Names of all layers of the model, ``[num_layers]``.
        order: Indices of the layers that the forward pass called, in the order of their first call, ``[num_called]``.
        sizes: How many numbers each layer's output has, of all calls together, ``[num_layers]``.
        signal: Root mean square of each layer's output, ``[num_layers]``.
        delta: Root mean square of the gradient with respect to each layer's output, ``[num_layers]``.
        dead: Share of the units whose activation is zero for every sample of the batch, ``[num_layers]``.
        saturated: Share of the units whose sigmoid or tanh is flat for every sample of the batch, ``[num_layers]``.
        update_ratio: ``|dW| / |W|``: how far the optimizer really moved each layer, ``[num_layers]``.
        training: 1 for a layer that was called in training mode, 0 for one in evaluation mode, ``[num_layers]``.
        fed_by_cut: 1 for a layer whose own output asks for a gradient, and whose input was made, behind a cut, of the
            output of a trainable layer to which no gradient came back in this step; 0 for any other that was called,
            ``[num_layers]``.
        time: Profiles along time, one for each layer that is used step after step.
        unscaled_float16: Whether a layer has put out float16, in which gradients below 6e-8 are zero, and nobody has
            named a loss scaler.
    """

    step: int
    optimizer: int
    layers: tuple[str, ...]
    order: IntArray
    sizes: FloatArray
    signal: FloatArray
    delta: FloatArray
    dead: FloatArray
    saturated: FloatArray
    update_ratio: FloatArray
    training: FloatArray
    fed_by_cut: FloatArray
    time: tuple[TimeProfile, ...] = ()
    unscaled_float16: bool = False


def widened(snapshot: GradientSnapshot, num_layers: int) -> GradientSnapshot:
    """Return a snapshot with as many layers as there are by now; those that it did not know were not present.

    Example:
        >>> nan, absent = np.full(1, np.nan), np.zeros(1, dtype=np.bool_)
        >>> widened(GradientSnapshot(0, 0, nan, nan, nan, nan, absent, nan), 2).present
        array([False, False])
    """
    missing = num_layers - len(snapshot.present)
    if not missing:
        return snapshot
    nothing = np.full(missing, np.nan)
    columns = ("norms", "clipped_norms", "bias_norms", "weight_norms", "learning_rates")
    wide: dict[str, Any] = {name: np.concatenate([getattr(snapshot, name), nothing]) for name in columns}
    return replace(snapshot, present=np.append(snapshot.present, np.zeros(missing, dtype=np.bool_)), **wide)


_SQUARES_SAFE: Final = (1e-100, 1e100)


def global_norm(norms: FloatArray, present: BoolArray) -> float:
    """Combine the norms of the layers that are present into the norm of all of them seen as one vector.

    Args:
        norms: Norms of the layers, ``[num_layers]``.
        present: Which of them count, ``[num_layers]``.

    Returns:
        The global norm; NaN or infinite where a norm is.

    Example:
        >>> global_norm(np.array([3.0, 4.0, np.nan]), np.array([True, True, False]))
        5.0
    """
    parts = norms[present]
    if not parts.size:
        return 0.0
    if _SQUARES_SAFE[0] < parts.min() and parts.max() < _SQUARES_SAFE[1]:
        # The usual case, in a tenth of the time; NaN fails both comparisons.
        return float(np.sqrt(np.square(parts).sum()))
    return float(combine_norms(parts, np.zeros(len(parts), dtype=np.int64), 1)[0])


def _unsafe(norms: FloatArray) -> bool:
    positive = norms[(norms > 0) & np.isfinite(norms)]
    return bool(positive.size and (positive.max() > _SQUARES_SAFE[1] or positive.min() < _SQUARES_SAFE[0]))


# What float64 cannot hold becomes infinite, and NaN stays NaN, without a warning in a person's run.
@np.errstate(over="ignore", invalid="ignore")
def combine_norms(norms: FloatArray, groups: IntArray, num_groups: int) -> FloatArray:
    """Combine the norms of parts into the norm of each group seen as one vector.

    ``combined[k] = sqrt(sum over i in k of norms[i]^2)``, without overflow; NaN for a group without a part.

    Args:
        norms: Norms of the parts, ``[num_parts]``.
        groups: The group of each part, ``[num_parts]``.
        num_groups: How many groups there are.

    Returns:
        Norms of the groups, ``[num_groups]``.

    Example:
        >>> combine_norms(np.array([3.0, 4.0, 1e300]), np.array([0, 0, 2]), 3).tolist()
        [5.0, nan, 1e+300]
    """
    scale: FloatArray | float = 1.0
    if norms.size and not (norms.min() > _SQUARES_SAFE[0] and norms.max() < _SQUARES_SAFE[1]) and _unsafe(norms):
        # Only here could squares of float64 overflow or vanish; elsewhere scaling would only cost digits.
        scale = np.zeros(num_groups)
        np.maximum.at(scale, groups, norms)
        scale[~(np.isfinite(scale) & (scale > 0))] = 1.0
    shares = norms / scale[groups] if isinstance(scale, np.ndarray) else norms
    combined: FloatArray = scale * np.sqrt(np.bincount(groups, weights=np.square(shares), minlength=num_groups))
    combined[np.bincount(groups, minlength=num_groups) == 0] = np.nan
    return combined
