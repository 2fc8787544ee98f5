"""Small networks, each with one fault, and what GradWatch says of them: what the pages show."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gradwatch import GradWatch

WIDTH, CLASSES, BATCH = 16, 4, 32
Loss = Callable[[nn.Module, Tensor, Tensor, int], Tensor]


def cross_entropy(net: nn.Module, inputs: Tensor, labels: Tensor, step: int) -> Tensor:
    """Return the loss of a batch in which nothing is wrong."""
    return F.cross_entropy(net(inputs), labels)


@dataclass(frozen=True)
class Case:
    """A network with its training, short enough to be run again by the tests.

    Attributes:
        make: Returns the network.
        steps: How many steps it is trained.
        rate: Learning rate.
        optimizer: Its class.
        loss: What is wrong with the data is done here.
        settings: Of GradWatch.
        sequence: Whether the samples are sequences of 60 steps.
    """

    make: Callable[[], nn.Module]
    steps: int = 120
    rate: float = 0.05
    optimizer: type[torch.optim.Optimizer] = torch.optim.SGD
    loss: Loss = cross_entropy
    settings: dict[str, Any] = field(default_factory=dict)
    sequence: bool = False


def stack(activation: type[nn.Module], depth: int, outputs: int = CLASSES, bias: bool = True) -> nn.Sequential:
    """Return linear layers with an activation behind each, as PyTorch initializes them."""
    layers = [part for _ in range(depth) for part in (nn.Linear(WIDTH, WIDTH, bias), activation())]
    return nn.Sequential(*layers, nn.Linear(WIDTH, outputs, bias))


def with_he(net: nn.Sequential, times: float = 1.0) -> nn.Sequential:
    """Initialize for ReLU (He et al., 2015), with weights that are ``times`` too large."""
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            layer.weight.data.mul_(times)
            nn.init.zeros_(layer.bias)
    return net


def with_units_off() -> nn.Sequential:
    """Return a network whose fourth layer is off for every sample."""
    net = with_he(stack(nn.ReLU, 6))
    bias = net[6].bias
    assert isinstance(bias, nn.Parameter)
    nn.init.constant_(bias, -20.0)
    return net


class Cut(nn.Module):
    """An encoder that nobody trains: what it gives is detached."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = with_he(stack(nn.ReLU, 3, WIDTH))
        self.decoder = with_he(stack(nn.ReLU, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return scores."""
        scores: Tensor = self.decoder(self.encoder(inputs).detach())
        return scores


class Recurrent(nn.Module):
    """Read a sequence and say what it began with."""

    def __init__(self, gain: float | None = None) -> None:
        super().__init__()
        self.rnn = nn.RNN(CLASSES, WIDTH, nonlinearity="tanh" if gain is None else "relu", batch_first=True)
        self.head = nn.Linear(WIDTH, CLASSES)
        if gain is not None:
            nn.init.orthogonal_(dict(self.rnn.named_parameters())["weight_hh_l0"], gain=gain)

    def forward(self, symbols: Tensor) -> Tensor:
        """Return scores."""
        states, _ = self.rnn(symbols)
        scores: Tensor = self.head(states[:, -1])
        return scores


def empty_sample(net: nn.Module, inputs: Tensor, labels: Tensor, step: int) -> Tensor:
    """Normalize each sample by its own length, which is 0 in one sample of batch 40."""
    if step == 40:
        inputs = inputs.clone()
        inputs[5] = 0.0
    return F.cross_entropy(net(4.0 * inputs / inputs.norm(dim=1, keepdim=True)), labels)


def odd_batch(net: nn.Module, inputs: Tensor, labels: Tensor, step: int) -> Tensor:
    """Give batch 80 in another unit, 300 times as large."""
    return F.cross_entropy(net(inputs * (300.0 if step == 80 else 1.0)), labels)


CASES: dict[str, Case] = {
    "healthy": Case(lambda: with_he(stack(nn.ReLU, 8))),
    "vanishing": Case(lambda: stack(nn.Sigmoid, 12), rate=0.1),
    "vanishing-relu": Case(lambda: stack(nn.ReLU, 12, bias=False)),
    "vanishing-time": Case(Recurrent, sequence=True),
    "vanishing-update": Case(lambda: with_he(stack(nn.ReLU, 4)), steps=8, rate=1e-10, optimizer=torch.optim.Adam),
    "exploding": Case(lambda: with_he(stack(nn.ReLU, 12), 3.0), rate=1e-3, optimizer=torch.optim.Adam),
    "exploding-update": Case(lambda: Recurrent(1.8), steps=6, sequence=True),
    "non_finite": Case(lambda: with_he(stack(nn.ReLU, 6)), steps=60, loss=empty_sample),
    "non_finite-skip": Case(
        lambda: with_he(stack(nn.ReLU, 6)), steps=60, loss=empty_sample, settings={"on_nonfinite": "skip"}
    ),
    "spike": Case(lambda: with_he(stack(nn.ReLU, 6)), loss=odd_batch),
    "dead": Case(with_units_off, steps=60),
    "disconnected": Case(Cut, steps=60),
}


def batches(case: Case) -> tuple[Tensor, Tensor]:
    """Return eight batches of inputs and labels that can be learned, ``[8, BATCH, ...]``."""
    generator = torch.Generator().manual_seed(0)
    if case.sequence:
        symbols = torch.randint(CLASSES, (8, BATCH, 60), generator=generator)
        return F.one_hot(symbols, CLASSES).float(), symbols[:, :, 0]
    inputs = torch.randn(8, BATCH, WIDTH, generator=generator)
    return inputs, inputs[..., :CLASSES].argmax(dim=-1)


class _Listener(logging.Handler):
    """Keeps what is told."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self.lines.append(record.getMessage())


@contextmanager
def heard() -> Iterator[list[str]]:
    """Collect what GradWatch says."""
    listener, logger = _Listener(), logging.getLogger("lightning_gradwatch")
    logger.addHandler(listener)
    try:
        yield listener.lines
    finally:
        logger.removeHandler(listener)


def train(name: str) -> tuple[GradWatch, list[str]]:
    """Train one of the networks.

    Args:
        name: Which one of ``CASES``.

    Returns:
        What watched it, and the messages of the log.
    """
    case = CASES[name]
    torch.manual_seed(0)
    net, (inputs, labels) = case.make(), batches(case)
    optimizer: Any = case.optimizer
    optimizer = optimizer(net.parameters(), lr=case.rate)
    with heard() as lines, tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        with GradWatch(**case.settings).attach(net, optimizer, log_dir=directory) as watch:
            for step in range(case.steps):
                optimizer.zero_grad()
                case.loss(net, inputs[step % 8], labels[step % 8], step).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return watch, [line.replace(str(directory), "runs/" + name) for line in lines]


def told(lines: list[str]) -> str:
    """Return what was told of steps: onsets, recoveries and where a step that is not finite came from.

    Example:
        >>> told(["GradWatch  watching 2 layers", "GradWatch  step 3  SPIKE"])
        'GradWatch  step 3  SPIKE'
    """
    return "\n".join(line for line in lines if line.startswith("GradWatch  step"))
