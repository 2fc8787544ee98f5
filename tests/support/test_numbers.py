"""Which numbers gradients may be: every dtype, layout and magnitude is read as float64 would read it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from models import CLASSES, WIDTH, deep_net, healthy_net, module_in, trainer_in
from oracle import assert_same, norm, saves_gradients
from torch import nn

from lightning_gradwatch import GradWatch


@pytest.fixture
def watched(pl, tmp_path, data, caplog):
    """Return a function that trains a model with and without GradWatch and holds every row against the oracle."""

    def train(make: Any, steps: int = 5, watch: GradWatch | None = None) -> Any:
        watch = GradWatch() if watch is None else watch
        ends = []
        for callbacks in ([], [watch]):
            torch.manual_seed(0)
            module = make()
            saved = saves_gradients(module)
            trainer_in(pl, tmp_path, *callbacks, max_steps=steps).fit(module, data)
            ends.append(module.state_dict())
        assert_same(watch.history, saved)
        assert watch.disabled_reason is None
        assert "failed" not in caplog.text
        assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
        return watch

    return train


def in_dtype(dtype: torch.dtype) -> Any:
    """Return a training_step that feeds the network inputs of a dtype and takes the loss in float32 at least."""

    def training_step(self, batch, batch_idx):
        outputs = self.net(batch[0].to(dtype))
        return nn.functional.cross_entropy(outputs.to(torch.promote_types(dtype, torch.float32)), batch[1])

    return training_step


def sgd(rate: float) -> Any:
    """Return what makes plain SGD with a learning rate."""
    return lambda parameters: torch.optim.SGD(parameters, lr=rate)


def times(net: nn.Module, factors: dict[str, float]) -> nn.Module:
    """Multiply the gradients of some parameters on their way into ``.grad``."""
    for name, factor in factors.items():
        net.get_parameter(name).register_hook(lambda gradient, factor=factor: gradient * factor)
    return net


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.float32, marks=pytest.mark.supports("float32 gradients")),
        pytest.param(torch.float64, marks=pytest.mark.supports("float64 gradients")),
        pytest.param(torch.bfloat16, marks=pytest.mark.supports("bfloat16 gradients")),
        pytest.param(torch.float16, marks=pytest.mark.supports("float16 gradients")),
    ],
    ids=str,
)
def test_gradients_of_every_floating_dtype_are_measured(pl, watched, dtype):
    """A network whose parameters have this dtype is read as exactly as one in float64, and is healthy."""
    watch = watched(lambda: module_in(pl, healthy_net().to(dtype), training_step=in_dtype(dtype)), steps=12)
    assert watch.diagnoses == []
    assert (watch.history.norms > 0).all()


@pytest.mark.supports("float16 gradients")
def test_a_float16_norm_above_its_largest_number_is_finite(pl, watched):
    """A layer of float16 numbers of 30,000 each has a norm above 65504, and it is neither infinite nor a fault."""

    def make():
        net = healthy_net().half()
        net[0].weight.register_hook(lambda gradient: torch.full_like(gradient, 3e4))
        return module_in(pl, net, sgd(1e-7), training_step=in_dtype(torch.float16))

    watch = watched(make)
    assert watch.diagnoses == []
    assert watch.history.norms[:, 0] == pytest.approx(np.full(5, np.sqrt(WIDTH * WIDTH) * 3e4), rel=1e-3)
    assert np.isfinite(watch.history.norms).all()


class ComplexNet(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(WIDTH, WIDTH, dtype=dtype), nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs):
        return self.head(self.body(inputs.to(self.body.weight.dtype)).abs().float())


@pytest.mark.supports("complex parameters")
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("optimizer", [sgd(0.1), lambda parameters: torch.optim.Adam(parameters, 0.01)])
def test_complex_parameters_are_measured_by_their_absolute_values(pl, watched, dtype, optimizer):
    """The norm of a complex gradient is that of its real and imaginary parts, beside real layers in the same model."""
    watch = watched(lambda: module_in(pl, ComplexNet(dtype), optimizer), steps=12)
    assert watch.diagnoses == []
    assert watch.history.layers == ("net.body", "net.head")


class SparseNet(nn.Module):
    """Looks up rows, some of them several times in a batch."""

    def __init__(self, make: Any = nn.Embedding) -> None:
        super().__init__()
        self.rows, self.head = make(10, WIDTH, sparse=True), nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs):
        indices = (inputs > 0).long() + 2
        hidden = self.rows(indices)
        return self.head(hidden.mean(dim=1) if hidden.ndim > 2 else hidden)


def repeats(gradient):
    """Assert that a sparse gradient names a row more than once, so that its values alone have another norm."""
    assert gradient.layout == torch.sparse_coo
    assert not gradient.is_coalesced()
    assert norm(gradient) != pytest.approx(norm(gradient._values()), rel=1e-2)
    return gradient


@pytest.mark.supports("sparse embeddings")
@pytest.mark.parametrize("make", [nn.Embedding, nn.EmbeddingBag])
def test_a_sparse_gradient_with_repeated_rows_is_added_up_before_it_is_measured(pl, watched, make):
    """Rows that a batch looks up several times count once with their sum, in one SGD with dense layers."""

    def make_module():
        def on_before_optimizer_step(self, optimizer):
            repeats(self.net.rows.weight.grad)

        return module_in(pl, SparseNet(make), on_before_optimizer_step=on_before_optimizer_step)

    assert watched(make_module, steps=12).diagnoses == []


@pytest.mark.supports("sparse embeddings")
def test_sparse_adam_beside_adam(pl, watched):
    """An embedding under SparseAdam and a head under Adam are read each in its own optimizer's rows."""

    def training_step(self, batch, batch_idx):
        optimizers = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self.net(batch[0]), batch[1]))
        repeats(self.net.rows.weight.grad)
        for optimizer in optimizers:
            optimizer.step()

    def configure_optimizers(self):
        rows, head = self.net.rows.parameters(), self.net.head.parameters()
        return [torch.optim.SparseAdam(list(rows), 0.01), torch.optim.Adam(head, 0.01)]

    def make():
        module = module_in(pl, SparseNet(), training_step=training_step, configure_optimizers=configure_optimizers)
        module.automatic_optimization = False
        return module

    watch = watched(make, steps=24)
    assert watch.diagnoses == []
    assert watch.history.present.tolist() == [[True, False], [False, True]] * 12


