"""The signal probe on every step of a real Trainer: nothing of the run changes, and nothing is left of it."""

from __future__ import annotations

import gc
import json
import logging
import random
import re
import weakref
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import CLASSES, WIDTH, healthy_net, module_in, trainer_in
from probe_oracle import num_hooks
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everywhere
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from lightning_gradwatch import GradWatch
from lightning_gradwatch.measure import signals

STEPS = 6


class Recorded:
    """What a run did, so that two runs can be held against each other to the last bit."""

    def __init__(self, package: Any) -> None:
        self.outputs: list[Tensor] = []
        self.hooks: list[int] = []
        self.state: Any = None
        recorded = self

        class Keeps(package.Callback):
            """Stands before GradWatch, so that it sees the batch begin without hooks and end with them."""

            def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
                recorded.hooks.append(num_hooks(pl_module))

            def on_validation_batch_start(self, trainer: Any, pl_module: Any, *batch: Any) -> None:
                recorded.hooks.append(num_hooks(pl_module))

        self.callback = Keeps()

    def end(self, module: Any, trainer: Any) -> None:
        """Keep how the run ended: weights, buffers, optimizers, a loss scaler, random states."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.state = {
            "module": module.state_dict(),
            "gradients": [parameter.grad for parameter in module.parameters()],
            "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
            "scaler": None if scaler is None else scaler.state_dict(),
            "random": (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()),  # noqa: NPY002
            "outputs": self.outputs,
        }
        self.hooks.append(num_hooks(module))


def same(one: Any, other: Any) -> bool:
    """Tell whether two nested values are the same to the last bit; NaN is NaN."""
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and bool(torch.equal(one.nan_to_num(1.5), other.nan_to_num(1.5)))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


# ---- networks


class Checkpointed(nn.Module):
    """Computes its body again in backward."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.body = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.3), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.use_reentrant = use_reentrant

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.sigmoid(self.first(inputs))
        return self.head(checkpoint(self.body, hidden, use_reentrant=self.use_reentrant))


class Recurrent(nn.Module):
    """Reads the numbers of a sample one after the other."""

    def __init__(self, kind: type[nn.RNNBase], form: str = "", **settings: Any) -> None:
        super().__init__()
        self.rnn = kind(2, 6, batch_first=True, **settings)
        self.head = nn.Linear(6 * (1 + settings.get("bidirectional", False)), CLASSES)
        self.form = form

    def forward(self, inputs: Tensor) -> Tensor:
        steps = inputs.unflatten(1, (-1, 2))
        if self.form == "packed":
            packed = pack_padded_sequence(steps, [2, 4, 1, 3], batch_first=True, enforce_sorted=False)
            outputs, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
            return self.head(outputs.mean(dim=1))
        if self.form.startswith("checkpointed"):
            run = lambda x: self.rnn(x)[0]  # noqa: E731 - what is checkpointed
            steps = steps.requires_grad_(self.form.endswith("reentrant"))
            return self.head(checkpoint(run, steps, use_reentrant=self.form.endswith("reentrant")).mean(dim=1))
        return self.head(self.rnn(steps)[0].mean(dim=1))


