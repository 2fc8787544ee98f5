"""Test ``lightning_gradwatch.remedy.edits``."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from treated import Calls

from lightning_gradwatch.remedy.edits import Edits, FunctionCalls


@dataclass(frozen=True)
class Shift:
    """Adds to a weight."""

    by: float

    @property
    def code(self) -> str:
        return f"from torch import nn\nmodel.weight += {self.by}"

    def apply_(self, model: nn.Module) -> None:
        with torch.no_grad():
            model.head.bias += self.by


def test_edits_are_done_in_turn_and_written_with_one_import():
    """All of them, in order; two of a kind are two."""
    model = Calls(depth=1)
    bias = model.head.bias.clone()
    edits = Edits((Shift(1.0), Shift(2.0)))
    edits(model)
    assert torch.equal(model.head.bias, bias + 1 + 2)
    assert edits.code == "from torch import nn\nmodel.weight += 1.0\nmodel.weight += 2.0"


def test_what_only_the_source_can_do_is_refused_before_anything_is_done():
    """The error names function, line and replacement, and what to do then; nothing has been edited."""
    says = "torch.sigmoid(...) -> torch.relu(...)"
    calls = FunctionCalls({"sigmoid": "relu"}, ("layers.0",), ("a.py:3", "b.py:4"), says)
    model = Calls(depth=1)
    bias = model.head.bias.clone()
    edits = Edits((Shift(1.0),), calls)
    with pytest.raises(ValueError, match=r"a.py:3, b.py:4 calls? sigmoid .*then initialize with the lines"):
        edits.apply_(model)
    assert torch.equal(model.head.bias, bias)
    assert edits.code.split("\n")[:2] == [f"# in a.py:3: {says}", f"# in b.py:4: {says}"]
    with pytest.raises(ValueError, match=r"the model calls sigmoid as a function.*relu\(...\)$"):
        Edits(calls=FunctionCalls({"sigmoid": "relu"}, ("layers.0",), says=says)).apply_(model)


def test_a_trial_does_both_as_long_as_it_lasts():
    """Edits are done to the copy and functions swapped; afterwards the functions are the model's own again."""
    model, x = Calls(depth=1), torch.randn(4, 8)
    edits = Edits((Shift(1.0),), FunctionCalls({"sigmoid": "relu"}, ("layers.0",)))
    with edits.tried(model):
        tried = model(x)
    assert torch.equal(tried, model.head(model.layers[0](x).relu()))
    assert torch.equal(model(x), model.head(model.layers[0](x).sigmoid()))


def test_a_trial_without_functions_is_an_edit():
    """It is done once, and stays."""
    model = Calls(depth=1)
    bias = model.head.bias.clone()
    with Edits((Shift(1.0),)).tried(model):
        assert torch.equal(model.head.bias, bias + 1)
    assert torch.equal(model.head.bias, bias + 1)
