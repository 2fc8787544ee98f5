"""Which models are watched: every kind of layer under its own name, with the gradient that the optimizer uses."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from models import CLASSES, WIDTH, healthy_net, module_in, trainer_in
from oracle import assert_same, saves_gradients
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

from lightning_gradwatch import GradWatch

# Beyond the ten readings after which a layer without any gradient is called dead.
STEPS = 14


def owner(name: str) -> str:
    """Return the layer of a parameter: the module in which a person has written it, whatever wraps it."""
    plain = re.sub(r"(_orig_mod|_checkpoint_wrapped_module)\.", "", name)
    module, _, rest = plain.partition(".parametrizations.")
    return (module if rest else plain.rpartition(".")[0]) or "(root)"


@pytest.fixture
def watched(pl, tmp_path, data, caplog):
    """Return a function that trains a model with and without GradWatch and holds every row against the oracle."""

    def train(
        make: Any, steps: int = STEPS, watch: Any = None, prepare: Any = None, others: Any = tuple, found: Any = ()
    ) -> Any:
        watch = GradWatch() if watch is None else watch
        ends = []
        for callbacks in ([], [watch]):
            torch.manual_seed(0)
            module = make()
            saved = saves_gradients(module, owner)
            trainer = trainer_in(pl, tmp_path, *others(), *callbacks, max_steps=steps)
            trainer.fit(module if prepare is None else prepare(module), data)
            state = module.state_dict().items()
            ends.append({name: value for name, value in state if not isinstance(value, UninitializedParameter)})
        assert_same(watch.history, saved)
        assert watch.disabled_reason is None
        assert "failed" not in caplog.text
        assert [(diagnosis.rule, diagnosis.layers) for diagnosis in watch.diagnoses] == list(found)
        assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
        if len(trainer.optimizers) == 1:
            total = np.linalg.norm(list(saved.steps[-1].values()))
            assert float(trainer.callback_metrics["gradwatch/global_norm"]) == pytest.approx(total, rel=1e-5)
        return watch

    return train


def norms_by_layer(watch: GradWatch) -> dict[str, Any]:
    """Return the norms of each layer over all readings."""
    return dict(zip(watch.history.layers, watch.history.norms.T, strict=True))


def numbered() -> Any:
    """Return a training_step that calls the network with the number of the batch."""

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0], batch_idx), batch[1])

    return training_step


class TiedNet(nn.Module):
    """Reads words by the same numbers with which it writes them."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.words, self.body = nn.Embedding(CLASSES, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.output = nn.Linear(WIDTH, CLASSES, bias=bias)
        self.output.weight = self.words.weight

    def forward(self, inputs):
        return self.output(self.body(self.words((inputs > 0).long()).mean(dim=1)).tanh())


@pytest.mark.supports("tied weights")
@pytest.mark.parametrize("bias", [False, True])
def test_a_tied_weight_has_one_owner_and_counts_once(pl, watched, bias):
    """The first layer that holds a tied weight owns it; the other has only what is its own, or no column at all."""
    watch = watched(lambda: module_in(pl, TiedNet(bias)))
    assert watch.history.layers == ("net.words", "net.body", *(["net.output"] if bias else []))
    assert (watch.history.norms > 0).all()


@pytest.mark.supports("frozen layers")
@pytest.mark.parametrize("given", ["all", "trainable"])
def test_a_frozen_layer_is_absent(pl, watched, given):
    """A layer that asks for no gradient keeps its column and is never present, in the optimizer or not."""

    def make():
        net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), healthy_net())
        net[0].requires_grad_(requires_grad=False)
        wanted = [p for p in net.parameters() if given == "all" or p.requires_grad]
        return module_in(pl, net, lambda _: torch.optim.SGD(wanted, lr=0.1))

    watch = watched(make)
    assert watch.history.layers == ("net.0", "net.2.0", "net.2.2")
    assert watch.history.present.all(axis=0).tolist() == [False, True, True]
    assert not watch.history.present[:, 0].any()


