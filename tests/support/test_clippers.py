"""Test every clipper in training: what it does to norms, what is logged, what a checkpoint keeps."""

from __future__ import annotations

import copy
import csv
import importlib
import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from models import CLASSES, WIDTH, healthy_net, module_in, trainer_in
from oracle import assert_same, before_clipping, same_weights, saves_gradients
from prepared import measure_model
from torch import nn
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
)

MAKE = {
    "value": lambda: ClipByValue(0.01),
    "global norm": lambda: ClipByGlobalNorm(0.1),
    "layer norm": lambda: ClipByLayerNorm(0.05),
    "adaptive": lambda: AdaptiveClip(0.01),
    "quantile": lambda: ClipByQuantile(0.1, window=6),
    "z-score": lambda: ClipByZScore(max_z_score=0.5, warmup_steps=3, max_norm=0.3),
}
REMEMBERS = ["quantile", "z-score"]


def clippers(*names: str) -> Any:
    """Parametrize a test over clippers, all by default."""
    return pytest.mark.parametrize("make", [pytest.param(MAKE[name], id=name) for name in names or MAKE])


@pytest.mark.supports("every clipper of GradWatch")
@clippers()
def test_norms_before_and_after_are_in_the_history(lightning, tmp_path, data, make):
    """They are those of what the clipper was given, and of what the optimizer used."""
    callback, before = before_clipping(lightning)
    module, watch = module_in(lightning), GradWatch(clipper=make())
    after = saves_gradients(module)
    trainer_in(lightning, tmp_path, callback, watch, max_steps=12, max_epochs=9).fit(module, data)
    assert watch.disabled_reason is None
    assert_same(watch.history, before, "norms")
    assert_same(watch.history, after, "clipped_norms")
    assert (watch.history.clipped_norms <= watch.history.norms * (1 + 1e-6)).all()
    assert (watch.history.clipped_norms < 0.99 * watch.history.norms).any()


def test_the_last_layer_of_a_real_model_is_left_out(pl, tmp_path, data):
    """AdaptiveClip is told by the graph of the loss which layer that is, before the first step."""
    net = nn.ModuleDict({"head": nn.Linear(8, 3), "body": nn.Linear(8, 8)})
    net.forward = lambda inputs: net["head"](torch.relu(net["body"](inputs)))
    watch = GradWatch(clipper=AdaptiveClip(1e-4))
    trainer_in(pl, tmp_path, watch).fit(module_in(pl, net), data)
    shares = watch.history.clipped_norms / watch.history.norms
    assert dict(zip(watch.history.layers, (shares < 0.5).all(axis=0).tolist(), strict=True)) == {
        "net.head": False,
        "net.body": True,
    }
    assert (shares[:, watch.history.layers.index("net.head")] == 1).all()


@pytest.mark.supports("resuming with a clipper that remembers")
@clippers(*REMEMBERS)
def test_stopping_and_going_on_is_training_without_a_stop(pl, tmp_path, make):
    """Ten steps, a checkpoint and ten more end in the weights of twenty, bit for bit."""
    inputs = torch.randn(40, WIDTH)
    # Ten batches an epoch: Lightning goes on with the next one.
    data = DataLoader(TensorDataset(inputs, inputs[:, :CLASSES].argmax(dim=1)), batch_size=4)
    optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9)  # noqa: E731 - one line
    ends = []
    for stops in ([2], [1, 2]):
        torch.manual_seed(3)
        weights = healthy_net().state_dict()
        for number, stop in enumerate(stops):
            net = healthy_net()
            net.load_state_dict(weights)
            module, clipper = module_in(pl, net, optimizer), make()
            trainer = trainer_in(pl, tmp_path, GradWatch(clipper=clipper), max_steps=-1, max_epochs=stop)
            trainer.fit(module, data, ckpt_path=tmp_path / "stop.ckpt" if number else None)
            trainer.save_checkpoint(tmp_path / "stop.ckpt")
        ends.append((module, clipper.state_dict()))
    (one, state), (other, resumed) = ends
    assert trainer.global_step == 20
    assert same_weights(one, other)
    torch.testing.assert_close(state, resumed, rtol=0, atol=0, equal_nan=True)


@clippers(*REMEMBERS)
def test_a_poisoned_step_leaves_no_mark(pl, tmp_path, data, make):
    """What is remembered after a step that was dropped is what the other steps left."""

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        loss = nn.functional.cross_entropy(self.net(inputs), labels)
        return loss * float("nan") if batch_idx == 4 else loss

    clipper = make()
    watch = GradWatch(clipper=clipper, on_nonfinite="skip")
    trainer_in(pl, tmp_path, watch, max_epochs=1, max_steps=-1).fit(module_in(pl, training_step=training_step), data)
    assert watch.skipped_steps == 1
    expected = make()
    for norm in np.sqrt((watch.history.norms**2).sum(axis=1)):
        linear = nn.Linear(1, 1, bias=False)
        linear.weight.grad = torch.tensor([[norm]], dtype=torch.float32)
        expected.clip_(measure_model(linear))
    torch.testing.assert_close(clipper.state_dict(), expected.state_dict(), rtol=1e-4, atol=0, equal_nan=True)


