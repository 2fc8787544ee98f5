"""Test ``docs/seed.md``: each number is what the scripts in ``examples/`` measure, and what the formula says."""

from __future__ import annotations

import importlib.util
import math
import re
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[1]


def example(name: str) -> Any:
    """Return a script of the gallery as a module."""
    known = sys.modules.get(f"gallery_{name}")
    if known is not None:
        return known
    spec = importlib.util.spec_from_file_location(f"gallery_{name}", ROOT / "examples" / f"{name}.py")
    module = sys.modules[f"gallery_{name}"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def linear_factors() -> list[float]:
    """S1: signal ``c^l``, delta ``c^(L-l)``, and one and the same dW, ``c^(L-1)``."""
    numbers = []
    for factor in (0.5, 1.5):
        seen, layers = example("linear_factor").measure(factor, 20), np.arange(1, 21)
        np.testing.assert_allclose(seen.signal, factor**layers, rtol=1e-5)
        np.testing.assert_allclose(seen.delta, factor ** (20.0 - layers), rtol=1e-5)
        np.testing.assert_allclose(seen.norms[0], factor**19, rtol=1e-5)
        numbers += [seen.signal[-1], seen.delta[0], seen.norms[0, 0], seen.norms[0, -1]]
    return numbers


def movements() -> list[float]:
    """S2: under SGD and momentum the first layer stands still, under Adam it moves until ``eps`` is the larger."""
    optimizers = example("optimizers")
    watches = [optimizers.watched(make, 7, 61) for make in optimizers.OPTIMIZERS.values()]
    deeper = optimizers.watched(optimizers.OPTIMIZERS["Adam"], 20, 61)
    moved = [float(watch.probes[-1].update_ratio[0]) for watch in (*watches, deeper)]
    # Momentum 0.9 adds up ten times the step.
    assert 3 < moved[1] / moved[0] < 30
    assert moved[2] > 1e4 * moved[1]
    # RMS of the gradient over eps, an upper bound for Adam's share of the learning rate, is 1e-11 there.
    assert moved[3] == 0
    return moved


def slopes_above_one() -> list[float]:
    """S3: the largest slopes on a fine grid, and factors near 1 in spite of them."""
    activations, points = example("activations"), torch.linspace(-8, 8, 16001)
    kinds = (nn.Sigmoid, nn.SELU, nn.GELU, nn.SiLU)
    steepest = [float(activations.slopes(kind(), points).max()) for kind in kinds]
    selu = 1.0507009873554805 * 1.6732632423543772  # lambda times alpha (Klambauer et al., 2017)
    assert steepest[:2] == pytest.approx([0.25, selu], rel=2e-3)
    factors = [activations.factors(kind, activations.he_init_).back for kind in kinds[1:]]
    assert all(0.9 < factor < 1.15 for factor in factors)
    return [*steepest, *factors]


def chi() -> list[float]:
    """S4: the measured factor is the root of chi."""
    activations = example("activations")
    relu = activations.factors(nn.ReLU, None)
    large = activations.factors(nn.Sigmoid, activations.large)
    # A third of 1 / fan_in, times the half of a Gaussian that is above zero.
    assert relu.theory == pytest.approx(math.sqrt(1 / 3 / 2), rel=0.01)
    assert relu.back == pytest.approx(relu.theory, rel=0.05)
    assert large.back == pytest.approx(large.theory, rel=0.1)
    return [relu.back, relu.theory, large.back, large.theory]


def relu_and_its_kin() -> list[float]:
    """S5: slopes of what is negative, dead units, and what default weights leave of the signal."""
    activations, left = example("activations"), torch.tensor([-5.0])
    slopes = [float(activations.slopes(kind(), left)) for kind in (nn.ReLU, nn.LeakyReLU, nn.ELU)]
    assert slopes == pytest.approx([0, 0.01, math.exp(-5)])
    before, after = activations.dead_units(nn.ReLU)
    forward = activations.factors(nn.ReLU, None).forward
    assert forward == pytest.approx(math.sqrt(1 / 6), rel=0.05)
    return [*slopes, after, before, forward]


def initializations() -> list[float]:
    """S6: He keeps ReLU from vanishing and from exploding; Xavier does not keep a sigmoid."""
    script = example("initializations")
    schemes = ("default", "he_init_", "2 x he_init_")
    relu = [script.share(nn.ReLU, 20, script.INITIALIZERS[scheme]) for scheme in schemes]
    sigmoid = script.share(nn.Sigmoid, 20, script.INITIALIZERS["Xavier, LeCun"])
    assert relu[0] == pytest.approx((1 / 6) ** (19 / 2), rel=0.5)
    # The same random numbers, twice as large: exactly 2 for each of the 19 layers on the way.
    assert relu[2] / relu[1] == pytest.approx(2**19, rel=0.2)
    return [*relu, sigmoid]


def first_gradients() -> list[float]:
    """S7: whatever the optimizer, the first gradient is the same to the last bit."""
    optimizers = example("optimizers")
    norms = [optimizers.watched(make, 7, 1).history.norms[0] for make in optimizers.OPTIMIZERS.values()]
    assert all(np.array_equal(norms[0], other) for other in norms)
    return [float(norm[0]) for norm in norms]


def clippers() -> list[float]:
    """S8: the direction stays under the global norm only; NaN stays, and what fades is not made larger."""
    script = example("clipping_compared")
    cosines = [script.train(script.CLIPPERS[name], 1)[1] for name in ("by value 0.01", "by global norm 1")]
    broken = [script.train(clipper, 1, scale=math.nan)[0].history for clipper in script.CLIPPERS.values()]
    faint = [script.train(clipper, 1, stretch=0.3)[0].history for clipper in script.CLIPPERS.values()]
    left = sum(bool(np.isnan(history.clipped_norms).all()) for history in broken)
    return [*cosines, left, len(broken), max(float((each.clipped_norms / each.norms).max()) for each in faint)]


def time() -> list[float]:
    """S9: what reaches the first time step, and norms of dW that do not show it."""
    script = example("recurrent")
    networks = {name: script.along_time(make(), 50) for name, make in script.NETWORKS.items()}
    assert networks["RNN"][0] < 1e-12
    assert networks["RNN"][1] > 0.1
    return [*networks["RNN"], networks["LSTM"][0], networks["RNN, orthogonal x 2"][1]]


def number_formats() -> list[float]:
    """S10: where products and norms leave the number formats, which the formats themselves tell."""
    script = example("linear_factor")
    found = {dtype: script.limits(dtype, depth) for dtype, depth in ((torch.float32, 230), (torch.float16, 30))}
    for dtype, (overflow, underflow) in found.items():
        about = torch.finfo(dtype)
        assert overflow == math.floor(math.log(about.max, 1.5)) + 1
        # Half of the smallest number is rounded to zero.
        assert underflow == round(-math.log2(about.smallest_normal * about.eps)) + 1
    large, small = script.measure(1.5, 120), script.measure(0.5, 90)
    assert (large.torch_norm, small.torch_norm) == (math.inf, 0)
    assert large.global_norm == pytest.approx(math.sqrt(120) * 1.5**119, rel=1e-5)
    assert small.global_norm == pytest.approx(math.sqrt(90) * 0.5**89, rel=1e-5)
    overflows, underflows = zip(*found.values(), strict=True)
    return [*overflows, *underflows, large.global_norm, small.global_norm]


def five_layers() -> list[float]:
    """S11: five layers are harmless."""
    seen = [example("linear_factor").measure(factor, 5, steps=5) for factor in (0.5, 1.5)]
    assert [each.verdict for each in seen] == ["quiet", "quiet"]
    assert [each.signal[-1] for each in seen] == [0.5**5, 1.5**5]
    return [each.signal[-1] for each in seen]


def depth_and_steps() -> list[float]:
    """S12: what grows along depth does not grow over training steps."""
    seen = example("linear_factor").measure(1.5, 20, steps=5)
    return [(seen.delta[0] / seen.delta[-1]) ** (1 / 19), (seen.norms[-1, 0] / seen.norms[0, 0]) ** (1 / 4)]


def cures() -> list[float]:
    """L1: accuracies of a sigmoid stack, plain and cured."""
    names = ("sigmoid", "with LayerNorm", "with BatchNorm", "with residuals")
    accuracies = [example("deep_sigmoid").train(name, 250)[1] for name in names]
    assert max(accuracies[:2]) < 0.2
    assert min(accuracies[2:]) > 0.8
    return accuracies


def gates() -> list[float]:
    """L2: what gates keep, and what an initialization adds."""
    script = example("recurrent")
    names = ("LSTM", "LSTM, orthogonal, forget bias 1", "GRU")
    return [script.along_time(script.NETWORKS[name](), 50)[0] for name in names]


def loss_scaling() -> list[float]:
    """L3: float16 loses what is 25 layers away, unless the loss is scaled."""
    script = example("linear_factor")
    scales = (1.0, 2.0**16)
    return [int((script.measure(0.5, 30, torch.float16, loss_scale=scale).delta == 0).sum()) for scale in scales]


CLAIMS = {
    "S1": linear_factors,
    "S2": movements,
    "S3": slopes_above_one,
    "S4": chi,
    "S5": relu_and_its_kin,
    "S6": initializations,
    "S7": first_gradients,
    "S8": clippers,
    "S9": time,
    "S10": number_formats,
    "S11": five_layers,
    "S12": depth_and_steps,
    "L1": cures,
    "L2": gates,
    "L3": loss_scaling,
}


# Rounding differs from processor to processor. It shows most in what hardly moves, and after many steps.
DRIFT = {"S2": 0.2, "L1": 0.05}


def rows() -> dict[str, str]:
    """Return what stands in the column of measured numbers, for each claim of the page."""
    page = (ROOT / "docs" / "seed.md").read_text()
    return dict(re.findall(r"^\| ([SL]\d+) \|.*\| ([^|]*) \| [^|]*\|$", page, flags=re.MULTILINE))


def number(text: str) -> float:
    """Read a number or a percentage."""
    return float(text.rstrip("%")) / (100 if text.endswith("%") else 1)


def rounding(text: str) -> float:
    """Return half a unit of the last digit that is shown."""
    last = Decimal(text.rstrip("%")).as_tuple().exponent
    return 0.51 * 10.0 ** (last - 2 * text.endswith("%"))


@pytest.mark.no_cover
@pytest.mark.parametrize("claim", CLAIMS)
def test_the_page_names_what_the_scripts_measure(claim):
    """Each number of the row is measured again; none is added, and none stands outside of backticks."""
    cell = rows()[claim]
    assert not re.search(r"\d", re.sub(r"`[^`]*`", "", cell))
    shown, measured = re.findall(r"`([^`]*)`", cell), CLAIMS[claim]()
    assert len(shown) == len(measured), f"{claim} measures {measured}"
    for text, value in zip(shown, measured, strict=True):
        assert abs(number(text) - value) <= rounding(text) + DRIFT.get(claim, 0.01) * value, f"{claim}: {measured}"


def test_every_claim_is_measured():
    """No row of the page is left out."""
    assert list(rows()) == list(CLAIMS)