class BranchNet(nn.Module):
    """Uses a branch in every third batch, and another never."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.never, self.body = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), healthy_net()

    def forward(self, inputs, number):
        return self.body(inputs + self.branch(inputs) if number % 3 == 0 else inputs)


@pytest.mark.supports("layers that some steps do not use")
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_layer_is_absent_in_just_the_steps_that_do_not_use_it(pl, watched, momentum):
    """A layer without a gradient is absent, not zero, in those rows alone, and no fault."""
    make_optimizer = partial(torch.optim.SGD, lr=0.02, momentum=momentum)
    watch = watched(lambda: module_in(pl, BranchNet(), make_optimizer, training_step=numbered()))
    batches = [step % 8 for step in range(STEPS)]
    assert watch.history.layers[:2] == ("net.branch", "net.never")
    assert watch.history.present[:, 0].tolist() == [batch % 3 == 0 for batch in batches]
    assert np.isnan(watch.history.norms[:, 0]).tolist() == [batch % 3 != 0 for batch in batches]
    assert not watch.history.present[:, 1].any()


class LooseNet(nn.Module):
    """Keeps its parameters in lists, in dictionaries, and loosely."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(WIDTH))
        self.several = nn.ParameterList([torch.randn(WIDTH, WIDTH) / 3, torch.zeros(WIDTH)])
        self.named = nn.ParameterDict({"out": torch.randn(WIDTH, CLASSES) / 3, "bias": torch.zeros(CLASSES)})

    def forward(self, inputs):
        hidden = (inputs * self.gain) @ self.several[0] + self.several[1]
        return hidden.tanh() @ self.named["out"] + self.named["bias"]


@pytest.mark.supports("ParameterList, ParameterDict and loose parameters")
def test_parameters_in_lists_in_dictionaries_and_at_the_root(pl, watched):
    """What owns parameters is a layer, whatever it is; the module's own parameters are those of "(root)"."""

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]) * self.temperature, batch[1])

    def make():
        module = module_in(pl, LooseNet(), training_step=training_step)
        module.temperature = nn.Parameter(torch.ones(()))
        return module

    watch = watched(make)
    assert watch.history.layers == ("(root)", "net", "net.several", "net.named")
    assert (watch.history.norms > 0).all()


