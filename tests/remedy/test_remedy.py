"""Test ``lightning_gradwatch.remedy.remedy``."""

from __future__ import annotations

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
