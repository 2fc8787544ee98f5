"""Convolutional networks on 8 x 8 digits, with and without normalization and residual connections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from benchmarks.ward.case import Case
from benchmarks.ward.networks import ACTIVATIONS, Residual
from benchmarks.ward.recipes import Recipe, sick, well
from lightning_gradwatch import Symptom


class Picture(nn.Module):
    """Rows of 64 numbers as pictures."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[batch, 1, 8, 8]``."""
        return x.view(-1, 1, 8, 8)


def lenet(inputs: int, outputs: int, activation: str = "relu") -> nn.Module:
    """Return two convolutions with pooling and two hidden layers."""
    return nn.Sequential(
        Picture(), nn.Conv2d(1, 8, 3, padding=1), ACTIVATIONS[activation](), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), ACTIVATIONS[activation](), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(64, 48), ACTIVATIONS[activation](), nn.Linear(48, 32), ACTIVATIONS[activation](),
        nn.Linear(32, outputs),
    )  # fmt: skip


def deep(inputs: int, outputs: int, *, depth: int, norm: bool = False, activation: str = "relu") -> nn.Module:
    """Return ``depth`` convolutions of eight channels, pooled twice."""
    parts: list[nn.Module] = [Picture()]
    for number in range(depth):
        parts.append(nn.Conv2d(8 if number else 1, 8, 3, padding=1, bias=not norm))
        parts += [nn.BatchNorm2d(8)] if norm else []
        parts.append(ACTIVATIONS[activation]())
        parts += [nn.MaxPool2d(2)] if number in (depth // 3, 2 * depth // 3) else []
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(8 * 4, outputs))


def residual(inputs: int, outputs: int, *, depth: int, zero_last: bool = False) -> nn.Module:
    """Return a small ResNet; with ``zero_last`` each branch begins as nothing (Goyal et al., 2017)."""
    parts: list[nn.Module] = [Picture(), nn.Conv2d(1, 8, 3, padding=1)]
    for _ in range(depth):
        last = nn.BatchNorm2d(8)
        if zero_last:
            nn.init.zeros_(last.weight)
        branch = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, bias=False), last,
        )  # fmt: skip
        parts += [Residual(branch), nn.ReLU()]
    return nn.Sequential(*parts, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8 * 16, outputs))


def _indices(model: Callable[[int, int], nn.Module], share: float = 1 / 3) -> tuple[str, ...]:
    """Name the first third of the convolutions."""
    convolutions = [name for name, module in model(64, 10).named_modules() if isinstance(module, nn.Conv2d)]
    return tuple(convolutions[: max(1, round(len(convolutions) * share))])


def cases() -> tuple[Case, ...]:
    """Return the cases of this family."""
    rates = {"sgd": 0.05, "adam": 2e-3}
    plain, sigmoid = partial(deep, depth=14), partial(deep, depth=8, activation="sigmoid")
    cured = {"scheme": "he"}
    with_norm = partial(deep, depth=14, norm=True)
    found: list[Case] = []
    for optimizer, rate in rates.items():
        recipe = Recipe(num_steps=400, optimizer=optimizer, rate=rate, batch_size=32)
        decided = "start" if optimizer == "sgd" else "outcome"
        found += [
            sick(f"convolutional/plain-14-default/{optimizer}", replace(recipe, network=plain), Symptom.VANISHING,
                 _indices(plain), cured, decided=decided),
            sick(f"convolutional/sigmoid-8/{optimizer}", replace(recipe, network=sigmoid), Symptom.VANISHING,
                 _indices(sigmoid), {"network": partial(deep, depth=8), "scheme": "he"}, decided=decided),
            well(f"convolutional/plain-14-he/{optimizer}", replace(recipe, network=plain, scheme="he")),
            well(f"convolutional/batchnorm-14/{optimizer}", replace(recipe, network=with_norm), "BatchNorm"),
            sick(f"convolutional/plain-12-too-large/{optimizer}",
                 replace(recipe, network=partial(deep, depth=12), scheme="he", gain=2.2),
                 Symptom.EXPLODING, ("*",), {"gain": 1.0}, decided=decided),
            well(f"convolutional/lenet/{optimizer}", replace(recipe, network=lenet, num_steps=800)),
            well(f"convolutional/resnet-6/{optimizer}", replace(recipe, network=partial(residual, depth=6))),
        ]  # fmt: skip
    adam = Recipe(num_steps=300, rate=2e-3, batch_size=32)
    found += [
        well("convolutional/resnet-6-zero-gamma", replace(adam, network=partial(residual, depth=6, zero_last=True)),
             "zero-initialized residual branches"),
        well("convolutional/lenet-tanh", replace(adam, network=partial(lenet, activation="tanh"))),
    ]  # fmt: skip
    return tuple(found)
