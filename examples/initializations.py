"""Which initialization keeps the gradient in which network, at depths from 10 to 50.

The table shows what share of the gradient that reaches the last hidden layer reaches the first one, as GradWatch
measured it: 1 is well. The layers are square, where Xavier and LeCun are one (weights of ``1 / sqrt(fan_in)``), He has
``sqrt(2)`` times that and PyTorch's default 0.58 times. The default fades in every plain stack; He keeps ReLU, Xavier
tanh, LeCun SELU, and elsewhere they fade or explode. ``he_init_`` takes the factor from the activation that follows.
None keeps a sigmoid, whose slope is at most 1/4: ``deep_sigmoid.py`` tries what does. Against explosion an
initialization works just as well: the last column starts with weights twice as large.

Run it: ``python examples/initializations.py``.
"""

import argparse
import logging
from collections.abc import Callable

import torch
from torch import nn

from lightning_gradwatch import Report, examine, he_init_, lecun_init_

WIDTH, CLASSES = 64, 10
Initializer = Callable[[nn.Module], object]
ACTIVATIONS = (nn.Sigmoid, nn.Tanh, nn.ReLU, nn.SELU)


def leave(net: nn.Module) -> None:
    """Leave the weights as PyTorch draws them."""


def times(factor: float, initialize: Initializer) -> Initializer:
    """Return an initializer whose weights are larger."""

    def initialize_larger(net: nn.Module) -> None:
        initialize(net)
        for weight in net.parameters():
            weight.data.mul_(factor)

    return initialize_larger


INITIALIZERS: dict[str, Initializer] = {
    "default": leave,
    "Xavier, LeCun": lecun_init_,
    "He": times(2**0.5, lecun_init_),
    "he_init_": he_init_,
    "2 x he_init_": times(2, he_init_),
}


def examined(activation: type[nn.Module], depth: int, initialize: Initializer) -> Report:
    """Measure a plain stack on random points and labels."""
    torch.manual_seed(0)
    hidden = [part for _ in range(depth) for part in (nn.Linear(WIDTH, WIDTH), activation())]
    net = nn.Sequential(*hidden, nn.Linear(WIDTH, CLASSES))
    initialize(net)
    points, labels = torch.randn(256, WIDTH), torch.randint(CLASSES, (256,))
    return examine(net, lambda net: nn.functional.cross_entropy(net(points), labels), rehearse=False)


def share(activation: type[nn.Module], depth: int, initialize: Initializer) -> float:
    """Return what the first layer of a plain stack gets of what the last hidden one gets."""
    delta = examined(activation, depth, initialize).delta
    return float(delta[0] / delta[depth - 1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[10, 20, 50], help="hidden layers")
    arguments = parser.parse_args()
    logging.getLogger("lightning_gradwatch").setLevel("ERROR")  # the table tells it
    print(f"{'':<8} {'depth':>5}", *(f"{name:>14}" for name in INITIALIZERS))
    for activation in ACTIVATIONS:
        for depth in arguments.depths:
            shares = (share(activation, depth, initialize) for initialize in INITIALIZERS.values())
            print(f"{activation.__name__:<8} {depth:>5}", *(f"{each:>14.2g}" for each in shares))


if __name__ == "__main__":
    main()
