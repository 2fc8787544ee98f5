"""Test ``lightning_gradwatch.measure.graph``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from lightning_gradwatch.measure.graph import Topology, forward_order, read_topology
from lightning_gradwatch.measure.layers import find_layers


class Net(nn.Module):
    """A model whose forward pass is a function of its layers ``m.0``, ``m.1`` ..."""

    def __init__(self, forward: Callable[..., Tensor], *layers: nn.Module):
        super().__init__()
        self.m = nn.ModuleList(layers)
        self.function = forward

    def forward(self, x):
        return self.function(x, *self.m)


def read(model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor] = torch.sum, **more: int):
    """Return the forward order and the activations, by the layers' names."""
    layers = find_layers(model)
    topology = read_topology(loss(model(x)), layers, **more)
    names = [layer.name for layer in layers]
    activations = {names[number]: activation for number, activation in topology.activations.items()}
    return [names[number] for number in topology.order], activations


def linear(inputs: int = 4, outputs: int = 4) -> nn.Linear:
    return nn.Linear(inputs, outputs)


X = torch.ones(5, 4)

ACTIVATIONS = [
    (nn.ReLU(), F.relu, "relu"),
    (nn.ReLU6(), F.relu6, "relu"),
    (nn.LeakyReLU(), F.leaky_relu, "leaky_relu"),
    (nn.RReLU(), lambda y: F.rrelu(y, training=True), "leaky_relu"),
    (nn.PReLU(), lambda y: F.prelu(y, torch.ones(1, requires_grad=True)), "leaky_relu"),
    (nn.Sigmoid(), torch.sigmoid, "sigmoid"),
    (nn.Hardsigmoid(), F.hardsigmoid, "sigmoid"),
    (nn.LogSigmoid(), F.logsigmoid, "sigmoid"),
    (nn.Tanh(), torch.tanh, "tanh"),
    (nn.Hardtanh(), F.hardtanh, "tanh"),
    (nn.GELU(), F.gelu, "gelu"),
    (nn.SiLU(), F.silu, "silu"),
    (nn.Mish(), F.mish, "silu"),
    (nn.Hardswish(), F.hardswish, "silu"),
    (nn.ELU(), F.elu, "elu"),
    (nn.CELU(), F.celu, "elu"),
    (nn.SELU(), F.selu, "selu"),
    (nn.Softplus(), F.softplus, "softplus"),
]


@pytest.mark.parametrize(("module", "function", "name"), ACTIVATIONS, ids=[type(a[0]).__name__ for a in ACTIVATIONS])
def test_modules_and_functions_are_the_same_activation(module, function, name):
    """An activation is seen whether it is a module or a call, of its torch name."""
    as_module = nn.Sequential(linear(), module, linear())
    as_function = Net(lambda x, a, b: b(function(a(x))), linear(), linear())
    assert read(as_module, X)[1]["0"] == name
    assert read(as_function, X) == (["m.0", "m.1"], {"m.0": name, "m.1": "output"})


def test_the_order_is_that_of_the_forward_pass():
    """Layers registered in any order, and a layer that is not used, come out in the order of use."""
    model = Net(lambda x, a, b, c, _: a(torch.tanh(c(torch.relu(b(x))))), *(linear() for _ in range(4)))
    assert read(model, X) == (["m.1", "m.2", "m.0"], {"m.0": "output", "m.1": "relu", "m.2": "tanh"})


@pytest.mark.parametrize(
    "between",
    [
        [nn.Dropout(0.5)],
        [nn.LayerNorm(4), nn.Dropout(0.1)],
        [nn.BatchNorm1d(4)],
        [nn.Unflatten(1, (2, 2)), nn.Flatten()],
    ],
    ids=["dropout", "layer norm", "batch norm", "reshape"],
)
def test_what_leaves_the_activation_in_place_is_passed(between):
    """Dropout, norms and reshapes may lie between a layer and its activation."""
    model = nn.Sequential(linear(), *between, nn.Tanh(), linear())
    assert read(model, torch.randn(5, 4))[1]["0"] == "tanh"


