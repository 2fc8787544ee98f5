"""Test ``lightning_gradwatch.remedy.copying``."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from lightning_gradwatch.remedy import copying
from lightning_gradwatch.remedy.copying import NotCopiedError, copy_of


def small() -> nn.Module:
    """Return a model of two layers that has been used."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.LSTM(2, 2))
    model[1](model[0](torch.ones(3, 2))).sum().backward()
    return model


class OwnCopy:
    """An object that calls itself its own copy."""

    def __init__(self) -> None:
        self.state = 1

    def __deepcopy__(self, memo: Any) -> OwnCopy:
        return self


def test_a_copy_is_equal_and_apart():
    """Parameters, buffers and attributes are the same, and a change of the copy does not reach the model."""
    model = small()
    model.kept = {"seen": [torch.zeros(1)]}
    gradient, before = model[0].weight.grad, {k: v.clone() for k, v in model.state_dict().items()}
    copied = copy_of(model)
    assert all(torch.equal(value, before[name]) for name, value in copied.state_dict().items())
    assert all(parameter.grad is None for parameter in copied.parameters())
    assert model[0].weight.grad is gradient
    with torch.no_grad():
        for tensor in copied.state_dict().values():
            tensor.zero_()
    copied.kept["seen"][0].add_(1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert float(model.kept["seen"][0]) == 0


def a_file(tmp_path: Any) -> Any:
    return (tmp_path / "x").open("w")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda _: threading.Lock(), r"held \(lock\) cannot be copied: TypeError: cannot pickle '_thread.lock' object"),
        (a_file, r"held \(TextIOWrapper\) cannot be copied"),
        (lambda _: (i for i in range(3)), r"held \(generator\) cannot be copied"),
        (lambda _: [2 * torch.ones(1, requires_grad=True)], r"held\[0\] is a tensor with a graph.*\.detach\(\)"),
        (lambda _: OwnCopy(), "would share held with the model"),
    ],
)
def test_what_cannot_be_copied_is_named(make, says, tmp_path):
    """The reason has the attribute's name and, where torch or python gave one, theirs."""
    model = small()
    model.held = held = make(tmp_path)
    with pytest.raises(NotCopiedError, match=says):
        copy_of(model)
    getattr(held, "close", lambda: None)()


def test_a_function_that_holds_the_model_is_not_shared():
    """A hook that has closed over the model, or over a list of its own, would act on the original."""
    model, outputs = small(), []
    model[0].register_forward_hook(lambda *args: outputs.append(args[-1]))
    with pytest.raises(NotCopiedError, match="would share"):
        copy_of(model)
    assert outputs == []
    model = small()
    model.look = lambda: model[0].weight
    with pytest.raises(NotCopiedError, match="would share look"):
        copy_of(model)
    model = small()
    model.back = weakref.ref(model)
    with pytest.raises(NotCopiedError, match="would share back"):
        copy_of(model)


def test_functions_without_a_state_may_be_shared():
    """As transformers keep their activation."""
    model = nn.TransformerEncoderLayer(4, 2, 4, activation=nn.functional.gelu)
    model.call, model.kind, model.kinds = torch.relu, nn.Linear, (int, "text", torch.float32)
    assert copy_of(model).call is torch.relu


def test_a_model_that_is_too_large_is_not_copied(monkeypatch):
    """The bound, what it is a share of, and where, are told; with room enough there is a copy."""
    model = nn.Linear(2**18, 1, bias=False)
    monkeypatch.setattr(copying, "bytes_free", lambda _: 7 * 2**20)
    with pytest.raises(NotCopiedError, match="would take 4 MiB on cpu, more than 50% of the 7 MiB that are free"):
        copy_of(model)
    assert copy_of(model, free_share=0.9).weight.shape == model.weight.shape
    model.table = torch.zeros(2**20)
    with pytest.raises(NotCopiedError, match="would take 8 MiB"):
        copy_of(model, free_share=0.9)


def test_compiled_scripted_and_meta_models_are_not_copied():
    """Each is refused in words before anything is done."""
    with pytest.raises(NotCopiedError, match="compiled"):
        copy_of(torch.compile(nn.Linear(1, 1), backend="eager"))
    with pytest.raises(NotCopiedError, match="device meta"):
        copy_of(nn.Linear(1, 1, device="meta"))


@pytest.mark.parametrize("name", ["", "a.library"])
def test_a_logger_of_the_standard_library_is_shared(name):
    """Most people keep one, with handlers and filters that a copy would have to share; the copy speaks by the same."""
    speaker = logging.getLogger(name or None)
    kept = logging.Filter()
    speaker.addFilter(kept)
    try:
        model = small()
        model.txt = speaker
        assert copy_of(model).txt is speaker
    finally:
        speaker.removeFilter(kept)


class Torn(list[int]):
    """A list that can be copied and not be gone through."""

    def __init__(self, message: str = "torn") -> None:
        self.message = message

    def __iter__(self) -> Iterator[int]:
        raise OSError(self.message)

    def __deepcopy__(self, memo: Any) -> Torn:
        return Torn(self.message)


def test_what_cannot_be_gone_through_is_told():
    """An error of a person's own object is a reason, not an end."""
    model = small()
    model.held = Torn()
    with pytest.raises(NotCopiedError, match="cannot be gone through: OSError: torn"):
        copy_of(model)
