"""A rule and a sink of your own, a function and a class of a few lines each.

A rule is called with what was observed so far and yields a ``Diagnosis`` for what is sick *now*. GradWatch waits until
it has said so three times in a row, tells it once, and notices when it is over. A sink gets a report of every reading.

Run it: ``python examples/own_rule_and_sink.py``.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from lightning_gradwatch import Diagnosis, GradWatch, Observations, StepReport, Symptom, default_rules


def one_layer_dominates(seen: Observations) -> Iterator[Diagnosis]:
    """Warn where one layer has nearly all of the gradient: a common learning rate fits no other layer then."""
    share = seen.gradients.norms[-1] ** 2 / seen.gradients.global_norms[-1] ** 2
    largest = int(share.argmax())
    if len(share) > 2 and share[largest] > 0.99:
        yield Diagnosis(
            "exploding.dominant",
            Symptom.EXPLODING,
            layers=(seen.layers[largest].name,),
            message=f"one layer has {share[largest]:.1%} of the gradient",
        )


class CsvSink:
    """Writes the global norm and what began in each step to a file that a spreadsheet opens."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", newline="")
        self._rows = csv.writer(self._file)
        self._rows.writerow(["step", "global_norm", "began"])

    def write(self, report: StepReport) -> None:
        """Take one reading."""
        began = " ".join(diagnosis.rule for diagnosis in report.onsets)
        self._rows.writerow([report.snapshot.step, f"{report.snapshot.global_norm:.4g}", began])

    def close(self) -> None:
        """Training is over or has failed."""
        self._file.close()


def train(watch: GradWatch, max_steps: int) -> None:
    """Train a small network, of which one layer has a loss of its own that drowns the others."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-5)
    with watch.attach(net, optimizer):
        for _ in range(max_steps):
            points = torch.randn(32, 8)
            optimizer.zero_grad()
            loss = (net(points) - points.sum(dim=1, keepdim=True)).square().mean()
            (loss + 100 * net.get_parameter("2.weight").square().sum()).backward()
            optimizer.step()


def main() -> None:
    """Train with both and show what they wrote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_steps", type=int, default=8, help="optimizer steps")
    parser.add_argument("--directory", type=Path, default=Path("runs/own_rule_and_sink"), help="where the file goes")
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    path = arguments.directory / "norms.csv"
    train(GradWatch(rules=[*default_rules(), one_layer_dominates], sinks=[CsvSink(path)]), arguments.max_steps)
    print(f"\n{path}\n{path.read_text()}")


if __name__ == "__main__":
    main()
