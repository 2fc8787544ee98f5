"""Test ``lightning_gradwatch.remedy.initializers``."""

from __future__ import annotations

import copy
import math
import random
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from lightning_gradwatch.remedy.initializers import he_init_, lecun_init_, orthogonal_init_, xavier_init_
from lightning_gradwatch.remedy.lsuv import lsuv_init_

WIDTH, DEPTH = 256, 50
INITIALIZERS = [he_init_, xavier_init_, lecun_init_, orthogonal_init_]


def stack(activation, depth: int = DEPTH) -> nn.Sequential:
    """Make a deep net without normalization."""
    return nn.Sequential(*(m for _ in range(depth) for m in (nn.Linear(WIDTH, WIDTH), activation())))


def powers(model: nn.Sequential, x: torch.Tensor) -> list[float]:
    """Return the mean square of what leaves each activation."""
    found = []
    with torch.no_grad():
        for number, module in enumerate(model):
            x = module(x)
            found += [float(x.square().mean())] if number % 2 else []
    return found


# What may be missed after 50 layers: the logarithm of the power walks by about sqrt(5 / width) a layer (Hanin and
# Nica, 2020), and for GELU, SiLU and Mish what is missed grows by 1.08, 1.15 and 1.05 a layer.
KEPT = {
    "relu": (nn.ReLU, 8),
    "leaky relu": (lambda: nn.LeakyReLU(0.3), 8),
    "prelu": (nn.PReLU, 8),
    "elu": (nn.ELU, 1.4),
    "celu": (lambda: nn.CELU(0.5), 2),
    "selu": (nn.SELU, 1.4),
    "softplus": (nn.Softplus, 1.6),
    "mish": (nn.Mish, 40),
    "gelu": (nn.GELU, 40),
}