class Doubled(nn.Module):
    """A parametrization with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((), 2.0))

    def forward(self, weight):
        return weight * self.factor


def two_of(weight: nn.Module) -> nn.Module:
    """Parametrize a weight by two parametrizations, one after the other."""
    parametrize.register_parametrization(weight, "weight", Doubled())
    parametrize.register_parametrization(weight, "weight", Doubled())
    return weight


@pytest.mark.supports("parametrized weights")
@pytest.mark.parametrize(
    "parametrized",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        partial(parametrizations.orthogonal, orthogonal_map="householder"),
        two_of,
        nn.utils.spectral_norm,
    ],
    ids=["weight_norm", "spectral_norm", "orthogonal", "householder", "own", "legacy spectral_norm"],
)
def test_parametrized_weights_belong_to_the_layer_that_they_parametrize(pl, watched, parametrized):
    """A parametrization adds no layer: its parameters are those of the layer, and nothing is called dead."""

    def make():
        net = healthy_net()
        net[0] = parametrized(net[0])
        return module_in(pl, net)

    watch = watched(make)
    assert watch.history.layers == ("net.0", "net.2")
    assert (watch.history.norms > 0).all()


@pytest.mark.supports("parametrized weights")
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_legacy_weight_norm(pl, watched):
    """The old ``torch.nn.utils.weight_norm`` leaves two parameters in the layer, and both are measured in it."""

    def make():
        net = healthy_net()
        nn.utils.weight_norm(net[0])
        return module_in(pl, net)

    watch = watched(make)
    assert watch.history.layers == ("net.0", "net.2")


class RecurrentNet(nn.Module):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.recurrent = make(2, WIDTH, batch_first=True)
        self.head = nn.LazyLinear(CLASSES)

    def forward(self, inputs):
        outputs, _ = self.recurrent(inputs.reshape(len(inputs), 4, 2))
        return self.head(outputs[:, -1])


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(nn.RNN, marks=pytest.mark.supports("RNN")),
        pytest.param(nn.LSTM, marks=pytest.mark.supports("LSTM")),
        pytest.param(
            partial(nn.LSTM, num_layers=2, bidirectional=True, proj_size=3), marks=pytest.mark.supports("LSTM")
        ),
        pytest.param(nn.GRU, marks=pytest.mark.supports("GRU")),
        pytest.param(partial(nn.GRU, num_layers=2), marks=pytest.mark.supports("GRU")),
    ],
    ids=["RNN", "LSTM", "LSTM of two layers, both ways, projected", "GRU", "GRU of two layers"],
)
def test_recurrent_layers(pl, watched, make):
    """All weights of a recurrent layer, through all time steps, are one layer."""
    watch = watched(lambda: module_in(pl, RecurrentNet(make)))
    assert watch.history.layers == ("net.recurrent", "net.head")
    assert (watch.history.norms > 0).all()


class AttentionNet(nn.Module):
    def __init__(self, **sizes: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, **sizes)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, inputs):
        tokens = inputs.reshape(len(inputs), 2, 4)
        return self.head(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(dim=1))


@pytest.mark.supports("MultiheadAttention")
@pytest.mark.parametrize("sizes", [{}, {"kdim": 4, "vdim": 4}, {"bias": False}, {"add_bias_kv": True}], ids=str)
def test_attention_and_its_output_projection(pl, watched, sizes):
    """The output projection, whose forward is never called, is measured and never called dead."""
    watch = watched(lambda: module_in(pl, AttentionNet(**sizes)), steps=20)
    assert watch.history.layers == ("net.attention", "net.attention.out_proj", "net.head")
    assert (watch.history.norms > 0).all()


class TransformerNet(nn.Module):
    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, inputs):
        return self.head(self.encoder(inputs.reshape(len(inputs), 2, 4)).mean(dim=1))


@pytest.mark.supports("TransformerEncoderLayer")
@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_encoder_layers(pl, watched, norm_first):
    """Every layer of a transformer encoder is measured, the output projections among them, and it is healthy."""
    watch = watched(lambda: module_in(pl, TransformerNet(norm_first), partial(torch.optim.AdamW, lr=0.01)), steps=20)
    assert "net.encoder.layers.1.self_attn.out_proj" in watch.history.layers
    assert len(watch.history.layers) == 13
    assert (watch.history.norms > 0).all()


class LoRA(nn.Module):
    """A frozen layer with a correction of rank 2 that starts at zero, as B does."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.base = nn.Linear(WIDTH, outputs).requires_grad_(requires_grad=False)
        self.lora_A, self.lora_B = nn.Linear(WIDTH, 2, bias=False), nn.Linear(2, outputs, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, inputs):
        return self.base(inputs) + self.lora_B(self.lora_A(inputs))


@pytest.mark.supports("LoRA")
@pytest.mark.parametrize("optimizer", [partial(torch.optim.SGD, lr=0.1), partial(torch.optim.AdamW, lr=0.01)])
@pytest.mark.parametrize("depth", [1, 6])
def test_the_zero_start_of_lora_is_no_fault(pl, watched, optimizer, depth):
    """The gradient of A is exactly zero in the first step, since B is zero, and nobody calls it sick, however hasty."""

    def make():
        blocks = [part for _ in range(depth) for part in (LoRA(WIDTH), nn.Tanh())]
        net = nn.Sequential(*blocks, LoRA(CLASSES))
        return module_in(pl, net, lambda p: optimizer([parameter for parameter in p if parameter.requires_grad]))

    watch = watched(make, steps=40, watch=GradWatch(patience=1))
    for layer, norms in norms_by_layer(watch).items():
        if layer.endswith("lora_A"):
            assert norms[0] == 0
            assert (norms[1:] > 0).all()
        assert np.isnan(norms).all() == layer.endswith("base")


