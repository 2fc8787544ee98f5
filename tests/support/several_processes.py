"""Trains in several real processes (gloo, on the CPU) and writes down what each of them saw.

``python several_processes.py DIRECTORY`` plays every scenario of this file and writes, for each process of each one,
``SCENARIO-RANK.json`` and ``SCENARIO-RANK.err`` (standard error) there. The processes are forked from one that has
imported everything. A scenario that hangs is ended after a while and harms no other.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from models import CLASSES, WIDTH, deep_net, healthy_net, module_in, trainer_in
from oracle import SavedGradients, saves_gradients
from prepared import measure
from probe_oracle import num_hooks
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import (
    AdaptiveClip,
    ClipByGlobalNorm,
    ClipByLayerNorm,
    ClipByQuantile,
    ClipByValue,
    ClipByZScore,
    GradWatch,
    agreement,
    checkpoints,
    stepper,
    watching,
)
from lightning_gradwatch.detect.depth import DepthRule
from lightning_gradwatch.inquest import Inquests
from lightning_gradwatch.judging import Judge
from lightning_gradwatch.measure import reader
from lightning_gradwatch.prober import Prober

# A process that waits for the others longer than this fails; one that does not come back at all is ended.
PATIENCE_SECONDS = 15
LIMIT_SECONDS = 150

STEPS = 4
POISONED_BATCH = 2
# Where a process fails, and how often the processes then tell each other.
FAILS_AT, OFTEN, FAILING_STEPS = 3, 5, 12

Scene = Callable[[], dict[str, Any]]
SCENARIOS: dict[str, Scene] = {}
NUM_PROCESSES: dict[str, int] = {}
ALONE: set[str] = set()


def scenario(num_processes: int = 2, alone: bool = False) -> Callable[[Scene], Scene]:
    """Add a function, under its name, to what is played.

    Args:
        num_processes: In how many processes.
        alone: Whether in processes of its own: it changes the package, or may hang.
    """

    def add(scene: Scene) -> Scene:
        SCENARIOS[scene.__name__], NUM_PROCESSES[scene.__name__] = scene, num_processes
        if alone or num_processes != 2:
            ALONE.add(scene.__name__)
        return scene

    return add


# Networks, and how they are spread over the processes.


def uneven_net() -> nn.Module:
    """Return a network whose shards are uneven, and empty in the second process: rows 7, 1 and 3."""
    return nn.Sequential(nn.Linear(WIDTH, 7), nn.Tanh(), nn.Linear(7, 1), nn.Tanh(), nn.Linear(1, CLASSES))


def spread_already(module: Any) -> bool:
    """Tell whether a module went through its ``configure_model`` before."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def shard_each(module: Any) -> None:
    """Shard each layer by itself (FSDP2)."""
    if not spread_already(module):
        mesh = module.device_mesh["data_parallel"]
        for layer in module.net:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(module.net, mesh=mesh)


def shard_together(module: Any) -> None:
    """Shard the network as one piece (FSDP2)."""
    if not spread_already(module):
        fully_shard(module.net, mesh=module.device_mesh["data_parallel"])


def shard_first(module: Any) -> None:
    """Shard the first layer only; the others stay plain tensors."""
    if not spread_already(module):
        fully_shard(module.net[0], mesh=module.device_mesh["data_parallel"])


def tensor_parallel(module: Any) -> None:
    """Split the first two layers over the processes, by columns and by rows; the last one stays plain."""
    if not spread_already(module):
        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        parallelize_module(module.net, module.device_mesh["tensor_parallel"], plan)


def two_dimensional(module: Any) -> None:
    """Split layers over one dimension of the processes and shard everything over the other."""
    if not spread_already(module):
        tensor_parallel(module)
        for layer in (module.net[0], module.net[2], module.net[4], module.net):
            fully_shard(layer, mesh=module.device_mesh["data_parallel"])


def three_linear_net() -> nn.Module:
    """Return three linear layers."""
    return nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES)
    )


def ddp(**settings: Any) -> Any:
    """Return Lightning's DDP."""
    return DDPStrategy(**settings)


def fsdp2(tensor_parallel_size: int = 1) -> Any:
    """Return the strategy for FSDP2 and tensor parallelism."""
    data_parallel_size = dist.get_world_size() // tensor_parallel_size
    return ModelParallelStrategy(data_parallel_size, tensor_parallel_size, timeout=timedelta(seconds=PATIENCE_SECONDS))


def batches(samples: int = 64) -> DataLoader[Any]:
    """Return samples whose labels can be learned, four a batch and process."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, WIDTH, generator=generator)
    return DataLoader(TensorDataset(inputs, inputs[:, :CLASSES].argmax(dim=1)), batch_size=4)


def module_of(make_net: Callable[[], nn.Module], spread: Callable[[Any], None] | None, **hooks: Any) -> Any:
    """Return a LightningModule with the same weights in every process."""
    torch.manual_seed(0)
    if spread is not None:
        hooks["configure_model"] = spread
    return module_in(pl, make_net(), **hooks)


def loss_of(module: Any, batch: Any) -> Any:
    """Return the loss of a module."""
    inputs, labels = batch
    return nn.functional.cross_entropy(module.net(inputs), labels)


# One training and what is written down of it.


class BeforeClipping(pl.Callback):
    """Saves the gradients before GradWatch, which stands behind it, or the Trainer clips them."""

    def __init__(self) -> None:
        self.saved = SavedGradients()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.saved.save(pl_module, optimizer)


def fit(watch: GradWatch, module: Any, strategy: Any, steps: int = STEPS, **trainer: Any) -> dict[str, Any]:
    """Train, and return what GradWatch measured and told beside what the optimizer used."""
    before, used = BeforeClipping(), saves_gradients(module)
    runs = trainer_in(
        pl, Path.cwd(), before, watch, strategy=strategy, devices=dist.get_world_size(), max_steps=steps, **trainer
    )
    error = ""
    try:
        runs.fit(module, batches())
    except RuntimeError as caught:
        error = f"{type(caught).__name__}: {caught}"
    return {
        **seen(watch),
        "error": error,
        "used": used.steps,
        "before": before.saved.steps,
        "global_step": runs.global_step,
        "weights": [part.flatten().tolist() for part in local_weights(module)],
        "kinds": sorted({type(parameter.data).__name__ for parameter in module.parameters()}),
        "elements": [part.numel() for part in local_weights(module)],
    }


def local_weights(module: Any) -> list[torch.Tensor]:
    """Return this process's part of all weights."""
    weights = [parameter.detach() for parameter in module.parameters()]
    return [weight.to_local() if isinstance(weight, DTensor) else weight for weight in weights]


