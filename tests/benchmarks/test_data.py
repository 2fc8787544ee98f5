"""Test ``benchmarks.ward.data``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from benchmarks.ward.data import PASSES, accuracy, batches, explained, table, unseen


@pytest.mark.parametrize("name", PASSES)
def test_a_table_has_finite_inputs_and_a_part_that_nobody_trains_on(name: str) -> None:
    """Inputs and targets are as many, and no batch holds one of the last 300 rows."""
    inputs, targets = table(name)
    assert len(inputs) == len(targets) > 1000
    assert torch.isfinite(inputs).all()
    drawn = torch.cat([batch[0] for batch in batches(name, 60, 64, seed=0)])
    kept, _ = unseen(name)
    assert len(kept) == 300
    trained = {tuple(row) for row in inputs[:-300].tolist()}
    assert {tuple(row) for row in drawn.tolist()} <= trained


def test_batches_depend_on_the_seed_alone() -> None:
    """The same seed draws the same batches, another one others, whatever the state of the process."""
    torch.manual_seed(1)
    first = batches("circle", 3, 8, seed=5)
    torch.manual_seed(2)
    again, other = batches("circle", 3, 8, seed=5), batches("circle", 3, 8, seed=6)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], other[0][0])


def test_noisy_labels_are_a_third_of_the_digits_and_none_of_the_unseen() -> None:
    """A third is drawn by lot, of which a tenth is right by chance; the inputs are those of the digits."""
    assert torch.equal(table("noisy")[0], table("digits")[0])
    wrong = table("noisy")[1] != table("digits")[1]
    assert float(wrong[:-300].float().mean()) == pytest.approx(0.3, abs=0.03)
    assert not wrong[-300:].any()


def test_digits_are_those_of_scikit_learn() -> None:
    """They are shuffled and standardized as a whole, and nothing else."""
    inputs, targets = table("digits")
    assert inputs.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert inputs.std().item() == pytest.approx(1.0, abs=1e-3)
    assert np.bincount(targets.numpy()).tolist() == np.bincount(load_digits().target).tolist()


def test_a_product_has_nothing_linear() -> None:
    """The sign of the product of two inputs is the answer, and no single input tells of it."""
    inputs, targets = table("product")
    assert torch.equal(targets, (inputs[:, 0] * inputs[:, 1] > 0).long())
    correlations = np.corrcoef(inputs.T.numpy(), targets.numpy())[-1, :-1]
    assert np.abs(correlations).max() < 0.06


def test_scores_by_hand() -> None:
    """Accuracy is a share, R2 is 1 minus the share of the variance that is left, and NaN scores nothing."""
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    assert accuracy(logits, torch.tensor([0, 1, 0, 0])) == 0.75
    assert accuracy(logits * float("nan"), torch.tensor([0, 1, 0, 0])) == 0.0
    targets = torch.tensor([-1.0, 1.0])
    assert explained(targets, targets) == 1.0
    # The squared error is 0.5 in the mean, and the variance of both numbers is 2.
    assert explained(torch.tensor([0.0, 1.0]), targets) == pytest.approx(0.75)
    assert explained(torch.tensor([9.0, -9.0]), targets) == 0.0
    assert explained(torch.tensor([float("inf"), 0.0]), targets) == 0.0
