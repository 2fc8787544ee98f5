"""Networks of the ward, and how their weights begin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "leaky": nn.LeakyReLU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
}


class Exponential(nn.Module):
    """The exponential as an activation, as some of AUTOTRAINER's sick networks have it."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``exp(x)``."""
        return x.exp()


class Residual(nn.Module):
    """``x + branch(x)``."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum."""
        out: Tensor = x + self.branch(x)
        return out


class Functional(nn.Module):
    """A stack of linear layers whose activation is called as a function."""

    def __init__(self, sizes: list[int], activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(sizes[:-1]))
        self.head = nn.Linear(sizes[-2], sizes[-1])
        self._activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Go through the stack."""
        for layer in self.layers:
            x = self._activation(layer(x))
        out: Tensor = self.head(x)
        return out


def dense(
    inputs: int,
    outputs: int,
    *,
    depth: int,
    width: int,
    activation: str,
    norm: str = "",
    bias: bool = True,
    residual: bool = False,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Return ``depth`` hidden layers and a head."""
    parts: list[nn.Module] = []
    for number in range(depth):
        size = inputs if number == 0 else width
        layer: list[nn.Module] = [nn.Linear(size, width, bias=bias)]
        layer += [nn.BatchNorm1d(width)] if norm == "batch" else [nn.LayerNorm(width)] if norm == "layer" else []
        layer.append(Exponential() if activation == "exp" else ACTIVATIONS[activation]())
        layer += [nn.Dropout(dropout)] if dropout else []
        parts += [Residual(nn.Sequential(*layer))] if residual and number else layer
    return nn.Sequential(*parts, nn.Linear(width, outputs, bias=bias))


def linears(model: nn.Module) -> Iterator[nn.Linear | nn.Conv2d]:
    """Yield the layers that have a weight matrix, in registration order."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            yield module


def initialize_(model: nn.Module, scheme: str, gain: float = 1.0) -> None:
    """Begin anew: ``default`` (PyTorch's), ``he``, ``xavier``, ``lecun``, ``orthogonal``, ``normal`` or ``uniform``.

    Args:
        model: The network.
        scheme: Whose initialization.
        gain: What all weights are multiplied by; for ``normal`` the standard deviation, for ``uniform`` the bound.
    """
    if scheme == "default":
        return
    for layer in linears(model):
        weight = layer.weight
        if scheme == "he":
            nn.init.kaiming_normal_(weight, nonlinearity="relu")
        elif scheme == "xavier":
            nn.init.xavier_normal_(weight)
        elif scheme == "lecun":
            nn.init.kaiming_normal_(weight, nonlinearity="linear")
        elif scheme == "orthogonal":
            nn.init.orthogonal_(weight)
        elif scheme == "uniform":
            nn.init.uniform_(weight)
            weight.data.mul_(2).sub_(1)
        else:
            nn.init.normal_(weight)
        with torch.no_grad():
            weight.mul_(gain)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def optimizer_of(name: str, model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Make an optimizer of all parameters that ask for a gradient."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    makers: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "sgd": lambda: torch.optim.SGD(parameters, lr=rate),
        "momentum": lambda: torch.optim.SGD(parameters, lr=rate, momentum=0.9),
        "adam": lambda: torch.optim.Adam(parameters, lr=rate),
        "adamw": lambda: torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01),
        "rmsprop": lambda: torch.optim.RMSprop(parameters, lr=rate),
        "adagrad": lambda: torch.optim.Adagrad(parameters, lr=rate),
    }
    return makers[name]()