def seen(watch: GradWatch) -> dict[str, Any]:
    """Return what a GradWatch knows as plain values."""
    health = ""
    try:
        watch.assert_healthy()
    except AssertionError as failure:
        # What is wrong and where; the numbers behind it are of the samples that this process has seen.
        health = str(failure).partition("\n")[0]
    return {
        "layers": list(watch.history.layers),
        "norms": watch.history.norms.tolist(),
        "present": watch.history.present.tolist(),
        "clipped_norms": watch.history.clipped_norms.tolist(),
        "weight_norms": watch.history.weight_norms.tolist(),
        "losses": watch.history.losses.tolist(),
        "diagnoses": [[d.rule, d.symptom.value, d.severity, list(d.layers), d.step] for d in watch.diagnoses],
        "skipped": watch.skipped_steps,
        "disabled": watch.disabled_reason,
        "health": health,
    }


def watched(make: Callable[[], Any], strategy: Callable[[], Any], steps: int = STEPS, **trainer: Any) -> dict[str, Any]:
    """Train with GradWatch, and once more without it to see whether the weights end the same."""
    record = fit(GradWatch(), make(), strategy(), steps, **trainer)
    module = make()
    alone = trainer_in(pl, Path.cwd(), strategy=strategy(), devices=dist.get_world_size(), max_steps=steps, **trainer)
    alone.fit(module, batches())
    record["unwatched_weights"] = [part.flatten().tolist() for part in local_weights(module)]
    return record


# DDP.


@scenario()
def ddp_plain() -> dict[str, Any]:
    return watched(lambda: module_of(healthy_net, None), ddp)


@scenario()
def ddp_accumulation() -> dict[str, Any]:
    return watched(lambda: module_of(healthy_net, None), ddp, accumulate_grad_batches=2)


class PartlyUsed(nn.Module):
    """A layer that the first process alone uses, in even calls, and one that nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.sometimes, self.never = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.body(inputs))
        return self.head(self.sometimes(hidden) if dist.get_rank() == 0 else hidden)


@scenario()
def ddp_unused() -> dict[str, Any]:
    return watched(lambda: module_of(PartlyUsed, None), lambda: ddp(find_unused_parameters=True))


@scenario()
def ddp_trainer_clip() -> dict[str, Any]:
    return watched(lambda: module_of(healthy_net, None), ddp, gradient_clip_val=0.05)


@scenario()
def ddp_clip_by_norm() -> dict[str, Any]:
    return fit(GradWatch(clipper=ClipByGlobalNorm(0.05)), module_of(healthy_net, None), ddp())


@scenario()
def ddp_clip_by_value() -> dict[str, Any]:
    return fit(GradWatch(clipper=ClipByValue(0.01)), module_of(healthy_net, None), ddp())


# The signal probe.


class ProbedNet(nn.Module):
    """Draws random numbers, keeps statistics and reads its input step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.body = nn.LSTM(1, 6, batch_first=True), nn.Linear(6, WIDTH)
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.rnn(inputs.unsqueeze(-1))
        return self.head(self.drop(torch.relu(self.body(hidden[:, -1]))))


def shard_probed(module: Any) -> None:
    """Shard the dense layers each by itself and the rest with the network (FSDP2)."""
    if not spread_already(module):
        mesh = module.device_mesh["data_parallel"]
        for layer in (module.net.body, module.net.head, module.net):
            fully_shard(layer, mesh=mesh)


def with_probes(spread: Callable[[Any], None] | None, strategy: Callable[[], Any], **trainer: Any) -> dict[str, Any]:
    """Train with a probe on every step, and once more without GradWatch."""
    watch, module = GradWatch(probe_every_n_steps=1), module_of(ProbedNet, spread)
    torch.manual_seed(dist.get_rank())
    record = fit(watch, module, strategy(), **trainer)
    record["random"] = torch.get_rng_state().tolist()
    columns = ("signal", "delta", "update_ratio")
    record["probes"] = [
        {"step": p.step, "time": [t.delta.tolist() for t in p.time], **{n: getattr(p, n).tolist() for n in columns}}
        for p in watch.probes
    ]
    alone = module_of(ProbedNet, spread)
    torch.manual_seed(dist.get_rank())
    runs = trainer_in(pl, Path.cwd(), strategy=strategy(), devices=2, max_steps=STEPS, **trainer)
    runs.fit(alone, batches())
    record["hooks"] = num_hooks(module) - num_hooks(alone)
    record["unwatched_weights"] = [part.flatten().tolist() for part in local_weights(alone)]
    record["unwatched_random"] = torch.get_rng_state().tolist()
    return record


@scenario()
def ddp_probe() -> dict[str, Any]:
    return with_probes(None, ddp)


@scenario()
def ddp_probe_accumulation() -> dict[str, Any]:
    return with_probes(None, ddp, accumulate_grad_batches=2)


@scenario()
def fsdp2_probe() -> dict[str, Any]:
    return with_probes(shard_probed, fsdp2)


