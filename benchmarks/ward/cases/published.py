"""Programs from published lists: AUTOTRAINER's zoo and the StackOverflow posts of DeepLocalize and DeepFD.

The recipes are those of detection papers' repositories; digits stand for MNIST. What a list calls a fault is a claim
here as everywhere: the outcome decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.ward.case import Batch, Case, Lesson
from benchmarks.ward.data import unseen
from benchmarks.ward.networks import optimizer_of
from benchmarks.ward.recipes import Data, Recipe, early, sick, well
from lightning_gradwatch import Symptom

_AUTOTRAINER = "AUTOTRAINER (Zhang et al., 2021)"
_POSTS = "StackOverflow, after DeepLocalize (Wardat et al., 2021) and DeepFD (Cao et al., 2022)"
# Their networks are five units wide and train for hundreds of epochs.
_FIVE = Recipe(data="circle", width=5, scheme="he", rate=1e-2, batch_size=128, num_steps=400)


def _autotrainer() -> list[Case]:
    relu = {"activation": "relu", "width": 16}
    sigmoid: tuple[tuple[Data, int], ...] = (("circle", 8), ("circle", 12), ("blob", 11))
    both: tuple[tuple[Data, int], ...] = (("circle", 8), ("blob", 9))
    tanh: tuple[tuple[Data, int], ...] = (("circle", 5), ("blob", 5), ("blob", 11))
    cases = [
        sick(
            f"published/{data}-sigmoid-{depth}",
            replace(_FIVE, data=data, depth=depth, activation="sigmoid"),
            Symptom.VANISHING,
            early(depth),
            {"activation": "selu", "scheme": "lecun"},
            source=_AUTOTRAINER,
        )
        for data, depth in sigmoid
    ]
    cases += [
        sick(
            f"published/{data}-relu-{depth}-uniform",
            replace(_FIVE, data=data, depth=depth, scheme="uniform", gain=0.05),
            Symptom.VANISHING,
            early(depth),
            {"scheme": "he", "gain": 1.0, "width": 16},
            source=_AUTOTRAINER,
        )
        for data, depth in both
    ]
    cases += [
        sick(
            f"published/{data}-exp-{depth}",
            replace(_FIVE, data=data, depth=depth, activation="exp"),
            Symptom.NON_FINITE,
            ("*",),
            relu,
            decided="start",
            source=_AUTOTRAINER,
        )
        for data, depth in both
    ]
    cases.append(
        sick(
            "published/circle-relu-17-narrow",
            replace(_FIVE, depth=17),
            Symptom.DEAD,
            ("*",),
            {"width": 32, "rate": 1e-3},
            decided="start",
            source=_AUTOTRAINER,
        )
    )
    cases += [
        well(
            f"published/{data}-tanh-{depth}",
            replace(_FIVE, data=data, depth=depth, activation="tanh"),
            source=_AUTOTRAINER,
        )
        for data, depth in tanh
    ]
    cases.append(
        sick(
            "published/digits-relu-16-uniform",
            Recipe(depth=16, width=64, scheme="uniform", gain=0.05, num_steps=400),
            Symptom.VANISHING,
            early(16),
            {"scheme": "he", "gain": 1.0},
            source=_AUTOTRAINER,
        )
    )
    return cases


def _one_unit_softmax(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 1), nn.Softmax(-1)
    )


def _one_unit_sigmoid(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 1), nn.Sigmoid())


def _two_classes(out: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy(out.squeeze(-1), targets.float())


def _halves(model: nn.Module) -> float:
    inputs, targets = unseen("circle")
    return float(((model(inputs).squeeze(-1) > 0.5).long() == targets).float().mean())


def _softmax_lesson(network: Callable[[int, int], nn.Module], optimizer: str, rate: float) -> Callable[[int], Lesson]:
    recipe = Recipe(data="circle", network=network, optimizer=optimizer, rate=rate, loss=_two_classes)
    return lambda seed: replace(recipe.lesson(seed), score=_halves)


def _square_lesson(rate: float) -> Callable[[int], Lesson]:
    """Post 48934338: ``y = x^2`` on inputs that nobody has scaled."""

    def lesson(seed: int) -> Lesson:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(1, 50), nn.ReLU(), nn.Linear(50, 30), nn.ReLU(), nn.Linear(30, 1))
        inputs = torch.linspace(-10, 10, 200).unsqueeze(1)
        optimizer = optimizer_of("sgd", model, rate)
        draws: list[Batch] = []
        for _ in range(600):
            rows = torch.randint(0, 200, (32,))
            draws.append((inputs[rows], inputs[rows] ** 2))

        def score(net: nn.Module) -> float:
            rest = ((net(inputs) - inputs**2) ** 2).mean() / (inputs**2).var()
            return max(0.0, 1.0 - float(rest)) if torch.isfinite(rest) else 0.0

        return Lesson(
            model, optimizer, draws, lambda net, batch: F.mse_loss(net(batch[0]), batch[1]), score, passes=0.6
        )

    return lesson


def _posts() -> list[Case]:
    square = Symptom.EXPLODING
    cases = [
        Case(
            f"published/{post}-one-unit-softmax-{optimizer}",
            _softmax_lesson(_one_unit_softmax, optimizer, rate),
            Symptom.DEAD,
            ("0", "2", "4"),
            _softmax_lesson(_one_unit_sigmoid, optimizer, rate),
            decided="start",
            source=_POSTS,
        )
        for post, optimizer, rate in (
            ("31880720", "rmsprop", 1e-3),
            ("45337371", "adam", 1e-3),
            ("33969059", "momentum", 0.05),
        )
    ]
    cases.append(
        Case(
            "published/48934338-square-sgd",
            _square_lesson(0.1),
            square,
            ("*",),
            _square_lesson(1e-4),
            decided="start",
            source=_POSTS,
        )
    )
    cases.append(
        sick(
            "published/48385830-sigmoid-normal-mse",
            Recipe(
                network=lambda i, o: nn.Sequential(
                    nn.Linear(i, 30), nn.Sigmoid(), nn.Linear(30, 30), nn.Sigmoid(), nn.Linear(30, 30), nn.Sigmoid(),
                    nn.Linear(30, 30), nn.Sigmoid(), nn.Linear(30, o),
                ),
                scheme="normal", gain=5.0, optimizer="sgd", rate=0.5, batch_size=16, num_steps=600,
            ),
            Symptom.EXPLODING, ("*",), {"scheme": "xavier", "gain": 4.0}, source=_POSTS,
        )
    )  # fmt: skip
    cases.append(
        sick(
            "published/44998910-sgd-too-slow",
            Recipe(depth=3, scheme="he", optimizer="sgd", rate=1e-5, num_steps=400),
            Symptom.VANISHING,
            ("*",),
            {"rate": 0.1},
            source=_POSTS,
        )
    )
    cases.append(well("published/48594888-needs-more-epochs", Recipe(depth=2, width=64, num_steps=150), source=_POSTS))
    cases.append(
        well("published/41372874-iris-like", Recipe(data="blob", depth=2, width=16, activation="tanh"), source=_POSTS)
    )
    return cases


def cases() -> tuple[Case, ...]:
    """Return the cases of this family."""
    return (*_autotrainer(), *_posts())