COMPILERS = ["eager", "aot_eager"]


@pytest.fixture
def _fresh_compiler():
    """Let no test see what another one has compiled."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.supports("torch.compile of the whole module")
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("backend", COMPILERS)
def test_a_compiled_lightning_module(pl, watched, backend):
    """``trainer.fit(torch.compile(module))`` is read under the names that the person wrote."""
    watch = watched(lambda: module_in(pl), prepare=partial(torch.compile, backend=backend))
    assert watch.history.layers == ("net.0", "net.2")
    assert (watch.history.norms > 0).all()


@pytest.mark.supports("torch.compile of the whole module")
@pytest.mark.usefixtures("_fresh_compiler")
def test_a_lightning_module_compiled_in_place(pl, watched):
    """``module.compile()`` is read under the names that the person wrote."""

    def prepare(module):
        module.compile(backend="eager")
        return module

    watch = watched(lambda: module_in(pl), prepare=prepare)
    assert watch.history.layers == ("net.0", "net.2")


def compiled_around(module: Any, backend: str) -> None:
    """Put a compiled wrapper around the network."""
    module.net = torch.compile(module.net, backend=backend)


def compiled_inside(module: Any, backend: str) -> None:
    """Put a compiled wrapper around one layer of the network."""
    module.net[0] = torch.compile(module.net[0], backend=backend)


def compiled_in_place(module: Any, backend: str) -> None:
    """Compile the network and wrap nothing."""
    module.net.compile(backend=backend)


def compiled_forward(module: Any, backend: str) -> None:
    """Compile one method of the network."""
    module.net.forward = torch.compile(module.net.forward, backend=backend)


def compiled_step(module: Any, backend: str) -> None:
    """Compile the training step."""
    module.training_step = torch.compile(module.training_step, backend=backend)


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("backend", COMPILERS)
@pytest.mark.parametrize(
    "compiled",
    [
        pytest.param(compiled_around, marks=pytest.mark.supports("torch.compile of a submodule")),
        pytest.param(compiled_inside, marks=pytest.mark.supports("torch.compile of a submodule")),
        pytest.param(compiled_in_place, marks=pytest.mark.supports("torch.compile of a submodule")),
        pytest.param(compiled_forward, marks=pytest.mark.supports("torch.compile of a method")),
        pytest.param(compiled_step, marks=pytest.mark.supports("torch.compile of a method")),
    ],
)
def test_a_compiled_part(pl, watched, compiled, backend):
    """A submodule or a method that was compiled changes no name and no norm."""

    def make():
        module = module_in(pl)
        compiled(module, backend)
        return module

    watch = watched(make)
    assert watch.history.layers == ("net.0", "net.2")
    assert (watch.history.norms > 0).all()


class CheckpointedNet(nn.Module):
    """Computes its body twice: in forward, and again in backward."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.body = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(0.1), nn.Linear(WIDTH, WIDTH))
        self.use_reentrant = use_reentrant

    def forward(self, inputs):
        return self.last(checkpoint(self.body, self.first(inputs), use_reentrant=self.use_reentrant))


@pytest.mark.supports("activation checkpointing")
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(pl, watched, use_reentrant):
    """A body that is computed again in backward is measured as any other."""
    watch = watched(lambda: module_in(pl, CheckpointedNet(use_reentrant)))
    assert watch.history.layers == ("net.first", "net.last", "net.body.0", "net.body.3")
    assert (watch.history.norms > 0).all()


@pytest.mark.supports("activation checkpointing")
@pytest.mark.parametrize("kind", list(CheckpointImpl), ids=str)
def test_checkpoint_wrapper(pl, watched, kind):
    """What ``checkpoint_wrapper`` puts around a layer does not show in its name."""

    def make():
        body = checkpoint_wrapper(healthy_net(), checkpoint_impl=kind)
        return module_in(pl, nn.Sequential(nn.Linear(WIDTH, WIDTH), body))

    watch = watched(make)
    assert watch.history.layers == ("net.0", "net.1.0", "net.1.2")
    assert (watch.history.norms > 0).all()


