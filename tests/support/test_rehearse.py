"""Test ``GradWatch(rehearse=True)`` in real Trainers: what is told, and that nothing of the run is changed."""

from __future__ import annotations

import random
import threading
from typing import Any

import numpy as np
import pytest
import torch
from models import WIDTH, deep_net, module_in, trainer_in
from torch import nn

from lightning_gradwatch import ClipByGlobalNorm, GradWatch, rehearsing


class Accuracy(nn.Module):
    """A metric as torchmetrics keeps it: a module with states that each call adds to."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("right", torch.zeros(()))
        self.calls: list[int] = []

    def forward(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(labels))
        self.right += (outputs.argmax(dim=1) == labels).sum()
        return self.right / sum(self.calls)


def busy_module(package: Any, depth: int = 12) -> Any:
    """Return a sick module whose training step draws, counts, logs, and asks the Trainer."""
    sick = deep_net(nn.Sigmoid, depth)
    net = nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Dropout(0.1), *sick)

    class Busy(package.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net, self.accuracy = net, Accuracy()
            self.seen: list[float] = []

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            inputs, labels = batch
            inputs += 1e-6
            inputs = inputs + 1e-3 * random.random() + 1e-3 * np.random.rand()  # noqa: NPY002
            outputs = self.net(inputs)
            loss = nn.functional.cross_entropy(outputs, labels)
            self.log("loss", loss, prog_bar=True)
            self.log_dict({"accuracy": self.accuracy(outputs, labels), "epoch": float(self.current_epoch)})
            self.print(f"batch {batch_idx} of {self.trainer.num_training_batches}, step {self.global_step}")
            self.seen.append(self.optimizers().param_groups[0]["lr"])
            for logger in self.loggers:
                logger.log_metrics({"mine": loss.item()}, step=self.global_step)
            return {"loss": loss}

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    return Busy()


class Notebook:
    """Counts what a logger is given."""

    def __init__(self, package: Any) -> None:
        rows: list[tuple[dict[str, float], int]] = []

        class Logger(package.loggers.Logger):  # type: ignore[misc,name-defined]
            name, version = "notebook", 0

            def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
                rows.append((dict(metrics), step or 0))

            def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

        self.rows, self.logger = rows, Logger()


def same(one: Any, other: Any) -> bool:
    """Tell whether two states are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    return bool(one == other)


def run(package: Any, data: Any, directory: Any, *callbacks: Any, **kwargs: Any) -> tuple[Any, Any, Notebook]:
    """Train the busy module from one seed and return it with its optimizer's state and what was logged."""
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    module, notebook = busy_module(package), Notebook(package)
    trainer = trainer_in(
        package, directory, *callbacks, max_steps=12, log_every_n_steps=1, logger=notebook.logger, **kwargs
    )
    trainer.fit(module, data)
    return module, trainer, notebook


@pytest.mark.supports("remedies are rehearsed, and nothing of the run is changed")
def test_a_run_with_rehearsal_is_bit_for_bit_one_without(lightning, data, tmp_path, capsys):
    """Weights, buffers, optimizer state, random states, metrics, logs and prints are those of a run without us."""
    plain, trainer, notebook = run(lightning, data, tmp_path)
    printed = capsys.readouterr().out
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]  # noqa: NPY002
    watch = GradWatch(rehearse=True)
    watched, trainer_with, notebook_with = run(lightning, data, tmp_path, watch)
    assert watch.disabled_reason is None
    assert any(remedy.effect is not None for remedy in watch.remedies)
    assert same(watched.state_dict(), plain.state_dict())
    assert same(trainer_with.optimizers[0].state_dict()["state"], trainer.optimizers[0].state_dict()["state"])
    assert torch.equal(torch.get_rng_state(), after[0])
    assert random.getstate() == after[1]
    assert (np.random.get_state()[1] == after[2]).all()  # noqa: NPY002
    assert watched.seen == plain.seen
    assert watched.accuracy.calls == plain.accuracy.calls == [4] * 12
    assert capsys.readouterr().out == printed
    theirs = [({k: v for k, v in m.items() if not k.startswith("gradwatch/")}, s) for m, s in notebook_with.rows]
    assert [row for row in theirs if row[0]] == notebook.rows


@pytest.mark.supports("remedies are rehearsed, and nothing of the run is changed")
def test_the_log_says_what_each_try_did(lightning, data, tmp_path, caplog):
    """The best remedy carries its numbers before and after, and the message has them."""
    watch = GradWatch(rehearse=True)
    run(lightning, data, tmp_path, watch)
    (diagnosis,) = [d for d in watch.diagnoses if d.rule == "vanishing.depth"]
    effect = watch.remedies[0].effect
    assert diagnosis.remedies[0].effect == effect
    assert effect["first_over_last_before"] < 1e-5
    assert effect["first_over_last_after"] > 1e-2
    assert effect["steps"] == 10
    assert "try 1" in caplog.text
    assert "tried      rehearsed on this batch, each on a copy of the model; first/last gradient: what" in caplog.text