class EmptyNet(nn.Module):
    """Has a parameter and a whole layer with no number in them, and both get a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(0, WIDTH))
        self.narrow, self.wide = nn.Linear(WIDTH, 0), nn.Linear(0, WIDTH)
        self.body = healthy_net()

    def forward(self, inputs):
        return self.body(inputs + self.wide(self.narrow(inputs))) + (self.nothing * inputs[:0]).sum()


@pytest.mark.supports("zero-size parameters")
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op")
def test_parameters_of_size_zero_are_read_as_zero_and_are_not_dead(pl, watched):
    """An empty gradient has the norm 0, its neighbors theirs, and nobody calls it dead."""
    watch = watched(lambda: module_in(pl, EmptyNet()), steps=24)
    assert watch.diagnoses == []
    norms = dict(zip(watch.history.layers, watch.history.norms.T, strict=True))
    assert (norms["net"] == 0).all()
    assert (norms["net.narrow"] == 0).all()
    assert (norms["net.wide"] > 0).all()


HUGE_AND_TINY = [
    pytest.param(1e30, marks=pytest.mark.supports("gradients of 1e30"), id="1e30"),
    pytest.param(1e-30, marks=pytest.mark.supports("gradients of 1e-30"), id="1e-30"),
]


@pytest.mark.parametrize("scale", HUGE_AND_TINY)
@pytest.mark.parametrize(
    ("dtype", "names"),
    [
        pytest.param(torch.float32, ["0.weight", "0.bias", "2.weight", "2.bias"], id="everywhere"),
        pytest.param(torch.float32, ["0.weight", "0.bias"], id="one layer"),
        pytest.param(torch.float32, ["2.weight"], id="one weight"),
        pytest.param(torch.float32, ["0.bias"], id="one bias"),
        pytest.param(torch.float64, ["0.weight", "0.bias"], id="float64"),
        pytest.param(torch.bfloat16, ["0.weight", "0.bias"], id="bfloat16"),
    ],
)
def test_gradients_far_outside_of_float32_squares_are_exact(pl, watched, scale, dtype, names):
    """A gradient of 1e30 is never infinite and one of 1e-30 never zero, alone or next to ordinary ones."""

    def make():
        net = times(healthy_net().to(dtype), dict.fromkeys(names, scale))
        return module_in(pl, net, sgd(0.1 / max(scale, 1.0)), training_step=in_dtype(dtype))

    watch = watched(make)
    # Where every gradient is 1e-30 no step moves a weight, which is told.
    still = scale < 1 and len(names) == 4
    assert [d.rule for d in watch.diagnoses] == ["vanishing.update"] * still
    assert np.isfinite(watch.history.norms).all()
    assert (watch.history.norms > 0).all()
    # Beside an ordinary bias a tiny weight does not show in the norm of its layer.
    if scale > 1 or len(names) > 1:
        extreme = watch.history.norms[:, int(names[0][0]) // 2]
        assert (np.abs(np.log10(extreme / scale)) < 3).all()
    if "0.bias" in names:
        assert (np.abs(np.log10(watch.history.bias_norms[:, 0] / scale)) < 3).all()


@pytest.mark.parametrize("scale", HUGE_AND_TINY)
def test_huge_and_tiny_complex_gradients_are_exact(pl, watched, scale):
    """The second measurement of a complex gradient gives no other norm than that of its parts."""

    def make():
        net = times(ComplexNet(torch.complex64), dict.fromkeys(["body.weight", "body.bias"], scale))
        return module_in(pl, net, sgd(0.1 / max(scale, 1.0)))

    watch = watched(make)
    assert watch.diagnoses == []
    assert (watch.history.norms > 0).all()
    assert np.isfinite(watch.history.norms).all()


@pytest.mark.parametrize("scale", HUGE_AND_TINY)
def test_huge_and_tiny_sparse_gradients_are_exact(pl, watched, scale):
    """The second measurement of a sparse gradient adds repeated rows up as the first one does."""

    def make():
        return module_in(pl, times(SparseNet(), {"rows.weight": scale}), sgd(0.1 / max(scale, 1.0)))

    watch = watched(make)
    assert watch.diagnoses == []
    assert (watch.history.norms > 0).all()
    assert np.isfinite(watch.history.norms).all()


@pytest.mark.supports("float32 gradients")
def test_a_float32_norm_above_its_largest_number_is_finite(pl, tmp_path, data):
    """Numbers of 1e38 each have a norm that float32 cannot hold: it is finite in the history and for EarlyStopping."""
    net = healthy_net()
    for parameter in net.parameters():
        parameter.register_hook(lambda gradient: torch.full_like(gradient, 1e38))
    module, watch = module_in(pl, net, sgd(1e-40)), GradWatch()
    saved = saves_gradients(module)
    trainer = trainer_in(pl, tmp_path, watch)
    trainer.fit(module, data)
    assert_same(watch.history, saved)
    assert watch.disabled_reason is None
    assert watch.diagnoses == []
    total = float(np.linalg.norm(list(saved.steps[-1].values())))
    assert total > torch.finfo(torch.float32).max
    assert float(trainer.callback_metrics["gradwatch/global_norm"]) == pytest.approx(total, rel=1e-5)


@pytest.mark.supports("float64 gradients")
@pytest.mark.parametrize("scale", [1e200, 1e-200, 1e-310])
def test_gradients_outside_of_float64_squares_are_exact(pl, tmp_path, data, scale):
    """A float64 gradient whose squares no float64 holds is neither infinite nor zero."""
    seen = []

    def on_before_optimizer_step(self, optimizer):
        # Divided, not multiplied: the inverse of a subnormal number is infinite.
        seen.append([norm(*[p.grad / scale for p in layer.parameters()]) for layer in (self.net[0], self.net[2])])

    net = times(healthy_net().double(), dict.fromkeys(["0.weight", "0.bias", "2.weight", "2.bias"], scale))
    hooks = {"training_step": in_dtype(torch.float64), "on_before_optimizer_step": on_before_optimizer_step}
    watch = GradWatch()
    trainer_in(pl, tmp_path, watch).fit(module_in(pl, net, sgd(0.1 / max(scale, 1.0)), **hooks), data)
    assert watch.disabled_reason is None
    # So small a gradient moves no weight, which is told; it is not called dead.
    assert [d.rule for d in watch.diagnoses] == ["vanishing.update"] * (scale < 1)
    np.testing.assert_allclose(watch.history.norms / scale, seen, rtol=1e-5, atol=0)


@pytest.mark.supports("a stack of 40 sigmoid layers")
def test_a_stack_of_forty_sigmoid_layers_vanishes_and_is_never_zero(pl, tmp_path, data):
    """Gradients whose float32 squares are zero are read as they are: vanishing is told, and nothing is dead."""
    false_zeros = []

    def on_before_optimizer_step(self, optimizer):
        gradients = [parameter.grad for parameter in self.net.parameters()]
        false_zeros.append(sum(float(g.square().sum()) == 0 and norm(g) > 0 for g in gradients))

    module = module_in(pl, deep_net(nn.Sigmoid, 40), on_before_optimizer_step=on_before_optimizer_step)
    saved, watch = saves_gradients(module), GradWatch()
    trainer_in(pl, tmp_path, watch, max_steps=14).fit(module, data)
    assert min(false_zeros) > 10
    assert_same(watch.history, saved)
    assert watch.disabled_reason is None
    assert (watch.history.norms > 0).all()
    assert [diagnosis.rule for diagnosis in watch.diagnoses] == ["vanishing.depth"]
    assert watch.diagnoses[0].layers[0] == "net.0"


@pytest.mark.supports("subnormal gradients")
@pytest.mark.parametrize(
    ("dtype", "scale"), [(torch.float32, 1e-40), (torch.bfloat16, 1e-38), (torch.float16, 1e-6)], ids=str
)
def test_subnormal_gradients_are_exact(pl, watched, dtype, scale):
    """Numbers below the smallest normal one of their dtype are measured bit for bit as they are."""

    def make():
        net = healthy_net().to(dtype)
        for parameter in net[0].parameters():
            parameter.register_hook(lambda gradient: (gradient.double().sign() * scale).to(dtype))
        return module_in(pl, net, training_step=in_dtype(dtype))

    watch = watched(make)
    assert watch.diagnoses == []
    assert (watch.history.norms[:, 0] > 0).all()
    assert (watch.history.norms[:, 0] < torch.finfo(dtype).tiny * 8).all()


class MixedNet(nn.Module):
    """Has a layer of every dtype."""

    def __init__(self) -> None:
        super().__init__()
        dtypes = [torch.float64, torch.complex64, torch.bfloat16, torch.float16, torch.float32]
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, dtype=dtype) for dtype in dtypes)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs):
        for layer in self.layers:
            outputs = layer(inputs.to(layer.weight.dtype))
            inputs = inputs + (outputs.real if outputs.is_complex() else outputs).float()
        return self.head(inputs)


@pytest.mark.supports("several dtypes in one model")
@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30])
def test_several_dtypes_in_one_model(pl, watched, scale):
    """Each layer is measured in its own precision, whatever the dtype of the others, and however large one of them."""

    def make():
        return module_in(pl, times(MixedNet(), {"layers.4.weight": scale}), sgd(0.1 / max(scale, 1.0)))

    watch = watched(make)
    assert watch.diagnoses == []
    assert (watch.history.norms > 0).all()


class SplitNet(nn.Module):
    """Computes its second half on another device."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs):
        hidden = self.first(inputs.to(self.first.weight.device)).relu()
        return self.second(hidden.to(self.second.weight.device)).to(inputs.device)


