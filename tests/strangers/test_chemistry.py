"""A library for chemistry with GradWatch added, and nothing else changed."""

from __future__ import annotations

from typing import Any

import pytest
from strangers.witness import train_twice

pytestmark = pytest.mark.stranger


@pytest.mark.supports("Chemprop")
def test_chemprop(tmp_path):
    """A message-passing network that learns how many atoms a molecule has trains the same."""
    import chemprop
    import lightning.pytorch
    import numpy as np

    def fit(callbacks: list[Any]) -> None:
        molecules = ["C" * length + end for length in range(1, 9) for end in ("O", "N", "F", "Cl")]
        points = [
            chemprop.data.MoleculeDatapoint.from_smi(smiles, np.array([float(len(smiles))])) for smiles in molecules
        ]
        data = chemprop.data.MoleculeDataset(points)
        data.normalize_targets()
        network = chemprop.models.MPNN(
            chemprop.nn.BondMessagePassing(d_h=16),
            chemprop.nn.MeanAggregation(),
            chemprop.nn.RegressionFFN(input_dim=16, hidden_dim=16),
            batch_norm=True,
        )
        trainer = lightning.pytorch.Trainer(
            accelerator="cpu",
            default_root_dir=tmp_path,
            max_epochs=30,
            callbacks=callbacks,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(network, chemprop.data.build_dataloader(data, batch_size=8, num_workers=0))

    watch = train_twice(fit, steps=120, package="lightning")
    assert {"message_passing.W_i", "message_passing.W_h", "message_passing.W_o"} <= set(watch.history.layers)
    assert {"bn", "predictor.ffn.0.0"} <= set(watch.history.layers)
