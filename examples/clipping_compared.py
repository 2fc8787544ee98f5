"""The same exploding run, untamed and tamed by each clipper; and what clipping is of no use against.

A recurrent network whose weights stretch its state by 1.8 a step reads sequences of 30. ``largest`` is the largest
gradient norm of a layer that GradWatch measured before clipping, and ``used`` the largest after it. ``cosine`` is 1
where the clipper kept the direction of the first step. Clipping by the global norm does. Clipping by value turns it,
since large elements lose more than small ones, and so does clipping each layer or unit by itself. AutoClip learns its
bound from the norms of the run so far: of the first step it knows nothing, and this run is lost with the first.

Two things no clipper does. It makes no number of NaN (``on_nonfinite="skip"`` drops such a step). And it makes nothing
larger, so a gradient that vanishes stays as it was.

Run it: ``python examples/clipping_compared.py``.
"""

import argparse
import logging
import math

import numpy as np
import torch
from torch import Tensor, nn

from lightning_gradwatch import (
    AdaptiveClip,
    ClipByGlobalNorm,
    ClipByLayerNorm,
    ClipByQuantile,
    ClipByValue,
    ClipByZScore,
    Clipper,
    GradWatch,
)

SYMBOLS, LENGTH, HIDDEN = 4, 30, 32
CLIPPERS: dict[str, Clipper | None] = {
    "none": None,
    "by value 0.01": ClipByValue(0.01),
    "by global norm 1": ClipByGlobalNorm(1.0),
    "by layer norm 1": ClipByLayerNorm(1.0),
    "adaptive (AGC)": AdaptiveClip(),
    "quantile (AutoClip)": ClipByQuantile(),
    "z score (ZClip)": ClipByZScore(max_norm=1.0),
}


class FirstSymbol(nn.Module):
    """Read a sequence and name its first symbol."""

    def __init__(self, stretch: float) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.rnn = nn.RNN(SYMBOLS, HIDDEN, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(HIDDEN, SYMBOLS)
        nn.init.orthogonal_(self.rnn.get_parameter("weight_hh_l0"), gain=stretch)

    def forward(self, symbols: Tensor) -> Tensor:
        """Return the scores of each symbol."""
        states, _ = self.rnn(nn.functional.one_hot(symbols, SYMBOLS).float())
        scores: Tensor = self.head(states[:, -1])
        return scores


def gradients(net: nn.Module) -> Tensor:
    """Return all gradients as one vector."""
    return torch.cat([weight.grad.flatten() for weight in net.parameters() if weight.grad is not None]).double()


def train(clipper: Clipper | None, max_steps: int, stretch: float = 1.8, scale: float = 1.0) -> tuple[GradWatch, float]:
    """Train with SGD; return what watched, and the cosine between the first gradient and what is left of it."""
    net, generator = FirstSymbol(stretch), torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    cosine = math.nan
    with GradWatch(clipper=clipper).attach(net, optimizer) as watch:
        for step in range(max_steps):
            symbols = torch.randint(SYMBOLS, (64, LENGTH), generator=generator)
            optimizer.zero_grad()
            (scale * nn.CrossEntropyLoss()(net(symbols), symbols[:, 0])).backward()
            before = gradients(net)
            optimizer.step()
            if step == 0:
                cosine = float(nn.functional.cosine_similarity(before, gradients(net), dim=0))
    return watch, cosine


def main() -> None:
    """Train with each clipper and set the results side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_steps", type=int, default=200, help="optimizer steps for each clipper")
    max_steps = parser.parse_args().max_steps
    logging.getLogger("lightning_gradwatch").setLevel("ERROR")  # the table tells it
    print(f"{'clipper':<20} {'largest':>8} {'used':>8} {'cosine':>7} {'loss':>14}   GradWatch")
    for name, clipper in CLIPPERS.items():
        watch, cosine = train(clipper, max_steps)
        norms, used, losses = watch.history.norms, watch.history.clipped_norms, watch.history.losses
        found = ", ".join(dict.fromkeys(d.rule for d in watch.diagnoses)) or "quiet"
        loss = f"{losses[0]:.2f} -> {losses[-20:].mean():.2f}"
        print(f"{name:<20} {np.nanmax(norms):>8.2g} {np.nanmax(used):>8.2g} {cosine:>7.3f} {loss:>14}   {found}")
    broken = [train(clipper, 1, scale=math.nan)[0] for clipper in CLIPPERS.values()]
    left = sum(int(np.isnan(watch.history.clipped_norms).all()) for watch in broken)
    print(f"\na loss of NaN: still NaN after {left} of {len(broken)} clippers")
    faint = [train(clipper, 3, stretch=0.3)[0].history for clipper in CLIPPERS.values()]
    most = max(float((history.clipped_norms / history.norms).max()) for history in faint)
    print(f"a state that shrinks by 0.3: after clipping, norms are at most {most:.2f} of what they were")


if __name__ == "__main__":
    main()
