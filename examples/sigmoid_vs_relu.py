"""Train a deep sigmoid network beside two deep ReLU networks, and let GradWatch say which of them can learn.

All three have 20 hidden layers of 64 units and see the same handwritten digits (scikit-learn's, 8 x 8 pixels):

* ``sigmoid``: every layer back multiplies the gradient by about 0.14; the first layers never move.
* ``relu-he``: ReLU with He initialization keeps the gradient as large as it was; it learns.
* ``relu-default``: the same ReLU network as PyTorch initializes it by default; it vanishes too.

Run it: ``python examples/sigmoid_vs_relu.py``, then ``tensorboard --logdir runs/sigmoid_vs_relu``.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_gradwatch import GradWatch

DEPTH, WIDTH, CLASSES = 20, 64, 10
NETWORKS = ("sigmoid", "relu-he", "relu-default")


class DeepClassifier(pl.LightningModule):
    """A plain stack of linear layers, one activation behind each of them."""

    def __init__(self, network: str) -> None:
        super().__init__()
        widths = [64, *[WIDTH] * DEPTH]
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.Sigmoid() if network == "sigmoid" else nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Linear(WIDTH, CLASSES))
        if network == "relu-he":
            self.net.apply(he_init_)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        images, labels = batch
        loss = F.cross_entropy(self.net(images), labels)
        self.log("loss", loss)
        return loss

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Return the share of images that are classified correctly."""
        with torch.no_grad():
            return float((self.net(images).argmax(dim=1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return plain SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def he_init_(module: nn.Module) -> None:
    """Give a linear layer the weights that keep the signal's size through ReLU (He et al., 2015)."""
    if isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias)


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Return 1,437 digits to learn from and 360 to test on."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32)
    images = (images - images.mean()) / images.std()
    everything = TensorDataset(images, torch.tensor(labels))
    train, test = random_split(everything, [0.8, 0.2], generator=torch.Generator().manual_seed(0))
    return TensorDataset(*everything[train.indices]), TensorDataset(*everything[test.indices])


def train(network: str, max_steps: int, directory: Path) -> tuple[float, GradWatch]:
    """Train one of the networks and return its accuracy on the test digits and what watched it."""
    pl.seed_everything(0, verbose=False)
    train_set, test_set = digits()
    model, watch = DeepClassifier(network), GradWatch()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        callbacks=[watch],
        logger=TensorBoardLogger(directory, name="", version=network),
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        log_every_n_steps=10,
    )
    trainer.fit(model, DataLoader(train_set, batch_size=64, shuffle=True))
    return model.accuracy(*test_set.tensors), watch


def verdict(watch: GradWatch) -> str:
    """Say in a line what GradWatch found."""
    warnings = [diagnosis for diagnosis in watch.diagnoses if diagnosis.severity == "warning"]
    if not warnings:
        return "quiet"
    worst = warnings[0]
    return f"{worst.symptom.value} since step {worst.step} in {len(worst.layers)} layers, worst {worst.layers[0]}"


def main() -> None:
    """Train all three and set the results side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_steps", type=int, default=500, help="optimizer steps for each network")
    parser.add_argument("--directory", type=Path, default=Path("runs/sigmoid_vs_relu"), help="where the logs go")
    arguments = parser.parse_args()
    rows = []
    for network in NETWORKS:
        print(f"\n--- {network}: {DEPTH} hidden layers of {WIDTH} units, {arguments.max_steps} steps of SGD")
        accuracy, watch = train(network, arguments.max_steps, arguments.directory)
        rows.append(f"{network:<13} {accuracy:>8.1%}   {verdict(watch)}")
    print(f"\n{'network':<13} {'accuracy':>8}   GradWatch")
    print("\n".join(rows))
    print(f"\nThe heatmaps: make dashboard   (or: tensorboard --logdir {arguments.directory}), tab GRADIENTS")


if __name__ == "__main__":
    main()
