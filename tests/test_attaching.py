"""Test ``lightning_gradwatch.attaching``: any loop is watched as the Trainer's is."""

from __future__ import annotations

import json
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np
import pytest
import torch
from models import deep_net, healthy_net, module_in, trainer_in
from torch import nn

from lightning_gradwatch import ClipByGlobalNorm, GradientFault, GradWatch

NAMES = ("steps", "optimizers", "norms", "clipped_norms", "weight_norms", "losses")
PROBED = ("signal", "delta", "dead", "saturated", "update_ratio")


def assert_same(one: GradWatch, other: GradWatch) -> None:
    """Assert that two have seen the same to the last bit and say the same."""
    for name in NAMES:
        assert np.array_equal(getattr(one.history, name), getattr(other.history, name), equal_nan=True), name
    assert [probe.step for probe in one.probes] == [probe.step for probe in other.probes]
    for left, right in zip(one.probes, other.probes, strict=True):
        for name in PROBED:
            assert np.array_equal(getattr(left, name), getattr(right, name), equal_nan=True), (name, left.step)
    assert [d.to_dict() for d in one.diagnoses] == [d.to_dict() for d in other.diagnoses]


def loop(module: Any, data: Any, optimizer: Any, accumulate: int = 1, epochs: int = 3) -> None:
    """Train as a person would who writes the loop by hand."""
    for _ in range(epochs):
        for index, batch in enumerate(data):
            (module.training_step(batch, index) / accumulate).backward()
            if index % accumulate == accumulate - 1:
                optimizer.step()
                optimizer.zero_grad()


def fed(net: nn.Module, optimizer: Any, steps: int = 6, width: int = 8) -> None:
    """Train on the same few numbers."""
    inputs = torch.randn(16, width, generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        optimizer.zero_grad()
        net(inputs).square().mean().backward()
        optimizer.step()


@pytest.mark.supports("attach: a plain loop")
@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.ReLU])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_plain_loop_and_the_trainer_give_the_same(pl, tmp_path, data, activation, accumulate):
    """The same seed and data give the same history, probes and diagnoses to the last bit."""
    module = module_in(pl, deep_net(activation, 12))
    trained = GradWatch()
    trainer_in(pl, tmp_path, trained, max_epochs=3, max_steps=-1, accumulate_grad_batches=accumulate).fit(module, data)
    torch.manual_seed(0)
    module = module_in(pl, deep_net(activation, 12))
    looped, optimizer = GradWatch(), module.configure_optimizers()
    with looped.attach(module, optimizer) as watch:
        assert watch is looped
        loop(module, data, optimizer, accumulate)
    assert len(looped.history.steps) == 24 / accumulate
    assert_same(trained, looped)


@pytest.mark.supports("attach: Fabric")
def test_fabric_gives_the_same_as_a_plain_loop(pl, data):
    """What Fabric wraps around a model and its optimizer changes nothing of what is seen, names included."""
    fabric_package = pytest.importorskip("lightning.fabric")
    watches = []
    for wrapped in (False, True):
        torch.manual_seed(0)
        net = deep_net(nn.Sigmoid, 12)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        model, backward = net, lambda loss: loss.backward()
        if wrapped:
            fabric = fabric_package.Fabric(accelerator="cpu", devices=1)
            model, optimizer = fabric.setup(net, optimizer)
            backward = fabric.backward
        with GradWatch().attach(model, optimizer) as watch:
            for inputs, labels in list(data) * 2:
                backward(nn.functional.cross_entropy(model(inputs), labels))
                optimizer.step()
                optimizer.zero_grad()
        watches.append(watch)
    assert len(watches[0].history.steps) == 16
    assert np.isfinite(watches[1].history.losses).all()
    assert_same(*watches)


def test_watching_a_loop_changes_nothing_in_it(data):
    """Weights, optimizer state and random numbers are the same to the last bit with and without it."""
    ends = []
    for watched in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(), nn.BatchNorm1d(16), nn.Linear(16, 4))
        optimizer = torch.optim.AdamW(net.parameters())
        with GradWatch(probe_every_n_steps=1).attach(net, optimizer) if watched else nullcontext():
            fed(net, optimizer)
        moments = [value for state in optimizer.state.values() for value in state.values()]
        ends.append([*net.state_dict().values(), *moments, torch.get_rng_state()])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_every_hook_is_gone_after_the_block_and_after_an_error():
    """Nothing of it stays in the model, the optimizer or in torch, and the log is closed, however the block ends."""
    net = healthy_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = torch.Tensor.backward

    def hooks() -> list[int]:
        each = [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in net.modules()]
        kinds = (nn.modules.module._global_forward_pre_hooks, nn.modules.module._global_forward_hooks)
        optimizers = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
        return [sum(each), *map(len, kinds), *map(len, optimizers)]

    nothing, kept = hooks(), dict(optimizer.__dict__)
    for error in (None, RuntimeError("theirs"), KeyboardInterrupt()):
        with suppress(RuntimeError, KeyboardInterrupt), GradWatch().attach(net, optimizer) as watch:
            fed(net, optimizer, steps=2)
            assert torch.Tensor.backward is not before
            if error:
                raise error
        assert hooks() == nothing
        assert torch.Tensor.backward is before
        assert optimizer.__dict__.keys() == kept.keys()
        assert len(watch.history.steps) == 2