class LateNet(nn.Module):
    """Has lazy layers: one used at once, one from the sixth step on, one never."""

    def __init__(self) -> None:
        super().__init__()
        self.at_once, self.late, self.never = nn.LazyLinear(WIDTH), nn.LazyLinear(WIDTH), nn.LazyLinear(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs, number):
        hidden = self.at_once(inputs).relu()
        return self.head(hidden + self.late(hidden) if number >= 6 else hidden)


@pytest.mark.supports("lazy layers")
def test_a_lazy_layer_that_the_first_forward_pass_materializes(pl, watched):
    """A layer that gets its shape in the first batch is measured from the first step on."""
    watch = watched(lambda: module_in(pl, nn.Sequential(nn.LazyLinear(WIDTH), nn.ReLU(), nn.LazyLinear(CLASSES))))
    assert watch.history.layers == ("net.0", "net.2")
    assert (watch.history.norms > 0).all()


@pytest.mark.supports("lazy layers")
def test_a_lazy_layer_that_is_used_late_or_never(pl, watched):
    """A layer without a shape is absent, as long as it has none, and harms the reading of no other."""
    watch = watched(lambda: module_in(pl, LateNet(), training_step=numbered()))
    assert watch.history.layers == ("net.at_once", "net.late", "net.never", "net.head")
    assert watch.history.present.sum(axis=0).tolist() == [STEPS, 2, 0, STEPS]


@pytest.mark.supports("lazy layers")
def test_a_tiny_gradient_of_a_lazy_layer_that_is_used_late(pl, watched):
    """A layer that gets its shape late is measured as exactly as any other: 1e-30 is not zero."""

    def training_step(self, batch, batch_idx):
        if batch_idx == 6 and self.net.late.has_uninitialized_params():
            self.net.late(torch.zeros(1, WIDTH))
            for parameter in self.net.late.parameters():
                parameter.register_hook(lambda gradient: gradient * 1e-30)
        return nn.functional.cross_entropy(self.net(batch[0], batch_idx), batch[1])

    watch = watched(lambda: module_in(pl, LateNet(), training_step=training_step))
    late = norms_by_layer(watch)["net.late"]
    assert (late[~np.isnan(late)] > 0).all()
    assert (late[~np.isnan(late)] < 1e-25).all()


@pytest.mark.supports("lazy layers")
def test_a_lazy_layer_that_is_used_late_is_judged(pl, watched):
    """A layer that gets its shape late, and then no gradient but zeros, is told as dead like any other."""

    def training_step(self, batch, batch_idx):
        hidden = self.net.late(self.net.at_once(batch[0])) * 0 if self.global_step >= 6 else batch[0] * 0
        return nn.functional.cross_entropy(self.net(batch[0], 0) + hidden[:, :CLASSES], batch[1])

    late = watched(lambda: module_in(pl, LateNet(), training_step=training_step), 20, found=[("dead", ("net.late",))])
    assert (norms_by_layer(late)["net.late"][6:] == 0).all()


@pytest.mark.supports("layers that are unfrozen during training")
def test_finetuning_that_unfreezes_layers(pl, watched):
    """A backbone that BaseFinetuning unfreezes in the second epoch is present from then on, in its old column."""

    class Finetuning(pl.callbacks.BaseFinetuning):
        def freeze_before_training(self, pl_module):
            self.freeze(pl_module.net[0])

        def finetune_function(self, pl_module, epoch, optimizer):
            if epoch == 1:
                self.unfreeze_and_add_param_group(pl_module.net[0], optimizer, lr=0.01)

    def make():
        return module_in(pl, optimizer=lambda p: torch.optim.SGD([q for q in p if q.requires_grad], lr=0.1))

    watch = watched(make, others=lambda: [Finetuning()])
    assert watch.history.layers == ("net.0", "net.2")
    assert watch.history.present.tolist() == [[False, True]] * 8 + [[True, True]] * 6
    assert watch.history.learning_rates[-1].tolist() == [0.01, 0.1]