def test_a_training_step_without_a_batch_index_is_rehearsed(pl, data, tmp_path):
    """``training_step(batch)`` is one of the forms that Lightning takes."""

    def step(self: Any, batch: Any) -> Any:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    watch = GradWatch(rehearse=True)
    module = module_in(pl, deep_net(nn.Sigmoid, 12), training_step=step)
    trainer_in(pl, tmp_path, watch).fit(module, data)
    assert watch.remedies[0].effect is not None


def reason(watch: Any) -> str:
    """Return why the first warning was not rehearsed."""
    (diagnosis,) = [d for d in watch.diagnoses if d.rule == "vanishing.depth"]
    assert all(remedy.effect is None for remedy in diagnosis.remedies)
    assert diagnosis.remedies
    return diagnosis.evidence["rehearsal"]


def test_manual_optimization_is_not_rehearsed(pl, data, tmp_path, caplog):
    """A training step that steps by itself cannot be run again, and the message says so."""

    def step(self: Any, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self.net(batch[0]), batch[1]))
        optimizer.step()

    module = module_in(pl, deep_net(nn.Sigmoid, 12), training_step=step)
    module.automatic_optimization = False
    watch = GradWatch(rehearse=True)
    trainer_in(pl, tmp_path, watch).fit(module, data)
    assert reason(watch) == "not rehearsed: under manual optimization training_step makes the steps itself"
    assert "tried      not rehearsed: under manual optimization" in caplog.text


def test_what_cannot_be_copied_is_not_rehearsed(pl, data, tmp_path):
    """A lock, and a tensor with a graph that is kept, are named; training goes on."""
    module = module_in(pl, deep_net(nn.Sigmoid, 12))
    module.lock = threading.Lock()
    watch = GradWatch(rehearse=True)
    trainer_in(pl, tmp_path, watch).fit(module, data)
    assert reason(watch).startswith("not rehearsed: lock (lock) cannot be copied: TypeError")

    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.last = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        return self.last

    module = module_in(pl, deep_net(nn.Sigmoid, 12), training_step=step)
    watch = GradWatch(rehearse=True)
    trainer_in(pl, tmp_path, watch).fit(module, data)
    assert reason(watch).startswith("not rehearsed: last is a tensor with a graph")
    assert watch.disabled_reason is None


def test_a_training_step_that_reaches_for_the_run_is_not_rehearsed(pl, data, tmp_path):
    """The Trainer's plain values may be read; its parts may not be touched by a copy."""

    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.trainer.should_stop = False
        self.trainer.callbacks.append  # noqa: B018
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    watch = GradWatch(rehearse=True)
    trainer_in(pl, tmp_path, watch).fit(module_in(pl, deep_net(nn.Sigmoid, 12), training_step=step), data)
    assert reason(watch) == "not rehearsed: training_step uses trainer.callbacks, which a copy must not touch"


@pytest.mark.refuses("rehearse=True in several processes")
def test_several_processes_are_refused_before_training(pl, tmp_path):
    """The message names the way out: ``examine`` in one process."""
    watch = GradWatch(rehearse=True)
    trainer = trainer_in(pl, tmp_path, watch)

    class Two:
        world_size, callbacks, gradient_clip_val, strategy = 2, [watch], None, trainer.strategy

    with pytest.raises(ValueError, match=r"this Trainer has 2.*examine\(model, loss_closure\)"):
        watch.setup(Two(), None, "fit")


def test_a_healthy_run_tries_nothing(pl, data, tmp_path, monkeypatch):
    """Only the onset of a warning costs a rehearsal."""
    asked: list[Any] = []
    monkeypatch.setattr(rehearsing, "rehearse", lambda *args: asked.append(args))
    trainer_in(pl, tmp_path, GradWatch(rehearse=True, clipper=ClipByGlobalNorm(1.0))).fit(module_in(pl), data)
    assert asked == []


def test_no_batch_is_kept(pl, data, tmp_path):
    """When a batch is over nobody holds it any more."""
    watch, kept = GradWatch(rehearse=True), []

    def look(self: Any, *args: Any) -> None:
        kept.append(watch.core._record.make_stage)

    trainer_in(pl, tmp_path, watch).fit(module_in(pl, deep_net(nn.Sigmoid, 12), on_train_batch_start=look), data)
    assert watch.remedies[0].effect is not None
    assert kept == [None] * 5