# FSDP2 and tensor parallelism.


@scenario()
def fsdp2_each() -> dict[str, Any]:
    return watched(lambda: module_of(uneven_net, shard_each), fsdp2)


@scenario()
def fsdp2_accumulation() -> dict[str, Any]:
    return watched(lambda: module_of(uneven_net, shard_each), fsdp2, accumulate_grad_batches=2)


@scenario()
def fsdp2_trainer_clip() -> dict[str, Any]:
    return watched(lambda: module_of(uneven_net, shard_each), fsdp2, gradient_clip_val=0.05)


@scenario()
def ddp_adaptive_clip() -> dict[str, Any]:
    return fit(GradWatch(clipper=AdaptiveClip()), module_of(healthy_net, None), ddp())


@scenario()
def fsdp2_adaptive_clip() -> dict[str, Any]:
    return fit(GradWatch(clipper=AdaptiveClip()), module_of(uneven_net, shard_each), fsdp2())


@scenario()
def fsdp2_clip_by_layer_norm() -> dict[str, Any]:
    return fit(GradWatch(clipper=ClipByLayerNorm(0.05)), module_of(uneven_net, shard_each), fsdp2())


@scenario()
def fsdp2_clip_by_quantile() -> dict[str, Any]:
    return fit(GradWatch(clipper=ClipByQuantile()), module_of(uneven_net, shard_each), fsdp2())


@scenario()
def clippers_on_shards() -> dict[str, Any]:
    """Clip the same gradients whole, and spread over the processes by rows, by columns and not at all."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    ends: dict[str, list[Any]] = {}
    for name, make in SHARDED_CLIPPERS.items():
        whole, spread = make(), {str(place): make() for place in PLACES}
        ends[name] = []
        for seed in range(3):
            torch.manual_seed(seed)
            shapes, size = ((7, 5), (1, 6), (5,)), 2.0**seed
            weights, gradients = ([factor * torch.randn(shape) for shape in shapes] for factor in (1.0, size))
            norms, expected = clipped_once(whole, weights, gradients)
            for place in PLACES:
                parts = [[distribute(part, mesh, place) for part in parts] for parts in (weights, gradients)]
                found, clipped = clipped_once(spread[str(place)], *parts)
                close = [torch.allclose(one, other, rtol=1e-5) for one, other in zip(clipped, expected, strict=True)]
                changed = any(not torch.equal(one, other) for one, other in zip(clipped, gradients, strict=True))
                ends[name].append([str(place), all(close), torch.allclose(found, norms, rtol=1e-5), changed])
    return {"ends": ends}


PLACES = (Shard(0), Shard(1), Replicate())
SHARDED_CLIPPERS = {
    "AdaptiveClip": lambda: AdaptiveClip(clip_last_layer=True),
    "ClipByGlobalNorm": lambda: ClipByGlobalNorm(0.1),
    "ClipByLayerNorm": lambda: ClipByLayerNorm(0.1),
    "ClipByQuantile": ClipByQuantile,
    "ClipByValue": lambda: ClipByValue(0.1),
    "ClipByZScore": lambda: ClipByZScore(max_norm=0.1),
}


def distribute(part: torch.Tensor, mesh: Any, place: Any) -> DTensor:
    """Spread a tensor over the processes; a vector has no columns."""
    return distribute_tensor(part, mesh, [Shard(0) if place == Shard(1) and part.ndim == 1 else place])


def clipped_once(clipper: Any, weights: Any, gradients: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Clip copies of some gradients, and return what the clipper says and the whole gradients."""
    parameters = [nn.Parameter(weight) for weight in weights]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    norms = clipper.clip_(measure(parameters))
    grads = [parameter.grad for parameter in parameters]
    return norms, [grad.full_tensor() if isinstance(grad, DTensor) else grad for grad in grads]


@scenario()
def fsdp2_clip_by_norm() -> dict[str, Any]:
    return fit(GradWatch(clipper=ClipByGlobalNorm(0.05)), module_of(uneven_net, shard_each), fsdp2())


@scenario()
def fsdp2_clip_by_value() -> dict[str, Any]:
    return fit(GradWatch(clipper=ClipByValue(0.01)), module_of(uneven_net, shard_each), fsdp2())


@scenario()
def fsdp2_partly_sharded() -> dict[str, Any]:
    # Nobody averages what is not sharded, so both processes have to see the same samples.
    return watched(lambda: module_of(uneven_net, shard_first), fsdp2, use_distributed_sampler=False)


@scenario()
def fsdp2_partly_sharded_clip() -> dict[str, Any]:
    watch = GradWatch(clipper=ClipByGlobalNorm(0.05))
    return fit(watch, module_of(uneven_net, shard_first), fsdp2(), use_distributed_sampler=False)


@scenario()
def tensor_parallelism() -> dict[str, Any]:
    return watched(lambda: module_of(three_linear_net, tensor_parallel), lambda: fsdp2(2))


@scenario()
def tensor_parallelism_clip() -> dict[str, Any]:
    watch = GradWatch(clipper=ClipByGlobalNorm(0.05))
    return fit(watch, module_of(three_linear_net, tensor_parallel), fsdp2(2))


@scenario(num_processes=4)
def two_dimensions() -> dict[str, Any]:
    return watched(lambda: module_of(three_linear_net, two_dimensional), lambda: fsdp2(2))


