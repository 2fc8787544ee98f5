"""Watch a loop that runs under Fabric: one `with` line, and the loop stays as it is.

A network of 12 sigmoid layers learns nothing, and GradWatch says why before the tenth step. The same network with ReLU
and ``he_init_`` learns. The model and the optimizer are given as ``fabric.setup`` returned them; under
``Fabric(devices=2)`` rank zero tells for all, and norms are those of the averaged gradients.

Run it: ``pip install lightning``, then ``python examples/loops/fabric_loop.py``.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch import Tensor, nn

from lightning_gradwatch import GradWatch, he_init_

WIDTH, CLASSES, DEPTH = 16, 4, 12


def network(activation: Callable[[], nn.Module]) -> nn.Module:
    """Return a plain stack of linear layers with an activation behind each of them."""
    torch.manual_seed(0)
    hidden = [part for _ in range(DEPTH) for part in (nn.Linear(WIDTH, WIDTH), activation())]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, CLASSES))


def batches(number: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of random points, whose class is the largest of their first four coordinates."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(number):
        points = torch.randn(64, WIDTH, generator=generator)
        yield points, points[:, :CLASSES].argmax(dim=1)


def train(watch: GradWatch, net: nn.Module, max_steps: int, directory: Path | None = None) -> list[float]:
    """Train a network under Fabric and return the loss of each step."""
    fabric = Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9))
    losses = []
    with watch.attach(model, optimizer, log_dir=directory):
        for points, labels in batches(max_steps):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(points), labels)
            fabric.backward(loss)
            optimizer.step()
            losses.append(loss.item())
    return losses


def main() -> None:
    """Train both networks and set the results side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_steps", type=int, default=300, help="optimizer steps for each network")
    parser.add_argument("--directory", type=Path, default=Path("runs/fabric_loop"), help="where the logs go")
    arguments = parser.parse_args()
    cured = network(nn.ReLU)
    he_init_(cured)
    rows = []
    for name, net in {"sigmoid": network(nn.Sigmoid), "relu-he": cured}.items():
        watch = GradWatch()
        losses = train(watch, net, arguments.max_steps, arguments.directory / name)
        found = ", ".join(f"{d.rule} at step {d.step}" for d in watch.diagnoses) or "quiet"
        rows.append(f"{name:<8} loss {losses[0]:.2f} -> {losses[-1]:.2f}   {found}")
    print("\n" + "\n".join(rows))


if __name__ == "__main__":
    main()
