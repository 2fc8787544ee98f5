"""Test ``lightning_gradwatch.remedy.places``."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from torch import nn
from treated import paste

from lightning_gradwatch.remedy.places import Line, in_loops, is_chain, places_in, set_module_, written


def test_a_module_in_several_places_is_found_in_each_but_its_inside_once():
    """What is inside a shared block has one place: who changes it there changes it everywhere."""
    block = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model = nn.ModuleDict({"a": block, "b": block, "act": nn.ModuleList([block[1]])})
    assert [(place.path, place.behind) for place in places_in(model)] == [
        ("a", ""),
        ("a.0", ""),
        ("a.1", "a.0"),
        ("b", "a.0"),
        ("act", "a.0"),
        ("act.0", "a.0"),
    ]


def test_empty_places_are_passed_over():
    """A module that is None is none."""
    model = nn.Sequential(nn.ReLU())
    model.nothing = None
    model.register_module("also", None)
    assert [place.path for place in places_in(model)] == ["0"]


NAMES = OrderedDict({"fc": nn.Identity(), "a-b": nn.Identity(), "class": nn.Identity(), "3": nn.Identity()})


@pytest.mark.parametrize(
    "path", ["net.0", "net.1", "named.fc", "named.a-b", "named.class", "named.3", "table.x y", "list.1"]
)
def test_what_is_written_is_the_place(path):
    """The expression gives the module, and the line puts another one there."""
    model = nn.Module()
    model.net = nn.Sequential(nn.Identity(), nn.Identity())
    model.named = nn.Sequential(NAMES)
    model.table = nn.ModuleDict({"x y": nn.Identity()})
    model.list = nn.ModuleList([nn.Identity(), nn.Identity()])
    module = model.get_submodule(path)
    assert eval(written(model, path), {"model": model}) is module
    order = [name for name, _ in model.named_modules()]
    paste("from torch import nn\n" + "\n".join(in_loops([Line(("{0} = nn.Tanh()",), (written(model, path),))])), model)
    assert isinstance(model.get_submodule(path), nn.Tanh)
    assert [name for name, _ in model.named_modules()] == order
    set_module_(model, path, module)
    assert model.get_submodule(path) is module


def test_loops_count_the_last_index_and_its_neighbors():
    """Places one further on are written so; what differs elsewhere is a loop or a line of its own."""
    swap = Line(("{0} = f({1})",), ("model.a[1].b[2].c", "model.a[1].b[3].d"))
    again = Line(("{0} = f({1})",), ("model.a[1].b[4].c", "model.a[1].b[5].d"))
    other = Line(("{0} = f({1})",), ("model.a[0].b[4].c", "model.e"))
    before = Line(("{0} = f({1})",), ("model.a[3]", "model.a[2]"))
    twice = Line(("{0} = f({1})",), ("model.a[5]", "model.a[4]"))
    assert in_loops([swap, other, again, before, twice]) == [
        "for number in [2, 4]:",
        "    model.a[1].b[number].c = f(model.a[1].b[number + 1].d)",
        "model.a[0].b[4].c = f(model.e)",
        "for number in [3, 5]:",
        "    model.a[number] = f(model.a[number - 1])",
    ]


def test_a_long_loop_is_broken():
    """No line is longer than what a card shows."""
    lines = in_loops([Line(("{0} = 0",), (f"model[{number}]",)) for number in range(100)])
    assert max(map(len, lines)) <= 100
    assert lines[0] == "for number in ["


def test_a_chain_calls_its_children_in_order():
    """A subclass is one as long as it leaves the forward."""

    class Named(nn.Sequential):
        pass

    class Own(nn.Sequential):
        def forward(self, x):
            return x

    assert is_chain(Named())
    assert not is_chain(Own())
