"""One forward and backward pass of a model outside of its training, with everything that can be measured in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradwatch.measure.norms import GradientNorms
from lightning_gradwatch.measure.probing import ProbeReading
from lightning_gradwatch.measure.reader import Reader
from lightning_gradwatch.measure.signals import SignalProbe
from lightning_gradwatch.measure.snapshot import GradientSnapshot, SignalSnapshot, widened
from lightning_gradwatch.measure.updates import WeightSample

LossClosure = Callable[[nn.Module], Tensor]


@dataclass(frozen=True, eq=False)
class OnePass:
    """What one pass told.

    Attributes:
        loss: The loss.
        gradients: Norms, weights and learning rates of each layer.
        signals: What the signal probe saw; None where no gradient came back to any layer.
    """

    loss: float
    gradients: GradientSnapshot
    signals: SignalSnapshot | None


@dataclass(frozen=True, eq=False)
class Passes:
    """Runs a model forward and backward.

    Attributes:
        reader: Knows the model and its layers.
        loss_closure: Takes the model and returns the loss.
        optimizer: Holds the parameters; steps where it is asked to.
        clip: Changes the gradients before a step, None where nothing clips.
        original: Where the model is a copy: the parameters of the original, to which no gradient may come.
    """

    reader: Reader
    loss_closure: LossClosure
    optimizer: Optimizer
    clip: Callable[[GradientNorms], Tensor] | None = None
    original: frozenset[int] = frozenset()

    def measured(self, step: int, *, moves: bool) -> OnePass:
        """Run one pass with hooks in place.

        Args:
            step: Number of the pass.
            moves: Whether the optimizer steps afterwards, where all gradients are finite.

        Returns:
            What was measured.

        Raises:
            TypeError: If the closure does not return a tensor.
            ValueError: If what it returns is no scalar, or does not depend on the model.
        """
        probe, reader = SignalProbe(), self.reader
        try:
            probe.begin(reader.layers)
            loss = self._forward()
            reader.read_graph(loss)
            probe.pause()
            self._backward(loss)
            probe.resume()
            signals = None if probe.failure else probe.take()
            reading = reader.read(0, self.optimizer, step, loss)
            reader.note_calls(probe.places, probe.shapes)
        finally:
            probe.end()
        if self.clip is not None:
            reading.clip_(self.clip)
        reading.release()
        gradients = widened(reading.snapshot(), len(reader.layers))
        goes = moves and gradients.finite
        names = [layer.name for layer in reader.layers]
        sample = WeightSample(reader.layers, reader.columns_of(0, self.optimizer)) if goes else None
        seen = None if signals is None else ProbeReading(0, step, names, signals, sample)
        if goes:
            self._go()
            if seen is not None:
                seen.measure_updates()
        return OnePass(float(loss.detach()), gradients, None if seen is None else seen.snapshot())

    def step(self) -> None:
        """Make one step of the optimizer without measuring anything but what the clipper needs."""
        if not isinstance(self.optimizer, torch.optim.LBFGS):
            self._evaluate()
        self._go()

    def _go(self) -> None:
        if isinstance(self.optimizer, torch.optim.LBFGS):
            # It evaluates the loss as often as it likes.
            self.optimizer.step(self._evaluate)  # type: ignore[no-untyped-call]
        else:
            self.optimizer.step()

    def loss(self) -> float:
        """Return the loss as it is now."""
        # With a graph, although nobody needs it: a loss may ask for gradients itself.
        return float(self._forward().detach())

    def _evaluate(self) -> Tensor:
        loss = self._forward()
        self._backward(loss)
        if self.clip is not None:
            reading = self.reader.read(0, self.optimizer, 0)
            reading.clip_(self.clip)
            reading.release()
        return loss

    def _forward(self) -> Tensor:
        with torch.enable_grad():
            return checked_loss(self.loss_closure(self.reader.model))

    def _backward(self, loss: Tensor) -> None:
        own = [parameter for parameter in self.reader.model.parameters() if parameter.requires_grad]
        for parameter in own:
            parameter.grad = None
        with _kept_gradients(self._strangers(loss, own)):
            loss.backward()  # type: ignore[no-untyped-call]

    def _strangers(self, loss: Tensor, own: Sequence[Tensor]) -> list[Tensor]:
        """Return what the loss depends on beside the model: the parameters of a loss function, an input."""
        ids = set(map(id, own))
        strangers = [leaf for leaf in leaves_of(loss) if id(leaf) not in ids]
        if any(id(leaf) in self.original for leaf in strangers):
            raise ValueError(
                "`loss_closure` must compute the loss with the model that it is given, which is a copy. It used the "
                "original: write `lambda model: loss(model(inputs), targets)`"
            )
        return strangers


def checked_loss(loss: Any) -> Tensor:
    """Return a loss that can be differentiated.

    Args:
        loss: What a person's closure has returned.

    Returns:
        The same.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If it is no scalar, or does not depend on any parameter.

    Example:
        >>> checked_loss(torch.zeros(3, requires_grad=True))
        Traceback (most recent call last):
        ...
        ValueError: `loss_closure` must return one number. Got a tensor of shape (3,); end with .mean() or .sum()
    """
    if not isinstance(loss, Tensor):
        raise TypeError(f"`loss_closure` must return the loss, a tensor of one number. Got {type(loss).__name__}")
    if loss.numel() != 1:
        raise ValueError(
            f"`loss_closure` must return one number. Got a tensor of shape {tuple(loss.shape)}; end with .mean() or "
            ".sum()"
        )
    if not loss.requires_grad:
        raise ValueError(
            "`loss_closure` must return a loss that depends on the model's parameters. Got one without a graph "
            "(requires_grad is False): leave out detach(), .item() and torch.no_grad()"
        )
    return loss


def leaves_of(loss: Tensor) -> list[Tensor]:
    """Return the leaves of a graph to which ``backward`` would give a gradient.

    Example:
        >>> weight = torch.ones(1, requires_grad=True)
        >>> leaves_of((2 * weight).sum())[0] is weight
        True
    """
    if loss.grad_fn is None:
        return [loss]
    waiting: list[Any] = [loss.grad_fn]
    seen, leaves = {loss.grad_fn}, []
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return leaves


@contextmanager
def _kept_gradients(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Give tensors back the very gradients that they had, which ``backward`` would add to in place."""
    before = [tensor.grad for tensor in tensors]
    for tensor in tensors:
        tensor.grad = None
    try:
        yield
    finally:
        for tensor, gradient in zip(tensors, before, strict=True):
            tensor.grad = gradient
