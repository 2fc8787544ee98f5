"""Watch a loop that runs under Accelerate, with accumulation, and see gradients before they are clipped.

A recurrent network that stretches its state by 1.8 at each of 30 steps explodes: one step of SGD overwrites the
weights. It is trained three times:

* ``unclipped``: GradWatch names the fault in the first step.
* ``accelerator.clip_grad_norm_``: the network learns. GradWatch reads gradients when the optimizer is about to use
  them, so after this clipping: no norm above 1 is ever seen, and how large they really are stays unknown.
* ``GradWatch(clipper=...)``: the same clipping, the same weights, and both norms are known, before and after.

Inside ``accelerator.accumulate`` only every second batch steps; a reading is a step. Pass what ``accelerator.prepare``
returned, and ``scaler=accelerator.scaler`` where ``mixed_precision="fp16"``.

Run it: ``pip install accelerate``, then ``python examples/loops/accelerate_loop.py``.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from lightning_gradwatch import ClipByGlobalNorm, GradWatch

SYMBOLS, LENGTH, HIDDEN, STRETCH = 4, 30, 32, 1.8
MAX_NORM, ACCUMULATED = 1.0, 2


class FirstSymbol(nn.Module):
    """Reads a sequence and names its first symbol."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.rnn = nn.RNN(SYMBOLS, HIDDEN, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(HIDDEN, SYMBOLS)
        nn.init.orthogonal_(dict(self.rnn.named_parameters())["weight_hh_l0"], gain=STRETCH)

    def forward(self, symbols: Tensor) -> Tensor:
        """Return the scores of each symbol."""
        states, _ = self.rnn(F.one_hot(symbols, SYMBOLS).float())
        scores: Tensor = self.head(states[:, -1])
        return scores


def batches(number: int) -> Iterator[Tensor]:
    """Yield batches of random sequences."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(number):
        yield torch.randint(SYMBOLS, (32, LENGTH), generator=generator)


def train(
    watch: GradWatch, net: nn.Module, max_steps: int, directory: Path | None = None, *, clips: bool = False
) -> list[float]:
    """Train a network under Accelerate and return the loss of each step: the mean of its batches."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATED)
    model, optimizer = accelerator.prepare(net, torch.optim.SGD(net.parameters(), lr=0.05))
    losses = []
    with watch.attach(model, optimizer, log_dir=directory):
        for symbols in batches(ACCUMULATED * max_steps):
            with accelerator.accumulate(model):
                loss = F.cross_entropy(model(symbols), symbols[:, 0])
                accelerator.backward(loss)
                if clips and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), MAX_NORM)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
    return [sum(window) / ACCUMULATED for window in zip(losses[::2], losses[1::2], strict=True)]


def main() -> None:
    """Train three times and set the results side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_steps", type=int, default=300, help="optimizer steps for each training")
    parser.add_argument("--directory", type=Path, default=Path("runs/accelerate_loop"), help="where the logs go")
    arguments = parser.parse_args()
    clipper = ClipByGlobalNorm(max_norm=MAX_NORM)
    watches = {"unclipped": GradWatch(), "clip_grad_norm_": GradWatch(), "clipper": GradWatch(clipper=clipper)}
    rows = []
    for name, watch in watches.items():
        clips = name == "clip_grad_norm_"
        losses = train(watch, FirstSymbol(), arguments.max_steps, arguments.directory / name, clips=clips)
        found = ", ".join(f"{d.rule} at step {d.step}" for d in watch.diagnoses) or "quiet"
        seen = f"largest norm seen {watch.history.norms.max():<8.3g} used {watch.history.clipped_norms.max():<8.3g}"
        rows.append(f"{name:<16} loss {losses[0]:.2f} -> {losses[-1]:.2f}   {seen} {found}")
    print("\n" + "\n".join(rows))


if __name__ == "__main__":
    main()
