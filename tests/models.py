"""Models, Trainers and a sink that many tests use; pytest puts this folder on the path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lightning_gradwatch import StepReport
from lightning_gradwatch.watching import Watch

WIDTH, CLASSES = 8, 3


def healthy_net() -> nn.Module:
    """Return a shallow network in which nothing is wrong."""
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))


def deep_net(activation: Callable[[], nn.Module], depth: int, he: bool = False) -> nn.Module:
    """Return a plain stack of linear layers with an activation behind each."""
    layers = [part for _ in range(depth) for part in (nn.Linear(WIDTH, WIDTH), activation())]
    net = nn.Sequential(*layers, nn.Linear(WIDTH, CLASSES))
    for layer in net:
        if he and isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return net


def module_in(
    package: Any, net: nn.Module | None = None, optimizer: Callable[..., Any] | None = None, **hooks: Any
) -> Any:
    """Return a LightningModule around a network.

    Args:
        package: ``pytorch_lightning`` or ``lightning.pytorch``.
        net: The network, a healthy one by default.
        optimizer: Takes the parameters; SGD with learning rate 0.1 by default.
        hooks: Methods in place of the module's own.
    """

    class Module(package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = healthy_net() if net is None else net

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            inputs, labels = batch
            return nn.functional.cross_entropy(self.net(inputs), labels)

        def configure_optimizers(self) -> Any:
            make = optimizer or (lambda parameters: torch.optim.SGD(parameters, lr=0.1))
            return make(self.parameters())

    for name, hook in hooks.items():
        setattr(Module, name, hook)
    return Module()


def trainer_in(package: Any, directory: Any, *callbacks: Any, **kwargs: Any) -> Any:
    """Return a Trainer on the CPU that prints nothing of its own.

    Args:
        package: ``pytorch_lightning`` or ``lightning.pytorch``.
        directory: Where it may write.
        callbacks: Its callbacks.
        kwargs: What differs from the defaults.
    """
    quiet = {
        "accelerator": "cpu",
        "default_root_dir": directory,
        "callbacks": list(callbacks),
        "max_steps": 5,
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
    }
    return package.Trainer(**{**quiet, **kwargs})


class RecordingSink:
    """Keeps every report."""

    def __init__(self) -> None:
        self.reports: list[StepReport] = []
        self.closed = 0

    def write(self, report: StepReport) -> None:
        self.reports.append(report)

    def close(self) -> None:
        self.closed += 1


def train(net: nn.Module, data: Any, watch: Watch, steps: int = 8, rate: float = 0.1, **start: Any) -> None:
    """Train with plain SGD, calling the core as a driver does."""
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    watch.start(net, num_optimizers=1, **start)
    for step, (inputs, labels) in zip(range(steps), data, strict=False):
        watch.begin_batch(step, due=step % 2 == 1)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(inputs), labels)
        watch.before_backward(loss)
        loss.backward()
        watch.before_step(0, optimizer, step)
        optimizer.step()
        watch.after_step(0)
        watch.end_batch()
    watch.finish()
