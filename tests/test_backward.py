"""Test ``lightning_gradwatch.backward``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import healthy_net

from lightning_gradwatch import GradWatch
from lightning_gradwatch.backward import Backward


class Notes:
    """Writes down what it hears."""

    def __init__(self):
        self.heard = []

    def before_backward(self, loss):
        self.heard.append(("before", loss.grad_fn is not None))

    def after_backward(self):
        self.heard.append("after")


def loss_of(kind: type[torch.Tensor] = torch.Tensor) -> Any:
    """Return a loss of some class."""
    return torch.ones(2).as_subclass(kind).requires_grad_().sum()


class Own(torch.Tensor):
    """A subclass, whose methods torch calls by way of ``__torch_function__``."""


@pytest.mark.parametrize("kind", [torch.Tensor, Own])
def test_each_call_is_told_once_before_and_once_after(kind):
    """Also of a subclass, whose method torch calls a second time from inside."""
    notes = Notes()
    Backward.listen(notes)
    try:
        loss_of(kind).backward()
    finally:
        Backward.leave(notes)
    assert notes.heard == [("before", True), "after"]


def test_the_method_is_what_it_was_when_the_last_listener_has_left():
    """Two listen; who leaves hears nothing more, and leaving twice does no harm."""
    before, first, second = torch.Tensor.backward, Notes(), Notes()
    Backward.listen(first)
    Backward.listen(second)
    Backward.leave(first)
    Backward.leave(first)
    assert torch.Tensor.backward is not before
    loss_of().backward()
    Backward.leave(second)
    assert torch.Tensor.backward is before
    loss_of().backward()
    assert (first.heard, second.heard) == ([], [("before", True), "after"])


def test_a_backward_pass_that_fails_leaves_the_next_one_heard():
    """What went wrong inside is not taken for a call from inside for ever."""
    notes = Notes()
    Backward.listen(notes)
    try:
        with pytest.raises(RuntimeError, match="does not require grad"):
            torch.ones(()).backward()
        loss_of().backward()
    finally:
        Backward.leave(notes)
    assert notes.heard == [("before", False), ("before", True), "after"]


def test_a_function_that_somebody_put_around_backward_stays():
    """What another library has put over ours in the meantime is not thrown away; ours then only passes calls on."""
    net = healthy_net()
    optimizer, original, calls = torch.optim.SGD(net.parameters(), lr=0.1), torch.Tensor.backward, []
    try:
        with GradWatch().attach(net, optimizer):
            ours = torch.Tensor.backward

            def theirs(self: torch.Tensor, *args: Any, **kwargs: Any) -> None:
                calls.append(self)
                ours(self, *args, **kwargs)

            torch.Tensor.backward = theirs
        assert torch.Tensor.backward is theirs
        net(torch.ones(4, 8)).sum().backward()
        assert len(calls) == 1
    finally:
        torch.Tensor.backward = original