@pytest.mark.parametrize("initialize_", [he_init_, xavier_init_, orthogonal_init_], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", KEPT)
def test_the_signal_keeps_its_power_through_fifty_layers(name, initialize_):
    """What enters with power 1 leaves each of 50 layers with power near 1."""
    activation, factor = KEPT[name]
    torch.manual_seed(0)
    model = stack(activation)
    initialize_(model)
    found = powers(model, torch.randn(128, WIDTH))
    assert all(1 / factor < power < factor for power in found)
    assert found[0] == pytest.approx(1.0, rel=0.15)


def test_silu_keeps_its_power_through_twenty_layers():
    """Further down what it misses has grown too much: that is what LSUV is for."""
    torch.manual_seed(0)
    model = stack(nn.SiLU, depth=20)
    he_init_(model)
    assert all(0.2 < power < 5 for power in powers(model, torch.randn(128, WIDTH)))


@pytest.mark.parametrize("name", ["selu", "tanh"])
def test_lecun_keeps_selu_and_lets_tanh_fade_slowly(name):
    """SELU stays at 1; the power of tanh falls like 1 / depth, as mean-field theory has it, not exponentially."""
    torch.manual_seed(0)
    model = stack({"selu": nn.SELU, "tanh": nn.Tanh}[name])
    lecun_init_(model)
    found = powers(model, torch.randn(128, WIDTH))
    if name == "selu":
        assert all(0.75 < power < 1.3 for power in found)
        return
    z, weights = np.polynomial.hermite_e.hermegauss(60)
    expected = 1.0
    for power in found:
        expected = float((np.tanh(z * math.sqrt(expected)) ** 2 * weights).sum() / math.sqrt(2 * math.pi))
        assert power == pytest.approx(expected, rel=0.35)


def test_tanh_passes_the_gradient_back_through_fifty_layers():
    """With gain 1 the first layer's output gets as much gradient as the last one's, within a factor of 10."""
    torch.manual_seed(0)
    model = stack(nn.Tanh)
    xavier_init_(model)
    first = model[0](torch.randn(128, WIDTH))
    gradient = torch.randn(128, WIDTH)
    (back,) = torch.autograd.grad(model[1:](first), first, gradient)
    assert 0.1 < float(back.norm() / gradient.norm()) < 10


TORCHS = {
    he_init_: lambda w, name, a: nn.init.kaiming_normal_(w, a=a, nonlinearity=name),
    xavier_init_: lambda w, name, a: nn.init.xavier_normal_(w, gain=nn.init.calculate_gain(name, a)),
    lecun_init_: lambda w, *_: nn.init.kaiming_normal_(w, nonlinearity="linear"),
    orthogonal_init_: lambda w, name, a: nn.init.orthogonal_(w, gain=nn.init.calculate_gain(name, a)),
}


@pytest.mark.parametrize("initialize_", INITIALIZERS, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("activation", "name", "slope"),
    [(nn.ReLU(), "relu", 0.0), (nn.LeakyReLU(0.3), "leaky_relu", 0.3), (nn.Identity(), "linear", 0.0)],
    ids=["relu", "leaky", "linear"],
)
def test_plain_layers_get_what_torch_would_give_them(initialize_, activation, name, slope):
    """Under the same seed every weight is that of ``torch.nn.init`` with the gain of what follows, biases zero."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3), activation, nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    expected = copy.deepcopy(model)
    torch.manual_seed(0)
    initialize_(model)
    torch.manual_seed(0)
    for layer, follows, a in ((expected[0], name, slope), (expected[2], "linear", 0.0), (expected[4], "linear", 0.0)):
        TORCHS[initialize_](layer.weight, follows, a)
        nn.init.zeros_(layer.bias)
    for mine, torchs in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(mine, torchs, atol=1e-7)


class Called(nn.Module):
    """Calls activations as functions, has norms, an embedding, a tied head, a frozen and a parametrized layer."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 20, bias=False)
        self.embedding = nn.Embedding(20, 16)
        self.body = nn.Linear(16, 16)
        self.norm = nn.BatchNorm1d(16)
        self.still = nn.Linear(16, 16).requires_grad_(requires_grad=False)
        self.normed = parametrizations.weight_norm(nn.Linear(16, 16))
        self.queries = nn.Linear(16, 16)
        self.unused = nn.Linear(16, 16)
        self.rates = nn.Linear(16, 16)
        self.embedding.weight = self.head.weight

    def forward(self, numbers, *, fail=False):
        x = self.norm(self.body(self.embedding(numbers)))
        x = functional.dropout(functional.leaky_relu(x, 0.3), 0.5)
        x = torch.relu(self.normed(torch.relu(self.still(x))))
        np.random.rand(), random.random()  # noqa: NPY002
        if fail:
            raise ArithmeticError("on purpose")
        scores = self.queries(x) @ x.T
        return self.head(torch.exp(self.rates(scores @ x)))


def test_each_layer_is_told_of():
    """One frozen value a layer: what follows, the scheme and its gain, the weights before and after, or the reason."""
    torch.manual_seed(0)
    model = Called()
    before = copy.deepcopy(model.state_dict())
    done = {about.layer: about for about in he_init_(model, torch.randint(20, (32,)))}
    reasons = {name: about.reason for name, about in done.items() if not about.changed}
    assert [name for name, about in done.items() if about.changed] == ["head", "body"]
    assert done["body"].activation == "leaky_relu"
    assert done["body"].gain == pytest.approx(math.sqrt(2 / 1.09))
    assert done["body"].std_before == pytest.approx(float(before["body.weight"].square().mean().sqrt()))
    assert done["body"].std_after == pytest.approx(float(model.body.weight.detach().square().mean().sqrt()))
    for name, words in {
        "embedding": "tied", "norm": "norm layer", "still": "frozen", "normed": "parametrized",
        "queries": "what follows it is not known", "unused": "what follows it is not known", "rates": "exp",
    }.items():  # fmt: skip
        assert words in reasons[name]
        for parameter, value in model.get_submodule(name).state_dict().items():
            # The embedding holds the weight of the head, which was initialized.
            assert name == "embedding" or torch.equal(value, before[f"{name}.{parameter}"])
    with pytest.raises(FrozenInstanceError):
        done["body"].gain = 1.0


@pytest.mark.parametrize("initialize_", INITIALIZERS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("fail", [False, True])
def test_the_example_leaves_no_trace_but_the_weights(initialize_, fail):
    """Gradients, buffers, modes, hooks and random states are as they were; where it fails, the weights too."""
    torch.manual_seed(0)
    model = Called().train()
    model.norm.eval()
    model.body.weight.grad = gradient = torch.ones_like(model.body.weight)
    numbers = torch.randint(20, (32,))
    before, modes = copy.deepcopy(model.state_dict()), [part.training for part in model.modules()]
    drawn = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    if fail:
        with pytest.raises(ArithmeticError, match="on purpose"):
            initialize_(model, {"numbers": numbers, "fail": True})
    else:
        initialize_(model, (numbers,))
    weights = {"head.weight", "embedding.weight", "body.weight", "body.bias"}
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (fail or name not in weights)
    assert model.body.weight.grad is gradient
    assert torch.equal(gradient, torch.ones(16, 16))
    assert [part.training for part in model.modules()] == modes
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert torch.equal(torch.get_rng_state(), drawn[0]) == fail
    assert (random.getstate(), np.random.get_state()[1].tolist()) == drawn[1:]  # noqa: NPY002


def test_only_the_draws_advance_torchs_random_state():
    """Running an example first changes nothing in what is drawn: with and without one the weights are the same."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(), nn.ReLU(), nn.Linear(8, 2))
    other = copy.deepcopy(model)
    torch.manual_seed(0)
    he_init_(model)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    he_init_(other, torch.ones(4, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("initialize_", INITIALIZERS, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "layer",
    [nn.LSTM(6, 8, num_layers=2, bidirectional=True), nn.GRU(6, 8), nn.RNN(6, 8), nn.LSTMCell(6, 8)],
    ids=lambda layer: type(layer).__name__,
)
def test_recurrent_layers_are_orthogonal_from_state_to_state_in_each_gate(initialize_, layer):
    """Each gate keeps the length of the state; an LSTM's forget gate has bias 1 in all, every other bias is 0."""
    layer = copy.deepcopy(layer)
    (done,) = initialize_(layer, torch.randn(5, 6) if isinstance(layer, nn.LSTMCell) else torch.randn(5, 3, 6))
    assert done.changed
    parameters = dict(layer.named_parameters())
    for name, value in parameters.items():
        if "weight_hh" in name:
            for gate in value.detach().split(8):
                assert torch.allclose(gate @ gate.T, torch.eye(8), atol=1e-5)
        if "bias_ih" in name:
            total = value.detach() + parameters[name.replace("ih", "hh")].detach()
            forget = torch.zeros_like(total)
            if isinstance(layer, (nn.LSTM, nn.LSTMCell)):
                forget[8:16] = 1
            assert torch.equal(total, forget)


@pytest.mark.parametrize(
    ("initialize_", "std"),
    [(he_init_, (1 / 300) ** 0.5), (xavier_init_, (2 / 500) ** 0.5), (lecun_init_, (1 / 300) ** 0.5)],
)
def test_input_weights_have_the_fans_of_one_gate(initialize_, std):
    """The four gates of an LSTM are four layers side by side, not one with four times the outputs."""
    torch.manual_seed(0)
    layer = nn.LSTM(300, 200)
    initialize_(layer, torch.randn(2, 1, 300))
    assert float(layer.weight_ih_l0.detach().std()) == pytest.approx(std, rel=0.02)


def test_a_recurrent_relu_keeps_the_power_of_its_input_over_time():
    """With gain 1 for what enters and an orthogonal state, h has the power of x after 100 steps."""
    torch.manual_seed(0)
    layer = nn.RNN(WIDTH, WIDTH, nonlinearity="relu")
    he_init_(layer, torch.randn(2, 1, WIDTH))
    with torch.no_grad():
        states, _ = layer(torch.randn(100, 16, WIDTH))
    assert 0.3 < float(states[-1].square().mean()) < 3


def test_attention_has_the_fans_of_each_projection():
    """Queries, keys and values are three matrices: Xavier gives sqrt(2 / (E + E)), not torch's sqrt(2 / (E + 3E))."""
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(200, 4)
    x = torch.randn(3, 2, 200)
    projections, out = xavier_init_(layer, (x, x, x))
    assert float(layer.in_proj_weight.detach().std()) == pytest.approx(200**-0.5, rel=0.02)
    assert (projections.scheme, projections.gain, projections.reason) == ("Xavier", 1.0, "")
    assert (out.layer, out.scheme) == ("out_proj", "Xavier")
    assert float(layer.in_proj_bias.detach().abs().max()) == 0.0


def test_a_transformer_is_initialized_by_its_activations():
    """The layer before GELU has GELU's gain, the others have 1."""
    layer = nn.TransformerEncoderLayer(16, 2, activation="gelu", batch_first=True)
    gains = {about.layer: about.gain for about in he_init_(layer, torch.randn(2, 3, 16)) if about.changed}
    assert gains == {
        "self_attn": 1.0,
        "self_attn.out_proj": 1.0,
        "linear1": pytest.approx(1.468, abs=1e-3),
        "linear2": 1.0,
    }


@pytest.mark.parametrize("initialize_", [he_init_, lecun_init_, orthogonal_init_], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(64, 64, 5, groups=64), (16, 64, 20, 20)),
        (nn.Conv2d(32, 64, 4, stride=2, groups=4), (16, 32, 26, 26)),
        (nn.ConvTranspose2d(32, 64, 4, stride=2, groups=4), (16, 32, 20, 20)),
        (nn.ConvTranspose1d(64, 16, 6, stride=3), (64, 64, 60)),
    ],
    ids=["depthwise", "grouped", "transposed", "transposed-1d"],
)
def test_convolutions_of_all_kinds_keep_the_signals_variance(initialize_, layer, shape):
    """With nothing behind it, what enters with variance 1 leaves with variance 1."""
    torch.manual_seed(0)
    layer = copy.deepcopy(layer)
    initialize_(nn.Sequential(layer))
    inside = (..., *(slice(6, -6) for _ in shape[2:])) if layer.transposed else ...
    assert float(layer(torch.randn(shape)).detach()[inside].var()) == pytest.approx(1.0, rel=0.15)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(32, 64, 4, stride=2, groups=4), (16, 32, 26, 26)),
        (nn.ConvTranspose1d(64, 48, 6, stride=3), (64, 64, 60)),
    ],
    ids=["grouped", "transposed"],
)
def test_xavier_lies_between_forward_and_back(layer, shape):
    """The factors by which variances change forward and back have the mean 1."""
    torch.manual_seed(0)
    layer = copy.deepcopy(layer)
    xavier_init_(nn.Sequential(layer))
    x = torch.randn(shape, requires_grad=True)
    output = layer(x)
    output.backward(torch.randn_like(output))
    inside = (..., *(slice(6, -6) for _ in shape[2:]))
    forward = output.detach()[inside] if layer.transposed else output.detach()
    assert float(forward.var() + x.grad[inside].var()) / 2 == pytest.approx(1.0, rel=0.15)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_orthogonal_weights_are_drawn_in_every_precision(dtype):
    """Torch has no QR of half precision; the weights have it all the same."""
    model = nn.Sequential(nn.Linear(8, 8, dtype=dtype), nn.ReLU(), nn.Linear(8, 2, dtype=dtype))
    orthogonal_init_(model)
    weight = model[0].weight.detach().double()
    assert torch.allclose(weight @ weight.T, 2 * torch.eye(8, dtype=torch.float64), atol=0.05)


