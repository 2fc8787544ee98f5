"""What momentum and Adam repair of a vanishing gradient, and what they do not.

An optimizer never touches the gradients of the backward pass. It takes them and decides how far the weights go. So SGD,
SGD with momentum and Adam, started on the same deep sigmoid network, are given the same gradients to the last bit. What
differs is the step: SGD and momentum leave the first layer where it is. Adam divides by the size that the gradient
usually has, and moves the first layer about as far as the last. That ends where the gradient is far smaller than Adam's
``eps`` (1e-8), as in the deeper network.

``moved`` is ``|dW| / |W|`` in the last step that GradWatch probed.

Run it: ``python examples/optimizers.py``.
"""

import argparse
import logging
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_gradwatch import GradWatch

WIDTH, CLASSES = 32, 4
OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], Optimizer]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.01),
    "SGD, momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
}


def watched(make: Callable[[Iterable[nn.Parameter]], Optimizer], depth: int, max_steps: int) -> GradWatch:
    """Train a sigmoid network on a simple task and return what watched it."""
    torch.manual_seed(0)
    hidden = [part for _ in range(depth) for part in (nn.Linear(WIDTH, WIDTH), nn.Sigmoid())]
    net, generator = nn.Sequential(*hidden, nn.Linear(WIDTH, CLASSES)), torch.Generator().manual_seed(1)
    optimizer = make(net.parameters())
    with GradWatch(probe_every_n_steps=10).attach(net, optimizer) as watch:
        for _ in range(max_steps):
            points = torch.randn(64, WIDTH, generator=generator)
            optimizer.zero_grad()
            nn.CrossEntropyLoss()(net(points), points[:, :CLASSES].argmax(dim=1)).backward()
            optimizer.step()
    return watch


def main() -> None:
    """Train each network with each optimizer and set the results side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[7, 20], help="hidden layers of the networks")
    parser.add_argument("--max_steps", type=int, default=61, help="optimizer steps for each row")
    arguments = parser.parse_args()
    logging.getLogger("lightning_gradwatch").setLevel("ERROR")  # the table tells it
    print(f"{'':<21} {'|gradient|':>10} {'moved:':>9}")
    print(f"{'layers':>6} {'optimizer':<14} {'of layer 1':>10} {'layer 1':>9} {'last':>9} {'loss':>13}   GradWatch")
    for depth in arguments.depths:
        for name, make in OPTIMIZERS.items():
            watch = watched(make, depth, arguments.max_steps)
            norm, moved, losses = watch.history.norms[0, 0], watch.probes[-1].update_ratio, watch.history.losses
            found = ", ".join(f"{d.rule} ({d.severity})" for d in watch.diagnoses) or "quiet"
            row = f"{norm:>10.3g} {moved[0]:>9.2g} {moved[-1]:>9.2g} {losses[0]:>5.2f} -> {losses[-1]:.2f}"
            print(f"{depth:>6} {name:<14} {row}   {found}")


if __name__ == "__main__":
    main()