@pytest.mark.supports("parameters that are added during training")
def test_a_layer_that_is_added_gets_a_new_column(pl, watched):
    """A layer that comes in the sixth step is absent before, stands last, and moves no earlier column."""

    def on_train_batch_start(self, batch, batch_idx):
        if self.global_step == 5:
            self.net.append(nn.Linear(CLASSES, CLASSES))
            group = {"params": list(self.net[3].parameters()), "lr": 0.01}
            self.optimizers().optimizer.add_param_group(group)

    watch = watched(lambda: module_in(pl, on_train_batch_start=on_train_batch_start))
    assert watch.history.layers == ("net.0", "net.2", "net.3")
    assert watch.history.present.tolist() == [[True, True, False]] * 5 + [[True] * 3] * (STEPS - 5)
    assert watch.history.learning_rates[-1].tolist() == [0.1, 0.1, 0.01]


@pytest.mark.supports("parameters that are added during training")
def test_a_parameter_that_is_added_to_a_layer_counts_in_its_column(pl, watched):
    """A bias that a layer gets in the sixth step is part of that layer's norm from then on."""

    def on_train_batch_start(self, batch, batch_idx):
        if self.global_step == 5:
            self.net[0].bias = nn.Parameter(torch.zeros(WIDTH))
            self.optimizers().optimizer.add_param_group({"params": [self.net[0].bias]})

    def make():
        net = healthy_net()
        net[0] = nn.Linear(WIDTH, WIDTH, bias=False)
        return module_in(pl, net, on_train_batch_start=on_train_batch_start)

    watch = watched(make)
    assert watch.history.layers == ("net.0", "net.2")
    assert np.isnan(watch.history.bias_norms[:, 0]).tolist() == [True] * 5 + [False] * (STEPS - 5)


@pytest.mark.supports("parameters that are added during training")
def test_a_head_that_is_exchanged_keeps_its_column(pl, watched):
    """A new layer under an old name goes on in the old column."""

    def on_train_batch_start(self, batch, batch_idx):
        if self.global_step == 5:
            self.net[2] = nn.Linear(WIDTH, CLASSES)
            self.optimizers().optimizer.param_groups[0]["params"] = list(self.net.parameters())

    watch = watched(lambda: module_in(pl, on_train_batch_start=on_train_batch_start))
    assert watch.history.layers == ("net.0", "net.2")
    assert watch.history.present.all()


class ResidualNet(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs):
        for block in self.blocks:
            inputs = inputs + block(inputs).tanh() / len(self.blocks)
        return self.head(inputs)


@pytest.mark.supports("models of 2,000 layers")
def test_a_model_of_two_thousand_layers(pl, tmp_path, data):
    """A model of 2,000 layers is read whole."""
    module, watch = module_in(pl, ResidualNet(2000)), GradWatch()
    saved = saves_gradients(module)
    trainer_in(pl, tmp_path, watch, max_steps=3).fit(module, data)
    assert_same(watch.history, saved)
    assert watch.disabled_reason is None
    assert watch.diagnoses == []
    assert watch.history.norms.shape == (3, 2001)
    assert watch.history.order == tuple(range(2001))


class SharedNet(nn.Module):
    """Calls a layer twice and has another under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.one = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.other = self.one
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs):
        hidden = self.twice(self.twice(inputs).tanh()).tanh()
        return self.head(self.other(self.one(hidden).tanh()).tanh())


@pytest.mark.supports("shared modules")
def test_a_module_that_is_called_twice_or_has_two_names_is_one_layer(pl, watched):
    """All uses of a module add up in one gradient, under the first of its names."""
    watch = watched(lambda: module_in(pl, SharedNet()))
    assert watch.history.layers == ("net.twice", "net.one", "net.head")
    assert (watch.history.norms > 0).all()


class Nested(nn.Module):
    """Has its layers far down in lists in lists."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.inside: nn.Module = healthy_net()
        for _ in range(depth):
            self.inside = nn.ModuleList([self.inside])
        self.depth = depth

    def forward(self, inputs):
        inside = self.inside
        for _ in range(self.depth):
            inside = inside[0]
        return inside(inputs)


