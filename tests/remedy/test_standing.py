"""Test ``lightning_gradwatch.remedy.standing``."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from lightning_gradwatch.measure.layers import find_layers, stray_layers
from lightning_gradwatch.remedy.standing import WeightStanding, measure_standing, refusal_of, tied_parameters


def stand(model: nn.Module) -> tuple[WeightStanding, ...]:
    """Measure the standing of all layers of a model."""
    return measure_standing(find_layers(model), tied_parameters(model))


def test_the_formulas_are_those_of_the_papers():
    """He sqrt(2 / fan_in), Xavier sqrt(2 / (fan_in + fan_out)), LeCun sqrt(1 / fan_in), a kernel counted in both."""
    (standing,) = stand(nn.Conv2d(3, 8, (2, 5)))
    assert standing.he == pytest.approx(math.sqrt(2 / 30))
    assert standing.xavier == pytest.approx(math.sqrt(2 / (30 + 80)))
    assert standing.lecun == pytest.approx(math.sqrt(1 / 30))


def test_the_standard_deviation_is_around_zero():
    """A constant weight has its value as standard deviation, whatever its dtype."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        layer = nn.Linear(300, 300, dtype=dtype)
        nn.init.constant_(layer.weight, 0.5)
        assert stand(layer)[0].std == pytest.approx(0.5)
    layer = nn.Linear(4, 4, dtype=torch.complex64)
    with torch.no_grad():
        layer.weight.fill_(3 + 4j)
    assert stand(layer)[0].std == pytest.approx(5.0)


def test_half_precision_weights_do_not_overflow():
    """The squares of large float16 weights are summed in float32."""
    layer = nn.Linear(300, 300, dtype=torch.float16)
    nn.init.constant_(layer.weight, 1000.0)
    assert stand(layer)[0].std == pytest.approx(1000.0, rel=1e-3)


def test_layers_without_one_weight_matrix_are_left_out():
    """Norms, recurrent layers, embeddings and strays have no standing; a stray module-less layer neither."""
    model = nn.Sequential(nn.LayerNorm(3), nn.LSTM(3, 3), nn.Embedding(3, 3), nn.EmbeddingBag(3, 3), nn.PReLU())
    layers = find_layers(model)
    assert measure_standing(layers + stray_layers(layers, [nn.Parameter(torch.ones(2, 2))])) == ()


class Sharded(nn.Parameter):
    """Stands for a DTensor, which only a process group can make."""

    def detach(self):
        return self

    def full_tensor(self):
        raise AssertionError("a collective was called")


def refused() -> list[tuple[str, nn.Module]]:
    """Return models whose first layer may not be initialized anew, with the reason."""
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    sharded = nn.Linear(3, 3)
    sharded.weight = Sharded(torch.ones(3, 3))
    return [
        ("parametrized", nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3)))),
        ("parametrized", nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 3)))),
        ("lazy", nn.Sequential(nn.LazyLinear(3))),
        ("tied", tied),
        ("frozen", nn.Sequential(nn.Linear(3, 3).requires_grad_(requires_grad=False))),
        ("DTensor", sharded),
    ]


@pytest.mark.parametrize(
    ("reason", "model"), refused(), ids=["weight norm", "spectral norm", "lazy", "tied", "frozen", "dtensor"]
)
def test_what_may_not_be_initialized_is_refused_with_its_reason(reason, model):
    """Each refusal says why, and measuring runs no parametrization and no collective."""
    buffers = [buffer.clone() for buffer in model.buffers()]
    assert reason in stand(model)[0].refusal
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))


def test_a_weight_that_is_not_seen_has_no_numbers():
    """Behind a parametrization, or before the first forward pass, nothing is claimed of the weight."""
    for reason, model in refused():
        standing = stand(model)[0]
        unknown = reason in ("parametrized", "lazy")
        assert math.isnan(standing.he) == unknown
        assert math.isnan(standing.std) == (unknown or reason == "DTensor")


def test_a_weight_that_pruning_computes_since_is_refused():
    """A layer that was found before it was pruned has a computed weight now."""
    model = nn.Linear(3, 3)
    layers = find_layers(model)
    prune.l1_unstructured(model, "weight", amount=2)
    assert "computed" in measure_standing(layers)[0].refusal


def test_only_what_is_held_twice_is_tied():
    """A parameter held once is not tied; a missing bias is no parameter."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2))
    assert tied_parameters(model) == frozenset()
    model[0].twice = model[0].weight
    assert tied_parameters(model) == {id(model[0].weight)}


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(64, 32), nn.Linear(4, 4), nn.Conv2d(8, 16, 3), nn.Conv2d(8, 16, 3, groups=4), nn.Conv1d(3, 300, 5)],
    ids=["linear", "small", "conv", "grouped", "wide"],
)
def test_pytorchs_default_is_known_and_other_weights_are_not(layer):
    """What ``reset_parameters`` draws is the default for many seeds; normal, scaled and trained weights are not."""
    for seed in range(20):
        torch.manual_seed(seed)
        layer.reset_parameters()
        assert stand(layer)[0].at_default
    std = stand(layer)[0].std
    for fill in (
        lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"),
        lambda w: w.mul_(2.5),
        lambda w: w.mul_(0.4),
        nn.init.zeros_,
    ):
        torch.manual_seed(0)
        layer.reset_parameters()
        with torch.no_grad():
            fill(layer.weight)
        assert not stand(layer)[0].at_default
    assert std == pytest.approx(math.sqrt(1 / (3 * layer.weight[0].numel())), rel=0.3)


def test_normal_weights_of_the_same_spread_are_not_the_default():
    """The default has no number beyond its bound; GPT-2's normal 0.02 lies near its spread at width 768."""
    layer = nn.Linear(768, 768)
    nn.init.normal_(layer.weight, std=math.sqrt(1 / (3 * 768)))
    assert not stand(layer)[0].at_default


def test_a_transposed_convolution_has_no_default_to_speak_of():
    """It is drawn the same way, but as many inputs do not meet in one of its outputs."""
    assert not stand(nn.ConvTranspose2d(8, 16, 3))[0].at_default


def test_a_leaky_slope_is_counted_by_he_alone():
    """He gives sqrt(2 / ((1 + a^2) fan_in)) before a leaky ReLU; Xavier and LeCun do not know of it."""
    (plain,) = stand(nn.Linear(50, 30))
    leaky = plain.leaking(0.5)
    assert leaky.he == pytest.approx(math.sqrt(2 / (1.25 * 50)))
    assert (leaky.xavier, leaky.lecun, leaky.slope) == (plain.xavier, plain.lecun, 0.5)
    assert plain.leaking(0.0) is plain


def test_weights_without_numbers_are_refused():
    """Whole numbers, as quantized weights are kept, and weights on the meta device cannot be drawn."""
    quantized = nn.Linear(3, 3)
    quantized.weight = nn.Parameter(torch.zeros(3, 3, dtype=torch.int8), requires_grad=False)
    with torch.device("meta"):
        empty = nn.Linear(3, 3)
    assert "quantized" in refusal_of(quantized, "weight", quantized.weight)
    assert "meta" in refusal_of(empty, "weight", empty.weight)
