"""What clipping with monitoring costs beside ``torch.nn.utils.clip_grad_norm_`` alone.

``python -m benchmarks.clipping`` prepares the gradients of two models, a stack of 100 linear layers of width 256 and a
transformer of 30 million parameters, and times nothing but reading and clipping them: GradWatch measures each
gradient, clips and brings all norms to the host; torch clips. The order alternates (A B B A); one process, one thread,
medians of the processor's time, which other programs disturb less than the clock's. The gradients are put back before
each call, outside of the time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lightning_gradwatch.measure.reader import Reader
from lightning_gradwatch.remedy.adaptive import AdaptiveClip
from lightning_gradwatch.remedy.clipping import ClipByGlobalNorm, ClipByLayerNorm, Clipper
from lightning_gradwatch.remedy.quantile import ClipByQuantile
from lightning_gradwatch.remedy.zscore import ClipByZScore

# Far enough below the norm of the prepared gradients that every one of them is multiplied.
MAX_NORM = 0.1


def deep_stack() -> nn.Module:
    """Return 100 linear layers of width 256."""
    return nn.Sequential(*(nn.Linear(256, 256) for _ in range(100)))


def transformer() -> nn.Module:
    """Return 12 transformer layers of width 448: 29 million parameters."""
    layer = nn.TransformerEncoderLayer(448, 8, 1792, batch_first=True)
    return nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)


MODELS: dict[str, Callable[[], nn.Module]] = {"100 linear layers": deep_stack, "transformer, 29M": transformer}
CLIPPERS: dict[str, Clipper] = {
    "ClipByGlobalNorm": ClipByGlobalNorm(MAX_NORM),
    "ClipByLayerNorm": ClipByLayerNorm(MAX_NORM / 100),
    "AdaptiveClip": AdaptiveClip(),
    "ClipByQuantile": ClipByQuantile(),
    "ClipByZScore": ClipByZScore(),
}


def clips_with_torch(model: nn.Module) -> Callable[[], object]:
    """Return a call of torch's own clipping."""
    parameters = list(model.parameters())
    return lambda: nn.utils.clip_grad_norm_(parameters, MAX_NORM)


def clips_and_watches(model: nn.Module, clipper: Clipper) -> Callable[[], object]:
    """Return what GradWatch does with the gradients of a step when it clips."""
    reader, optimizer = Reader(model), torch.optim.SGD(model.parameters(), lr=0.1)
    step = 0

    def read_and_clip() -> None:
        nonlocal step
        step += 1
        reading = reader.read(0, optimizer, step)
        reading.clip_(clipper.clip_)
        reading.release()

    return read_and_clip


def seconds(calls: Sequence[Callable[[], object]], gradients: Sequence[Tensor], rounds: int) -> list[list[float]]:
    """Time two calls in the order A B B A.

    Args:
        calls: What is timed.
        gradients: They are put back before each call.
        rounds: How many times A B B A.

    Returns:
        The times of each call, ``[2][2 * rounds]``.
    """
    kept = [gradient.clone() for gradient in gradients]
    times: list[list[float]] = [[], []]
    for number in [0, 1, 1, 0] * rounds:
        for gradient, original in zip(gradients, kept, strict=True):
            gradient.copy_(original)
        start = time.process_time()
        calls[number]()
        times[number].append(time.process_time() - start)
    return times


def main() -> None:
    """Print a line for each model and clipper."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50, help="how many times A B B A")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'model':20} {'clipper':18} {'torch alone':>12} {'watched':>12} {'ratio':>7}")
    for name, make in MODELS.items():
        torch.manual_seed(0)
        model = make()
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        for kind, clipper in CLIPPERS.items():
            calls = [clips_with_torch(model), clips_and_watches(model, clipper)]
            # The first calls load what torch loads on first use, and measure the weights as well.
            seconds(calls, gradients, 5)
            alone, watched = map(statistics.median, seconds(calls, gradients, chosen.rounds))
            print(f"{name:20} {kind:18} {alone * 1e3:9.2f} ms {watched * 1e3:9.2f} ms {watched / alone:6.2f}x")


if __name__ == "__main__":
    main()