@pytest.mark.supports("deeply nested modules")
def test_a_module_deep_inside_of_lists(pl, watched):
    """The name of a layer 50 lists down is whole, and its norm is right."""
    watch = watched(lambda: module_in(pl, Nested(50)))
    path = "net.inside" + ".0" * 50
    assert watch.history.layers == (f"{path}.0", f"{path}.2")
    assert (watch.history.norms > 0).all()


class BackwardNet(nn.Module):
    """Registers its layers from the output to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.third = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, WIDTH)
        self.second, self.first = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, inputs):
        return self.last(self.third(self.second(self.first(inputs).relu()).relu()).relu())


@pytest.mark.supports("layers registered in another order than they are used")
def test_layers_that_are_registered_backward(pl, watched):
    """Columns stay in registration order, and the history knows the order of the forward pass."""
    watch = watched(lambda: module_in(pl, BackwardNet()))
    assert watch.history.layers == ("net.last", "net.third", "net.second", "net.first")
    assert watch.history.order == (3, 2, 1, 0)


class Rounded(torch.autograd.Function):
    """Rounds on its way forward and lets the gradient through."""

    @staticmethod
    def forward(_, inputs):
        return torch.round(inputs * 16) / 16

    @staticmethod
    def backward(_, gradient):
        return gradient


class QuantizedLinear(nn.Linear):
    """Computes with rounded weights, as quantization-aware training does."""

    def __init__(self, inputs: int, outputs: int, own: bool) -> None:
        super().__init__(inputs, outputs)
        self.own = own

    def forward(self, inputs):
        if self.own:
            weight = Rounded.apply(self.weight)
        else:
            weight = torch.fake_quantize_per_tensor_affine(self.weight, 1 / 64, 0, -128, 127)
        return nn.functional.linear(inputs, weight, self.bias)


@pytest.mark.parametrize(
    "own",
    [
        pytest.param(True, marks=pytest.mark.supports("custom autograd functions")),
        pytest.param(False, marks=pytest.mark.supports("quantization-aware training")),
    ],
)
def test_layers_with_rounded_weights(pl, watched, own):
    """A weight whose gradient comes through a straight-through estimate is measured as it is."""

    def make():
        net = nn.Sequential(QuantizedLinear(WIDTH, WIDTH, own), nn.ReLU(), QuantizedLinear(WIDTH, CLASSES, own))
        return module_in(pl, net)

    watch = watched(make)
    assert watch.history.layers == ("net.0", "net.2")
    assert (watch.history.norms > 0).all()


@pytest.mark.supports("quantization-aware training")
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max")
def test_a_network_that_torch_prepares_for_quantization(pl, watched):
    """What ``prepare_qat`` makes of a network is read under the same names."""

    def make():
        net = healthy_net().train()
        net.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
        return module_in(pl, torch.ao.quantization.prepare_qat(net))

    watch = watched(make)
    assert watch.history.layers == ("net.0", "net.2")
    assert (watch.history.norms > 0).all()


@pytest.mark.supports("parameters whose requires_grad changes during training")
def test_requires_grad_that_changes_from_batch_to_batch(pl, watched):
    """A layer that is frozen in every second batch is absent in just those rows, and a bias leaves its layer's norm."""

    def on_train_batch_start(self, batch, batch_idx):
        self.net[0].requires_grad_(batch_idx % 2 == 1)
        self.net[2].bias.requires_grad_(batch_idx % 4 == 0)

    watch = watched(lambda: module_in(pl, on_train_batch_start=on_train_batch_start))
    assert watch.history.present[:, 0].tolist() == [step % 2 == 1 for step in range(STEPS)]
    assert watch.history.present[:, 1].all()
    assert np.isnan(watch.history.bias_norms[:, 1]).tolist() == [step % 8 % 4 != 0 for step in range(STEPS)]


