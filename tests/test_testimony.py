"""Test ``lightning_gradwatch.testimony``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from models import healthy_net

from lightning_gradwatch.measure.layers import find_layers
from lightning_gradwatch.measure.snapshot import GradientSnapshot
from lightning_gradwatch.report.origin import Witness
from lightning_gradwatch.testimony import PoisonedStep, witness_of

NAN = float("nan")
MYSELF = Witness(3, "node", "cpu", step=7)


def step_of(*losses: tuple[int | None, float], **more: Any) -> PoisonedStep:
    return PoisonedStep(
        7, 0, "SGD", more.pop("snapshot", None), losses=[(b, torch.tensor(v)) for b, v in losses], **more
    )


def test_a_process_keeps_who_it_is():
    """What is told of the step is added; the random numbers are those of the moment."""
    torch.manual_seed(11)
    witness = witness_of(MYSELF, step_of(), [])
    assert (witness.rank, witness.host, witness.step, witness.seed, witness.loss) == (3, "node", 7, 11, None)


def test_batches_and_losses_of_a_window_are_those_of_the_step():
    """First and last batch, the mean as the losses were divided, and which of them broke, each once."""
    witness = witness_of(MYSELF, step_of((4, 0.5), (5, NAN), (5, NAN), (6, 1.0)), [])
    assert (witness.batches, witness.broken_batches) == ((4, 6), (5,))
    assert np.isnan(witness.loss)
    assert witness_of(MYSELF, step_of((4, 0.5), (5, 1.25)), []).loss == 1.75


def test_the_loss_of_a_reading_is_without_the_factor_of_a_loss_scaler():
    """The one that was measured stands, where there is one."""
    one = np.ones(1)
    snapshot = GradientSnapshot(7, 0, one, one, one, one, one.astype(bool), one, loss=0.25)
    witness = witness_of(MYSELF, step_of((4, 64.0), snapshot=snapshot), [])
    assert (witness.loss, witness.measured) == (0.25, True)


@pytest.mark.parametrize(("before_step", "batches"), [(True, (9, 9)), (False, ())])
def test_a_step_without_losses_has_the_batch_where_it_was_found(before_step, batches):
    """Only before the step: one that the optimizer has used may be found in the batch after it."""
    witness = witness_of(MYSELF, step_of(place=(2, 9), before_step=before_step), [])
    assert (witness.epoch, witness.batches) == (2, batches)


def test_broken_layers_are_named_in_part_and_counted():
    """The first three gradients by name; weights by name and number."""
    net = healthy_net()
    with torch.no_grad():
        net[2].bias[0] = NAN
    witness = witness_of(MYSELF, step_of(sick=("a", "b", "c", "d")), find_layers(net))
    assert (witness.broken_gradients, witness.measured) == (("a", "b", "c"), False)
    assert (witness.broken_weights, witness.num_broken_weights) == (("2",), 1)
    assert witness_of(MYSELF, step_of(), find_layers(healthy_net())).num_broken_weights == 0
