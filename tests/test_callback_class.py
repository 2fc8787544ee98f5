"""Test ``lightning_gradwatch.callback_class``."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from lightning_gradwatch import GradWatch
from lightning_gradwatch.callback_class import callback_classes


def test_either_package_takes_it_for_one_of_its_own(lightning):
    """A Trainer of each asks whether it is an instance of its own class."""
    assert issubclass(GradWatch, lightning.Callback)


def missing(monkeypatch: pytest.MonkeyPatch, names: dict[str, str]) -> None:
    """Let some packages miss a module."""
    found = importlib.import_module

    def import_module(name: str) -> Any:
        if name in names:
            raise ModuleNotFoundError(f"No module named {names[name]!r}", name=names[name])
        return found(name)

    monkeypatch.setattr(importlib, "import_module", import_module)


@pytest.mark.parametrize("absent", [{"lightning.pytorch": "lightning"}, {"pytorch_lightning": "pytorch_lightning"}])
def test_one_package_is_enough(monkeypatch, absent):
    """Whichever of the two is not installed."""
    both = callback_classes()
    missing(monkeypatch, absent)
    (there,) = callback_classes()
    assert there in both
    assert there.__module__.partition(".")[0] not in absent.values()


def test_without_lightning_the_way_out_is_named(monkeypatch):
    """Neither is installed: what to install."""
    missing(monkeypatch, {"lightning.pytorch": "lightning", "pytorch_lightning": "pytorch_lightning"})
    with pytest.raises(ImportError, match="pip install pytorch-lightning"):
        callback_classes()


def test_what_an_installed_package_misses_is_told_as_it_is(monkeypatch):
    """The package is there and does not work: its own error says why."""
    missing(monkeypatch, {"lightning.pytorch": "torchmetrics"})
    with pytest.raises(ModuleNotFoundError, match="torchmetrics"):
        callback_classes()