def test_a_convolutional_net_is_read_through_pooling():
    """Batch norm, pooling and flattening are passed; the cross entropy ends the net."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 2, 3, padding=1),
        nn.AvgPool2d(2), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(2, 3),
    )  # fmt: skip
    order, activations = read(model, torch.randn(2, 1, 8, 8), lambda y: F.cross_entropy(y, torch.tensor([0, 1])))
    assert order == ["0", "1", "4", "9"]
    assert activations == {"0": "relu", "1": "relu", "4": "gelu", "9": "output"}


@pytest.mark.parametrize(
    ("layer", "between", "x"),
    [
        (linear(), nn.Identity(), torch.randn(5, 4)),
        (nn.Conv1d(4, 4, 1), nn.Identity(), torch.randn(5, 4, 3)),
        (linear(), nn.Flatten(), torch.randn(5, 4)),
    ],
    ids=["linear", "conv", "reshape"],
)
def test_a_layer_that_feeds_a_batch_norm_is_known(layer, between, x):
    """With nothing but reshapes between, the layer's bias cancels; with an activation between, it does not."""
    direct = nn.Sequential(layer, between, nn.BatchNorm1d(4))
    apart = nn.Sequential(layer, nn.ReLU(), nn.BatchNorm1d(4))
    for model, expected in ((direct, {0}), (apart, set())):
        assert read_topology(model(x).sum(), find_layers(model)).feed_batch_norm == expected


@pytest.mark.parametrize(("groups", "cancels"), [(4, True), (2, False)])
def test_a_group_norm_with_one_channel_a_group_cancels_a_bias(groups, cancels):
    """Only a normalization that subtracts each channel's own mean takes the bias away."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(groups, 4), nn.ReLU())
    topology = read_topology(net(torch.randn(2, 1, 5, 5)).sum(), find_layers(net))
    assert (0 in topology.feed_batch_norm) is cancels


def test_a_residual_block_keeps_its_activation():
    """The sum with the shortcut changes neither order nor activation."""
    model = Net(lambda x, a, b, c: c(torch.relu(a(x) + b(torch.tanh(a(x))))), linear(), linear(), linear())
    order, activations = read(model, X)
    assert order == ["m.0", "m.1", "m.2"]
    assert activations["m.1"] == "relu"
    assert activations["m.2"] == "output"


def test_a_gate_is_no_activation():
    """A sigmoid or tanh that is multiplied with another part of the graph is a gate; with a number it is not."""
    gated = Net(lambda x, a, b, c: c(a(x) * torch.sigmoid(b(x))), linear(), linear(), linear())
    scaled = Net(lambda x, a, b: b(2.0 * torch.sigmoid(a(x))), linear(), linear())
    assert read(gated, X)[1]["m.1"] == "gate"
    assert read(scaled, X)[1]["m.0"] == "sigmoid"


def test_layers_without_an_activation_are_linear():
    """A layer on which the next layer follows directly is linear, the last one is the output."""
    assert read(nn.Sequential(linear(), linear()), X) == (["0", "1"], {"0": "linear", "1": "output"})


def test_the_sigmoid_of_the_output_belongs_to_the_loss():
    """Probabilities for a loss are no hidden sigmoid: only the layers before are followed by one."""
    model = nn.Sequential(linear(), nn.Sigmoid(), linear(4, 1), nn.Sigmoid())
    _, activations = read(model, X, lambda y: F.binary_cross_entropy(y, torch.ones_like(y)))
    assert activations == {"0": "sigmoid", "2": "output"}


def test_the_softmax_of_the_output_belongs_to_the_loss():
    """A softmax or log softmax ends the net."""
    model = nn.Sequential(linear(), nn.Tanh(), linear(), nn.LogSoftmax(dim=1))
    assert read(model, X, lambda y: -y[:, 0].mean())[1] == {"0": "tanh", "2": "output"}


def test_an_exponential_is_seen():
    """A variance head, whose output is exponentiated, is named."""
    assert read(Net(lambda x, a: a(x).exp(), linear()), X)[1] == {"m.0": "exp"}


def test_a_recurrent_net_by_hand_is_read():
    """Layers that are used again and again stand at their first use."""

    def unroll(x, inputs, hidden, head):
        state = torch.zeros(5, 4)
        for _ in range(6):
            state = torch.tanh(inputs(x) + hidden(state))
        return head(state)

    order, activations = read(Net(unroll, linear(), linear(), linear()), X)
    assert order == ["m.0", "m.1", "m.2"]
    assert activations == {"m.0": "tanh", "m.1": "tanh", "m.2": "output"}


@pytest.mark.parametrize(
    ("layer", "call"),
    [
        (nn.LSTM(4, 4), lambda layer, x: layer(x[None])[0]),
        (nn.GRU(4, 4, num_layers=2), lambda layer, x: layer(x[None])[0]),
        (nn.MultiheadAttention(4, 2), lambda layer, x: layer(x[None], x[None], x[None])[0]),
    ],
    ids=["lstm", "gru", "attention"],
)
def test_modules_of_many_parameters_have_one_place(layer, call):
    """A recurrent or attention layer stands between the layers around it."""
    model = Net(lambda x, a, b, c: b(call(c, a(x))), linear(), linear(), layer)
    order, _ = read(model, X)
    assert [name for name in order if not name.endswith("out_proj")] == ["m.0", "m.2", "m.1"]


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrized_layers_are_read(wrap):
    """The operations of a parametrization are not taken for what follows the layer."""
    order, activations = read(nn.Sequential(linear(), nn.Tanh(), wrap(linear()), nn.ReLU(), linear()), X)
    assert order == ["0", "2", "4"]
    assert activations == {"0": "tanh", "2": "relu", "4": "output"}


def test_tied_weights_stand_at_their_first_use():
    """A weight that two layers share stands where it is used first."""
    first, second = linear(), linear()
    second.weight = first.weight
    order, _ = read(nn.Sequential(first, nn.Tanh(), second, nn.ReLU(), linear()), X)
    assert order == ["0", "2", "4"]


def outlets(forward: Callable[..., Tensor], *layers: nn.Module, x: Tensor = X) -> dict[str, set[str]]:
    """Return, by the layers' numbers, at which layers the way forward ends for each."""
    model = Net(forward, *layers)
    found = read_topology(model(x).sum(), known := find_layers(model)).outlets
    name = {number: layer.name.removeprefix("m.") for number, layer in enumerate(known)}
    return {name[layer]: {name[end] for end in ends} for layer, ends in found.items()}