class Tied(nn.Module):
    """Uses one layer twice, and one weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.one, self.other = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.other.weight, self.head = self.one.weight, nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.other(self.one(self.twice(self.twice(inputs).tanh()).relu_()).relu()))


class Pair(nn.Linear):
    """Returns a tuple."""

    def forward(self, inputs: Tensor) -> Any:
        return inputs.mean(), super().forward(inputs)


class Named(nn.Linear):
    """Returns a dictionary."""

    def forward(self, inputs: Tensor) -> Any:
        return {"count": len(inputs), "out": super().forward(inputs)}


class Several(nn.Module):
    """Its layers return tuples and dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.named = Pair(WIDTH, WIDTH), Named(WIDTH, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.named(F.relu(self.pair(inputs)[1], inplace=True))["out"]


class Taught(nn.Module):
    """A frozen transformer in eval mode, on its fast path, before a layer that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True).eval()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True).eval().requires_grad_(requires_grad=False)
        self.head = healthy_net()

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = inputs.unsqueeze(1) * torch.arange(1, 4)[:, None]
        with torch.no_grad():
            features = self.teacher(tokens)
        features, _ = self.attention(features, features, features, need_weights=False)
        return self.head(features.mean(dim=1))


class PseudoLabels(nn.Module):
    """Turns itself to eval mode for a moment, as self-training does."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = inputs.unsqueeze(1) * torch.arange(1, 4)[:, None]
        self.eval()
        with torch.no_grad():
            weights = self.head(self.body(tokens).mean(dim=1)).softmax(dim=1)
        self.train()
        return self.head(self.body(tokens).mean(dim=1)) * weights


class Cube(torch.autograd.Function):
    """An operation with a backward pass of its own."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        ctx.save_for_backward(inputs)
        return inputs**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (inputs,) = ctx.saved_tensors
        return 3 * inputs**2 * gradient


class Custom(nn.Sequential):
    """Puts an operation of the person's own behind a layer."""

    def forward(self, inputs: Tensor) -> Tensor:
        return self[1](Cube.apply(self[0](inputs)))


class Hooked(nn.Module):
    """Has hooks of the person's own: they change outputs and gradients, and count."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.rnn, self.head = nn.Linear(WIDTH, WIDTH), nn.GRU(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.seen: list[Any] = []
        self.body.register_forward_pre_hook(lambda _, args: (args[0] * 2,))
        self.body.register_forward_hook(lambda _, __, output: output * 0.5)
        self.body.register_full_backward_hook(lambda _, __, grad_output: self.note(grad_output))
        self.head.register_full_backward_pre_hook(lambda _, grad_output: (grad_output[0] * 0.9,))
        self.rnn.register_forward_hook(lambda _, args, __: self.seen.append(args[0].requires_grad))
        self.rnn.register_full_backward_hook(lambda _, grad_input, __: self.note(grad_input))

    def note(self, gradients: Any) -> None:
        self.seen.append([None if gradient is None else float(gradient.norm()) for gradient in gradients])

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.rnn(inputs.detach())[0] + self.body(inputs))


class Functional(nn.Module):
    """Calls activations, dropout and normalization as functions, in place where that can be."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv1d(1, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.head = nn.Linear(4 * WIDTH, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = F.dropout(self.norm(self.convolution(inputs.unsqueeze(1))).relu_(), 0.2, self.training)
        return self.head(F.layer_norm(hidden.flatten(1), [4 * WIDTH]).sigmoid_())


class Mapped(nn.Module):
    """Uses torch.func inside its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.vmap(lambda sample: torch.tanh(self.body(sample)))(inputs)
        slope = torch.func.grad(lambda x: self.body(x).relu().sum())(inputs)
        return self.head(hidden + slope)


def transformer() -> nn.Module:
    """Return an encoder with dropout."""
    body = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    return nn.Sequential(nn.Unflatten(1, (2, 4)), body, nn.Flatten(), nn.Linear(WIDTH, CLASSES))


def dense(*parts: nn.Module) -> nn.Module:
    """Return a network with these modules between two layers."""
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), *parts, nn.Linear(WIDTH, CLASSES))


# ---- runs


def plain_step(self: Any, batch: Any, batch_idx: int) -> Tensor:
    """Record outputs and loss."""
    outputs = self.net(batch[0])
    loss = F.cross_entropy(outputs, batch[1])
    self.recorded.outputs += [outputs.detach().clone(), loss.detach().clone()]
    return loss


def autocast_step(self: Any, batch: Any, batch_idx: int) -> Tensor:
    """Compute in half precision here, and only here."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return plain_step(self, batch, batch_idx)


def gan_step(self: Any, batch: Any, batch_idx: int) -> None:
    """Train a critic on two batches with a penalty on its slope, then the other network."""
    first, second = self.optimizers()
    outputs = self.net(batch[0])
    self.toggle_optimizer(second)
    real = batch[0].clone().requires_grad_()
    (slope,) = torch.autograd.grad(self.critic(real).sum(), real, create_graph=True)
    critic_loss = self.critic(outputs.detach()).mean() - self.critic(real).mean() + slope.square().mean()
    self.manual_backward(critic_loss)
    second.step()
    second.zero_grad()
    self.untoggle_optimizer(second)
    self.toggle_optimizer(first)
    loss = -self.critic(outputs).mean()
    self.manual_backward(loss)
    first.step()
    first.zero_grad()
    self.untoggle_optimizer(first)
    self.recorded.outputs += [outputs.detach().clone(), loss.detach().clone(), critic_loss.detach().clone()]


def gan_optimizers(self: Any) -> Any:
    """One optimizer for each network."""
    return [torch.optim.Adam(self.net.parameters(), 1e-3), torch.optim.SGD(self.critic.parameters(), 0.01)]


ADAM = partial(torch.optim.Adam, lr=1e-2)


@dataclass
class Scene:
    """A run that is made twice.

    Attributes:
        net: Makes the network.
        optimizer: Makes the optimizer.
        settings: Makes the Trainer's settings, each time anew: a scaler has a state.
        step: The module's ``training_step``.
        hooks: Further methods of the module.
    """

    net: Callable[[], nn.Module]
    optimizer: Any = ADAM
    settings: Callable[[Any], dict[str, Any]] = lambda _: {}
    step: Any = plain_step
    hooks: dict[str, Any] = field(default_factory=dict)


def scaled(pl: Any) -> dict[str, Any]:
    """Return 16-mixed with a loss scaler on the CPU, whose first scale overflows."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22)
    return {"plugins": [pl.plugins.precision.MixedPrecision("16-mixed", "cpu", scaler)], "max_steps": 16}


GAN = {
    "configure_optimizers": gan_optimizers,
    "setup": lambda self, stage: setattr(  # noqa: ARG005 - Lightning names it
        self, "critic", nn.Sequential(nn.Linear(WIDTH, 6), nn.LeakyReLU(), nn.Linear(6, 1))
    ),
}

SCENES = {
    "dropout": Scene(lambda: dense(nn.ReLU(), nn.Dropout(0.4))),
    "batch norm": Scene(lambda: dense(nn.BatchNorm1d(WIDTH), nn.Tanh())),
    "checkpointing": Scene(lambda: Checkpointed(use_reentrant=False)),
    "reentrant checkpointing": Scene(lambda: Checkpointed(use_reentrant=True)),
    "tied": Scene(Tied),
    "in place": Scene(lambda: dense(nn.ReLU(inplace=True))),
    "tuples and dictionaries": Scene(Several),
    "rnn": Scene(lambda: Recurrent(nn.RNN, num_layers=2, bidirectional=True, dropout=0.2)),
    "packed lstm": Scene(lambda: Recurrent(nn.LSTM, "packed")),
    "checkpointed lstm": Scene(lambda: Recurrent(nn.LSTM, "checkpointed")),
    "checkpointed gru": Scene(lambda: Recurrent(nn.GRU, "checkpointed reentrant")),
    "transformer": Scene(transformer),
    "frozen teacher": Scene(Taught),
    "pseudo labels": Scene(PseudoLabels),
    "custom function": Scene(lambda: Custom(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES))),
    "own hooks": Scene(Hooked),
    "functions": Scene(Functional),
    "torch.func": Scene(Mapped),
    "accumulation": Scene(
        lambda: dense(nn.ReLU(), nn.Dropout(0.2)), settings=lambda _: {"accumulate_grad_batches": 3}
    ),
    "gan": Scene(lambda: dense(nn.ReLU(), nn.Linear(WIDTH, WIDTH))[:3], step=gan_step, hooks=GAN),
    "lbfgs": Scene(lambda: dense(nn.Tanh()), partial(torch.optim.LBFGS, lr=0.1, max_iter=4)),
    "16-mixed": Scene(lambda: dense(nn.BatchNorm1d(WIDTH), nn.ReLU()), settings=scaled),
    "bf16-mixed": Scene(lambda: dense(nn.GELU()), settings=lambda _: {"precision": "bf16-mixed"}),
    "autocast": Scene(lambda: dense(nn.SiLU()), step=autocast_step),
    "clipping": Scene(lambda: dense(nn.ReLU()), settings=lambda _: {"gradient_clip_val": 0.1}),
    "validation": Scene(
        lambda: dense(nn.ReLU(), nn.Dropout(0.1)),
        settings=lambda _: {"val_check_interval": 2},
        hooks={"validation_step": lambda self, batch, _: self.net(batch[0]).sum()},
    ),
}  # fmt: skip


def run(pl: Any, directory: Path, data: Any, scene: Scene, *callbacks: Any) -> tuple[Recorded, Any]:
    """Train once and return what the run did, and its module."""
    recorded = Recorded(pl)
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(7)
    module = module_in(pl, scene.net(), scene.optimizer, training_step=scene.step, **scene.hooks)
    module.automatic_optimization = scene.step is not gan_step
    module.recorded = recorded
    settings = {"max_steps": STEPS, "max_epochs": -1, "num_sanity_val_steps": 0, **scene.settings(pl)}
    trainer = trainer_in(pl, directory, recorded.callback, *callbacks, **settings)
    trainer.fit(module, data, *([data] if "validation_step" in scene.hooks else []))
    recorded.end(module, trainer)
    return recorded, module


@pytest.mark.filterwarnings("ignore:Full backward hook is firing when gradients are computed")
@pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training")
@pytest.mark.supports("the signal probe changes nothing")
@pytest.mark.parametrize("name", SCENES)
def test_a_probe_on_every_step_changes_nothing(pl, tmp_path, data, caplog, name):
    """Outputs, losses, weights, buffers, gradients, optimizers and random states end the same, to the last bit."""
    caplog.set_level(logging.INFO, "lightning_gradwatch")
    plain, plain_module = run(pl, tmp_path, data, SCENES[name])
    watch = GradWatch(probe_every_n_steps=1)
    probed, module = run(pl, tmp_path, data, SCENES[name], watch)
    for part in plain.state:
        assert same(plain.state[part], probed.state[part]), part
    assert getattr(plain_module.net, "seen", None) == getattr(module.net, "seen", None)
    assert probed.hooks == plain.hooks
    assert watch.disabled_reason is None
    assert "no signal probe" not in caplog.text
    # Every step was probed, except those that the loss scaler dropped.
    finite = np.isfinite(np.where(watch.history.present, watch.history.norms, 0.0)).all(axis=1)
    assert [probe.step for probe in watch.probes] == watch.history.steps[finite].tolist()
    assert len(watch.probes) >= STEPS
    assert finite.all() == (name != "16-mixed")
    assert all(np.isfinite(probe.delta).any() and np.isfinite(probe.update_ratio).any() for probe in watch.probes)


# ---- nothing is left


class Breaks(nn.Module):
    """Fails in forward or in backward, with an activation of its own under way."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.body, self.where, self.calls = healthy_net(), where, 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        hidden = torch.sigmoid(self.body(inputs))
        if self.calls == 3 and self.where == "forward":
            raise ValueError("broken on purpose")
        if self.calls == 3:
            hidden.register_hook(lambda gradient: gradient.view(-1, 99))
        return hidden


@pytest.mark.supports("no hook of the signal probe is left")
@pytest.mark.parametrize(("where", "error"), [("forward", ValueError), ("backward", RuntimeError)])
def test_nothing_is_left_after_an_error_of_the_persons_own(pl, tmp_path, data, where, error):
    """A run that ends in the middle of a probe leaves no hook on any module and no mode in torch."""
    module = module_in(pl, Breaks(where))
    watch = GradWatch(probe_every_n_steps=1)
    with pytest.raises(error):
        trainer_in(pl, tmp_path, watch, max_steps=5).fit(module, data)
    assert len(watch.probes) == 2
    assert num_hooks(module) == 0
    assert torch.relu(torch.ones(1)) == 1


@pytest.mark.supports("no hook of the signal probe is left")
def test_an_error_that_the_person_catches_leaves_nothing(pl, tmp_path, data):
    """A training_step that survives a failing forward pass goes on, and its later steps are probed."""
    inside: list[int] = []

    def training_step(self, batch, batch_idx):
        inside.append(num_hooks(self))
        with pytest.raises(ValueError, match="broken on purpose"):
            Breaks.forward(broken, batch[0])
        return F.cross_entropy(self.net(batch[0]), batch[1])

    module = module_in(pl, training_step=training_step)
    broken = Breaks("forward")
    broken.body = module.net

    def reset(self, *arguments):
        broken.calls = 2
        inside.append(num_hooks(self))

    module.on_train_batch_start = partial(reset, module)
    module.on_train_batch_end = lambda *_: inside.append(num_hooks(module))
    watch = GradWatch(probe_every_n_steps=50)
    trainer_in(pl, tmp_path, watch, max_steps=7).fit(module, data)
    assert [probe.step for probe in watch.probes] == [0, 1, 2, 3, 4]
    # Before, during and after each batch: the module's own hooks come after those of callbacks.
    assert [count > 0 for count in inside] == [True, True, False] * 5 + [False] * 6
    assert num_hooks(module) == 0


@pytest.mark.supports("no activation is kept by the signal probe")
def test_no_activation_outlives_its_step(pl, tmp_path, data):
    """Outputs of all layers are gone when the next batch begins, as without a probe."""
    alive: list[int] = []
    outputs: list[weakref.ref[Any]] = []

    class Looks(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            gc.collect()
            alive.append(sum(reference() is not None for reference in outputs))
            outputs.clear()

    net = dense(nn.ReLU(), nn.Dropout(0.1))
    for part in net:
        part.register_forward_hook(lambda _, __, output: outputs.append(weakref.ref(output)))
    watch = GradWatch(probe_every_n_steps=1)
    trainer_in(pl, tmp_path, Looks(), watch, max_steps=4).fit(module_in(pl, net), data)
    assert alive == [0, 0, 0, 0]
    assert len(outputs) == 4
    assert len(watch.probes) == 4


# ---- memory


def peak_bytes(run: Callable[[], None]) -> int:
    """Return how much more memory there was at most while something ran, counted by torch's allocator."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    found, events = [], list(profiler.profiler.kineto_results.experimental_event_tree())
    while events:
        event = events.pop()
        if str(event.tag).endswith("Allocation"):
            found.append((event.start_time_ns, event.extra_fields.alloc_size))
        events.extend(event.children)
    found.sort(key=lambda entry: entry[0])
    return int(np.cumsum([size for _, size in found]).max())


def stack(width: int, depth: int, activation: Callable[[], nn.Module]) -> nn.Module:
    """Return a plain stack."""
    return nn.Sequential(*(part for _ in range(depth) for part in (nn.Linear(width, width), activation())))


def convolutions() -> nn.Module:
    """Return convolutions whose channels lie in dimension 1."""
    parts = [(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Tanh()) for _ in range(5)]
    return nn.Sequential(nn.Unflatten(1, (8, 32, 32)), *(part for three in parts for part in three), nn.Flatten())


class Long(nn.Module):
    """Reads long sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(64, 64, batch_first=True), nn.Linear(64, 8)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.rnn(inputs.unflatten(1, (-1, 64)))[0])


@pytest.mark.supports("peak memory of a probe step grows by at most 1%")
@pytest.mark.parametrize(
    ("make", "width", "samples", "least"),
    [
        (lambda: stack(256, 10, nn.ReLU), 256, 1024, 20e6),
        (lambda: stack(256, 10, nn.Sigmoid), 256, 1024, 20e6),
        (convolutions, 8 * 32 * 32, 64, 20e6),
        (Long, 64 * 128, 64, 15e6),
        # Here weights, gradients and Adam are what takes the memory, and not activations.
        (lambda: stack(512, 6, nn.ReLU), 512, 8, 20e6),
    ],
    ids=["relu", "sigmoid", "convolutions", "lstm", "weights"],
)
def test_a_probe_takes_next_to_no_memory(pl, tmp_path, make, width, samples, least):
    """The peak of a run with a probe in each step is that of the run without probes, to 1%."""
    inputs = torch.randn(2 * samples, width)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs), batch_size=samples)
    peaks = {}
    for every in (None, 1):
        torch.manual_seed(0)
        module = module_in(
            pl,
            make(),
            torch.optim.Adam,
            training_step=lambda self, batch, _: self.net(batch[0]).square().mean(),
        )
        watch = GradWatch(probe_every_n_steps=every, heatmap=False)
        trainer = trainer_in(pl, tmp_path, watch, max_steps=2)
        peaks[every] = peak_bytes(partial(trainer.fit, module, loader))
        assert len(watch.probes) == (0 if every is None else 2)
    assert peaks[None] > least
    assert peaks[1] <= 1.01 * peaks[None]