def test_two_models_at_once_are_told_apart(data):
    """Each block sees the steps of its own optimizer only; the method is put back when the last one is left."""
    nets = [healthy_net(), healthy_net()]
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in nets]
    before = torch.Tensor.backward
    with GradWatch().attach(nets[0], optimizers[0]) as one:
        with GradWatch().attach(nets[1], optimizers[1]) as other:
            fed(nets[0], optimizers[0], steps=3)
            fed(nets[1], optimizers[1], steps=5)
        fed(nets[0], optimizers[0], steps=1)
        assert torch.Tensor.backward is not before
    assert torch.Tensor.backward is before
    assert (len(one.history.steps), len(other.history.steps)) == (4, 5)


def test_several_optimizers_count_their_steps_together():
    """As in the Trainer, `step` counts the steps of all optimizers, and each has readings of its own."""
    net = healthy_net()
    first, rest = list(net[0].parameters()), [p for layer in net[1:] for p in layer.parameters()]
    optimizers = [torch.optim.SGD(first, lr=0.1), torch.optim.Adam(rest)]
    with GradWatch().attach(net, optimizers) as watch:
        for _ in range(3):
            net(torch.randn(4, 8)).square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    assert watch.history.steps.tolist() == [0, 1, 2, 3, 4, 5]
    assert watch.history.optimizers.tolist() == [0, 1] * 3
    assert watch.history.present[0].tolist() == [True] + [False] * (len(watch.history.layers) - 1)


def test_a_closure_is_read_after_it_has_run():
    """LBFGS computes gradients inside `step`: a reading a step, with the loss that the closure returned."""
    net = nn.Linear(8, 1)
    optimizer, inputs, losses = torch.optim.LBFGS(net.parameters(), max_iter=3), torch.randn(16, 8), []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (net(inputs) - 1).square().mean()
        loss.backward()
        losses.append(float(loss.detach()))
        return loss

    with GradWatch().attach(net, optimizer) as watch:
        optimizer.step(closure)
        optimizer.step(closure=closure)
    assert watch.history.steps.tolist() == [0, 1]
    assert set(watch.history.losses.tolist()) <= set(losses)
    assert np.isfinite(watch.history.norms).all()


def test_passes_without_gradients_are_no_batches():
    """A validation between the steps is neither probed nor counted."""
    net = healthy_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with GradWatch(probe_every_n_steps=1).attach(net, optimizer) as watch:
        for _ in range(3):
            fed(net, optimizer, steps=1)
            with torch.no_grad():
                net(torch.full((4, 8), 1e6))
    assert len(watch.history.steps) == len(watch.probes) == 3
    assert all(np.nanmax(probe.signal) < 100 for probe in watch.probes)


@pytest.mark.parametrize("by_parts", [False, True])
def test_a_recurrent_layer_that_is_called_first_is_seen_along_time(by_parts):
    """The call with which the batch begins is probed like any other, whether the whole model is called or a part."""
    net = nn.ModuleDict({"rnn": nn.GRU(8, 16, batch_first=True), "head": nn.Linear(16, 1)})

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = net

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.parts["head"](self.parts["rnn"](inputs)[0][:, -1])

    model = Whole()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradWatch(probe_every_n_steps=1).attach(model, optimizer) as watch:
        for _ in range(2):
            optimizer.zero_grad()
            inputs = torch.randn(4, 12, 8)
            (model.forward(inputs) if by_parts else model(inputs)).square().mean().backward()
            optimizer.step()
    assert [len(profile.delta) for probe in watch.probes for profile in probe.time] == [12, 12]
    assert all(np.isfinite(probe.signal[:2]).all() for probe in watch.probes)


def test_a_clipper_clips_every_step():
    """The optimizer gets gradients within the bound, as it does in the Trainer."""
    net = healthy_net()
    optimizer, seen = torch.optim.SGD(net.parameters(), lr=0.1), []
    with GradWatch(clipper=ClipByGlobalNorm(0.01)).attach(net, optimizer) as watch:
        # Registered later, so called later: it sees what the optimizer will use.
        optimizer.register_step_pre_hook(
            lambda *_: seen.append(float(torch.cat([p.grad.flatten() for p in net.parameters()]).norm()))
        )
        fed(net, optimizer)
    assert max(seen) <= 0.01
    assert watch.history.norms.max() > 0.01
    assert watch.history.clipped_norms.max() <= 0.01


