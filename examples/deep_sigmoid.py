"""What cures a deep stack of sigmoids, which no initialization does.

Each row trains 16 layers on scikit-learn's handwritten digits with one thing changed. ``share`` is what the first layer
gets of the gradient that reaches the last hidden one, before training, as GradWatch measured it.

BatchNorm and residual connections cure it, and so does another activation with the initialization that it asks for.
LayerNorm does not: it divides by the size of a unit's input, BatchNorm by how much that varies over the batch, and of
what a deep sigmoid gives nearly all is the same for every sample.

Run it: ``python examples/deep_sigmoid.py``.
"""

import argparse
import logging
from collections.abc import Callable
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_gradwatch import GradWatch, he_init_, xavier_init_

WIDTH, CLASSES, DEPTH = 64, 10, 16
Initializer = Callable[[nn.Module], object]


class Residual(nn.Module):
    """Add to what comes in what some layers make of it (He et al., 2016)."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum."""
        added: Tensor = x + self.layers(x)
        return added


def leave(net: nn.Module) -> None:
    """Leave the weights as PyTorch draws them."""


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Initializer]] = {
    "sigmoid": (nn.Sigmoid, leave),
    "with Xavier": (nn.Sigmoid, xavier_init_),
    "with BatchNorm": (lambda: nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Sigmoid()), leave),
    "with LayerNorm": (lambda: nn.Sequential(nn.LayerNorm(WIDTH), nn.Sigmoid()), leave),
    "with residuals": (nn.Sigmoid, leave),
    "tanh and Xavier": (nn.Tanh, xavier_init_),
    "ReLU and He": (nn.ReLU, he_init_),
}


def network(name: str) -> nn.Sequential:
    """Return linear layers with something behind each of them, and a head of ten classes."""
    torch.manual_seed(0)
    behind, initialize = NETWORKS[name]
    block = Residual if name == "with residuals" else nn.Sequential
    net = nn.Sequential(*(block(nn.Linear(WIDTH, WIDTH), behind()) for _ in range(DEPTH)), nn.Linear(WIDTH, CLASSES))
    initialize(net)
    return net


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Return 1,797 digits of 8 x 8 pixels with their labels."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32)
    return (images - images.mean()) / images.std(), torch.tensor(labels)


def train(name: str, max_steps: int) -> tuple[float, float, str]:
    """Train with SGD and momentum; return the share, the accuracy on digits held back, and what GradWatch says."""
    net, (images, labels), order = network(name), digits(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    with GradWatch().attach(net, optimizer) as watch:
        for _ in range(max_steps):
            chosen = torch.randint(1437, (64,), generator=order)
            optimizer.zero_grad()
            nn.CrossEntropyLoss()(net(images[chosen]), labels[chosen]).backward()
            optimizer.step()
    rows = zip(watch.probes[0].layers, watch.probes[0].delta.tolist(), strict=True)
    hidden = [delta for layer, delta in rows if isinstance(net.get_submodule(layer), nn.Linear)][:-1]
    net.eval()
    with torch.no_grad():
        accuracy = float((net(images[1437:]).argmax(dim=1) == labels[1437:]).float().mean())
    found = ", ".join(f"{d.rule} ({d.severity})" for d in watch.diagnoses) or "quiet"
    return hidden[0] / hidden[-1], accuracy, found


def main() -> None:
    """Train each network and set the results side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_steps", type=int, default=250, help="optimizer steps for each row")
    arguments = parser.parse_args()
    logging.getLogger("lightning_gradwatch").setLevel("ERROR")  # the table tells it
    print(f"{f'{DEPTH} layers':<16} {'share':>8} {'accuracy':>9}   GradWatch")
    for name in NETWORKS:
        shared, accuracy, found = train(name, arguments.max_steps)
        print(f"{name:<16} {shared:>8.2g} {accuracy:>9.1%}   {found}")


if __name__ == "__main__":
    main()
