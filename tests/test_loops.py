"""Test the scripts in ``examples/loops/``: each loop of another library's is watched as the Trainer's is."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from oracle import SavedGradients, assert_same, same_weights, totals
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from lightning_gradwatch import ClipByGlobalNorm, GradWatch, he_init_

LOOPS = Path(__file__).parents[1] / "examples" / "loops"


def script(name: str) -> ModuleType:
    """Return one of the scripts as a module."""
    spec = importlib.util.spec_from_file_location(name, LOOPS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hooks(net: nn.Module) -> list[int]:
    """Count what hangs on a network and on all networks."""
    each = [len(part._forward_pre_hooks) + len(part._forward_hooks) for part in net.modules()]
    everywhere = (nn.modules.module._global_forward_pre_hooks, nn.modules.module._global_forward_hooks)
    return [sum(each), *map(len, everywhere)]


class Witness:
    """What torch's own hooks for all optimizers have seen.

    Attributes:
        before: Gradients when an optimizer was about to step, before any hook of its own.
        used: Gradients when it had.
        optimizers: All that have stepped.
    """

    def __init__(self) -> None:
        self.before, self.used = SavedGradients(), SavedGradients()
        self.optimizers: list[Any] = []


@contextmanager
def witnessed(net: nn.Module) -> Iterator[Witness]:
    """Look on from outside, and see to it that nothing is left behind."""
    seen, nothing, backward = Witness(), hooks(net), torch.Tensor.backward

    def about_to(optimizer: Any, args: Any, kwargs: Any) -> None:
        seen.before.save(net, optimizer)
        seen.optimizers.append(optimizer)

    handles = [
        register_optimizer_step_pre_hook(about_to),
        register_optimizer_step_post_hook(lambda optimizer, *_: seen.used.save(net, optimizer)),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
    assert hooks(net) == nothing
    assert torch.Tensor.backward is backward
    assert not any(each._optimizer_step_pre_hooks or each._optimizer_step_post_hooks for each in seen.optimizers)
    assert not any("_gradwatch_attached" in each.__dict__ for each in seen.optimizers)


def assert_right(watch: GradWatch, seen: Witness, losses: Any, rel: float = 1e-6) -> None:
    """Hold every row against what the optimizers had, and the losses against those of the loop."""
    assert watch.disabled_reason is None
    assert_same(watch.history, seen.before)
    assert_same(watch.history, seen.used, "clipped_norms")
    np.testing.assert_allclose(watch.history.losses, losses, rtol=rel)


@pytest.mark.supports("attach: Fabric")
def test_fabric(tmp_path):
    """Under Fabric each step is a reading of what the optimizer used; a sick network is named, a healthy one is not."""
    loop = script("fabric_loop")
    for activation, found in ((nn.Sigmoid, ["vanishing.depth"]), (nn.ReLU, [])):
        watch, net = GradWatch(), loop.network(activation)
        if not found:
            he_init_(net)
        with witnessed(net) as seen:
            losses = loop.train(watch, net, 12, tmp_path)
        assert_right(watch, seen, losses)
        assert len(losses) == 12
        assert [d.rule for d in watch.diagnoses] == found


@pytest.mark.supports("attach: Accelerate")
def test_accelerate_sees_what_its_own_clipping_has_left():
    """After `clip_grad_norm_` no norm above the bound is seen; a step of two accumulated batches is one reading."""
    loop = script("accelerate_loop")
    watch, net = GradWatch(), loop.FirstSymbol()
    with witnessed(net) as seen:
        losses = loop.train(watch, net, 10, clips=True)
    assert_right(watch, seen, losses)
    assert len(losses) == 10
    assert max(totals(seen.before)) <= loop.MAX_NORM * (1 + 1e-6)
    assert watch.diagnoses == []


@pytest.mark.supports("attach: Accelerate")
def test_a_clipper_in_its_place_knows_both_norms():
    """With `GradWatch(clipper=...)` training is the same, and the norms before clipping are known."""
    loop = script("accelerate_loop")
    nets = [loop.FirstSymbol(), loop.FirstSymbol()]
    watch = GradWatch(clipper=ClipByGlobalNorm(max_norm=loop.MAX_NORM))
    with witnessed(nets[0]) as seen:
        losses = loop.train(watch, nets[0], 10)
    assert_right(watch, seen, losses)
    assert max(totals(seen.before)) > 10 * loop.MAX_NORM
    assert max(totals(seen.used)) <= loop.MAX_NORM * (1 + 1e-6)
    loop.train(GradWatch(), nets[1], 10, clips=True)
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        # torch divides by the norm plus 1e-6.
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.supports("attach: Accelerate")
def test_accelerate_without_clipping_explodes():
    """The fault that the clipping hides is named where nobody clips."""
    loop = script("accelerate_loop")
    watch, net = GradWatch(), loop.FirstSymbol()
    with witnessed(net):
        loop.train(watch, net, 4)
    assert [(d.rule, d.step) for d in watch.diagnoses] == [("exploding.update", 1), ("non_finite", 2)]


@pytest.mark.supports("attach: Hugging Face's Trainer")
@pytest.mark.parametrize("accumulated", [1, 2])
def test_hugging_face_trainer(tmp_path, accumulated):
    """The optimizer that was made beforehand is the one that `train()` uses; its own clipping comes before ours."""
    loop = script("hugging_face_trainer")
    watch, net = GradWatch(), loop.network()
    settings = {"max_steps": 6, "learning_rate": 1e-3, "max_grad_norm": 0.1, "gradient_accumulation_steps": accumulated}
    with witnessed(net) as seen:
        losses = loop.train(watch, net, tmp_path, **settings)
    # The Trainer rounds the losses that it logs to five digits.
    assert_right(watch, seen, losses, rel=1e-3)
    assert len(losses) == 6
    np.testing.assert_allclose(totals(seen.before), 0.1, rtol=1e-4)
    assert watch.diagnoses == []


@pytest.mark.supports("attach: Hugging Face's Trainer")
def test_hugging_face_trainer_is_stopped(tmp_path):
    """With a clipper of ours norms are known before clipping, and a callback ends training in the sick step."""
    loop = script("hugging_face_trainer")
    watch, net = GradWatch(clipper=ClipByGlobalNorm(0.1), stop_on=["exploding"]), loop.network()
    with witnessed(net) as seen:
        losses = loop.train(watch, net, tmp_path, max_steps=6, learning_rate=1.0, max_grad_norm=0.0)
    assert_right(watch, seen, losses, rel=1e-3)
    assert totals(seen.before)[0] > 0.5
    assert [(d.rule, d.step) for d in watch.diagnoses] == [("exploding.update", 0)]
    assert len(losses) == 1


@pytest.mark.supports("attach: Hugging Face's Trainer")
def test_hugging_face_trainer_that_fails_leaves_nothing_behind(tmp_path):
    """Where `train()` raises, no TrainerCallback is called; the block cleans up all the same."""
    loop = script("hugging_face_trainer")
    watch, net = GradWatch(), loop.network()

    def fails(self: Any, *_: Any, **__: Any) -> None:
        raise RuntimeError("theirs")

    loop.StopsWhenSick.on_step_end = fails
    with witnessed(net), pytest.raises(RuntimeError, match="theirs"):
        loop.train(watch, net, tmp_path, max_steps=6)
    assert len(watch.history.steps) == 1


@pytest.mark.supports("attach: several optimizers")
def test_two_optimizers():
    """Readings and diagnoses belong to the optimizer that holds the layers, losses to the step that follows them."""
    loop = script("two_optimizers")
    for activation, found in ((nn.Sigmoid, [("vanishing.depth", 0)]), (nn.ReLU, [])):
        watch, nets = GradWatch(), loop.networks(activation)
        if not found:
            he_init_(nets["generator"], torch.randn(loop.BATCH, loop.NOISE))
        with witnessed(nets) as seen:
            losses = loop.train(watch, nets, 10)
        assert_right(watch, seen, losses)
        assert watch.history.optimizers.tolist() == [1, 0] * 10
        assert [(d.rule, d.optimizer) for d in watch.diagnoses] == found
        assert all(layer.startswith("generator.") for d in watch.diagnoses for layer in d.layers)


@pytest.mark.supports("attach: GradScaler")
@pytest.mark.parametrize("scaled", [False, True])
def test_mixed_precision(scaled):
    """Without a scaler the gradients of a tiny loss are zero and it is told; with one they are seen unscaled."""
    loop = script("mixed_precision")
    watch, net = GradWatch(), loop.network()
    with witnessed(net) as seen:
        losses = loop.train(watch, net, torch.amp.GradScaler("cpu", enabled=scaled), 8)
    assert_right(watch, seen, losses)
    assert [d.rule for d in watch.diagnoses] == ([] if scaled else ["dead"])
    assert np.nanmax(watch.history.norms) < 1e-6


@pytest.mark.supports("attach: GradScaler")
def test_what_a_scaler_drops_is_in_no_reading():
    """A scale that is far too large costs steps; neither their losses nor their signals come into later readings."""
    loop = script("mixed_precision")
    watch, net = GradWatch(), loop.network()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**55)
    with witnessed(net) as seen:
        losses = loop.train(watch, net, scaler, 20)
    dropped = 20 - len(seen.used.steps)
    assert dropped > 5
    assert_right(watch, seen, losses[dropped:])
    assert [probe.step for probe in watch.probes] == [0, 1, 2, 3, 4]
    assert all(np.isfinite(probe.delta).all() for probe in watch.probes)
    assert watch.diagnoses == []


ENDINGS = {
    "fabric_loop": ["sigmoid  loss 1.39", "relu-he  loss 1.49"],
    "accelerate_loop": ["unclipped        loss 15.98", "clip_grad_norm_  loss 15.98", "clipper          loss 15.98"],
    "hugging_face_trainer": ["slip     1 steps, loss 3.2", "meant    8 steps, loss 3.2"],
    "two_optimizers": ["sigmoid  optimizer 0: vanishing.depth at step 7", "relu-he  quiet"],
    "mixed_precision": ["unscaled  loss 2.7e-08", "scaled    loss 2.7e-08"],
}


@pytest.mark.parametrize("name", sorted(path.stem for path in LOOPS.glob("*.py")))
def test_a_script_tells_its_story(name, tmp_path, monkeypatch, capsys):
    """Run as a program, a script ends with one line for each of its trainings, and writes its logs where it is told."""
    monkeypatch.setattr(sys, "argv", [name, "--max_steps=8", f"--directory={tmp_path}"])
    script(name).main()
    lines = capsys.readouterr().out.splitlines()[-len(ENDINGS[name]) :]
    assert [line[: len(start)] for line, start in zip(lines, ENDINGS[name], strict=True)] == ENDINGS[name]
    assert len(list(tmp_path.glob("*/events.out.tfevents.*"))) == len(lines)


@pytest.mark.parametrize("name", sorted(path.stem for path in LOOPS.glob("*.py")))
def test_weights_end_as_without_gradwatch(name, tmp_path):
    """Watching changes nothing in any of the loops: the weights are the same to the last bit."""
    loop = script(name)

    @contextmanager
    def nothing(*_: Any, **__: Any) -> Iterator[None]:
        yield

    unwatched = GradWatch()
    unwatched.attach = nothing
    nets = []
    for watch in (GradWatch(probe_every_n_steps=1), unwatched):
        if name == "hugging_face_trainer":
            nets.append(loop.network())
            loop.train(watch, nets[-1], tmp_path, max_steps=4)
        elif name == "mixed_precision":
            nets.append(loop.network())
            loop.train(watch, nets[-1], torch.amp.GradScaler("cpu"), 4)
        elif name == "accelerate_loop":
            nets.append(loop.FirstSymbol())
            loop.train(watch, nets[-1], 4, clips=True)
        else:
            make = loop.network if name == "fabric_loop" else loop.networks
            nets.append(make(nn.Tanh))
            loop.train(watch, nets[-1], 4)
    assert len(unwatched.history.steps) == 0
    assert same_weights(*nets)
