"""Test ``lightning_gradwatch.remedy.remedy``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.remedy.remedy import Remedy

SICK = Diagnosis("exploding.update", Symptom.EXPLODING)


def test_a_remedy_that_changes_no_model_does_nothing():
    """``apply_`` leaves the model as it is where clipping or a learning rate is the way out."""
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    Remedy("lower the rate", "smaller steps", SICK, optimizer_changes={"lr": 1e-3}).apply_(model)
    assert torch.equal(model.weight, before)


def test_a_remedy_changes_the_model_that_it_is_given():
    """``apply_`` runs its change on the model, in place."""
    model = nn.Linear(3, 2)
    Remedy("zero", "for a test", SICK, change=lambda m: nn.init.zeros_(m.weight)).apply_(model)
    assert model.weight.abs().sum() == 0


def test_a_remedy_is_frozen_and_hides_its_function():
    """It cannot be changed, and its text does not show an address in memory."""
    remedy = Remedy("zero", "for a test", SICK, change=lambda _: None)
    assert "lambda" not in repr(remedy)
    with pytest.raises(AttributeError):
        remedy.title = "other"


class Swap:
    """A change that only an edit of the source can make, and that has a stand-in as long as it is tried."""

    inside = False

    def __call__(self, model: nn.Module) -> None:
        raise ValueError("edit the source")

    @contextmanager
    def tried(self, model: nn.Module) -> Iterator[None]:
        self.inside = True
        yield
        self.inside = False


def test_an_edit_of_the_source_is_tried_by_its_stand_in():
    """``apply_`` refuses, ``tried`` lasts as long as its block."""
    swap, model = Swap(), nn.Linear(1, 1)
    remedy = Remedy("another function", "for a test", SICK, change=swap)
    with pytest.raises(ValueError, match="edit the source"):
        remedy.apply_(model)
    with remedy.tried(model) as candidate:
        assert candidate is model
        assert swap.inside
    assert not swap.inside


def test_what_can_be_applied_is_tried_by_applying_it():
    """Also where nothing of the model changes."""
    model = nn.Linear(3, 2)
    with Remedy("lower the rate", "smaller steps", SICK, optimizer_changes={"lr": 1e-3}).tried(model) as candidate:
        assert candidate is model
        assert model.weight.any()
    with Remedy("zero", "for a test", SICK, change=lambda m: nn.init.zeros_(m.weight)).tried(model):
        assert not model.weight.any()
