"""Ask what is wrong with a model before it is trained, and which way out works on your own batch.

``examine`` runs a copy of the model forward and backward a few times, judges it, and tries each remedy on a copy of its
own: ten steps of the optimizer that is to train it. What comes first is what helped most. The model itself is not
touched. A remedy is lines to paste, and ``remedy.apply_`` does the same to a fresh model.

Run it: ``python examples/examine_sick_model.py``. In a training run ``GradWatch(rehearse=True)`` does it when a fault
begins.
"""

import argparse

import torch
from torch import Tensor, nn

from lightning_gradwatch import Report, examine

WIDTH, CLASSES = 32, 4


class SickNet(nn.Module):
    """A deep stack of sigmoids."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden = nn.Sequential(*(part for _ in range(depth) for part in (nn.Linear(WIDTH, WIDTH), nn.Sigmoid())))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, points: Tensor) -> Tensor:
        """Return the scores of each class."""
        scores: Tensor = self.head(self.hidden(points))
        return scores


def look(model: nn.Module) -> Report:
    """Examine a model with a batch and the optimizer that is to train it."""
    points = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(1))
    labels = points[:, :CLASSES].argmax(dim=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return examine(model, lambda model: nn.functional.cross_entropy(model(points), labels), optimizer=optimizer)


def main() -> None:
    """Examine a sick model, follow the first piece of advice, and examine it again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=16, help="hidden layers of the network")
    arguments = parser.parse_args()
    report = look(SickNet(arguments.depth))
    print(report)
    remedy = report.remedies[0]
    print(f"\nLines to paste:\n\n{remedy.code}\n")
    cured = SickNet(arguments.depth)
    remedy.apply_(cured)
    print(look(cured))


if __name__ == "__main__":
    main()