def test_a_poisoned_step_is_skipped_as_if_it_had_not_been():
    """With `on_nonfinite="skip"` the weights end as in a loop without that batch."""
    ends = []
    for poisoned in (True, False):
        torch.manual_seed(0)
        net = healthy_net()
        optimizer = torch.optim.Adam(net.parameters())
        with GradWatch(on_nonfinite="skip").attach(net, optimizer) as watch:
            for step in range(6):
                if step == 3 and not poisoned:
                    continue
                optimizer.zero_grad()
                inputs = torch.ones(4, 8) * (float("nan") if step == 3 else step)
                net(inputs).square().mean().backward()
                optimizer.step()
        ends.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
        assert watch.skipped_steps == poisoned
    assert torch.equal(*ends)


def test_raise_comes_out_of_the_step():
    """With `on_nonfinite="raise"` the loop ends at `optimizer.step()`, before the weights are touched."""
    net = healthy_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    with GradWatch(on_nonfinite="raise").attach(net, optimizer):
        net(torch.full((4, 8), float("nan"))).sum().backward()
        with pytest.raises(GradientFault, match="not finite"):
            optimizer.step()
    assert all(torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True))


def test_a_loss_scaler_hides_nothing():
    """Under a `GradScaler` gradients and, where it is given, losses are seen unscaled."""
    watches = []
    for scaled in (False, True):
        torch.manual_seed(0)
        net = healthy_net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
        with GradWatch().attach(net, optimizer, scaler=scaler) as watch:
            for _ in range(5):
                optimizer.zero_grad()
                scaler.scale(net(torch.ones(4, 8)).square().mean()).backward()
                scaler.step(optimizer)
                scaler.update()
        watches.append(watch)
    assert_same(*watches)


def test_a_step_that_the_loss_scaler_drops_is_no_step():
    """An overflow never reaches the optimizer, and so no reading."""
    net = healthy_net()
    optimizer, scaler = torch.optim.SGD(net.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with GradWatch().attach(net, optimizer, scaler=scaler) as watch:
        for step in range(4):
            optimizer.zero_grad()
            scaler.scale(net(torch.full((4, 8), float("inf") if step == 1 else 1.0)).mean()).backward()
            scaler.step(optimizer)
            scaler.update()
    assert len(watch.history.steps) == 3
    assert watch.diagnoses == []


def test_a_pass_whose_gradients_are_zeroed_is_forgotten():
    """Whoever looks at a loss and drops it finds neither it nor its signals in the reading of the next step."""
    net = healthy_net()
    optimizer, inputs = torch.optim.SGD(net.parameters(), lr=0.1), torch.ones(4, 8)
    watches = []
    for early in (True, False):
        with GradWatch(probe_every_n_steps=1).attach(net, optimizer) as watch:
            for step in range(6):
                if early:
                    optimizer.zero_grad()
                loss = net(inputs * (1e6 if step % 2 else 1.0)).square().mean()
                if not early:
                    optimizer.zero_grad()
                loss.backward()
                if step % 2 == 0:
                    optimizer.step()
        watches.append(watch)
    for watch in watches:
        assert len(watch.history.steps) == 3
        assert watch.history.losses.max() < 1e3
        assert all(np.nanmax(probe.signal) < 1e3 for probe in watch.probes)
    # Zeroed before the forward pass, or between it and the backward pass: then the probe waits for the next step.
    assert [probe.step for probe in watches[0].probes] == [0, 1, 2]


def test_what_stop_on_names_is_there_to_be_asked(caplog):
    """A loop can look at `should_stop` after each step and finds it true in the step that is sick."""
    net = healthy_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    told, asked = [], []

    class Tells(GradWatch):
        def on_diagnosis(self, trainer: Any, pl_module: Any, diagnosis: Any) -> None:
            told.append((trainer, pl_module, diagnosis.symptom.value))

    caplog.set_level("INFO", logger="lightning_gradwatch")
    with Tells(stop_on=["non_finite"]).attach(net, optimizer) as watch:
        for step in range(4):
            optimizer.zero_grad()
            net(torch.full((4, 8), float("inf") if step == 2 else 1.0)).mean().backward()
            optimizer.step()
            asked.append(watch.should_stop)
            if asked[-1]:
                break
    assert asked == [False, False, True]
    assert watch.should_stop
    assert told == [(None, net, "non_finite")]
    assert caplog.text.count("stop_on    NON-FINITE: `watch.should_stop` is True from here on") == 1


def test_a_log_directory_gets_the_picture_and_the_diagnoses(tmp_path):
    """With `log_dir` there are event files and `gradwatch/diagnoses.jsonl`, complete when the block is left."""
    net = deep_net(nn.Sigmoid, 20)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with GradWatch().attach(net, optimizer, log_dir=tmp_path) as watch:
        fed(net, optimizer)
    lines = (tmp_path / "gradwatch" / "diagnoses.jsonl").read_text().splitlines()
    assert [json.loads(line)["rule"] for line in lines if json.loads(line)["event"] == "onset"] == [
        d.rule for d in watch.diagnoses
    ]
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_an_error_of_ours_does_not_end_the_loop(monkeypatch):
    """Where GradWatch fails it is switched off and says why; the loop goes on."""
    monkeypatch.setattr("lightning_gradwatch.measure.reader.Reader.read", lambda *_, **__: 1 / 0)
    net = healthy_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = net[0].weight.detach().clone()
    with GradWatch().attach(net, optimizer) as watch:
        fed(net, optimizer)
    assert "ZeroDivisionError" in watch.disabled_reason
    assert not torch.equal(before, net[0].weight)


def _sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1)