# ---- an error of our own


@pytest.mark.supports("an error inside the signal probe")
@pytest.mark.parametrize("where", ["norm_in_pieces", "alive_units", "unit_dim"])
def test_an_error_of_our_own_is_told_once_and_harms_nobody(pl, tmp_path, data, caplog, monkeypatch, where):
    """Weights end as without GradWatch, the log says what is still judged, and gradients are measured on."""
    caplog.set_level(logging.INFO, "lightning_gradwatch")
    scene = Scene(lambda: dense(nn.ReLU()))
    plain, _ = run(pl, tmp_path, data, scene)

    def fails(*arguments: Any) -> Any:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(signals, where, fails)
    watch = GradWatch(probe_every_n_steps=1)
    recorded, _ = run(pl, tmp_path, data, scene, watch)
    assert same(plain.state, recorded.state)
    assert recorded.hooks == plain.hooks
    assert len(watch.history.steps) == STEPS
    assert (watch.disabled_reason, watch.probes) == (None, [])
    assert caplog.text.count("no signal probe (failed: RuntimeError: broken on purpose)") == 1


# ---- torch.compile


@pytest.fixture
def _fresh_compiler():
    """Let no test see what another one has compiled."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class CallsCompiled(nn.Module):
    """Calls a function that is compiled by itself and that the model does not hold."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.get = lambda: function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.get()(self.body(inputs)))