def five() -> list[nn.Linear]:
    return [linear() for _ in range(5)]


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        pytest.param(lambda x, a, b, c, d, e: e(d(c(b(a(x))))), "4 4 4 4 4", id="chain"),
        pytest.param(lambda x, a, b, c, d, e: b(a(x)).sum() + e(d(c(x))).mean(), "1 1 4 4 4", id="two towers"),
        pytest.param(lambda x, a, b, c, d, e: F.normalize(b(a(x))) @ e(d(c(x))).T, "1 1 4 4 4", id="dot product"),
        pytest.param(lambda x, a, b, c, d, e: e(torch.tanh(b(a(x)) * d(c(x)))), "4 4 4 4 4", id="towers that meet"),
        pytest.param(lambda x, a, b, c, d, e: c(h := b(a(x))).sum() + e(d(h)).sum(), "24 24 2 4 4", id="two heads"),
        pytest.param(lambda x, a, b, c, d, e: (h := a(x)) + c(b(h)) + e(d(h)), "24 2 2 4 4", id="parallel residuals"),
        pytest.param(lambda x, a, b, c, d, e: (h := (g := a(x)) + c(b(g))) + e(d(h)), "4 4 4 4 4", id="residuals"),
        pytest.param(lambda x, a, b, c, d, e: e(torch.relu(h := a(x)) + d(c(b(h)))), "4 4 4 4 4", id="U"),
        pytest.param(lambda x, a, b, c, d, e: c(h := a(x)) + d(h := b(h)) + e(h), "234 34 2 3 4", id="early exits"),
        pytest.param(lambda x, a, b, c, d, e: e(d(c(b(a(x))))) - e(d(c(b(a(-x))))), "4 4 4 4 4", id="siamese"),
        pytest.param(lambda x, a, b, c, d, e: F.linear(e(d(c(b(a(x))))), a.weight), "4 4 4 4 4", id="tied"),
    ],
)
@pytest.mark.parametrize("x", [X, X.reshape(1, 5, 4)[0].requires_grad_()], ids=["plain", "asks for a gradient"])
def test_a_way_forward_ends_where_no_layer_follows(forward, expected, x):
    """Layers side by side have no outlet in common; a trunk has those of all its heads."""
    assert outlets(forward, *five(), x=x) == {str(n): set(ends) for n, ends in enumerate(expected.split())}


def test_a_decoder_that_attends_to_an_encoder_is_one_with_it():
    """All layers of a transformer end at its last normalization, and a recurrent cell where its head is."""
    x = torch.randn(2, 3, 8)
    transformer = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
    assert set(map(frozenset, outlets(lambda x, t: t(x, x), transformer, x=x).values())) == {
        frozenset({"0.decoder.norm"})
    }

    def unrolled(x: Tensor, cell: nn.RNNCell, head: nn.Linear) -> Tensor:
        hidden = torch.zeros(2, 4)
        for step in range(3):
            hidden = cell(x[:, step], hidden)
        return head(hidden)

    assert outlets(unrolled, nn.RNNCell(8, 4), linear(), x=x) == {"0": {"1"}, "1": {"1"}}


