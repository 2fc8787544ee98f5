"""Transformers on digits read row by row: norm before, norm after, and neither."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.ward.case import Case
from benchmarks.ward.recipes import Recipe, sick, well
from lightning_gradwatch import Symptom

_WIDTH = 24


class Block(nn.Module):
    """Attention of two heads and two linear layers.

    Args:
        norm: ``"pre"``, ``"post"`` or ``"none"``.
        skip: Whether what comes in is added to what goes out.
    """

    def __init__(self, norm: str, *, skip: bool = True) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(_WIDTH, 3 * _WIDTH)
        self.out = nn.Linear(_WIDTH, _WIDTH)
        self.up = nn.Linear(_WIDTH, 2 * _WIDTH)
        self.down = nn.Linear(2 * _WIDTH, _WIDTH)
        self.first = nn.LayerNorm(_WIDTH) if norm != "none" else nn.Identity()
        self.second = nn.LayerNorm(_WIDTH) if norm != "none" else nn.Identity()
        self._pre, self._skip = norm != "post", skip

    def _attend(self, x: Tensor) -> Tensor:
        heads = self.query_key_value(x).unflatten(-1, (3, 2, _WIDTH // 2)).permute(2, 0, 3, 1, 4)
        mixed: Tensor = self.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        return mixed

    def _think(self, x: Tensor) -> Tensor:
        thought: Tensor = self.down(F.gelu(self.up(x)))
        return thought

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[batch, length, width]``."""
        for norm, part in ((self.first, self._attend), (self.second, self._think)):
            new = part(norm(x) if self._pre else x)
            new = x + new if self._skip else new
            x = new if self._pre else norm(new)
        return x


class Transformer(nn.Module):
    """Reads the eight rows of a digit.

    Args:
        depth: Blocks.
        norm: As in ``Block``.
        skip: As in ``Block``.
    """

    def __init__(self, inputs: int, outputs: int, *, depth: int, norm: str, skip: bool = True) -> None:
        super().__init__()
        self.embed = nn.Linear(8, _WIDTH)
        self.place = nn.Parameter(0.02 * torch.randn(8, _WIDTH))
        self.blocks = nn.Sequential(*[Block(norm, skip=skip) for _ in range(depth)])
        self.norm = nn.LayerNorm(_WIDTH) if norm == "pre" else nn.Identity()
        self.head = nn.Linear(_WIDTH, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.embed(x.view(-1, 8, 8)) + self.place
        logits: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
        return logits


def _gpt(model: nn.Module) -> None:
    """Initialize as GPT-2 does: normal with 0.02, residual projections smaller with the depth."""
    depth = len(model.blocks) if isinstance(model, Transformer) else 1
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02 / ((2 * depth) ** 0.5 if name.endswith(("out", "down")) else 1))
            nn.init.zeros_(module.bias)


def _warm_up(step: int) -> float:
    return min(1.0, step / 100)


def cases() -> tuple[Case, ...]:
    """Return the cases of this family."""
    adam = Recipe(num_steps=300, rate=2e-3, batch_size=32)
    pre, post = partial(Transformer, depth=4, norm="pre"), partial(Transformer, depth=4, norm="post")
    bare = partial(Transformer, depth=6, norm="none", skip=False)
    stack = partial(Transformer, depth=6, norm="pre")
    sgd = replace(adam, optimizer="momentum", rate=0.02, num_steps=500)
    culprits = ("embed", "blocks.0.*", "blocks.1.*")
    return (
        well("transformers/pre-4/adam", replace(adam, network=pre)),
        well("transformers/pre-4/momentum", replace(sgd, network=pre, num_steps=700)),
        well("transformers/pre-10/adam", replace(adam, network=partial(Transformer, depth=10, norm="pre"), rate=1e-3),
             "a deep pre-LN transformer"),
        well("transformers/pre-4-gpt/adamw", replace(adam, network=pre, edit=_gpt, optimizer="adamw", num_steps=700)),
        well("transformers/post-4/warm-up", replace(adam, network=post, schedule=_warm_up, num_steps=400),
             "a post-LN transformer with warm-up"),
        well("transformers/post-2/adam", replace(adam, network=partial(Transformer, depth=2, norm="post"))),
        sick("transformers/neither-6/adam", replace(adam, network=bare), Symptom.VANISHING, culprits,
             {"network": stack}),
        sick("transformers/neither-6/sgd", replace(sgd, network=bare), Symptom.VANISHING, culprits,
             {"network": stack}, decided="start"),
        sick("transformers/pre-4-too-fast", replace(adam, network=pre, optimizer="sgd", rate=300.0, num_steps=600),
             Symptom.EXPLODING, ("*",), {"rate": 0.1}, decided="start"),
    )  # fmt: skip
