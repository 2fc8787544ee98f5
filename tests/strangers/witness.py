"""Trains what a stranger wrote twice, without and with GradWatch, and holds one run against the other."""

from __future__ import annotations

import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytorch_lightning
import torch
from oracle import SavedGradients, assert_same

from lightning_gradwatch import GradWatch

SEED = 7


class Witness(pytorch_lightning.Callback):
    """Stands in both runs and keeps what the training left behind; it changes nothing."""

    def __init__(self) -> None:
        self.saved = SavedGradients()
        self.left: dict[str, Any] = {}
        self.modules: set[str] = set()
        self.package = ""

    def __reduce__(self) -> Any:
        # Copied before it trains, or saved with a model afterwards: then what it has seen is of no use.
        return Witness, ()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        # A library may train with a Trainer of its own on top of Lightning's.
        packages = [kind.__module__.partition(".")[0] for kind in type(trainer).__mro__]
        self.package = next(package for package in packages if package in ("lightning", "pytorch_lightning"))
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(lambda optimizer, *_: self.saved.save(pl_module, optimizer))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.modules = {name for name, _ in pl_module.named_modules()}
        self.left = {
            "weights": {name: tensor.clone() for name, tensor in pl_module.state_dict().items()},
            "optimizers": [deepcopy(optimizer.state_dict()["state"]) for optimizer in trainer.optimizers],
            # What the next random numbers would be.
            "random numbers": (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()),  # noqa: NPY002
        }


def assert_identical(one: Any, other: Any, place: str = "left") -> None:
    """Hold two nests of tensors and plain values against each other, bit by bit."""
    assert type(one) is type(other), place
    if isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key, value in one.items():
            assert_identical(value, other[key], f"{place}, {key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), place
        for number, value in enumerate(one):
            assert_identical(value, other[number], f"{place}, {number}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    else:
        assert one == other, place


def _train(fit: Callable[[list[Any]], Any], callbacks: list[Any]) -> dict[type, Any]:
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002  (the libraries draw from it)
    torch.manual_seed(SEED)
    # Some libraries put callbacks of their own into the list.
    return {type(callback): callback for callback in fit(callbacks) or callbacks}


def train_twice(fit: Callable[[list[Any]], Any], steps: int, package: str) -> GradWatch:
    """Train without and with GradWatch from one seed, and assert that it saw all and changed nothing.

    Args:
        fit: Builds and trains a model with the callbacks that it is given, as the library's users do; returns the
            callbacks that really trained where the library takes copies of them.
        steps: How many optimizer steps it takes.
        package: Which of Lightning's two packages the library trains with.

    Returns:
        The callback after the run.
    """
    without, beside = _train(fit, [Witness()]), _train(fit, [GradWatch(), Witness()])
    watch, without, beside = beside[GradWatch], without[Witness], beside[Witness]
    assert without.package == beside.package == package
    assert len(beside.left["weights"]) > 0
    assert all(isinstance(value, torch.Tensor) for value in beside.left["weights"].values())
    assert_identical(without.left, beside.left)

    assert watch.disabled_reason is None
    assert len(watch.history) == steps
    assert len(beside.saved.steps) == len(without.saved.steps) == steps
    assert_same(watch.history, beside.saved, "clipped_norms")
    newest = watch.history.norms[-1]
    assert watch.history.present[-1].any()
    assert np.isfinite(newest[watch.history.present[-1]]).all()
    assert [str(diagnosis) for diagnosis in watch.diagnoses if diagnosis.severity == "warning"] == []
    watch.assert_healthy()
    assert set(watch.history.layers) - {"(root)"} <= beside.modules
    return watch
