"""A library for metric learning in a LightningModule, with GradWatch added and nothing else changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import trainer_in
from strangers.witness import train_twice
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

pytestmark = pytest.mark.stranger


@pytest.mark.supports("PyTorch Metric Learning")
def test_pytorch_metric_learning(lightning, tmp_path):
    """A loss with weights and an optimizer of its own, beside a miner, trains the same."""
    from pytorch_metric_learning import losses, miners

    class Embeds(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.trunk = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16))
            self.proxies = losses.ProxyAnchorLoss(num_classes=4, embedding_size=16)
            self.triplets = losses.TripletMarginLoss()
            self.mine = miners.MultiSimilarityMiner()

        def training_step(self, batch: Any, batch_idx: int) -> None:
            inputs, labels = batch
            embeddings = self.trunk(inputs)
            loss = self.proxies(embeddings, labels) + self.triplets(embeddings, labels, self.mine(embeddings, labels))
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return [
                torch.optim.Adam(self.trunk.parameters(), lr=1e-3),
                torch.optim.SGD(self.proxies.parameters(), lr=1e-2),
            ]

    def fit(callbacks: list[Any]) -> None:
        labels = torch.arange(128) % 4
        inputs = torch.randn(128, 8) + 2 * nn.functional.one_hot(labels, 8)
        loader = DataLoader(TensorDataset(inputs, labels), batch_size=32, shuffle=True)
        trainer_in(lightning, tmp_path, *callbacks, max_steps=240, max_epochs=-1).fit(Embeds(), loader)

    watch = train_twice(fit, steps=240, package=lightning.__name__.partition(".")[0])
    assert watch.history.layers == ("trunk.0", "trunk.2", "proxies")