class Pair(nn.Module):
    """A generator and its critic."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(4, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.critic = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LeakyReLU(), nn.Linear(WIDTH, 1))


@pytest.mark.supports("two networks that train against each other (GAN)")
@pytest.mark.parametrize("toggles", [False, True])
def test_a_generator_and_its_critic(pl, watched, toggles):
    """Each network is read in its own optimizer's rows, without what the other's loss has left in it."""

    def training_step(self, batch, batch_idx):
        pair, real = self.net, batch[0]
        made = pair.generator(torch.randn(len(real), 4))
        logits = nn.functional.binary_cross_entropy_with_logits
        losses = [
            lambda: logits(pair.critic(made), torch.ones(len(real), 1)),
            lambda: (
                logits(pair.critic(real), torch.ones(len(real), 1))
                + logits(pair.critic(made.detach()), torch.zeros(len(real), 1))
            ),
        ]
        for optimizer, loss in zip(self.optimizers(), losses, strict=True):
            if toggles:
                self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(loss())
            optimizer.step()
            if toggles:
                self.untoggle_optimizer(optimizer)

    def configure_optimizers(self):
        return [torch.optim.Adam(part.parameters(), 0.01) for part in (self.net.generator, self.net.critic)]

    def make():
        module = module_in(pl, Pair(), training_step=training_step, configure_optimizers=configure_optimizers)
        module.automatic_optimization = False
        return module

    watch = watched(make, steps=40)
    assert watch.history.present.tolist() == [[True, True, False, False], [False, False, True, True]] * 20
    assert watch.history.optimizers.tolist() == [0, 1] * 20


class WeightedLoss(nn.Module):
    """Weighs classes and adds an uncertainty that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(()))
        self.centers = nn.Embedding(CLASSES, CLASSES)

    def forward(self, outputs, labels):
        distance = (outputs - self.centers(labels)).square().mean()
        loss = nn.functional.cross_entropy(outputs, labels) + 0.1 * distance
        return loss * torch.exp(-self.log_variance) + self.log_variance


@pytest.mark.supports("a loss with parameters of its own")
def test_a_loss_with_its_own_parameters(pl, watched):
    """The parameters of a loss inside the module are layers like all others."""

    def training_step(self, batch, batch_idx):
        return self.loss(self.net(batch[0]), batch[1])

    def make():
        module = module_in(pl, training_step=training_step)
        module.loss = WeightedLoss()
        return module

    watch = watched(make)
    assert watch.history.layers == ("net.0", "net.2", "loss", "loss.centers")
    assert (watch.history.norms > 0).all()


@pytest.mark.supports("a loss with parameters of its own")
def test_a_loss_outside_of_the_module(pl, tmp_path, data):
    """A parameter that the optimizer holds and no module owns is a layer, too, and is measured."""
    loss = nn.Parameter(torch.zeros(()))
    seen = []

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1]) * torch.exp(-loss) + loss

    def on_before_optimizer_step(self, optimizer):
        seen.append(abs(float(loss.grad)))

    hooks = {"training_step": training_step, "on_before_optimizer_step": on_before_optimizer_step}
    module = module_in(pl, optimizer=lambda p: torch.optim.SGD([*p, loss], lr=0.1), **hooks)
    watch = GradWatch()
    trainer_in(pl, tmp_path, watch, max_steps=STEPS).fit(module, data)
    assert watch.disabled_reason is None
    assert watch.diagnoses == []
    assert watch.history.layers == ("net.0", "net.2", "(outside the model) 0")
    assert watch.history.norms[:, 2] == pytest.approx(np.array(seen), rel=1e-5)
    assert (watch.history.norms > 0).all()
