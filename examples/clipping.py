"""Let an exploding recurrent network fail, and then train it with one more argument: a clipper.

The task is to say which of four symbols a sequence of 30 began with. The recurrent weights stretch the hidden state
by 1.8 at each step, so the gradient grows on its way back through time: one step of SGD overwrites the weights
instead of adjusting them, and the next one is NaN. GradWatch says so, and
``GradWatch(clipper=ClipByGlobalNorm(max_norm=1.0))`` bounds the step and keeps its direction (Pascanu et al., 2013).

Run it: ``python examples/clipping.py``, then ``tensorboard --logdir runs/clipping``.
"""

import argparse
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import ClipByGlobalNorm, GradWatch

SYMBOLS, LENGTH, HIDDEN = 4, 30, 32
STRETCH = 1.8


class FirstSymbol(pl.LightningModule):
    """Read a sequence and name its first symbol."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(SYMBOLS, HIDDEN, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(HIDDEN, SYMBOLS)
        recurrent = dict(self.rnn.named_parameters())["weight_hh_l0"]
        nn.init.orthogonal_(recurrent, gain=STRETCH)

    def forward(self, symbols: Tensor) -> Tensor:
        """Return the scores of each symbol."""
        states, _ = self.rnn(F.one_hot(symbols, SYMBOLS).float())
        scores: Tensor = self.head(states[:, -1])
        return scores

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        symbols, first = batch
        loss = F.cross_entropy(self(symbols), first)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.05)


def sequences() -> TensorDataset:
    """Return 2,048 sequences of random symbols with what each began with."""
    symbols = torch.randint(SYMBOLS, (2048, LENGTH), generator=torch.Generator().manual_seed(0))
    return TensorDataset(symbols, symbols[:, 0])


def train(watch: GradWatch, name: str, max_steps: int, directory: Path) -> float:
    """Train the network and return the share of first symbols that it names."""
    pl.seed_everything(1, verbose=False)
    model, data = FirstSymbol(), sequences()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        callbacks=[watch],
        logger=TensorBoardLogger(directory, name="", version=name),
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        log_every_n_steps=10,
    )
    trainer.fit(model, DataLoader(data, batch_size=64, shuffle=True))
    symbols, first = data.tensors
    with torch.no_grad():
        return float((model(symbols).argmax(dim=1) == first).float().mean())


def main() -> None:
    """Train without and with a clipper and set the results side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_steps", type=int, default=800, help="optimizer steps for each training")
    parser.add_argument("--directory", type=Path, default=Path("runs/clipping"), help="where the logs go")
    arguments = parser.parse_args()
    watches = {"unclipped": GradWatch(), "clipped": GradWatch(clipper=ClipByGlobalNorm(max_norm=1.0))}
    rows = []
    for name, watch in watches.items():
        print(f"\n--- {name}")
        accuracy = train(watch, name, arguments.max_steps, arguments.directory)
        found = ", ".join(f"{d.symptom.value} since step {d.step}" for d in watch.diagnoses) or "quiet"
        largest, used = watch.history.norms.max(), watch.history.clipped_norms.max()
        rows.append(f"{name:<10} {accuracy:>8.1%}   largest norm {largest:<8.3g} used {used:<8.3g} {found}")
    print("\n" + "\n".join(rows))
    print(f"\nThe heatmaps: tensorboard --logdir {arguments.directory}, tab GRADIENTS")


if __name__ == "__main__":
    main()