def test_what_fails_while_hooks_are_put_in_place_leaves_none_behind(monkeypatch):
    """Neither in torch nor in an optimizer, which can then be watched after all."""
    net = healthy_net()
    first, second = _sgd(net), _sgd(net)
    before = dict(first.__dict__)
    monkeypatch.setattr(second, "register_step_post_hook", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError), GradWatch().attach(net, [first, second]):
        pass
    assert not nn.modules.module._global_forward_pre_hooks
    assert not first._optimizer_step_pre_hooks
    assert first.__dict__.keys() == before.keys()
    with GradWatch().attach(net, first) as watch:
        fed(net, first, steps=2)
    assert len(watch.history.steps) == 2


def test_one_gradwatch_watches_one_loop_at_a_time():
    """A block inside its block would take over its history."""
    outer, inner = healthy_net(), healthy_net()
    watch = GradWatch()
    with watch.attach(outer, _sgd(outer)):
        with pytest.raises(ValueError, match="attached already"), watch.attach(inner, _sgd(inner)):
            pass
        optimizer = _sgd(inner)
    assert watch.history.norms.shape[0] == 0
    with watch.attach(inner, optimizer):
        fed(inner, optimizer, steps=2)
    assert len(watch.history.steps) == 2


@pytest.mark.parametrize("attach_to", ["the wrapper", "the model"])
def test_a_compiled_model_is_compiled_once_and_read_like_another(attach_to):
    """Hooks of the forward pass would be compiled with it, whichever of the two is watched."""
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.manual_seed(0)
    net, plain = healthy_net(), healthy_net()
    plain.load_state_dict(net.state_dict())
    torch._dynamo.reset()
    compiled = torch.compile(net, backend=backend)
    optimizer, other = _sgd(net), _sgd(plain)
    # The first call of a wrapper that nobody has named finds a hook in place, of which torch warns.
    heard = nullcontext() if attach_to == "the wrapper" else pytest.warns(UserWarning, match="global hooks on modules")
    with heard, GradWatch().attach(compiled if attach_to == "the wrapper" else net, optimizer) as watch:
        fed(compiled, optimizer, steps=12)
    with GradWatch().attach(plain, other) as reference:
        fed(plain, other, steps=12)
    assert len(graphs) == 1
    np.testing.assert_allclose(watch.history.norms, reference.history.norms, rtol=1e-6)
    np.testing.assert_allclose(watch.history.losses, reference.history.losses, rtol=1e-6)


def test_the_loss_of_another_model_is_none_of_ours():
    """A critic trained beside the model, and a second block, keep their losses to themselves."""
    nets = [nn.Linear(8, 1), nn.Linear(8, 1)]
    optimizers = [_sgd(net) for net in nets]
    inputs, told = torch.randn(4, 8), [[], []]
    with GradWatch().attach(nets[0], optimizers[0]) as one, GradWatch().attach(nets[1], optimizers[1]) as other:
        for step in range(4):
            # The critic looks at what the first model made, and its gradients stop there.
            made = nets[0](inputs)
            losses = [made.square().mean() + 1, (nets[1](inputs) + made.detach()).square().mean() + 100 + step]
            for number in (1, 0):
                told[number].append(float(losses[number].detach()))
                optimizers[number].zero_grad()
                losses[number].backward()
            for optimizer in optimizers:
                optimizer.step()
    # Which losses are ours is known from the first backward pass of ours on.
    assert one.history.losses[1:] == pytest.approx(told[0][1:])
    assert other.history.losses == pytest.approx(told[1])
