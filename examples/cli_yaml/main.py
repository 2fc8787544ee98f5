"""GradWatch from a YAML file, without a line of Python for it: LightningCLI reads ``config.yaml``.

Run it in this folder: ``pip install "jsonargparse[signatures]"``, then ``python main.py fit --config config.yaml``.
Every argument can be changed on the command line, too, as ``--trainer.max_steps 100``.
"""

import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import LightningCLI
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

SYMBOLS = 4


class FirstSymbol(pl.LightningModule):
    """Read a sequence and name its first symbol, with recurrent weights that stretch the state at each step.

    Args:
        hidden: Units of the recurrent layer.
        stretch: The factor.
    """

    def __init__(self, hidden: int = 32, stretch: float = 1.8) -> None:
        super().__init__()
        self.rnn = nn.RNN(SYMBOLS, hidden, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(hidden, SYMBOLS)
        nn.init.orthogonal_(self.rnn.get_parameter("weight_hh_l0"), gain=stretch)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        symbols, first = batch
        states, _ = self.rnn(nn.functional.one_hot(symbols, SYMBOLS).float())
        loss: Tensor = nn.functional.cross_entropy(self.head(states[:, -1]), first)
        self.log("loss", loss, prog_bar=True)
        return loss


class Sequences(pl.LightningDataModule):
    """Random symbols, with what each sequence began with.

    Args:
        length: Time steps of a sequence.
        batch_size: Sequences in a batch.
    """

    def __init__(self, length: int = 30, batch_size: int = 64) -> None:
        super().__init__()
        self.length, self.batch_size = length, batch_size

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return 2,048 sequences."""
        symbols = torch.randint(SYMBOLS, (2048, self.length), generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(symbols, symbols[:, 0]), batch_size=self.batch_size, shuffle=True)


if __name__ == "__main__":
    LightningCLI(FirstSymbol, Sequences)
