"""Watch a loop in half precision, with a GradScaler.

Float16 knows nothing between zero and 6e-8, and this loss, divided by the voxels of a volume, has gradients below
that. Without a scaler they are exactly zero, no layer ever moves, and GradWatch says so. A ``GradScaler`` multiplies
the loss, so that they arrive.

GradWatch reads gradients after the scaler has divided them again; ``scaler=`` tells it by how much the loss was
multiplied, so that losses, and what the signal probe sees, are shown as they are. A step that the scaler drops because
of an overflow never reaches the optimizer: it is no reading and no fault.

Run it: ``python examples/loops/mixed_precision.py``. On a GPU replace "cpu" by "cuda".
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gradwatch import GradWatch, he_init_

WIDTH, OUTPUTS, DEPTH, VOXELS = 32, 4, 6, 512**3


def network() -> nn.Sequential:
    """Return a stack of linear layers with ReLU, as He et al. (2015) initialize it."""
    torch.manual_seed(0)
    hidden = [part for _ in range(DEPTH) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    net = nn.Sequential(*hidden, nn.Linear(WIDTH, OUTPUTS))
    he_init_(net)
    return net


def batches(number: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield random points and the squares of their first coordinates."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(number):
        points = torch.randn(64, WIDTH, generator=generator)
        yield points, points[:, :OUTPUTS].square()


def train(
    watch: GradWatch, net: nn.Module, scaler: torch.amp.GradScaler, max_steps: int, directory: Path | None = None
) -> list[float]:
    """Train a network in float16 and return the loss of each batch."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, eps=1e-16)
    losses = []
    with watch.attach(net, optimizer, log_dir=directory, scaler=scaler):
        for points, squares in batches(max_steps):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.float16):
                loss = F.mse_loss(net(points).float(), squares) / VOXELS
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.item())
    return losses


def main() -> None:
    """Train without and with a scaler and set the results side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_steps", type=int, default=60, help="batches for each training")
    parser.add_argument("--directory", type=Path, default=Path("runs/mixed_precision"), help="where the logs go")
    arguments = parser.parse_args()
    rows = []
    for name in ("unscaled", "scaled"):
        watch, scaler = GradWatch(), torch.amp.GradScaler("cpu", enabled=name == "scaled")
        losses = train(watch, network(), scaler, arguments.max_steps, arguments.directory / name)
        found = ", ".join(f"{d.rule} at step {d.step}" for d in watch.diagnoses) or "quiet"
        rows.append(f"{name:<9} loss {losses[0]:.2g} -> {losses[-1]:.2g}   {found}")
    print("\n" + "\n".join(rows))


if __name__ == "__main__":
    main()
