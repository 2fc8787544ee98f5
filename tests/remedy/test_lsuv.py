"""Test ``lightning_gradwatch.remedy.lsuv``."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_gradwatch.remedy.lsuv import lsuv_init_


def outputs_of(model: nn.Module, batch, kinds=(nn.Linear, nn.Conv2d)) -> dict[str, torch.Tensor]:
    """Return what each layer gives for a batch, by its name."""
    found, handles = {}, []
    for name, part in model.named_modules():
        if isinstance(part, kinds):
            handles.append(
                part.register_forward_hook(lambda _, __, out, name=name: found.setdefault(name, out.detach()))
            )
    with torch.no_grad():
        model(batch)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.SELU])
def test_every_layer_of_a_deep_net_has_variance_one(activation):
    """Whatever the activation and the scale of the batch, all of 30 layers are within the tolerance."""
    torch.manual_seed(0)
    model = nn.Sequential(*(m for _ in range(30) for m in (nn.Linear(64, 64), activation())))
    batch = 7 * torch.randn(128, 64)
    done = lsuv_init_(model, batch)
    assert all(abs(float(out.var(correction=0)) - 1) < 0.1 for out in outputs_of(model, batch).values())
    assert all(about.scheme == "LSUV" and not about.reason for about in done)


def test_it_is_the_published_algorithm():
    """The weights are those of the paper's loop: orthonormal, then a whole forward pass for each scaling of a layer."""
    model = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 12), nn.GELU(), nn.Linear(12, 3))
    batch = 5 * torch.randn(64, 16)
    expected = copy.deepcopy(model)
    torch.manual_seed(0)
    done = lsuv_init_(model, batch)
    torch.manual_seed(0)
    layers = [0, 2, 4]
    for number in layers:
        nn.init.orthogonal_(expected[number].weight)
        nn.init.zeros_(expected[number].bias)
    scales = []
    for number in layers:
        scales.append(1.0)
        for _ in range(10):
            variance = outputs_of(expected, batch)[str(number)].var(correction=0)
            if abs(variance - 1) < 0.1:
                break
            with torch.no_grad():
                expected[number].weight.div_(variance.sqrt())
            scales[-1] /= float(variance.sqrt())
    assert all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    assert [about.gain for about in done] == pytest.approx(scales, rel=1e-4)
    assert [about.std_after for about in done] == pytest.approx(
        [float(expected[number].weight.detach().square().mean().sqrt()) for number in layers], rel=1e-4
    )


class Branches(nn.Module):
    """A residual net with norms, whose activations are called as functions."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.inside, self.beside = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 2)
        self.calls = 0

    def forward(self, x, *, fail=False):
        self.calls += 1
        x = functional.silu(self.norm(self.stem(x)))
        x = functional.gelu(self.inside(x)) + self.beside(x)
        if fail:
            raise ArithmeticError("on purpose")
        return self.head(functional.dropout(x.mean((2, 3)), 0.5, training=False))


def test_branches_have_variance_one_each():
    """Each layer's own output counts, before norms, sums and activations."""
    torch.manual_seed(0)
    model, batch = Branches(), torch.randn(16, 3, 8, 8)
    lsuv_init_(model, batch)
    found = outputs_of(model, batch)
    assert list(found) == ["stem", "inside", "beside", "head"]
    assert all(abs(float(out.var(correction=0)) - 1) < 0.1 for out in found.values())


def test_it_takes_one_forward_pass_and_one_more_call_of_each_layer():
    """The cost is about two forward passes, whatever the number of layers."""
    calls, passes = [], []

    class Counted(nn.Linear):
        def forward(self, x):
            calls.append(self)
            return super().forward(x)

    model = nn.Sequential(*(m for _ in range(12) for m in (Counted(32, 32), nn.ReLU())))
    model.register_forward_hook(lambda *_: passes.append(1))
    lsuv_init_(model, torch.randn(64, 32))
    assert len(passes) == 1
    assert len(calls) <= 24


@pytest.mark.parametrize("fail", [False, True])
def test_it_leaves_no_trace_but_the_weights(fail):
    """Buffers, gradients, modes, attributes and hooks are as they were; where it fails, weights and draws too."""
    torch.manual_seed(0)
    model, batch = Branches(), torch.randn(16, 3, 8, 8)
    model.stem.weight.grad = gradient = torch.ones_like(model.stem.weight)
    before, drawn = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    if fail:
        with pytest.raises(ArithmeticError, match="on purpose"):
            lsuv_init_(model, {"x": batch, "fail": True})
    else:
        lsuv_init_(model, batch)
    for name, value in model.state_dict().items():
        changed = not fail and not name.startswith("norm.")
        assert torch.equal(value, before[name]) != changed
    assert torch.equal(torch.get_rng_state(), drawn) == fail
    assert model.stem.weight.grad is gradient
    assert model.calls == 0
    assert model.training
    assert not any(part._forward_hooks for part in model.modules())