@pytest.mark.gpu
@pytest.mark.supports("several devices in one model")
@pytest.mark.parametrize("on_the_gpu", ["first", "second"])
@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30])
def test_several_devices_in_one_model(pl, tmp_path, data, on_the_gpu, scale):
    """A model with one part on the CPU and one on a GPU is read whole, whichever comes first."""

    def on_fit_start(self):
        # Only now: the Trainer has moved the whole model to its own device before.
        getattr(self.net, on_the_gpu).to("cuda")

    net = times(SplitNet(), {"first.weight": scale})
    module = module_in(pl, net, sgd(0.1 / max(scale, 1.0)), on_fit_start=on_fit_start)
    saved, watch = saves_gradients(module), GradWatch()
    trainer_in(pl, tmp_path, watch, max_steps=12).fit(module, data)
    assert {parameter.device.type for parameter in module.parameters()} == {"cpu", "cuda"}
    assert_same(watch.history, saved)
    assert watch.disabled_reason is None
    assert watch.diagnoses == []


@pytest.mark.supports("gradients that are exactly zero")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_an_exact_zero_stays_zero_and_is_dead_but_not_vanishing(pl, watched, dtype):
    """A gradient of exactly zero is read as 0, is told as dead after ten readings, and is below no threshold."""

    def make():
        net = times(healthy_net().to(dtype), {"0.weight": 0.0, "0.bias": 0.0})
        return module_in(pl, net, training_step=in_dtype(dtype))

    watch = watched(make, steps=12, watch=GradWatch(vanishing_threshold=1e-7))
    assert (watch.history.norms[:, 0] == 0).all()
    assert watch.history.present.all()
    assert [(diagnosis.rule, diagnosis.layers) for diagnosis in watch.diagnoses] == [("dead", ("net.0",))]


