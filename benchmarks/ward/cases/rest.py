"""Networks of which a part is at rest: frozen, unused, tied, sparse, beginning at zero."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.ward.case import Batch, Case, Lesson
from benchmarks.ward.data import accuracy
from benchmarks.ward.networks import dense, linears, optimizer_of
from benchmarks.ward.recipes import Recipe, well


class LowRank(nn.Module):
    """A frozen linear layer and a pair of small matrices beside it, the second of which begins at zero (LoRA)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.frozen = nn.Linear(inputs, outputs)
        nn.init.kaiming_normal_(self.frozen.weight, nonlinearity="relu")
        self.frozen.requires_grad_(False)
        self.down = nn.Linear(inputs, 8, bias=False)
        self.up = nn.Linear(8, outputs, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both."""
        out: Tensor = self.frozen(x) + self.up(self.down(x))
        return out


def _low_rank(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        LowRank(inputs, 64), nn.ReLU(), LowRank(64, 64), nn.ReLU(), LowRank(64, 64), nn.ReLU(), nn.Linear(64, outputs)
    )


class Scaled(nn.Module):
    """A residual branch whose scale begins at zero (ReZero)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x + scale * relu(layer(x))``."""
        out: Tensor = x + self.scale * self.layer(x).relu()
        return out


def _rezero(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 32), *[Scaled(32) for _ in range(10)], nn.Linear(32, outputs))


class Spare(nn.Module):
    """A network with a branch that nothing uses."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = dense(inputs, outputs, depth=3, width=32, activation="relu")
        self.spare = nn.Linear(inputs, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Go through the body alone."""
        out: Tensor = self.body(x)
        return out


class Tied(nn.Module):
    """One layer used six times over."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.again, self.head = nn.Linear(inputs, 32), nn.Linear(32, 32), nn.Linear(32, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Use the same layer again and again."""
        x = self.first(x).tanh()
        for _ in range(6):
            x = x + self.again(x).tanh()
        out: Tensor = self.head(x)
        return out


class Taught(nn.Module):
    """A student and a teacher."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.teacher = dense(inputs, outputs, depth=2, width=32, activation="relu")
        self.student = dense(inputs, outputs, depth=2, width=32, activation="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the student's logits."""
        out: Tensor = self.student(x)
        return out


def _distilled(model: nn.Module, batch: Batch) -> Tensor:
    """Ask the teacher first, without a graph, as it is done everywhere."""
    assert isinstance(model, Taught)
    with torch.no_grad():
        wanted = model.teacher(batch[0]).softmax(1)
    out = model(batch[0])
    return F.cross_entropy(out, batch[1]) + 0.1 * F.cross_entropy(out, wanted)


def _taught(recipe: Recipe) -> Callable[[int], Lesson]:
    """Make the lesson with a teacher; the optimizer holds all that the network has."""
    return lambda seed: replace(recipe.lesson(seed), loss=_distilled)


class Resting(nn.Module):
    """A head on wide random features, which are enough for it.

    Args:
        inputs: Numbers that go in.
        outputs: Classes.
        resting: Whether the features stay in evaluation mode and are computed without a graph.
    """

    def __init__(self, inputs: int, outputs: int, *, resting: bool) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
        self.head = nn.Linear(256, outputs)
        self._resting = resting

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        if self._resting:
            self.trunk.eval()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._resting):
            x = self.trunk(x)
        out: Tensor = self.head(x)
        return out


def _resting(inputs: int, outputs: int) -> nn.Module:
    return Resting(inputs, outputs, resting=True)


def _ready(inputs: int, outputs: int) -> nn.Module:
    return Resting(inputs, outputs, resting=False)


def _head_alone(recipe: Recipe) -> Callable[[int], Lesson]:
    """Make the lesson with an optimizer that was made of the head, while the trunk asks for gradients."""

    def lesson(seed: int) -> Lesson:
        made = recipe.lesson(seed)
        assert isinstance(made.model, Resting)
        return replace(made, optimizer=optimizer_of(recipe.optimizer, made.model.head, recipe.rate))

    return lesson


def _freeze_first(model: nn.Module) -> None:
    for layer in list(linears(model))[:3]:
        layer.requires_grad_(False)


def _freeze_all_but_head(model: nn.Module) -> None:
    for layer in list(linears(model))[:-1]:
        layer.requires_grad_(False)


class Words(nn.Module):
    """Rows of an embedding, of which a batch touches few."""

    def __init__(self, *, sparse: bool) -> None:
        super().__init__()
        self.embed = nn.EmbeddingBag(2000, 16, sparse=sparse)
        self.hidden = nn.Linear(16, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, words: Tensor) -> Tensor:
        """Return the logits of bags of words."""
        out: Tensor = self.head(self.hidden(self.embed(words)).relu())
        return out


def _words(optimizer: str, rate: float, num_steps: int, *, sparse: bool) -> Callable[[int], Lesson]:
    def lesson(seed: int) -> Lesson:
        torch.manual_seed(seed)
        model = Words(sparse=sparse)
        generator = torch.Generator().manual_seed(seed)

        def draw(count: int) -> Batch:
            classes = torch.randint(0, 4, (count,), generator=generator)
            # Every class has 500 words of its own; half of a bag is from them. Some words are rare.
            own = (500 * torch.rand(count, 6, generator=generator) ** 2).long() * 4 + classes.unsqueeze(1)
            others = torch.randint(0, 2000, (count, 6), generator=generator)
            return torch.cat([own, others], 1), classes

        inputs, classes = draw(400)
        chosen = torch.optim.SparseAdam(list(model.embed.parameters()), lr=rate) if sparse else None
        if chosen is not None:
            return Lesson(
                model, chosen, [draw(16) for _ in range(num_steps)],
                lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]),
                lambda net: accuracy(net(inputs), classes), passes=0.8,
            )  # fmt: skip
        return Lesson(
            model, optimizer_of(optimizer, model, rate), [draw(16) for _ in range(num_steps)],
            lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]),
            lambda net: accuracy(net(inputs), classes), passes=0.8,
        )  # fmt: skip

    return lesson


