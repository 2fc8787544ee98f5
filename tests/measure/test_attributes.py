"""Test ``lightning_gradwatch.measure.attributes``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from lightning_gradwatch.measure.attributes import attributes_of


class Slotted:
    """Keeps its attributes without a dictionary."""

    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held


def paths(model: Any, wanted: Any) -> list[str]:
    """Return the paths that lead to an object."""
    return [path for path, value in attributes_of(model) if value is wanted]


def test_whatever_holds_a_tensor_leads_to_it():
    """Attributes, lists, dictionaries, sets, slots, partial functions, bound methods and closures are followed."""
    tensor, model = torch.zeros(1), nn.Linear(1, 1)

    def peek() -> torch.Tensor:
        return tensor

    holders = {
        "kept": tensor,
        "several": [(1, {"last": tensor})],
        "slots": Slotted(tensor),
        "call": partial(torch.add, tensor),
        "hook": peek,
        "default": lambda value=tensor: value,
        "method": Slotted(tensor).__init__,
    }
    for name, holder in holders.items():
        model = nn.Linear(1, 1)
        setattr(model, name, holder)
        (path,) = paths(model, tensor)
        assert path.startswith(name)


def test_a_module_that_refers_to_itself_is_walked_once():
    """Rings end, and every object comes once."""
    model = nn.Sequential(nn.Linear(1, 1))
    model.__dict__["again"] = model
    model[0].__dict__["parent"] = [model]
    found = [id(value) for _, value in attributes_of(model)]
    assert len(found) == len(set(found))
    assert paths(model, model) == [""]
    assert paths(model, model[0].weight) == ["0.weight"]


def test_the_trainer_of_a_module_is_not_looked_into():
    """LightningModules leave it out of their own copies."""
    model = nn.Linear(1, 1)
    model.__dict__["_trainer"] = held = Slotted(1)
    assert paths(model, held) == []


def test_global_tensors_of_a_function_are_found():
    """A lambda in a notebook closes over nothing: its names are global."""
    tensor, space = torch.zeros(1), {"torch": torch}
    space["kept"] = tensor
    model = nn.Linear(1, 1)
    model.hook = eval("lambda *args: kept.add_(1)", space)
    assert paths(model, tensor) == ["hook"]


def test_a_logger_is_not_looked_into():
    """It is the whole process's own: what its handlers hold is not the model's."""
    tensor, model, kept = torch.zeros(1), nn.Linear(1, 1), logging.Filter()
    kept.held = tensor
    model.speaker = logging.getLogger("a.library")
    model.speaker.addFilter(kept)
    try:
        assert paths(model, model.speaker) == ["speaker"]
        assert paths(model, tensor) == []
    finally:
        model.speaker.removeFilter(kept)


class Store(Mapping[str, Any]):
    """A mapping behind which there is no dictionary but, say, a file that is closed."""

    def __getitem__(self, key: str) -> Any:
        raise RuntimeError("closed")

    __iter__ = __len__ = __getitem__


def test_only_dictionaries_are_gone_through():
    """What a foreign mapping does when it is read nobody knows; its attributes are followed as those of any object."""
    tensor, model = torch.zeros(1), nn.Linear(1, 1)
    model.store = Store()
    model.store.held = tensor
    assert paths(model, tensor) == ["store.held"]