def test_a_frozen_bias_stays():
    """Of a layer whose bias alone is frozen the weight is initialized."""
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].bias.requires_grad_(requires_grad=False)
    before = model[0].bias.clone()
    assert he_init_(model)[0].changed
    assert torch.equal(model[0].bias, before)


def test_a_tied_weight_is_initialized_once():
    """Two layers that share a weight are told of as one, and the draw is made once."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64, bias=False))
    model[2].weight = model[0].weight
    expected = torch.empty(64, 64)
    torch.manual_seed(0)
    nn.init.kaiming_normal_(expected, nonlinearity="relu")
    torch.manual_seed(0)
    first, tied = he_init_(model)
    assert (first.layer, first.scheme) == ("0", "He")
    assert (tied.layer, tied.changed) == ("2", False)
    assert "tied" in tied.reason
    assert torch.equal(model[2].weight, expected)


def test_complex_weights_are_drawn_where_torch_can():
    """He gives them the power of real ones; of orthogonal ones there are none, which is told."""
    model = nn.Sequential(nn.Linear(200, 200, dtype=torch.complex64))
    (left,) = orthogonal_init_(model)
    assert (left.changed, left.reason) == (False, "its weight is complex: torch draws no orthogonal ones")
    (done,) = he_init_(model)
    assert done.std_after == pytest.approx(200**-0.5, rel=0.02)


@pytest.mark.parametrize("initialize_", [*INITIALIZERS, lsuv_init_])
@pytest.mark.parametrize(("stranger", "came"), [(3, "int"), (nn.Linear, "the class Linear"), ([nn.ReLU()], "list")])
def test_what_is_no_module_is_refused(initialize_, stranger, came):
    """With the argument, what was expected, and what came."""
    with pytest.raises(TypeError, match=rf"^`module` must be a torch.nn.Module, as in \w+\(.*\). Got {came}$"):
        initialize_(stranger)


def test_complex_outputs_are_named():
    """Nothing else is blamed: no gain is known for complex numbers."""
    model = nn.Sequential(nn.Linear(2, 2, dtype=torch.cfloat), nn.Tanh())
    with pytest.raises(ValueError, match=r"must return real numbers for he_init_.*end its forward pass with \.abs"):
        he_init_(model, torch.ones(3, 2, dtype=torch.cfloat))