COMPILED = {
    "network": lambda: torch.compile(dense(nn.ReLU()), backend="aot_eager"),
    "layer": lambda: dense(torch.compile(nn.Linear(WIDTH, WIDTH), backend="aot_eager"), nn.ReLU()),
    # Not to be found before it has run; and torch would refuse a break in its graph.
    "function": lambda: CallsCompiled(
        torch.compile(lambda hidden: torch.relu(hidden).sigmoid() * 2, backend="aot_eager", fullgraph=True)
    ),
}


@pytest.mark.usefixtures("_fresh_compiler")
# Dynamo looks at the gradient of a compiled layer's input.
@pytest.mark.filterwarnings(r"ignore:The \.grad attribute of a Tensor that is not a leaf Tensor is being accessed")
@pytest.mark.supports("the signal probe steps aside under torch.compile")
@pytest.mark.parametrize("what", COMPILED)
def test_under_torch_compile_it_steps_aside(pl, tmp_path, data, caplog, what):
    """Nothing changes, no hook is left, and the log says once what is still judged."""
    caplog.set_level(logging.INFO, "lightning_gradwatch")
    scene = Scene(COMPILED[what])
    plain, _ = run(pl, tmp_path, data, scene)
    torch._dynamo.reset()
    watch = GradWatch(probe_every_n_steps=1)
    recorded, _ = run(pl, tmp_path, data, scene, watch)
    assert same(plain.state, recorded.state)
    assert recorded.hooks == plain.hooks
    assert (watch.disabled_reason, watch.probes) == (None, [])
    told = [line for line in caplog.text.splitlines() if "no signal probe (torch.compile" in line]
    assert len(told) == 1
    assert "not finite, zero, spikes, your thresholds" in told[0]
    assert not any(diagnosis.rule.endswith((".depth", ".time")) for diagnosis in watch.diagnoses)