@clippers(*REMEMBERS)
def test_a_new_run_forgets_the_run_before(pl, tmp_path, data, make):
    """A clipper that a second Trainer is given starts with nothing, as a new one does."""
    clipper, alone = make(), make()
    for each in (clipper, clipper, alone):
        torch.manual_seed(5)
        trainer_in(pl, tmp_path, GradWatch(clipper=each)).fit(module_in(pl), data)
    torch.testing.assert_close(clipper.state_dict(), alone.state_dict(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.supports("every clipper of GradWatch")
@clippers()
def test_a_clipper_can_be_copied_and_pickled(make):
    """Also after it has clipped: with what it remembers, and without the model."""
    model, clipper = healthy_net(), make()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    clipper.clip_(measure_model(model))
    others = copy.deepcopy(clipper), pickle.loads(pickle.dumps(clipper))
    assert [repr(other) for other in others] == [repr(clipper)] * 2
    ends = []
    for each in (clipper, *others):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 3.0)
        ends.append(each.clip_(measure_model(model)))
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


YAML = """
trainer:
  logger: false
  accelerator: cpu
  callbacks:
    - class_path: lightning_gradwatch.GradWatch
      init_args:
        clipper:
          class_path: lightning_gradwatch.{kind}
          init_args: {arguments}
"""


@pytest.mark.parametrize(
    ("kind", "arguments", "expected"),
    [
        ("ClipByLayerNorm", "{max_norm: 0.5}", ClipByLayerNorm(0.5)),
        ("AdaptiveClip", "{clip_factor: 0.02, eps: 0.01, clip_last_layer: true}", AdaptiveClip(0.02, 0.01, True)),
        ("ClipByQuantile", "{quantile: 0.2, window: 50}", ClipByQuantile(0.2, 50)),
        ("ClipByZScore", "{max_z_score: 3, alpha: 0.9, warmup_steps: 9, max_norm: 2}", ClipByZScore(3, 0.9, 9, 2)),
    ],
)
def test_yaml_sets_every_clipper(lightning, tmp_path, monkeypatch, kind, arguments, expected):
    """LightningCLI of both packages makes it with all of its settings."""
    monkeypatch.setattr("sys.argv", ["train.py"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    path = tmp_path / "config.yaml"
    path.write_text(YAML.format(kind=kind, arguments=arguments))
    cli = importlib.import_module(f"{lightning.__name__}.cli").LightningCLI(
        type(module_in(lightning)),
        run=False,
        args=["--config", str(path)],
        save_config_callback=None,
        seed_everything_default=False,
    )
    (watch,) = [callback for callback in cli.trainer.callbacks if isinstance(callback, GradWatch)]
    assert repr(watch.settings.clipper) == repr(expected).replace("=3,", "=3.0,").replace("=2)", "=2.0)")


class Waits(TorchDispatchMode):
    """Counts what a device would have to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.supports("every clipper of GradWatch")
@clippers()
def test_no_clipper_waits_for_the_device_or_measures_anew(make):
    """Nothing is brought to the host, or from it; norms by tensor are those of the reading, only AGC needs units."""
    model, clipper = healthy_net(), make()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    clipper.clip_(measure_model(model))
    norms = measure_model(model)
    with Waits() as mode:
        clipper.clip_(norms)
    waiting = {"_local_scalar_dense", "item", "nonzero", "masked_select", "equal", "is_nonzero", "lift_fresh"}
    assert not waiting & set(mode.calls)
    measured = mode.calls["_foreach_norm"] + mode.calls["norm"]
    expected = {AdaptiveClip: 2, ClipByValue: 1}.get(type(clipper), 0)
    assert measured == expected


@clippers("value", "global norm")
def test_coefficient_and_rate_are_logged_where_gradients_are_clipped(pl, tmp_path, data, make):
    """Each row has both, and without a clipper no row has."""
    from pytorch_lightning.loggers import CSVLogger

    tables = []
    for clipper in (make(), None):
        logger = CSVLogger(tmp_path, name=str(clipper is None))
        settings = {"logger": logger, "log_every_n_steps": 2, "max_steps": 8}
        trainer_in(pl, tmp_path, GradWatch(clipper=clipper), **settings).fit(module_in(pl), data)
        with (tmp_path / logger.name / "version_0" / "metrics.csv").open() as file:
            tables.append(list(csv.DictReader(file)))
    clipped, plain = tables
    assert len(clipped) == len(plain) == 4
    assert set(clipped[0]) - set(plain[0]) == {"gradwatch/clip_coefficient", "gradwatch/clipping_rate"}
    assert all(0 < float(row["gradwatch/clip_coefficient"]) < 1 for row in clipped)
    assert [float(row["gradwatch/clipping_rate"]) for row in clipped] == [1.0] * 4
