"""An independent oracle: what an optimizer really used, saved while it steps, and its norms in plain float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor


def flat(tensor: Tensor) -> Tensor:
    """Return all numbers of a gradient as one float64 vector: rows of a sparse one added up, shards put together."""
    whole = tensor.detach()
    whole = whole.full_tensor() if hasattr(whole, "full_tensor") else whole
    whole = whole.to_dense() if whole.layout != torch.strided else whole
    whole = torch.view_as_real(whole) if whole.is_complex() else whole
    return whole.cpu().to(torch.float64).reshape(-1)


def norm(*tensors: Tensor) -> float:
    """Compute the norm of tensors seen as one vector, in float64 and by numpy."""
    numbers = torch.cat([flat(tensor) for tensor in tensors]).numpy() if tensors else np.zeros(0)
    largest = np.abs(numbers).max(initial=0.0)
    # The squares of float64 have bounds as well, below 1e-154 and above 1e154.
    return float(largest * np.linalg.norm(numbers / largest)) if 0 < largest < np.inf else float(largest)


class SavedGradients:
    """Saves what an optimizer uses, a dictionary from layer to norm for each step.

    Args:
        layer_of: From the name of a parameter to that of its layer; the part before the last dot by default.
    """

    def __init__(self, layer_of: Callable[[str], str] | None = None) -> None:
        self.steps: list[dict[str, float]] = []
        self._layer_of = layer_of or (lambda name: name.rpartition(".")[0] or "(root)")

    def save(self, module: Any, optimizer: Any) -> None:
        """Save the gradients that the optimizer holds now."""
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        layers: dict[str, list[Tensor]] = {}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    layers.setdefault(self._layer_of(names[id(parameter)]), []).append(parameter.grad)
        self.steps.append({layer: norm(*gradients) for layer, gradients in layers.items()})


def saves_gradients(module: Any, layer_of: Callable[[str], str] | None = None) -> SavedGradients:
    """Save what each optimizer of a LightningModule has used, in torch's own hook after ``optimizer.step``."""
    saved = SavedGradients(layer_of)
    make = module.configure_optimizers

    def configure_optimizers() -> Any:
        made = make()
        for optimizer in made if isinstance(made, (list, tuple)) else [made]:
            if isinstance(optimizer, torch.optim.Optimizer):
                optimizer.register_step_post_hook(lambda optimizer, *_: saved.save(module, optimizer))
        return made

    module.configure_optimizers = configure_optimizers
    return saved


def before_clipping(package: Any) -> tuple[Any, SavedGradients]:
    """Return a callback that saves the gradients before anyone clips them, and what it saves."""
    saved = SavedGradients()

    class Saves(package.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            saved.save(pl_module, optimizer)

    return Saves(), saved


def totals(saved: SavedGradients) -> list[float]:
    """Return the norm of all gradients of each step."""
    return [float(np.sqrt(sum(norm**2 for norm in step.values()))) for step in saved.steps]


def same_weights(one: Any, other: Any) -> bool:
    """Tell whether two modules hold the same numbers, to the last bit."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def assert_same(history: Any, saved: SavedGradients, column: str = "norms", rel: float = 1e-5) -> None:
    """Hold every row and every layer of a history against what was saved."""
    rows = getattr(history, column)
    assert len(rows) == len(saved.steps)
    assert len(rows) > 0
    for row, present, expected in zip(rows, history.present, saved.steps, strict=True):
        assert set(expected) <= set(history.layers)
        # Absent is told apart from a NaN.
        assert list(present) == [layer in expected for layer in history.layers]
        for layer, value in zip(history.layers, row, strict=True):
            assert value == pytest.approx(expected.get(layer, np.nan), rel=rel, abs=0, nan_ok=True), layer