# ---- several processes


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("ddp_probe", marks=pytest.mark.supports("the signal probe under DDP")),
        pytest.param("ddp_probe_accumulation", marks=pytest.mark.supports("the signal probe under DDP")),
        pytest.param("fsdp2_probe", marks=pytest.mark.supports("the signal probe under FSDP2")),
    ],
)
def test_a_probe_in_several_processes_changes_nothing(played, name):
    """Weights and random states of each process end as without GradWatch, and each step was probed in each process."""
    for rank in range(2):
        record = json.loads((played / f"{name}-{rank}.json").read_text())
        assert "failed" not in record, record["failed"]
        assert record["weights"] == record["unwatched_weights"]
        assert record["random"] == record["unwatched_random"]
        assert (record["disabled"], record["hooks"]) == (None, 0)
        assert [probe["step"] for probe in record["probes"]] == list(range(record["global_step"]))
        for probe in record["probes"]:
            assert all(value > 0 for value in probe["signal"] + probe["delta"] + probe["update_ratio"])
            assert len(probe["time"]) == 1
        assert "no signal probe" not in (played / f"{name}-{rank}.err").read_text()


# ---- both styles


class ModuleStyle(nn.Module):
    """Its activations are modules."""

    def __init__(self, activation: str, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(depth)])
        self.activations = nn.ModuleList([{"sigmoid": nn.Sigmoid, "relu": nn.ReLU}[activation]() for _ in range(depth)])
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        for layer, activation in zip(self.layers, self.activations, strict=True):
            inputs = activation(layer(inputs))
        return self.head(inputs)