class Extremes(nn.Module):
    """Three layers that get gradients too large for float32 squares, too small for them, and exact zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small, self.zero = (nn.Linear(WIDTH, CLASSES) for _ in range(3))

    def forward(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        return [self.large(inputs), self.small(inputs), self.zero(inputs)]


def extreme_step(module: Any, batch: Any, batch_idx: int) -> torch.Tensor:
    """Return a loss whose gradients are about 1e30, 1e-30 and 0."""
    losses = [nn.functional.cross_entropy(logits, batch[1]) for logits in module.net(batch[0])]
    return 1e30 * losses[0] + 1e-30 * losses[1] + 0.0 * losses[2]


def frozen_sgd(parameters: Any) -> torch.optim.Optimizer:
    """Return SGD that moves nothing."""
    return torch.optim.SGD(parameters, lr=0.0)


def extreme_module() -> Any:
    """Return a module of extremes, sharded."""
    return module_of(Extremes, shard_together, training_step=extreme_step, optimizer=frozen_sgd)


@scenario()
def fsdp2_extremes() -> dict[str, Any]:
    return watched(extreme_module, fsdp2, steps=12)


@scenario()
def fsdp2_extremes_clip() -> dict[str, Any]:
    return fit(GradWatch(clipper=ClipByGlobalNorm(1.0)), extreme_module(), fsdp2(), steps=3)


# Steps that are not finite, in one process only.


def poisoned_loss(module: Any, batch: Any, batch_idx: int) -> torch.Tensor:
    """Return a loss that is NaN in one batch of the second process."""
    loss = loss_of(module, batch)
    return loss * float("nan") if batch_idx == POISONED_BATCH and dist.get_rank() == 1 else loss


def poison_shard(module: Any, batch_idx: int) -> None:
    """Make one number NaN in the second process's part of the first layer's gradient."""
    if batch_idx == POISONED_BATCH and dist.get_rank() == 1:
        module.net[0].weight.grad.to_local()[0, 0] = float("nan")


class PoisonsShard(pl.Callback):
    """Poisons the second process's shard of a gradient, after everything was averaged."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batch_idx = batch_idx

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        poison_shard(pl_module, self.batch_idx)


@scenario()
def ddp_skip() -> dict[str, Any]:
    module = module_of(healthy_net, None, training_step=poisoned_loss)
    return fit(GradWatch(on_nonfinite="skip"), module, ddp())


@scenario()
def ddp_raise() -> dict[str, Any]:
    module = module_of(healthy_net, None, training_step=poisoned_loss)
    return fit(GradWatch(on_nonfinite="raise"), module, ddp())


@scenario()
def fsdp2_skip() -> dict[str, Any]:
    module = module_of(uneven_net, shard_each, training_step=poisoned_loss)
    return fit(GradWatch(on_nonfinite="skip"), module, fsdp2())


@scenario()
def fsdp2_raise() -> dict[str, Any]:
    module = module_of(uneven_net, shard_each, training_step=poisoned_loss)
    return fit(GradWatch(on_nonfinite="raise"), module, fsdp2())


def with_poisoned_shard(watch: GradWatch) -> dict[str, Any]:
    """Train where one number of one shard is NaN."""
    module = module_of(uneven_net, shard_each)
    module.configure_callbacks = lambda: [PoisonsShard()]
    return fit(watch, module, fsdp2())


@scenario()
def fsdp2_skip_shard() -> dict[str, Any]:
    return with_poisoned_shard(GradWatch(on_nonfinite="skip"))


@scenario()
def fsdp2_raise_shard() -> dict[str, Any]:
    return with_poisoned_shard(GradWatch(on_nonfinite="raise"))


class PoisonsPlain(PoisonsShard):
    """Poisons, in the second process only, a gradient that is not sharded and that nobody averages."""

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if self.batch_idx == POISONED_BATCH and dist.get_rank() == 1:
            pl_module.net[2].weight.grad[0, 0] = float("nan")


def partly_sharded(watch: GradWatch, steps: int = STEPS) -> dict[str, Any]:
    """Train what is sharded in part, where one process alone has a NaN in the rest."""
    module = module_of(uneven_net, shard_first)
    module.configure_callbacks = lambda: [PoisonsPlain()]
    return fit(watch, module, fsdp2(), steps, use_distributed_sampler=False)


@scenario()
def fsdp2_partly_sharded_skip() -> dict[str, Any]:
    return partly_sharded(GradWatch(on_nonfinite="skip"))


@scenario()
def fsdp2_partly_sharded_raise() -> dict[str, Any]:
    return partly_sharded(GradWatch(on_nonfinite="raise"))


@scenario(alone=True)
def fsdp2_partly_sharded_skip_and_fails() -> dict[str, Any]:
    """The second process fails between measuring the poisoned step and deciding about it."""
    exchange_often()
    original = Prober.take

    def take(self: Prober, about: Any, *others: Any, **settings: Any) -> Any:
        if dist.get_rank() == 1 and about.step == POISONED_BATCH:
            raise RuntimeError("broken on purpose")
        return original(self, about, *others, **settings)

    Prober.take = take
    return partly_sharded(GradWatch(on_nonfinite="skip"), FAILING_STEPS)


class PartlyAveraged(nn.Module):
    """A network with a layer that DDP leaves alone, and whose gradient is NaN in one batch of the second process."""

    _ddp_params_and_buffers_to_ignore = ("net.own.weight", "net.own.bias")

    def __init__(self) -> None:
        super().__init__()
        self.own, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.own(inputs)))


@scenario()
def ddp_ignored_skip() -> dict[str, Any]:
    module = module_of(PartlyAveraged, None)
    module._ddp_params_and_buffers_to_ignore = PartlyAveraged._ddp_params_and_buffers_to_ignore

    class Poisons(PoisonsShard):
        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            if self.batch_idx == POISONED_BATCH and dist.get_rank() == 1:
                pl_module.net.own.weight.grad[0, 0] = float("nan")

    module.configure_callbacks = lambda: [Poisons()]
    return fit(GradWatch(on_nonfinite="skip"), module, ddp())


