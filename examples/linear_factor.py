"""Multiply by the same number in every layer: the thought experiment behind "vanishing" and "exploding", measured.

A linear network of ``L`` layers, each with the single weight ``c``, computes ``c^L x``, and textbooks say that its
gradients shrink or grow as ``c^L``. What GradWatch measures is finer:

* the signal behind layer ``l`` is ``c^l``, and the gradient that reaches it (delta) is ``c^(L-l)``: one fades on the
  way forward, the other on the way back;
* the gradient of the weight is the product of delta and of what the layer was given, ``c^(L-1)`` in every layer.
  Whoever compares the norms of weight gradients sees nothing, and so GradWatch judges depth by delta;
* the slope of the activation is 1 throughout, so the factor is the weight's. In 5 layers it is harmless.

The second table goes on until the number format ends. The *norm* of the gradients ends first, because float32 cannot
hold the squares in it: torch's is infinite or zero while every gradient is neither. GradWatch sums in float64.

Run it: ``python examples/linear_factor.py``.
"""

import argparse
import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from lightning_gradwatch import GradWatch

FORMATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass
class Measured:
    """What one network showed, the layer at the input first."""

    signal: npt.NDArray[np.float64]
    delta: npt.NDArray[np.float64]
    norms: npt.NDArray[np.float64]  # of the weight gradients, one row a step
    global_norm: float
    torch_norm: float
    verdict: str


def network(factor: float, depth: int, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Return linear layers of one weight each, all of the same size."""
    net = nn.Sequential(*(nn.Linear(1, 1, bias=False, dtype=dtype) for _ in range(depth)))
    for weight in net.parameters():
        nn.init.constant_(weight, factor)
    return net


def measure(
    factor: float, depth: int, dtype: torch.dtype = torch.float32, *, loss_scale: float = 1.0, steps: int = 1
) -> Measured:
    """Send the number 1 through ``depth`` weights and back, ``steps`` times; a learning rate of 0 moves nothing."""
    net = network(factor, depth, dtype)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    with GradWatch().attach(net, optimizer) as watch:
        for _ in range(steps):
            optimizer.zero_grad()
            (net(torch.ones(1, 1, dtype=dtype)) * loss_scale).sum().backward()
            optimizer.step()
    gradients = [weight.grad for weight in net.parameters()]
    norm = torch.linalg.vector_norm(torch.cat([gradient.flatten() for gradient in gradients if gradient is not None]))
    probe, history = watch.probes[0], watch.history
    found = ", ".join(f"{d.symptom.value} ({d.severity})" for d in watch.diagnoses) or "quiet"
    return Measured(
        probe.signal, probe.delta, history.norms, float(history.readings(0).global_norms[0]), float(norm), found
    )


def first_layer(lost: npt.NDArray[np.bool_]) -> int:
    """Return the number of the first layer of which something is true, counted from 1."""
    return int(np.argmax(lost)) + 1 if lost.any() else 0


def limits(dtype: torch.dtype, depth: int = 240) -> tuple[int, int]:
    """Return the depth from which 1.5^L is infinite and the one from which 0.5^L is zero."""
    grown, shrunk = measure(1.5, depth, dtype), measure(0.5, depth, dtype)
    return first_layer(np.isinf(grown.signal)), first_layer(shrunk.signal == 0)


def print_layers(factor: float, depth: int) -> None:
    """Print a row for some of the layers, with the formula beside what was measured."""
    seen = measure(factor, depth, steps=5)
    print(f"\nfactor {factor}, {depth} layers: GradWatch says {seen.verdict}")
    print(f"{'layer':>5} {'signal':>10} {'c^l':>10} {'delta':>10} {'c^(L-l)':>10} {'|dW|':>10} {'c^(L-1)':>10}")
    for layer in sorted({1, *range(5, depth + 1, 5), depth}):
        forward, back, weight = factor**layer, factor ** (depth - layer), factor ** (depth - 1)
        signal, delta, norm = seen.signal[layer - 1], seen.delta[layer - 1], seen.norms[0, layer - 1]
        print(f"{layer:>5} {signal:>10.3g} {forward:>10.3g} {delta:>10.3g} {back:>10.3g} {norm:>10.3g} {weight:>10.3g}")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=20, help="layers of the deep networks")
    arguments = parser.parse_args()
    logging.getLogger("lightning_gradwatch").setLevel("ERROR")  # the tables tell it
    for factor in (0.5, 1.5):
        for depth in (5, arguments.depth):
            print_layers(factor, depth)
    print(f"\n{'':<10} {'1.5^L is inf from':>18} {'0.5^L is 0 from':>18}")
    for name, dtype in FORMATS.items():
        overflow, underflow = limits(dtype)
        print(f"{name:<10} {'L = ' + str(overflow):>18} {'L = ' + str(underflow):>18}")
    print(f"\n{'in float32':<16} {'largest |dW|':>13} {'torch norm':>13} {'GradWatch norm':>15}")
    for factor, depth in ((1.5, 120), (0.5, 90)):
        seen = measure(factor, depth)
        row = f"{seen.norms[0].max():>13.3g} {seen.torch_norm:>13.3g} {seen.global_norm:>15.3g}"
        print(f"{f'{factor}, L = {depth}':<16} {row}")


if __name__ == "__main__":
    main()