class FunctionStyle(nn.Module):
    """Its activations are functions; the layers are the same."""

    def __init__(self, activation: str, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(depth)])
        self.activation = activation
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            if self.activation == "sigmoid":
                inputs = torch.sigmoid(layer(inputs)) if number % 2 else layer(inputs).sigmoid()
            else:
                inputs = F.relu(layer(inputs), inplace=bool(number % 2))
        return self.head(inputs)


@pytest.mark.supports("activations called as functions, with file and line")
@pytest.mark.parametrize(
    ("activation", "prepare", "symptom"),
    [
        ("sigmoid", lambda _: None, "vanishing"),
        ("relu", lambda net: [nn.init.constant_(layer.bias, -10.0) for layer in net.layers], "dead"),
        (
            "relu",
            lambda net: [nn.init.kaiming_normal_(layer.weight, nonlinearity="relu") for layer in net.layers],
            None,
        ),
    ],
)
def test_both_styles_of_the_same_network_get_the_same_diagnosis(pl, tmp_path, data, activation, prepare, symptom):
    """Symptom, layers and numbers agree to the last digit; only the style with functions has a line in its cause."""
    found, numbers = defaultdict(list), {}
    for style in (ModuleStyle, FunctionStyle):
        torch.manual_seed(0)
        net = style(activation, 12)
        prepare(net)
        watch = GradWatch(probe_every_n_steps=1)
        trainer_in(pl, tmp_path, watch, max_steps=8).fit(module_in(pl, net), data)
        for d in watch.diagnoses:
            cause, places = re.subn(r", [^ ,]*test_probe\.py:\d+", "", d.cause)
            assert (places > 0) is (style is FunctionStyle and symptom == "vanishing")
            found[style].append((d.rule, d.symptom.value, d.severity, d.layers, d.step, d.message, d.measured, cause))
        numbers[style] = [
            (p.step, p.signal.tolist(), p.delta.tolist(), p.update_ratio.tolist(), str(p.dead), str(p.saturated))
            for p in watch.probes
        ]
    assert found[ModuleStyle] == found[FunctionStyle]
    assert numbers[ModuleStyle] == numbers[FunctionStyle]
    assert {entry[1] for entry in found[ModuleStyle]} == ({symptom} if symptom else set())
