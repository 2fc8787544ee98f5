"""Data of the ward: small, offline, and the same for the same seed."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits, make_blobs, make_circles
from torch import Tensor

from benchmarks.ward.case import Batch

# How well a healthy network does, times 0.9 (ours: the healthy cases of this ward, a few hundred steps).
PASSES = {"circle": 0.85, "blob": 0.70, "digits": 0.80, "curve": 0.60, "noisy": 0.60, "product": 0.87}


@cache
def table(name: str) -> tuple[Tensor, Tensor]:
    """Return inputs and targets, shuffled the same way each time, the last 300 of which nobody trains on.

    ``circle`` and ``blob`` stand for AUTOTRAINER's two sets, ``digits`` for MNIST, ``curve`` is a regression,
    ``noisy`` the digits with a third of the labels of the training part drawn by lot, and ``product`` asks for the sign
    of the product of two of eight numbers: nothing of the answer is linear, so the loss stays where it is at first.
    """
    chance = np.random.default_rng(0)
    if name == "circle":
        inputs, targets = make_circles(1300, noise=0.1, factor=0.4, random_state=1)
    elif name == "blob":
        inputs, targets = make_blobs(1300, centers=3, cluster_std=2.0, random_state=2)
        inputs = (inputs - inputs.mean(0)) / inputs.std(0)
    elif name in ("digits", "noisy"):
        inputs, targets = load_digits(return_X_y=True)
        inputs = (inputs - inputs.mean()) / inputs.std()
    elif name == "product":
        inputs = chance.uniform(-1, 1, (4300, 8))
        targets = (inputs[:, 0] * inputs[:, 1] > 0).astype(np.int64)
    else:
        inputs = chance.uniform(-2, 2, (1300, 2))
        targets = np.sin(2 * inputs[:, 0]) * inputs[:, 1] + 0.1 * chance.standard_normal(1300)
    order = chance.permutation(len(inputs))
    inputs, targets = inputs[order], targets[order]
    if name == "noisy":
        drawn = chance.random(len(targets)) < 1 / 3
        drawn[-300:] = False
        targets = np.where(drawn, chance.integers(0, 10, len(targets)), targets)
    kind = torch.float32 if name == "curve" else torch.long
    return torch.tensor(inputs, dtype=torch.float32), torch.tensor(targets).to(kind)


def batches(name: str, num_steps: int, batch_size: int, seed: int) -> list[Batch]:
    """Draw the batches of a run."""
    inputs, targets = table(name)
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, len(inputs) - 300, (batch_size,), generator=generator) for _ in range(num_steps)]
    return [(inputs[row], targets[row]) for row in rows]


def unseen(name: str) -> Batch:
    """Return the part that nobody trains on."""
    inputs, targets = table(name)
    return inputs[-300:], targets[-300:]


def accuracy(logits: Tensor, targets: Tensor) -> float:
    """Return the share of right answers; 0 where the network has gone to NaN."""
    if not torch.isfinite(logits).all():
        return 0.0
    return float((logits.argmax(-1) == targets).float().mean())


def explained(predictions: Tensor, targets: Tensor) -> float:
    """Return the explained variance R2, 0 where there is none."""
    if not torch.isfinite(predictions).all():
        return 0.0
    rest = float(((predictions - targets) ** 2).mean() / targets.var())
    return max(0.0, 1.0 - rest)
