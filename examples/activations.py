"""What each activation multiplies the gradient by on its way one layer back: measured, beside what theory says.

The slope of the activation is half of the story. What goes back through a wide layer with independent weights is
multiplied, in the mean square, by

    chi = fan_out * Var(w) * E[g'(z)^2]

(Poole et al., 2016; Schoenholz et al., 2017), and gradients keep their size where chi is 1. So a slope below 1 is not
needed for vanishing (ReLU in PyTorch's default initialization), nor does it suffice (a sigmoid with large weights), and
SELU, whose slope reaches 1.76, does not explode. In the first table ``back`` is the median over the layers of what
GradWatch measured, ``theory`` is ``sqrt(chi)`` for a Gaussian ``z`` as strong as the signal in the layer, and
``forward`` is what the second layer leaves of the signal.

ReLU passes gradients on where ``z > 0`` and nowhere else. A unit that is above zero for no sample is dead; the last
lines make some with a step that is too large.

Run it: ``python examples/activations.py``.
"""

import argparse
import logging
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lightning_gradwatch import GradWatch, examine, he_init_

ACTIVATIONS = (nn.Sigmoid, nn.Tanh, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.SELU)
WIDTH, CLASSES, SAMPLES = 128, 10, 128


class Factors(NamedTuple):
    """What a layer multiplies by: the signal on its way forward, the gradient on its way back, and the theory's."""

    forward: float
    back: float
    theory: float


def network(activation: type[nn.Module], depth: int) -> nn.Sequential:
    """Return a plain stack as PyTorch initializes it."""
    torch.manual_seed(0)
    hidden = [part for _ in range(depth) for part in (nn.Linear(WIDTH, WIDTH), activation())]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, CLASSES))


def large(net: nn.Sequential) -> None:
    """Draw weights ten times as large as those of Xavier."""
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=10 * layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)


def batch() -> tuple[Tensor, Tensor]:
    """Return random points and labels."""
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(SAMPLES, WIDTH, generator=generator)
    return points, torch.randint(CLASSES, (SAMPLES,), generator=generator)


def slopes(activation: nn.Module, z: Tensor) -> Tensor:
    """Return the slope of an activation at each of the given points."""
    z = z.clone().requires_grad_()
    (slope,) = torch.autograd.grad(activation(z).sum(), z)
    return slope


def factors(activation: type[nn.Module], change: Callable[[nn.Sequential], object] | None, depth: int = 20) -> Factors:
    """Measure a network, changed or as PyTorch initializes it."""
    net, (points, labels) = network(activation, depth), batch()
    if change is not None:
        change(net)
    report = examine(net, lambda net: nn.functional.cross_entropy(net(points), labels), rehearse=False)
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2) / torch.exp(-(z**2) / 2).sum()
    theory = []
    for signal, behind in zip(report.signal[: depth - 1], report.layers[1:depth], strict=True):
        weight = net.get_parameter(f"{behind}.weight")
        steep = float((density * slopes(activation(), signal * z) ** 2).sum())
        theory.append((weight.shape[1] * weight.var().item() * steep) ** 0.5)
    back = np.median(report.delta[: depth - 1] / report.delta[1:depth])
    return Factors(float(report.signal[1] / report.signal[0]), float(back), float(np.median(theory)))


def dead_units(activation: type[nn.Module], depth: int = 3) -> list[float]:
    """Return the share of dead units before and after a step that is far too large."""
    net, (points, labels) = network(activation, depth), batch()
    optimizer = torch.optim.SGD(net.parameters(), lr=100.0)
    with GradWatch().attach(net, optimizer) as watch:
        for _ in range(2):
            optimizer.zero_grad()
            nn.CrossEntropyLoss()(net(points), labels).backward()
            optimizer.step()
    return [float(np.mean(probe.dead[:depth])) for probe in watch.probes]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=20, help="hidden layers of each network")
    depth = parser.parse_args().depth
    logging.getLogger("lightning_gradwatch").setLevel("ERROR")  # the tables tell it
    print(f"{'':<22} {'largest':>8}   PyTorch's default{'':<9} he_init_")
    print(f"{'':<22} {'slope':>8} {'forward':>8} {'back':>8} {'theory':>8} {'forward':>8} {'back':>8} {'theory':>8}")
    for activation in ACTIVATIONS:
        steepest = float(slopes(activation(), torch.linspace(-8, 8, 16001)).max())
        numbers = [steepest, *factors(activation, None, depth), *factors(activation, he_init_, depth)]
        print(f"{activation.__name__:<22}", *(f"{number:>8.3f}" for number in numbers))
    numbers = [0.25, *factors(nn.Sigmoid, large, depth)]
    print(f"{'Sigmoid, weights x 10':<22}", *(f"{number:>8.3f}" for number in numbers))
    before, after = dead_units(nn.ReLU)
    print(f"\ndead ReLU units: {before:.1%} at first, {after:.1%} after one step of SGD with learning rate 100")
    for activation in (nn.Sigmoid, nn.ReLU, nn.LeakyReLU, nn.ELU):
        left, right = slopes(activation(), torch.tensor([-5.0, 5.0])).tolist()
        print(f"slope of {activation.__name__:<9} {left:.4f} at z = -5, {right:.4f} at z = 5")


if __name__ == "__main__":
    main()