class Unfreezes(PoisonsShard):
    """Gives the optimizer a layer that was frozen when DDP began, and poisons its gradient in the second process."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if batch_idx == POISONED_BATCH - 1:
            pl_module.net[0].requires_grad_(True)
            trainer.optimizers[0].add_param_group({"params": list(pl_module.net[0].parameters())})

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if self.batch_idx == POISONED_BATCH and dist.get_rank() == 1:
            pl_module.net[0].weight.grad[0, 0] = float("nan")


@scenario(alone=True)
def ddp_unfrozen_skip() -> dict[str, Any]:
    """As ``BackboneFinetuning`` does: DDP does not know the layer, and nobody averages its gradient."""

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in parameters if p.requires_grad], lr=0.1)

    module = module_of(healthy_net, None, optimizer=optimizer)
    module.net[0].requires_grad_(False)
    module.configure_callbacks = lambda: [Unfreezes()]
    return fit(GradWatch(on_nonfinite="skip"), module, ddp())


@scenario(alone=True)
def ddp_skip_and_cannot_look() -> dict[str, Any]:
    """The second process can neither measure the gradients nor look at them from the poisoned step on."""

    def broken(*arguments: Any, **settings: Any) -> Any:
        raise RuntimeError("broken on purpose")

    read, look = reader.Reader.read, stepper.gradients_finite

    def sees_nothing(step: int) -> bool:
        return dist.get_rank() == 1 and step >= POISONED_BATCH

    def reads(self: Any, number: int, optimizer: Any, step: int, *others: Any) -> Any:
        stepper.gradients_finite = broken if sees_nothing(step) else look
        return (broken if sees_nothing(step) else read)(self, number, optimizer, step, *others)

    reader.Reader.read = reads
    module = module_of(healthy_net, None, training_step=poisoned_loss)
    return fit(GradWatch(on_nonfinite="skip"), module, ddp())


@scenario(alone=True)
def fsdp2_skip_and_numbers_fail() -> dict[str, Any]:
    """The numbers of the poisoned step do not arrive in the first process, whose own shard is finite."""
    numbers = stepper.Stepper.numbers

    def lost(reading: Any) -> Any:
        snapshot = numbers(reading)
        return None if dist.get_rank() == 0 and snapshot is not None and not snapshot.finite else snapshot

    stepper.Stepper.numbers = staticmethod(lost)
    return with_poisoned_shard(GradWatch(on_nonfinite="skip"))


class Ends(pl.Callback):
    """Ends training after the poisoned step, as ``EarlyStopping(check_finite=True)`` does."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer.should_stop |= batch_idx == POISONED_BATCH


@scenario()
def ddp_warn_and_ends() -> dict[str, Any]:
    module = module_of(healthy_net, None, training_step=poisoned_loss)
    module.configure_callbacks = lambda: [Ends()]
    return fit(GradWatch(), module, ddp(), FAILING_STEPS)


@scenario(alone=True)
def ddp_two_optimizers_warn() -> dict[str, Any]:
    """By hand: both optimizers break in the same batch, and the first one's step comes first."""
    exchange_often()

    def training_step(module: Any, batch: Any, batch_idx: int) -> None:
        for optimizer in module.optimizers():
            optimizer.zero_grad()
            module.manual_backward(poisoned_loss(module, batch, batch_idx))
            optimizer.step()

    module = module_of(healthy_net, None, training_step=training_step)
    module.configure_optimizers = lambda: [torch.optim.SGD(module.net.parameters(), lr=0.1) for _ in range(2)]
    module.automatic_optimization = False
    return fit(GradWatch(on_nonfinite="skip"), module, ddp(), 2 * FAILING_STEPS)


@scenario(alone=True)
def ddp_warn_and_disk_fails() -> dict[str, Any]:
    """The first process cannot find its checkpoints any more when the answers have come."""
    exchange_often()
    asked = []

    def breaks(*arguments: Any) -> Any:
        asked.append(arguments)
        if len(asked) > 1 and dist.get_rank() == 0:
            raise PermissionError("broken on purpose")

    checkpoints.Checkpoints.last_clean = breaks
    return fit(GradWatch(), module_of(healthy_net, None, training_step=poisoned_loss), ddp(), FAILING_STEPS)


@scenario(alone=True)
def ddp_raise_and_disk_fails() -> dict[str, Any]:
    """The first process fails between the decision to end training and the end."""
    original = Inquests.close

    def close(self: Any, *arguments: Any) -> Any:
        if dist.get_rank() == 0 and self._open:
            raise PermissionError("broken on purpose")
        return original(self, *arguments)

    Inquests.close = close
    module = module_of(healthy_net, None, training_step=poisoned_loss)
    return fit(GradWatch(on_nonfinite="raise"), module, ddp())


def poisoned_by_hand(module: Any, batch: Any, batch_idx: int) -> None:
    """Step by hand, with a loss that is NaN in one batch of the second process."""
    optimizer = module.optimizers()
    optimizer.zero_grad()
    module.manual_backward(poisoned_loss(module, batch, batch_idx))
    optimizer.step()


@scenario(alone=True)
def ddp_manual_skip() -> dict[str, Any]:
    exchange_often()
    module = module_of(healthy_net, None, training_step=poisoned_by_hand)
    module.automatic_optimization = False
    return fit(GradWatch(on_nonfinite="skip"), module, ddp(), FAILING_STEPS)


@scenario(alone=True)
def ddp_warn() -> dict[str, Any]:
    exchange_often()
    return fit(GradWatch(), module_of(healthy_net, None, training_step=poisoned_loss), ddp(), FAILING_STEPS)


@scenario(alone=True)
def ddp_warn_and_fails() -> dict[str, Any]:
    """The first process is switched off before the poisoned step: it sees nothing, and is asked all the same."""
    exchange_often()
    original = Judge.judge

    def judge(self: Judge, snapshot: Any, *others: Any) -> Any:
        if dist.get_rank() == 0 and snapshot.step == POISONED_BATCH - 1:
            raise RuntimeError("broken on purpose")
        return original(self, snapshot, *others)

    Judge.judge = judge
    return fit(GradWatch(), module_of(healthy_net, None, training_step=poisoned_loss), ddp(), FAILING_STEPS)