@pytest.mark.supports("NaN and infinite gradients")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("sick", ["0", "2"])
def test_a_single_nan_or_infinite_number_is_told_with_its_layer(pl, tmp_path, data, dtype, value, sick):
    """One number that is not finite makes just its own layer sick, in the step in which it came."""
    steps = []

    def poison(gradient):
        steps.append(len(steps))
        poisoned = gradient.clone()
        poisoned[1, 2] = value if steps[-1] == 3 else poisoned[1, 2]
        return poisoned

    net = healthy_net().to(dtype)
    net.get_parameter(f"{sick}.weight").register_hook(poison)
    module = module_in(pl, net, training_step=in_dtype(dtype))
    saved, watch = saves_gradients(module), GradWatch()
    trainer_in(pl, tmp_path, watch, max_steps=4).fit(module, data)
    assert_same(watch.history, saved)
    assert watch.disabled_reason is None
    (diagnosis,) = watch.diagnoses
    assert (diagnosis.rule, diagnosis.step, diagnosis.layers) == ("non_finite", 3, (f"net.{sick}",))
    assert ("NaN" if np.isnan(value) else "infinite") in diagnosis.message
    assert np.isfinite(watch.history.norms).sum() == watch.history.norms.size - 1


@pytest.mark.supports("NaN and infinite gradients")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("make", "sick"), [(SparseNet, "rows"), (lambda: ComplexNet(torch.complex64), "body")])
def test_nan_and_infinity_are_told_in_sparse_and_complex_gradients(pl, tmp_path, data, value, make, sick):
    """What is not finite is told with its layer in a sparse and in a complex gradient, too."""
    module = module_in(pl, times(make(), {f"{sick}.weight": value}))
    watch = GradWatch()
    trainer_in(pl, tmp_path, watch, max_steps=1).fit(module, data)
    assert watch.disabled_reason is None
    (diagnosis,) = watch.diagnoses
    assert (diagnosis.rule, diagnosis.layers) == ("non_finite", (f"net.{sick}",))
    assert watch.history.present.all()
    assert np.isfinite(watch.history.norms).tolist() == [[False, True]]
