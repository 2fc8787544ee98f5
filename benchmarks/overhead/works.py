"""The four models whose training is timed: two large ones, a deep one, and one of very many layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Work:
    """A model and what it is trained on.

    Attributes:
        name: What it is.
        make: Makes the model.
        batch: Makes inputs and targets.
        loss: Takes the model's output and the targets.
        steps: Steps of a fit that is timed; a step of the large ones takes most of a second on one core.
        most: How often the floor the cost of monitoring may be.
        many_layers: Whether it has thousands of layers, so that what others do for each layer takes seconds.
    """

    name: str
    make: Callable[[], nn.Module]
    batch: Callable[[], tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor]
    steps: int
    most: float
    many_layers: bool = False


class Residual(nn.Module):
    """Two convolutions with batch norms and a way around them.

    Args:
        width_in: Channels that come.
        width: Channels that go.
    """

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        stride = 1 if width_in == width else 2
        self.first = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)
        self.around = nn.Identity() if stride == 1 else nn.Conv2d(width_in, width, 1, stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the block's output."""
        inner = F.relu(self.first_norm(self.first(images)))
        return F.relu(self.second_norm(self.second(inner)) + self.around(images))


class Language(nn.Module):
    """A transformer that names the next symbol: 30 million parameters.

    Args:
        num_symbols: How many there are.
        width: Of the residual stream.
        num_layers: How many blocks.
    """

    def __init__(self, num_symbols: int = 1024, width: int = 448, num_layers: int = 12) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_symbols, width)
        block = nn.TransformerEncoderLayer(width, 8, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, num_layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, num_symbols)

    def forward(self, symbols: Tensor) -> Tensor:
        """Return scores, one row a symbol of the sequence."""
        mask = nn.Transformer.generate_square_subsequent_mask(symbols.shape[1])
        scores: Tensor = self.head(self.blocks(self.embedding(symbols), mask, is_causal=True))
        return scores.flatten(0, 1)


def deep_stack() -> nn.Module:
    """Return 100 linear layers of width 256 with batch norms' job done by He initialization: 6.6 million parameters."""
    parts = [part for _ in range(99) for part in (nn.Linear(256, 256), nn.ReLU())]
    net = nn.Sequential(*parts, nn.Linear(256, 256))
    for part in net:
        if isinstance(part, nn.Linear):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            nn.init.zeros_(part.bias)
    return net


def convolutional() -> nn.Module:
    """Return a residual network like ResNet-18 for small pictures: 11 million parameters."""
    widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
    blocks = [Residual(a, b) for a, b in pairwise(widths)]
    stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def many_tiny_layers() -> nn.Module:
    """Return 2,000 linear layers of width 4 that stay near the identity."""
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(2000)))
    for part in net:
        if isinstance(part, nn.Linear):
            nn.init.eye_(part.weight)
            nn.init.zeros_(part.bias)
    return net


def _numbers(width: int) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: (torch.randn(32, width), torch.randn(32, width))


WORKS = (
    Work("100 linear layers of width 256", deep_stack, _numbers(256), F.mse_loss, 40, 1.5),
    Work("2,000 linear layers of width 4", many_tiny_layers, _numbers(4), F.mse_loss, 20, 1.5, many_layers=True),
    Work(
        "residual CNN, 11 M",
        convolutional,
        lambda: (torch.randn(4, 3, 32, 32), torch.randint(0, 10, (4,))),
        F.cross_entropy,
        24,
        1.15,
    ),
    Work(
        "transformer, 30 M",
        Language,
        lambda: (torch.randint(0, 1024, (2, 32)), torch.randint(0, 1024, (64,))),
        F.cross_entropy,
        24,
        1.15,
    ),
)