def test_what_cannot_be_scaled_stays_orthonormal_and_is_told():
    """A constant output, one that is not finite, a layer that is not called, and recurrent layers."""

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.constant, self.infinite = nn.Linear(4, 4), nn.Linear(4, 4)
            self.unused, self.memory = nn.Linear(4, 4), nn.GRU(4, 4)
            self.norm = nn.LayerNorm(4)

        def forward(self, x):
            return self.constant(0 * x), self.infinite(x / 0), self.memory(self.norm(x))

    model = Odd()
    done = {about.layer: about for about in lsuv_init_(model, torch.randn(3, 2, 4))}
    assert {name: about.reason.partition(":")[2].strip()[:20] for name, about in done.items()} == {
        "constant": "its output is consta",
        "infinite": "its output has no fi",
        "unused": "the forward pass did",
        "memory": "another scale would ",
        "norm": "scale 1 and shift 0 ",
    }
    for name in ("constant", "infinite", "unused"):
        weight = model.get_submodule(name).weight.detach()
        assert torch.allclose(weight @ weight.T, torch.eye(4), atol=1e-5)
        assert done[name].gain == 1.0


def test_a_layer_that_stays_far_off_is_told_of():
    """A frozen bias of many scales keeps the variance away from 1, however the weight is scaled."""
    model = nn.Sequential(nn.Linear(4, 4))
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([10.0, -10.0, 5.0, -5.0]))
    model[0].bias.requires_grad_(requires_grad=False)
    (done,) = lsuv_init_(model, torch.randn(32, 4))
    assert "after 10 scalings" in done.reason


def test_a_layer_that_is_used_twice_is_scaled_at_its_first_call():
    """The first output has variance 1."""
    shared = nn.Linear(16, 16)
    model = nn.Sequential(shared, nn.Tanh(), shared)
    batch = 3 * torch.randn(64, 16)
    lsuv_init_(model, batch)
    assert float(shared(batch).detach().var(correction=0)) == pytest.approx(1.0, abs=0.1)


def test_a_persons_own_hook_sees_what_the_layer_gives_in_the_end():
    """Our hook comes first: another one gets the scaled output."""
    seen = []
    model = nn.Sequential(nn.Linear(16, 16))
    model[0].register_forward_hook(lambda _, __, out: seen.append(float(out.detach().var(correction=0))))
    lsuv_init_(model, 9 * torch.randn(64, 16))
    assert seen == [pytest.approx(1.0, abs=0.1)]


def test_complex_weights_are_left_alone():
    """Torch draws no unitary matrices."""
    model = nn.Sequential(nn.Linear(4, 4, dtype=torch.complex64))
    (done,) = lsuv_init_(model, torch.randn(8, 4, dtype=torch.complex64))
    assert (done.changed, done.reason) == (False, "its weight is complex: torch draws no orthogonal ones")
    assert math.isnan(done.gain)


@pytest.mark.parametrize(
    ("module", "kwargs", "what"),
    [
        (nn.Sequential(nn.Linear(2, 2)), {}, "`example_input` must be a batch"),
        (nn.Sequential(nn.LazyLinear(2)), {"example_input": torch.ones(2, 2)}, "lazy parameters"),
        (nn.Linear(2, 2), {"example_input": torch.ones(2, 2), "tolerance": 0.0}, "must be positive. Got 0.0 and 10"),
        (nn.Linear(2, 2), {"example_input": torch.ones(2, 2), "max_iterations": 0}, "must be positive. Got 0.1 and 0"),
    ],
)
def test_what_cannot_be_done_is_refused(module, kwargs, what):
    """Without a batch, with lazy parameters, and with settings that mean nothing, the way out is told."""
    with pytest.raises(ValueError, match=what):
        lsuv_init_(module, **kwargs)


def test_a_compiled_module_is_refused():
    """Its layers run inside one function, where nothing can be scaled."""
    with pytest.raises(ValueError, match=r"before torch\.compile"):
        lsuv_init_(torch.compile(nn.Linear(2, 2), backend="eager"), torch.ones(2, 2))
