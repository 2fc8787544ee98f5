"""What travels into processes that Lightning starts itself, and so has to be found by name there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from models import healthy_net
from torch import nn

from lightning_gradwatch import GradWatch


class Plain(pl.LightningModule):
    """A healthy module that can be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.net = healthy_net()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        inputs, labels = batch
        return nn.functional.cross_entropy(self.net(inputs), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Keeps(GradWatch):
    """Writes down, in each process, what it measured."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_fit_end(trainer, pl_module)
        record = {"norms": self.history.norms.tolist(), "disabled": self.disabled_reason}
        (self.directory / f"{trainer.global_rank}.json").write_text(json.dumps(record))
