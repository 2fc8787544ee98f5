"""A library for graphs in a LightningModule, with GradWatch added and nothing else changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import trainer_in
from strangers.witness import train_twice
from torch import nn

pytestmark = pytest.mark.stranger


@pytest.mark.supports("PyTorch Geometric")
@pytest.mark.parametrize("name", ["GCN", "GAT", "GIN"])
def test_torch_geometric(pl, tmp_path, name):
    """Graph networks over batches of small graphs train the same."""
    from torch_geometric import nn as graph_nn
    from torch_geometric.data import Data
    from torch_geometric.loader import DataLoader

    class Classifies(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = getattr(graph_nn, name)(in_channels=4, hidden_channels=16, num_layers=3, norm="BatchNorm")
            self.head = nn.Linear(16, 2)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            nodes = self.network(batch.x, batch.edge_index)
            return nn.functional.cross_entropy(self.head(graph_nn.global_mean_pool(nodes, batch.batch)), batch.y)

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    def fit(callbacks: list[Any]) -> None:
        graphs = []
        for number in range(64):
            edges = torch.randint(0, 6, (2, 12))
            nodes = torch.randn(6, 4) + number % 2
            graphs.append(Data(x=nodes, edge_index=edges, y=torch.tensor([number % 2])))
        loader = DataLoader(graphs, batch_size=16, shuffle=True)
        trainer_in(pl, tmp_path, *callbacks, max_steps=120, max_epochs=-1).fit(Classifies(), loader)

    watch = train_twice(fit, steps=120, package="pytorch_lightning")
    assert watch.history.layers[-1] == "head"
    first = {"GCN": "network.convs.0.lin", "GAT": "network.convs.0", "GIN": "network.convs.0.nn.lins.0"}[name]
    assert first in watch.history.layers