def test_autocast_is_seen_through():
    """Casts of weights and activations to bfloat16 hide nothing."""
    model = nn.Sequential(linear(), nn.Sigmoid(), linear(), nn.ReLU(), linear())
    with torch.autocast("cpu", torch.bfloat16):
        answer = read(model, X)
    assert answer == (["0", "2", "4"], {"0": "sigmoid", "2": "relu", "4": "output"})


def test_activation_checkpointing_is_seen_through():
    """A non-reentrant checkpoint leaves the graph as it is."""
    model = Net(lambda x, a, b: b(checkpoint(lambda y: torch.tanh(a(y)), x, use_reentrant=False)), linear(), linear())
    assert read(model, X) == (["m.0", "m.1"], {"m.0": "tanh", "m.1": "output"})


class Opaque(torch.autograd.Function):
    """An operation of which autograd knows nothing but its name."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight.T, x.T @ grad


def test_an_opaque_function_hides_the_activation_only():
    """A layer that feeds an operation of someone's own has its place, but no activation."""
    model = Net(lambda x, a, b: Opaque.apply(a(x), b.weight), linear(), linear())
    order, activations = read(model, X)
    assert order == ["m.0", "m.1"]
    assert activations["m.1"] == "output"
    hidden = Net(lambda x, a, b: b(Opaque.apply(a(x), torch.eye(4))), linear(), linear())
    assert read(hidden, X) == (["m.0", "m.1"], {"m.1": "output"})


def test_an_activation_far_away_is_not_known():
    """What lies more than a dozen operations behind a layer is not its activation."""

    def forward(x, a, b):
        y = a(x)
        for _ in range(20):
            y = y + 1.0
        return b(torch.relu(y))

    assert read(Net(forward, linear(), linear()), X)[1] == {"m.1": "output"}


@pytest.mark.parametrize("loss", [torch.zeros(()), torch.zeros((), requires_grad=True)], ids=["no graph", "a leaf"])
def test_a_loss_without_a_graph_tells_nothing(loss):
    """Without operations behind the loss there is no topology."""
    assert read_topology(loss, find_layers(linear())) == Topology()


def test_a_graph_that_is_too_large_is_not_read():
    """Above ``max_nodes`` nothing is told; at the bound all is."""
    model = nn.Sequential(linear(), nn.Tanh(), linear())
    assert read(model, X, max_nodes=5) == ([], {})
    assert read(model, X, max_nodes=50)[0] == ["0", "2"]


def test_a_deep_graph_needs_no_recursion():
    """A graph deeper than Python's recursion limit is read."""

    def forward(x, a, b):
        y = a(x)
        for _ in range(3000):
            y = torch.cos(y)
        return b(y)

    assert read(Net(forward, linear(), linear()), X)[0] == ["m.0", "m.1"]


def test_frozen_layers_are_not_in_the_graph():
    """A frozen layer has no place of its own and does not hide the others."""
    model = nn.Sequential(linear(), nn.Tanh(), linear(), nn.ReLU(), linear())
    model[2].requires_grad_(requires_grad=False)
    order, activations = read(model, X)
    assert order == ["0", "4"]
    assert activations["0"] == "tanh"


@pytest.mark.parametrize(
    ("traced", "num_layers", "expected"),
    [((), 3, (0, 1, 2)), ((2, 0), 4, (2, 3, 0, 1)), ((1,), 3, (0, 1, 2)), ((2, 1, 0), 3, (2, 1, 0)), ((), 0, ())],
)
def test_layers_that_were_not_traced_follow_the_one_registered_before(traced, num_layers, expected):
    """The completed order holds each layer once, untraced ones behind their neighbor."""
    assert forward_order(traced, num_layers) == expected


def test_branches_that_meet_again_and_again_are_each_looked_at_once():
    """The number of paths grows exponentially there, that of nodes does not."""
    count = 16
    encoder, head = nn.Linear(8, count), nn.Linear(count, 3)
    parts = list(encoder(torch.randn(4, 8)).split(1, dim=1))
    for _ in range(6):
        parts = [torch.cat(parts[:i] + parts[i:], 1).mean(1, keepdim=True) for i in range(count)]
    loss = head(torch.cat(parts, 1)).sum()
    assert read_topology(loss, find_layers(nn.ModuleList([encoder, head]))).order == (0, 1)
