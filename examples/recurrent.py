"""Send a gradient back through time: what recurrent networks forget, what explodes, and where NaN began.

A recurrent network is as deep as its sequence is long. GradWatch measures the gradient with respect to the input of
each time step; the first table shows what reaches the first step as a share of what reaches the last. Beside it stands
the norm of the gradient of the recurrent layer's weights, which is a sum over all time steps: the last few alone make
it large, so it does not show that the beginning is forgotten. An explosion it shows.

In the second part a ReLU network stretches its state by 1.8 a step, over 400 steps. The state leaves float32 in the
forward pass; then all gradients are NaN, and GradWatch says in which layer it began.

Run it: ``python examples/recurrent.py``.
"""

import argparse
import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_gradwatch import GradWatch, orthogonal_init_

HIDDEN = 32


class LastState(nn.Module):
    """Read a sequence and answer from the last state."""

    def __init__(self, memory: nn.RNNBase) -> None:
        super().__init__()
        self.memory = memory
        self.head = nn.Linear(HIDDEN, 1)

    def forward(self, sequence: Tensor) -> Tensor:
        """Return an answer for each sequence of the batch."""
        states, _ = self.memory(sequence)
        answer: Tensor = self.head(states[:, -1])
        return answer


def make(kind: type[nn.RNNBase], stretch: float | None = None, **settings: str) -> Callable[[], LastState]:
    """Return a maker of networks, orthogonal from state to state where they are to stretch the state by a factor."""

    def network() -> LastState:
        torch.manual_seed(0)
        net = LastState(kind(HIDDEN, HIDDEN, batch_first=True, **settings))  # type: ignore[arg-type]
        if stretch is not None:
            # In each gate; the forget gate of an LSTM gets bias 1 (Jozefowicz et al., 2015).
            orthogonal_init_(net, torch.randn(2, 3, HIDDEN))
            net.memory.get_parameter("weight_hh_l0").data.mul_(stretch)
        return net

    return network


NETWORKS = {
    "RNN": make(nn.RNN),
    "RNN, orthogonal": make(nn.RNN, 1.0),
    "RNN, orthogonal x 2": make(nn.RNN, 2.0),
    "LSTM": make(nn.LSTM),
    "LSTM, orthogonal, forget bias 1": make(nn.LSTM, 1.0),
    "GRU": make(nn.GRU),
    "GRU, orthogonal": make(nn.GRU, 1.0),
}


def watched(net: LastState, length: int, steps: int = 3) -> GradWatch:
    """Train a few steps on the sum of all inputs and return what watched it."""
    sequences = torch.randn(64, length, HIDDEN, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    with GradWatch().attach(net, optimizer) as watch:
        for _ in range(steps):
            optimizer.zero_grad()
            nn.MSELoss()(net(sequences), sequences.mean(dim=(1, 2))[:, None]).backward()
            optimizer.step()
    return watch


def along_time(net: LastState, length: int) -> tuple[float, float]:
    """Return what reaches the first time step as a share of what reaches the last, and the norm of dW."""
    watch = watched(net, length, steps=1)
    (profile,) = watch.probes[0].time
    return float(profile.delta[0] / profile.delta[-1]), float(watch.history.norms[0, 0])


def main() -> None:
    """Print the table, and what is said of an overflow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[50, 200], help="time steps of the sequences")
    parser.add_argument("--overflow", type=int, default=400, help="time steps of the network that overflows")
    arguments = parser.parse_args()
    logging.getLogger("lightning_gradwatch").setLevel("ERROR")  # the tables tell it
    print(f"{'':<32}", *(f"{f'{length} steps: share':>16} {'|dW|':>8}" for length in arguments.lengths))
    for name, network in NETWORKS.items():
        measured = [along_time(network(), length) for length in arguments.lengths]
        print(f"{name:<32}", *(f"{share:>16.2g} {norm:>8.2g}" for share, norm in measured))
    print(f"\nReLU, orthogonal x 1.8, {arguments.overflow} steps:")
    for diagnosis in watched(make(nn.RNN, 1.8, nonlinearity="relu")(), arguments.overflow).diagnoses:
        print(f"step {diagnosis.step}  {diagnosis.symptom.value}: {diagnosis.message}\n  measured {diagnosis.measured}")
        print(f"  why      {diagnosis.cause}")


if __name__ == "__main__":
    main()
