"""Autoencoders and a GAN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.ward.case import Batch, Case, Lesson
from benchmarks.ward.data import batches, explained, unseen
from benchmarks.ward.networks import ACTIVATIONS, initialize_, optimizer_of
from lightning_gradwatch import Symptom


def _autoencoder(
    sizes: Sequence[int],
    activation: str,
    scheme: str,
    optimizer: str,
    rate: float,
    *,
    passes: float,
    num_steps: int = 500,
) -> Callable[[int], Lesson]:
    def lesson(seed: int) -> Lesson:
        torch.manual_seed(seed)
        both = [64, *sizes, *list(sizes)[-2::-1], 64]
        parts: list[nn.Module] = []
        for inputs, outputs in pairwise(both):
            parts += [nn.Linear(inputs, outputs), ACTIVATIONS[activation]()]
        model = nn.Sequential(*parts[:-1])
        initialize_(model, scheme)
        return Lesson(
            model=model,
            optimizer=optimizer_of(optimizer, model, rate),
            batches=batches("digits", num_steps, 64, seed),
            loss=lambda net, batch: F.mse_loss(net(batch[0]), batch[0]),
            score=lambda net: explained(net(unseen("digits")[0]).flatten(), unseen("digits")[0].flatten()),
            passes=passes,
        )

    return lesson


class Pair(nn.Module):
    """A generator of points in the plane and what judges them."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
        self.critic = nn.Sequential(
            nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1)
        )


def _play(module: Any, optimizers: Sequence[Any], batch: Batch) -> None:
    pair, (first, second) = module.net, optimizers
    real, noise = batch
    fake = pair.generator(noise)
    ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)
    wrong = F.binary_cross_entropy_with_logits
    first.zero_grad()
    module.manual_backward(wrong(pair.critic(real), ones) + wrong(pair.critic(fake.detach()), zeros))
    first.step()
    second.zero_grad()
    module.manual_backward(wrong(pair.critic(fake), ones))
    second.step()


def _no_loss(model: nn.Module, batch: Batch) -> Tensor:
    message = "both networks have a loss of their own"
    raise AssertionError(message)


def _gan(rate: float, share: float, noise: float, passes: float) -> Callable[[int], Lesson]:
    def lesson(seed: int) -> Lesson:
        torch.manual_seed(seed)
        pair = Pair()
        angles = 6.2832 * torch.rand(600, 64)
        real = torch.stack([angles.cos(), angles.sin()], -1) + noise * torch.randn(600, 64, 2)
        drawn = torch.randn(600, 64, 4)

        def score(_: nn.Module) -> float:
            radius: Tensor = pair.generator(torch.randn(500, 4, generator=torch.Generator().manual_seed(1))).norm(dim=1)
            return float(((radius - 1).abs() < 0.5).float().mean()) if torch.isfinite(radius).all() else 0.0

        return Lesson(
            model=pair,
            optimizer=torch.optim.Adam(pair.critic.parameters(), lr=rate, betas=(0.5, 0.9)),
            others=[torch.optim.Adam(pair.generator.parameters(), lr=share * rate, betas=(0.5, 0.9))],
            batches=[(real[i], drawn[i]) for i in range(600)],
            loss=_no_loss,
            score=score,
            passes=passes,
            play=_play,
        )

    return lesson


def cases() -> tuple[Case, ...]:
    """Return the cases of this family."""
    # Each passes at 90% of what the healthy twin reaches (ours: measured, 5 seeds); a network that has only learned
    # the mean picture has 0.47 to 0.53.
    deep = (48, 32, 24, 16, 12)
    he = _autoencoder(deep, "relu", "he", "adam", 2e-3, passes=0.69)
    xavier = _autoencoder(deep, "tanh", "xavier", "momentum", 0.3, num_steps=900, passes=0.8)
    plain = _autoencoder((32, 16), "relu", "default", "adam", 2e-3, passes=0.79)
    tanh = _autoencoder((32, 16), "tanh", "xavier", "momentum", 0.3, num_steps=800, passes=0.82)
    faint = _autoencoder(deep, "sigmoid", "xavier", "adam", 2e-3, passes=0.69)
    fainter = _autoencoder(deep, "sigmoid", "xavier", "momentum", 0.3, num_steps=900, passes=0.8)
    culprits = ("0", "2", "4", "6")
    # With both at the same rate two seeds of five fell short: the generator has to be the slower one.
    return (
        Case("generative/autoencoder-3/adam", plain),
        Case("generative/autoencoder-10-he/adam", he),
        Case("generative/autoencoder-tanh/momentum", tanh),
        Case("generative/autoencoder-10-sigmoid/adam", faint, Symptom.VANISHING, culprits, he),
        Case(
            "generative/autoencoder-10-sigmoid/momentum", fainter, Symptom.VANISHING, culprits, xavier, decided="start"
        ),
        Case("generative/gan-ring", _gan(5e-3, 0.2, 0.1, 0.88), negative="a GAN"),
        Case("generative/gan-ring-slow", _gan(2e-3, 0.25, 0.2, 0.77), negative="a GAN"),
    )