@scenario(alone=True)
def ddp_raise_and_fails() -> dict[str, Any]:
    """The second process is switched off before the poisoned step, and still decides and answers with the first."""
    exchange_often()
    original = Judge.judge

    def judge(self: Judge, snapshot: Any, *others: Any) -> Any:
        if dist.get_rank() == 1 and snapshot.step == POISONED_BATCH - 1:
            raise RuntimeError("broken on purpose")
        return original(self, snapshot, *others)

    Judge.judge = judge
    module = module_of(healthy_net, None, training_step=poisoned_loss)
    return fit(GradWatch(on_nonfinite="raise"), module, ddp())


@scenario()
def ddp_stops_on_nonfinite() -> dict[str, Any]:
    watch = GradWatch(stop_on=["non_finite"])
    return fit(watch, module_of(healthy_net, None, training_step=poisoned_loss), ddp(), FAILING_STEPS)


@scenario(alone=True)
def ddp_ignored_cannot_begin() -> dict[str, Any]:
    """The watch of the first process has no reader; nobody may wait for it at any step."""
    exchange_often()

    def broken(*arguments: Any) -> Any:
        raise RuntimeError("broken on purpose")

    if dist.get_rank() == 0:
        watching.Reader = broken
    module = module_of(healthy_net, None)
    module._ddp_params_and_buffers_to_ignore = ("net.0.weight", "net.0.bias")
    return fit(GradWatch(on_nonfinite="skip"), module, ddp(), FAILING_STEPS)


# Diagnoses.


def sigmoid_net() -> nn.Module:
    """Return a network whose gradient vanishes."""
    return deep_net(nn.Sigmoid, 12)


@scenario()
def ddp_vanishing() -> dict[str, Any]:
    return fit(GradWatch(), module_of(sigmoid_net, None), ddp())


@scenario()
def fsdp2_vanishing() -> dict[str, Any]:
    return fit(GradWatch(), module_of(sigmoid_net, shard_together), fsdp2())


@scenario()
def fsdp2_stop_on() -> dict[str, Any]:
    return fit(GradWatch(stop_on=["vanishing"]), module_of(sigmoid_net, shard_together), fsdp2(), steps=20)


def adam(parameters: Any) -> torch.optim.Optimizer:
    """Return Adam, which moves layers whatever the size of their gradients, so that the loss decides."""
    return torch.optim.Adam(parameters, lr=1e-3)


@scenario()
def ddp_losses_differ() -> dict[str, Any]:
    """The loss falls in the first process and rises twice as much in the second; gradients know nothing of it."""
    losses: list[float] = []

    def drifting_loss(module: Any, batch: Any, batch_idx: int) -> torch.Tensor:
        drift = -0.01 if dist.get_rank() == 0 else 0.02
        loss = loss_of(module, batch) + drift * module.global_step
        losses.append(loss.item())
        return loss

    module = module_of(lambda: deep_net(nn.Sigmoid, 6), None, training_step=drifting_loss, optimizer=adam)
    return {**fit(GradWatch(rules=[DepthRule(horizon=30)]), module, ddp(), steps=45), "own_losses": losses}


# Loops without a Trainer.


def break_down() -> None:
    """Fail as a person's own code may."""
    raise RuntimeError("broken on purpose")


def loop(
    watch: GradWatch | None, make: Callable[[], nn.Module] = healthy_net, steps: int = STEPS, **faults: int
) -> dict[str, Any]:
    """Train under DDP by hand, each process on batches of its own, and stop where the watch says so.

    Args:
        watch: What watches; None for nobody.
        make: Makes the network.
        steps: How many steps.
        faults: Step at which the loss of the second process is NaN (``poisoned_at``), or at which it raises and is gone
            (``gone_at``).
    """
    torch.manual_seed(0)
    net, rank, error, losses = make(), dist.get_rank(), "", []
    model, optimizer = nn.parallel.DistributedDataParallel(net), torch.optim.SGD(net.parameters(), lr=0.1)
    before, used = SavedGradients(), SavedGradients()
    optimizer.register_step_pre_hook(lambda *_: before.save(net, optimizer))
    optimizer.register_step_post_hook(lambda *_: used.save(net, optimizer))
    try:
        with nullcontext() if watch is None else watch.attach(model, optimizer):
            for step, (inputs, labels) in zip(range(steps), list(batches(128))[rank::2], strict=False):
                loss = nn.functional.cross_entropy(model(inputs), labels)
                if rank == 1 and step == faults.get("poisoned_at"):
                    loss = loss * float("nan")
                if rank == 1 and step == faults.get("gone_at"):
                    break_down()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
                if watch is not None and watch.should_stop:
                    break
    except RuntimeError as caught:
        error = f"{type(caught).__name__}: {caught}"
    if rank == 1 and "gone_at" in faults:
        # The process is gone, and with it what the other one waits for.
        dist.destroy_process_group()
    return {
        **({} if watch is None else seen(watch)),
        "error": error,
        "used": used.steps,
        "before": before.steps,
        "global_step": len(losses),
        "weights": [weight.flatten().tolist() for weight in local_weights(net)],
        "own_losses": losses,
    }


@scenario()
def loop_plain() -> dict[str, Any]:
    return {**loop(GradWatch()), "unwatched_weights": loop(None)["weights"]}


@scenario()
def loop_skip() -> dict[str, Any]:
    return loop(GradWatch(on_nonfinite="skip"), poisoned_at=POISONED_BATCH)


@scenario()
def loop_raise() -> dict[str, Any]:
    return loop(GradWatch(on_nonfinite="raise"), poisoned_at=POISONED_BATCH)


