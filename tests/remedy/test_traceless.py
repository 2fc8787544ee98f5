"""Test ``lightning_gradwatch.remedy.traceless``."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gradwatch.remedy.traceless import call, traceless


class Messy(nn.Module):
    """Changes everything that a forward pass can change."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("later", None)
        self.count, self.seen, self.named, self.total = 0, [1], {"a": 1}, torch.zeros(2)
        self.dropped = "here"

    def forward(self, x, *, fail=False):
        self.count += 1
        self.seen.append(x)
        self.named.clear()
        self.total += 1
        self.kept = self.norm(self.fc(x))
        self.replaced = torch.ones(2)
        self.later = torch.ones(1)
        self.made = nn.Linear(1, 1)
        self.own = nn.Parameter(torch.ones(1))
        del self.dropped
        self.eval()
        torch.rand(1), np.random.default_rng().random(), random.random(), np.random.rand()  # noqa: NPY002
        if fail:
            raise ArithmeticError("on purpose")
        return self.kept


def state_of(module: nn.Module) -> dict:
    """Return all that can be compared of a module."""
    attributes = {k: copy.copy(v) for k, v in vars(module).items() if not k.startswith("_") and k != "total"}
    parts = {k: dict(vars(module)[k]) for k in ("_parameters", "_buffers", "_modules")}
    return {"attributes": attributes, **parts, "training": [part.training for part in module.modules()]}


@pytest.mark.parametrize("fail", [False, True])
def test_a_forward_pass_leaves_no_trace(fail):
    """Buffers, attributes, parts, modes and random states are as they were, also after an error."""
    module = Messy()
    before, ids = state_of(module), {name: id(buffer) for name, buffer in module.named_buffers()}
    values = copy.deepcopy(module.state_dict())
    random_states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    try:
        with traceless(module):
            call(module, {"x": torch.randn(8, 4), "fail": fail})
    except ArithmeticError:
        assert fail
    assert state_of(module) == before
    assert not module.total.any()
    assert {name: id(buffer) for name, buffer in module.named_buffers()} == ids
    assert all(torch.equal(value, values[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == random_states[1:]  # noqa: NPY002
    copy.deepcopy(module)


def test_a_scripted_module_gets_its_buffers_back():
    """What TorchScript keeps out of reach is left alone."""
    with pytest.warns(DeprecationWarning, match="script"):
        module = torch.jit.script(nn.BatchNorm1d(2))
    with traceless(module):
        module(torch.randn(8, 2))
    assert module.running_mean.tolist() == [0.0, 0.0]


def test_an_example_is_one_argument_several_or_named_ones():
    """A tuple is spread, a mapping names, everything else is the argument itself."""

    class Takes(nn.Module):
        def forward(self, *args, **kwargs):
            return args, kwargs

    assert call(Takes(), (1, 2)) == ((1, 2), {})
    assert call(Takes(), {"x": 1}) == ((), {"x": 1})
    assert call(Takes(), [1, 2]) == (([1, 2],), {})


def test_lazy_buffers_and_scripted_modes_are_no_obstacle():
    """A lazy one has no numbers that could be kept; the mode of a scripted module is put back."""
    lazy = nn.LazyBatchNorm1d()
    with traceless(lazy):
        lazy.eval()
    assert lazy.training
    with pytest.warns(DeprecationWarning, match="script"):
        scripted = torch.jit.script(nn.BatchNorm1d(2))
    with traceless(scripted):
        scripted.eval()
    assert scripted.training


@pytest.mark.parametrize(
    ("make", "draw"),
    [
        (torch.Generator, lambda it: torch.rand((), generator=it).item()),
        (lambda: np.random.default_rng(1), lambda it: it.random()),
        (lambda: np.random.Generator(np.random.MT19937(1)), lambda it: it.random()),
        (lambda: np.random.RandomState(1), lambda it: it.rand()),
        (lambda: random.Random(1), lambda it: it.random()),
    ],
)
def test_a_generator_of_the_models_own_is_put_back(make, draw):
    """The next draw is what it would have been."""
    model, twin = nn.Linear(1, 1), make()
    model.random = make()
    draw(model.random), draw(twin)
    with traceless(model):
        draw(model.random)
    assert draw(model.random) == draw(twin)


def test_a_generator_without_a_state_is_left_alone():
    """The system's own has none that could be put back."""
    model = nn.Linear(1, 1)
    model.random = random.SystemRandom()
    own = model.random
    with traceless(model):
        assert 0 <= model.random.random() < 1
    assert model.random is own
