"""Test ``lightning_gradwatch.attachable``."""

from __future__ import annotations

import pytest
import torch
from models import healthy_net
from torch import nn

from lightning_gradwatch import GradWatch


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    """Return an optimizer of a network."""
    return torch.optim.SGD(net.parameters(), lr=0.1)


def make_step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Train for one step."""
    net(torch.ones(4, 8)).sum().backward()
    optimizer.step()


def test_what_does_not_belong_together_is_refused_before_anything_is_changed():
    """Each mistake is named with the way out, and leaves no hook behind."""
    net, other = healthy_net(), healthy_net()
    with torch.device("meta"):
        unborn = nn.Linear(2, 2)
    optimizer = sgd(net)
    cases = [
        (net, sgd(other), ValueError, "belong to something else"),
        (unborn, sgd(unborn), ValueError, "meta device"),
        (net, [], ValueError, "empty list"),
        (net, [optimizer, optimizer], ValueError, "the same one twice"),
        (lambda x: x, optimizer, TypeError, "must be a torch.nn.Module"),
        (net, ["adam"], TypeError, "must be a torch.optim.Optimizer"),
    ]
    for model, optimizers, kind, words in cases:
        with pytest.raises(kind, match=words), GradWatch().attach(model, optimizers):
            pass
    with pytest.raises(ValueError, match="examine"), GradWatch(rehearse=True).attach(net, optimizer):
        pass
    assert not optimizer._optimizer_step_pre_hooks
    assert not hasattr(torch.Tensor.backward, "_gradwatch")


class Wrapper(torch.optim.Optimizer):
    """As Lookahead is built in several libraries: an optimizer of torch's by its class alone."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.param_groups, self.state = inner, inner.param_groups, inner.state


def test_an_optimizer_that_tells_nobody_of_its_steps_is_refused():
    """It has no hooks that could be called; the way out is the optimizer inside it."""
    net = healthy_net()
    optimizer = sgd(net)
    refused = pytest.raises(TypeError, match=r"This Wrapper tells nobody of its steps.* Pass the optimizer inside it")
    with refused, GradWatch().attach(net, [optimizer, Wrapper(optimizer)]):
        pass
    assert not optimizer._optimizer_step_pre_hooks


def test_the_same_optimizer_twice_is_refused():
    """Two blocks around one optimizer would read and clip everything twice."""
    net = healthy_net()
    optimizer = sgd(net)
    with GradWatch().attach(net, optimizer):
        with pytest.raises(ValueError, match="watched already"), GradWatch().attach(net, optimizer):
            pass
        make_step(net, optimizer)
    with GradWatch().attach(net, optimizer) as watch:
        make_step(net, optimizer)
    with pytest.raises(ValueError, match="belong to something else"), watch.attach(healthy_net(), optimizer):
        pass
    # What was seen before a mistake is still there.
    assert len(watch.history.steps) == 1