@scenario()
def loop_stop_on() -> dict[str, Any]:
    return loop(GradWatch(stop_on=["vanishing"]), sigmoid_net, steps=16)


@scenario(alone=True)
def loop_with_one_that_fails() -> dict[str, Any]:
    return loop(GradWatch(), gone_at=2)


# How many collectives a reading takes.


# Of torch's operators for collectives, those that send nothing.
_NO_COLLECTIVES = ("wait_tensor", "_wrap_tensor_autograd")


class Collectives(TorchDispatchMode):
    """Writes down the name of every collective."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            # What a sharded tensor does becomes plain tensors and collectives first.
            return NotImplemented
        if func.namespace in {"c10d", "_c10d_functional"} and not func.name().endswith(_NO_COLLECTIVES):
            self.names.append(func.name().partition("::")[2])
        return func(*args, **(kwargs or {}))


class Counts(GradWatch):
    """Writes down which collectives happen in each of its hooks."""

    def __init__(self, collectives: Collectives, **settings: Any) -> None:
        super().__init__(**settings)
        self.collectives = collectives
        self.of_readings: list[list[str]] = []
        self.of_batches: list[list[str]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        start = len(self.collectives.names)
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        self.of_readings.append(self.collectives.names[start:])

    def on_train_batch_end(self, *arguments: Any) -> None:
        start = len(self.collectives.names)
        super().on_train_batch_end(*arguments)
        self.of_batches.append(self.collectives.names[start:])


def counted(make: Callable[[], Any], strategy: Callable[[], Any], steps: int = 55, **settings: Any) -> dict[str, Any]:
    """Count the collectives of a training with GradWatch and of one without."""
    with Collectives() as without:
        alone = trainer_in(pl, Path.cwd(), strategy=strategy(), devices=2, max_steps=steps)
        alone.fit(make(), batches(8 * steps))
    with Collectives() as collectives:
        watch = Counts(collectives, **settings)
        trainer = trainer_in(pl, Path.cwd(), watch, strategy=strategy(), devices=2, max_steps=steps)
        trainer.fit(make(), batches(8 * steps))
    return {
        **seen(watch),
        "global_step": trainer.global_step,
        "more": dict(Counter(collectives.names) - Counter(without.names)),
        "fewer": dict(Counter(without.names) - Counter(collectives.names)),
        "of_readings": watch.of_readings,
        "of_batches": watch.of_batches,
    }


def count_deep(depth: int, **settings: Any) -> dict[str, Any]:
    """Count for a network of so many linear layers, sharded."""
    make = lambda: module_of(lambda: deep_net(nn.Tanh, depth - 1), shard_together)  # noqa: E731 - one line, used once
    return counted(make, fsdp2, **settings)


@scenario()
def count_fsdp2_of_2_layers() -> dict[str, Any]:
    return count_deep(2)


@scenario(alone=True)
def count_fsdp2_of_20_layers() -> dict[str, Any]:
    # So few steps reach the readings with and without the weights, too.
    reader._WEIGHTS_EVERY = 8
    return count_deep(20, steps=10)


@scenario()
def count_fsdp2_clip_by_norm() -> dict[str, Any]:
    return count_deep(2, steps=8, clipper=ClipByGlobalNorm(0.01))


@scenario()
def count_fsdp2_skip() -> dict[str, Any]:
    return count_deep(2, steps=8, on_nonfinite="skip")


@scenario()
def count_fsdp2_every_third_step() -> dict[str, Any]:
    return count_deep(2, steps=9, every_n_steps=3)


@scenario()
def count_fsdp2_extremes() -> dict[str, Any]:
    return counted(extreme_module, fsdp2, steps=12)


def zeros_step(module: Any, batch: Any, batch_idx: int) -> torch.Tensor:
    """Return a loss whose gradients are exactly zero in the second layer."""
    losses = [nn.functional.cross_entropy(logits, batch[1]) for logits in module.net(batch[0])]
    return losses[0] + 0.0 * losses[1] + losses[2]


@scenario()
def count_fsdp2_zeros() -> dict[str, Any]:
    return counted(lambda: module_of(Extremes, shard_together, training_step=zeros_step), fsdp2, steps=12)


@scenario()
def count_ddp() -> dict[str, Any]:
    return counted(lambda: module_of(healthy_net, None), ddp, steps=45)


def poisoned_module() -> Any:
    """Return a module whose loss is NaN in one batch of the second process."""
    return module_of(healthy_net, None, training_step=poisoned_loss)


@scenario()
def count_ddp_poisoned_skip() -> dict[str, Any]:
    return counted(poisoned_module, ddp, steps=24, on_nonfinite="skip")


@scenario()
def count_ddp_poisoned_warn() -> dict[str, Any]:
    return counted(poisoned_module, ddp, steps=45)


@scenario()
def count_fsdp2_poisoned_skip() -> dict[str, Any]:
    make = lambda: module_of(uneven_net, shard_each, training_step=poisoned_loss)  # noqa: E731 - one line, used once
    return counted(make, fsdp2, steps=8, on_nonfinite="skip")


# A GradWatch that fails in one process only.


def exchange_often() -> None:
    """Let the processes tell each other what they know after a few batches, so that few steps are enough."""
    agreement.EVERY_N_BATCHES = OFTEN


def judging_fails() -> None:
    """Let the judge of the second process raise from a step on."""
    exchange_often()
    original = Judge.judge

    def judge(self: Judge, snapshot: Any, *others: Any) -> Any:
        if dist.get_rank() == 1 and snapshot.step >= FAILS_AT:
            raise RuntimeError("broken on purpose")
        return original(self, snapshot, *others)

    Judge.judge = judge


@scenario(alone=True)
def ddp_judging_fails() -> dict[str, Any]:
    judging_fails()
    return fit(GradWatch(), module_of(healthy_net, None), ddp(), steps=FAILING_STEPS)


@scenario(alone=True)
def fsdp2_judging_fails() -> dict[str, Any]:
    judging_fails()
    return fit(GradWatch(), module_of(uneven_net, shard_together), fsdp2(), steps=FAILING_STEPS)


@scenario(alone=True)
def fsdp2_judging_fails_every_third_step() -> dict[str, Any]:
    judging_fails()
    return fit(GradWatch(every_n_steps=3), module_of(uneven_net, shard_together), fsdp2(), steps=FAILING_STEPS)


@scenario(alone=True)
def fsdp2_judging_fails_and_clips() -> dict[str, Any]:
    judging_fails()
    return fit(
        GradWatch(clipper=ClipByGlobalNorm(0.05)), module_of(uneven_net, shard_together), fsdp2(), steps=FAILING_STEPS
    )


class Breaks:
    """Clips by the global norm, and fails in the second process, after the gradients were measured."""

    def __init__(self) -> None:
        self.clipper, self.calls = ClipByGlobalNorm(0.05), 0

    def clip_(self, norms: Any) -> torch.Tensor:
        self.calls += 1
        if dist.get_rank() == 1 and self.calls > FAILS_AT:
            raise RuntimeError("broken on purpose")
        return self.clipper.clip_(norms)


@scenario(alone=True)
def fsdp2_clipper_fails() -> dict[str, Any]:
    exchange_often()
    watch = GradWatch(clipper=Breaks())
    return fit(watch, module_of(uneven_net, shard_together), fsdp2(), steps=FAILING_STEPS)


class BrokenSink:
    """Fails at every report."""

    def write(self, report: Any) -> None:
        raise RuntimeError("broken on purpose")

    def close(self) -> None:
        raise RuntimeError("broken on purpose")


@scenario(alone=True)
def fsdp2_sink_fails() -> dict[str, Any]:
    return fit(GradWatch(sinks=[BrokenSink()]), module_of(uneven_net, shard_together), fsdp2(), steps=FAILING_STEPS)


def starting_fails() -> None:
    """Let the start of the watch of the first process raise, before anything was measured."""
    exchange_often()
    original = GradWatch._sinks

    def sinks(self: GradWatch, *arguments: Any) -> Any:
        if dist.get_rank() == 0:
            raise RuntimeError("broken on purpose")
        return original(self, *arguments)

    GradWatch._sinks = sinks


@scenario(alone=True)
def fsdp2_start_fails() -> dict[str, Any]:
    starting_fails()
    return fit(GradWatch(), module_of(uneven_net, shard_together), fsdp2(), steps=FAILING_STEPS)


@scenario(alone=True)
def ddp_start_fails() -> dict[str, Any]:
    starting_fails()
    return fit(GradWatch(), module_of(healthy_net, None), ddp(), steps=FAILING_STEPS)


def fitted_again(module: Any, strategy: Any) -> dict[str, Any]:
    """Train, let one process fail between two exchanges, and go on with the same Trainer."""
    judging_fails()
    watch = GradWatch()
    trainer = trainer_in(pl, Path.cwd(), watch, strategy=strategy, devices=2, max_steps=OFTEN - 1, max_epochs=-1)
    trainer.fit(module, batches())
    trainer.fit_loop.epoch_loop.max_steps = FAILING_STEPS
    trainer.fit(module, batches())
    return {**seen(watch), "error": "", "global_step": trainer.global_step}


@scenario(alone=True)
def ddp_fitted_again() -> dict[str, Any]:
    return fitted_again(module_of(healthy_net, None), ddp())


@scenario(alone=True)
def fsdp2_fitted_again() -> dict[str, Any]:
    return fitted_again(module_of(uneven_net, shard_together), fsdp2())


# The processes of the scenarios.


def redirect(path: Path) -> None:
    """Write what this process tells into a file."""
    told = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(told, 1)
    os.dup2(told, 2)
    os.close(told)


def play(names: list[str], rank: int, directory: Path) -> None:
    """Play scenarios in this process, one after the other, and write down what came out; end at the first failure."""
    num_processes = NUM_PROCESSES[names[0]]
    redirect(directory / f"{names[0]}-{rank}.err")
    # Lightning then starts no processes by itself.
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(num_processes))
    patience = timedelta(seconds=PATIENCE_SECONDS)
    meeting = f"file://{directory / names[0]}.meeting{len(names)}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=num_processes, timeout=patience)
    for name in names:
        redirect(directory / f"{name}-{rank}.err")
        (directory / name).mkdir(exist_ok=True)
        os.chdir(directory / name)
        began = time.monotonic()
        try:
            record = SCENARIOS[name]()
        except BaseException:  # also what ends a process is something to be told
            record = {"failed": traceback.format_exc()}
        record["seconds"] = time.monotonic() - began
        (directory / f"{name}-{rank}.json").write_text(json.dumps(record))
        if "failed" in record:
            os._exit(1)
        dist.barrier()
    dist.destroy_process_group()


def launch(names: list[str], directory: Path) -> None:
    """Play scenarios in the same processes, and end those that do not come back."""
    context = multiprocessing.get_context("fork")
    ranks = range(NUM_PROCESSES[names[0]])
    processes = [context.Process(target=play, args=(names, rank, directory), daemon=True) for rank in ranks]
    end = time.monotonic() + LIMIT_SECONDS
    for process in processes:
        process.start()
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    for process in processes:
        process.kill()
        process.join()


def main(directory: Path, chosen: list[str]) -> None:
    """Play the scenarios: those that are harmless in the same processes, and each of the others in its own."""
    names = chosen or list(SCENARIOS)
    together = [name for name in names if name not in ALONE]
    if together:
        launch(together, directory)
    for name in names:
        # After a failure those behind it are still to be played.
        if not (directory / f"{name}-0.json").exists():
            launch([name], directory)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