def cases() -> tuple[Case, ...]:
    """Return the cases of this family."""
    return (
        well("rest/low-rank-adam", Recipe(network=_low_rank, rate=3e-3), "LoRA's zero start"),
        well("rest/low-rank-sgd", Recipe(network=_low_rank, optimizer="sgd", rate=0.05, num_steps=500),
             "LoRA's zero start"),
        well("rest/rezero-adam", Recipe(network=_rezero, rate=3e-3), "zero-initialized residual branches"),
        well("rest/rezero-sgd", Recipe(network=_rezero, optimizer="sgd", rate=0.05, num_steps=500),
             "zero-initialized residual branches"),
        well("rest/frozen-first-layers", Recipe(depth=6, width=64, scheme="he", edit=_freeze_first, num_steps=500),
             "frozen layers"),
        well("rest/head-on-frozen-trunk", Recipe(depth=3, width=64, scheme="he", edit=_freeze_all_but_head, rate=1e-2),
             "fine-tuning of a head"),
        well("rest/unused-branch", Recipe(network=Spare, num_steps=400), "unused layers"),
        well("rest/tied-layers", Recipe(network=Tied, num_steps=400), "weight sharing"),
        Case("rest/teacher-first", _taught(Recipe(network=Taught, rate=3e-3)),
             negative="a teacher that the optimizer holds"),
        well("rest/frozen-trunk-eval", Recipe(network=_resting, rate=1e-2), "a trunk at rest that the optimizer holds"),
        Case("rest/head-in-the-optimizer-alone", _head_alone(Recipe(network=_ready, rate=1e-2)),
             negative="fine-tuning of a head"),
        Case("rest/embedding-adam", _words("adam", 1e-2, 600, sparse=False), negative="sparse rows"),
        Case("rest/embedding-sparse-adam", _words("", 5e-2, 1000, sparse=True), negative="sparse rows"),
        Case("rest/embedding-adagrad", _words("adagrad", 0.1, 600, sparse=False), negative="sparse rows"),
    )  # fmt: skip
