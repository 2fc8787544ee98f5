"""Lets all published rules watch the training run that GradWatch watches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from benchmarks.ward.rivals.activations import Activations
from benchmarks.ward.rivals.autotrainer import AutoTrainer
from benchmarks.ward.rivals.deepdiagnosis import DeepDiagnosis
from benchmarks.ward.rivals.look import Flag, FloatArray, Look, Rival
from benchmarks.ward.rivals.sagemaker import SageMaker
from benchmarks.ward.rivals.thresholds import GlobalThresholds, LayerThresholds, lightning_proposal
from benchmarks.ward.rivals.zclip import ZScore
from benchmarks.ward.train import PREFIX


def published_rules() -> list[Rival]:
    """Return a fresh one of each."""
    return [
        SageMaker(),
        AutoTrainer(gate=True),
        AutoTrainer(gate=False),
        DeepDiagnosis(),
        LayerThresholds(),
        GlobalThresholds(),
        lightning_proposal(),
        ZScore(),
    ]


class Rivals(pl.Callback):
    """Runs published rules beside the training and keeps the first flag of each symptom of each.

    Each optimizer has rules of its own, so that a generator's norms are not held against its discriminator's.

    Attributes:
        flags: What each has said, by its name.

    Args:
        rules: Makes the rules of one optimizer.
    """

    def __init__(self, rules: Any = published_rules) -> None:
        super().__init__()
        self.flags: dict[str, list[Flag]] = {rule.name: [] for rule in rules()}
        self._make = rules
        self._rules: dict[int, list[Rival]] = {}
        self._counts: dict[int, int] = {}
        self._activations: Activations | None = None
        self._output_hook: RemovableHandle | None = None
        self._output: Any = None
        self._batch: Sequence[Any] = ()
        self._progress = 0.0
        self._loss = float("nan")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to watch the network."""
        network = pl_module.get_submodule(PREFIX.rstrip("."))
        self._activations = Activations(network)
        self._output_hook = network.register_forward_hook(self._keep_output)

    def _keep_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._output = output.detach() if isinstance(output, Tensor) else None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the batch, for the accuracy."""
        self._batch = batch
        self._progress = (batch_idx + 1) / trainer.num_training_batches

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Keep the loss, without the scale that a loss scaler and an accumulation give it."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = scaler.get_scale() if scaler is not None else 1.0
        self._loss = float(loss.detach()) / scale * trainer.accumulate_grad_batches

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Let every rule look."""
        key = id(optimizer)
        number = self._counts[key] = self._counts.get(key, -1) + 1
        look = self._look(trainer.global_step, number, pl_module, optimizer)
        if not look.names:
            return
        if key not in self._rules:
            self._rules[key] = self._make()
        with np.errstate(all="ignore"):
            for rule in self._rules[key]:
                self._keep(rule.name, rule.observe(look))

    def _keep(self, name: str, flags: list[Flag]) -> None:
        known = {flag.symptom for flag in self.flags[name]}
        for flag in flags:
            if flag.symptom not in known:
                self.flags[name].append(flag)
                known.add(flag.symptom)

    def _look(self, step: int, number: int, pl_module: pl.LightningModule, optimizer: Optimizer) -> Look:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        chosen = [
            (name.removeprefix(PREFIX).rpartition(".")[0], p)
            for name, p in pl_module.named_parameters()
            if p.ndim > 1 and p.grad is not None and id(p) in held
        ]
        assert self._activations is not None
        return Look(
            step=step,
            number=number,
            progress=self._progress,
            names=tuple(name for name, _ in chosen),
            read_gradients=lambda: [_flat(p.grad) for _, p in chosen],
            read_weights=lambda: [_flat(p) for _, p in chosen],
            loss=self._loss,
            accuracy=_accuracy(self._output, self._batch),
            units=self._activations.take(),
        )

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave nothing behind."""
        self._leave()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave nothing behind either."""
        self._leave()

    def _leave(self) -> None:
        if self._activations is not None and self._output_hook is not None:
            self._activations.remove()
            self._output_hook.remove()


def _flat(tensor: Tensor | None) -> FloatArray:
    """Return the numbers of a tensor in float64, a copy; of a sparse one those that it holds."""
    assert tensor is not None
    dense = tensor.detach().coalesce().values() if tensor.is_sparse else tensor.detach()
    numbers: FloatArray = dense.to("cpu", torch.float64, copy=True).flatten().numpy()
    # A sparse gradient without any row is a gradient of zero.
    return numbers if numbers.size else np.zeros(1)


def _accuracy(output: Any, batch: Sequence[Any]) -> float:
    """Return the share of the batch that is right, NaN where outputs are no scores of classes."""
    target = batch[-1] if isinstance(batch, (tuple, list)) and batch else None
    if not isinstance(output, Tensor) or not isinstance(target, Tensor) or target.is_floating_point():
        return float("nan")
    if output.ndim != 2 or output.shape[1] < 2 or target.shape != output.shape[:1]:
        return float("nan")
    return float((output.argmax(dim=1) == target).double().mean())
