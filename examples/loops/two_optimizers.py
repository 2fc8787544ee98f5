"""Watch a loop with two optimizers: a generator and a discriminator that train against each other.

Both networks stand in one ``nn.ModuleDict`` that is never called; ``attach`` gets it and a list of both optimizers, and
numbers them in that order. Layers, readings and diagnoses belong to the optimizer that holds them: where the
discriminator's backward pass also sends a gradient into the generator, that is not the generator's reading.

The generator is to make points on a circle. With ten sigmoid layers the discriminator's verdict never reaches its first
ones, and GradWatch names the generator alone. With ReLU and ``he_init_`` it arrives everywhere.

Run it: ``python examples/loops/two_optimizers.py``.
"""

import argparse
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gradwatch import GradWatch, he_init_

NOISE, WIDTH, DEPTH, BATCH = 4, 32, 10, 64


def networks(activation: Callable[[], nn.Module]) -> nn.ModuleDict:
    """Return a deep generator with the activation, and a shallow discriminator."""
    torch.manual_seed(0)
    sizes = pairwise([NOISE, *[WIDTH] * DEPTH])
    hidden = [part for fan_in, fan_out in sizes for part in (nn.Linear(fan_in, fan_out), activation())]
    generator = nn.Sequential(*hidden, nn.Linear(WIDTH, 2))
    discriminator = nn.Sequential(nn.Linear(2, WIDTH), nn.LeakyReLU(0.2), nn.Linear(WIDTH, 1))
    return nn.ModuleDict({"generator": generator, "discriminator": discriminator})


def circle(generator: torch.Generator) -> Tensor:
    """Return points on the unit circle."""
    angles = 2 * math.pi * torch.rand(BATCH, generator=generator)
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def train(watch: GradWatch, nets: nn.ModuleDict, max_steps: int, directory: Path | None = None) -> list[float]:
    """Train both networks in turn and return the losses: the discriminator's and the generator's of each round."""
    random = torch.Generator().manual_seed(1)
    generator, discriminator = nets["generator"], nets["discriminator"]
    makes = torch.optim.SGD(generator.parameters(), lr=0.05)
    judges = torch.optim.SGD(discriminator.parameters(), lr=0.05)
    real, made_up = torch.ones(BATCH, 1), torch.zeros(BATCH, 1)
    losses = []
    with watch.attach(nets, [makes, judges], log_dir=directory):
        for _ in range(max_steps):
            noise = torch.randn(BATCH, NOISE, generator=random)
            # Not detached: the generator gets a gradient here too, which its own step must not use.
            told = F.binary_cross_entropy_with_logits(discriminator(circle(random)), real)
            told = told + F.binary_cross_entropy_with_logits(discriminator(generator(noise)), made_up)
            judges.zero_grad()
            told.backward()  # type: ignore[no-untyped-call]
            judges.step()
            fooled = F.binary_cross_entropy_with_logits(discriminator(generator(noise)), real)
            makes.zero_grad()
            fooled.backward()  # type: ignore[no-untyped-call]
            makes.step()
            losses += [told.item(), fooled.item()]
    return losses


def main() -> None:
    """Train with both generators and set what was found side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_steps", type=int, default=200, help="steps of each optimizer")
    parser.add_argument("--directory", type=Path, default=Path("runs/two_optimizers"), help="where the logs go")
    arguments = parser.parse_args()
    cured = networks(nn.ReLU)
    he_init_(cured["generator"], torch.randn(BATCH, NOISE))
    rows = []
    for name, nets in {"sigmoid": networks(nn.Sigmoid), "relu-he": cured}.items():
        watch = GradWatch()
        train(watch, nets, arguments.max_steps, arguments.directory / name)
        found = ", ".join(f"optimizer {d.optimizer}: {d.rule} at step {d.step}" for d in watch.diagnoses) or "quiet"
        rows.append(f"{name:<8} {found}")
    print("\n" + "\n".join(rows))


if __name__ == "__main__":
    main()
