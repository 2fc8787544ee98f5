"""Test ``lightning_gradwatch.measure.cuts``."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everywhere

from lightning_gradwatch.measure.cuts import MAX_NODES, CutTensors, node_of
from lightning_gradwatch.measure.functions import ActivationCalls

RAW = torch.arange(6.0).reshape(2, 3) + 1


class Followed:
    """Cut tensors that are told of everything that torch does in a ``with`` block."""

    def __init__(self) -> None:
        self.cuts = CutTensors()
        self.mode = ActivationCalls(lambda *_: None, self.cuts.note, pytest.fail)

    def __enter__(self) -> CutTensors:
        self.mode.listen()
        return self.cuts

    def __exit__(self, *error: object) -> None:
        self.mode.rest()


def layer_in(cuts: CutTensors, column: int, *, given: Tensor = RAW) -> Tensor:
    """Return the output of a new layer, which is told of."""
    output = nn.Linear(3, 3)(given)
    cuts.mark((given,), output, column)
    return output


def origins_of(make: Callable[..., Any], *columns: int) -> set[int]:
    """Return the layers that something is told to stem from, which is made of layers' outputs, or of a raw batch."""
    torch.manual_seed(0)
    with Followed() as cuts:
        made = make(*[layer_in(cuts, column) for column in columns] or [RAW.clone()])
    return set(cuts.origins(made))


def without_graph(make: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """Return the same function under ``torch.no_grad``."""

    def run(x: Tensor) -> Any:
        with torch.no_grad():
            return make(x)

    return run


def written(target: Tensor, values: Tensor) -> Tensor:
    """Write to a part of a tensor, which returns nothing."""
    target[:, 1:] = values[:, 1:]
    return target


def inferred(x: Tensor) -> Tensor:
    """Compute in inference mode."""
    with torch.inference_mode():
        return x * 2


CUTS = {
    "detach": lambda x: x.detach(),
    "data": lambda x: x.data,
    "no_grad": without_graph(lambda x: x * 2),
    "inference_mode": inferred,
    "argmax": lambda x: F.one_hot(x.argmax(1), 3).float(),
    "comparison": lambda x: (x > 0).float(),
    "activation under no_grad": without_graph(torch.relu),
    "numpy": lambda x: torch.from_numpy(x.detach().numpy()),
    "numpy under no_grad": without_graph(lambda x: torch.from_numpy(x.numpy())),
    "part of a numpy array": lambda x: torch.from_numpy(x.detach().numpy()[1:, 1:]),
    "copy of a numpy array": lambda x: torch.tensor(x.detach().numpy()),
    "numpy.asarray": lambda x: torch.as_tensor(np.asarray(x.detach())),
    "operation behind numpy": lambda x: torch.from_numpy(x.detach().numpy()).double() * 2 + 1,
    "operation in place in numpy": lambda x: torch.from_numpy(np.tanh(a := x.detach().numpy(), out=a)),
    "clone": lambda x: x.detach().clone(),
    "view": lambda x: x.detach().view(-1).unflatten(0, (3, 2)),
    "index": lambda x: x.detach()[:, 1:],
    "cat": lambda x: torch.cat([RAW, x.detach()]),
    "stack": lambda x: torch.stack([x.detach(), RAW]),
    "split": lambda x: x.detach().split(1)[1],
    "arithmetic": lambda x: 1 - RAW / x.detach(),
    "named argument": lambda x: torch.add(input=RAW, other=x.detach()),
    "dtype": lambda x: x.detach().double().to(torch.float32),
    "in place": lambda x: RAW.clone().add_(x.detach()),
    "copy_": lambda x: torch.zeros(2, 3).copy_(x.detach()),
    "out": lambda x: torch.add(RAW, x.detach(), out=torch.empty(2, 3)),
    "part written": lambda x: written(torch.zeros(2, 3), x.detach()),
    "sparse": lambda x: x.detach().to_sparse(),
    "sparse and back": lambda x: (x.detach().to_sparse() * 2).to_dense(),
    "in a tuple": lambda x: (RAW, [x.detach()]),
    "in a dictionary": lambda x: {"raw": RAW, "out": x.detach(), "number": 3},
    "indices of a maximum": lambda x: x.max(1).indices,
}


@pytest.mark.parametrize("name", CUTS)
def test_what_lost_the_way_back_is_cut(name):
    """However a result comes off the graph, its layer stays known; the same of a raw batch is not cut."""
    assert origins_of(CUTS[name], 7) == {7}
    assert origins_of(CUTS[name]) == set()


WHOLE = {
    "graph": lambda x: x * 2,
    "straight through": lambda x: x + (x.round() - x).detach(),
    "noise": lambda x: x + torch.randn_like(x) * x.detach(),
    "one branch": lambda x: torch.cat([x, x.detach()]),
    "part written": lambda x: written(x.detach() * 1, x),
    "same shape": torch.zeros_like,
    "new": lambda x: x.new_ones(2, 3),
    "same type": lambda x: RAW.type_as(x).to(x).expand_as(x).view_as(x),
    "shape": lambda x: torch.ones(x.shape) * x.size(0) * x.ndim,
    "raw": lambda _: RAW.log() + RAW.argmax(1, keepdim=True),
    "nothing": lambda x: [None, 3, "text", x.shape],
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_has_its_way_back_and_what_never_had_one_is_not_cut(name):
    """Straight-through estimators keep their gradient, and what takes only a shape has none to lose."""
    assert origins_of(WHOLE[name], 7) == set()


# ---- which layers it stems from

SEVERAL = {
    "one of two": (lambda x, _: x.detach(), {1}),
    "cut, then joined": (lambda x, y: x.detach() + y.data, {1, 2}),
    "joined, then cut": (lambda x, y: torch.cat([x.relu(), y]).detach(), {1, 2}),
    # What has a graph is known by its graph alone.
    "cut, joined with a graph, cut": (lambda x, y: (x.detach() * y).argmax(1), {2}),
    "side by side": (lambda x, y: [x.detach(), {"whole": y}], {1}),
    "written into each other": (lambda x, y: written(x.detach(), y.detach()), {1, 2}),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_what_is_made_of_several_layers_stems_from_all_of_them(name):
    """And of nothing else: what stands beside it, or keeps its graph, does not count."""
    make, expected = SEVERAL[name]
    assert origins_of(make, 1, 2) == expected


def test_the_nearest_layer_is_the_origin():
    """What lies behind it does not count, unless a way leads around it."""
    with Followed() as cuts:
        first = layer_in(cuts, 1)
        second = layer_in(cuts, 2, given=first.tanh())
        assert cuts.origins(second.detach()) == {2}
        assert cuts.origins((first + second).detach()) == {1, 2}


def test_a_layer_without_a_graph_is_the_origin_of_what_it_makes():
    """Under ``no_grad`` the layer that was called last counts, and one that cannot be trained passes on what it got."""
    with Followed() as cuts, torch.no_grad():
        second = layer_in(cuts, 2, given=layer_in(cuts, 1).tanh())
        assert cuts.origins(second * 2) == {2}
        assert cuts.origins(nn.Linear(3, 3).requires_grad_(requires_grad=False)(second)) == {2}


def test_what_a_layer_passes_on_does_not_stem_from_it():
    """Its own input, and masks and lengths, which are whole numbers or flags."""
    cuts, mask, made = CutTensors(), RAW > 1, RAW * 2
    cuts.mark((RAW, {"mask": mask}), [RAW, mask, mask.long(), {"out": made}, None], 4)
    assert [set(cuts.origins(value)) for value in (RAW, mask, mask.long(), made)] == [set(), set(), set(), {4}]


@pytest.mark.parametrize("make", [lambda w: w.detach(), lambda w: (w * 2).data, lambda w: w.exp().sum().argmax()])
def test_a_bare_parameter_is_no_layer(make):
    """Of an exponential average of weights, or of a penalty that is logged, it is not known whom it feeds."""
    with Followed() as cuts:
        assert cuts.origins(make(nn.Parameter(RAW.clone()))) == set()


@pytest.mark.parametrize(("num_nodes", "expected"), [(MAX_NODES - 1, {5}), (MAX_NODES, set())])
def test_a_walk_back_comes_to_an_end(num_nodes, expected):
    """Behind more operations than that no layer is looked for."""
    with Followed() as cuts:
        value = layer_in(cuts, 5)
        for _ in range(num_nodes):
            value = value.exp()
        assert cuts.origins(value.detach()) == expected


def test_ways_that_meet_are_walked_once():
    """Sixty sums of a value with itself are sixty nodes, and not 2 to the 60 ways."""
    with Followed() as cuts:
        value = layer_in(cuts, 5)
        for _ in range(60):
            value = value + value
        assert cuts.origins(value.detach()) == {5}


def test_a_tensor_whose_node_torch_does_not_tell_has_none():
    """A view that was made without gradients and has been written to since."""
    base = nn.Linear(3, 3)(RAW) * 1
    with torch.no_grad():
        view = base[0]
    base.mul_(2)
    with pytest.raises(RuntimeError, match="no_grad"):
        view.grad_fn  # noqa: B018 - asking is what fails
    assert node_of(view) is None


# ---- memory


def test_what_numpy_has_computed_is_not_found_again():
    """A new array lies in memory of its own: that is a limit, and no false alarm."""
    assert origins_of(lambda x: torch.from_numpy(np.tanh(x.detach().numpy())), 7) == set()


def test_the_memory_of_an_array_that_is_gone_is_anybodys():
    """A tensor that lies where a cut array lay, or beside one, is not cut."""
    block = np.zeros(12, dtype=np.float32)
    whole = torch.from_numpy(block)
    cuts = CutTensors()
    hidden = layer_in(cuts, 7)
    array = whole[:4].numpy()
    cuts.note((hidden,), {}, array)
    assert [set(cuts.origins(whole[start:])) for start in (0, 3, 4)] == [{7}, {7}, set()]
    del array
    gc.collect()
    assert not cuts.origins(whole)


@pytest.mark.parametrize("size", [(0,), (0, 3)])
def test_an_empty_array_has_no_memory(size):
    """Tensors without numbers and without storage are not found in it."""
    cuts = CutTensors()
    hidden = layer_in(cuts, 7)
    empty = np.empty(size, dtype=np.float32)
    cuts.note((hidden,), {}, empty)
    assert not cuts.origins([torch.empty(0), torch.empty(3, device="meta"), RAW])


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
def test_tensors_without_storage_do_not_fail():
    """Sparse ones, those of another device and those inside a torch.func transform have no address."""
    with Followed() as cuts:
        kept = layer_in(cuts, 7).detach().numpy()
        strange = [RAW.to_sparse(), RAW.to_sparse_csr(), torch.empty(3, device="meta")]
        assert not cuts.origins(strange)
        cuts.note(tuple(strange), {}, RAW)
        found = torch.vmap(lambda x: torch.relu(x * 2 + len(cuts.origins(x))))(RAW)
    assert kept.shape == (2, 3)
    assert not cuts.origins(RAW)
    assert torch.equal(found, RAW * 2)


@pytest.mark.parametrize("how", ["tensor", "array"])
def test_nothing_is_kept_alive(how):
    """What was noted dies when the person lets go of it, also in the middle of a step."""
    with Followed() as cuts:
        hidden = layer_in(cuts, 7).detach() * 2
        kept: Any = hidden.numpy() if how == "array" else hidden.clone()
        assert cuts.origins(torch.from_numpy(kept) if how == "array" else kept)
        references = [weakref.ref(hidden), weakref.ref(kept)]
        del hidden, kept
        gc.collect()
        assert [reference() for reference in references] == [None, None]


def test_many_arrays_leave_nothing_behind():
    """Arrays that are gone are forgotten: a loop that logs does not make each look dearer."""
    cuts = CutTensors()
    hidden = layer_in(cuts, 7)
    for _ in range(100):
        cuts.note((hidden,), {}, np.ones(3))
    assert len(cuts._arrays) <= 2


@pytest.mark.parametrize("again", [copy.deepcopy, lambda cuts: pickle.loads(pickle.dumps(cuts))])
def test_a_copy_knows_nothing(again):
    """Copied and pickled at any time, with tensors and arrays noted; the copy works."""
    cuts = CutTensors()
    hidden = layer_in(cuts, 7)
    value, array = hidden.detach(), hidden.detach().numpy()
    cuts.note((hidden,), {}, value)
    cuts.note((hidden,), {}, array)
    other = again(cuts)
    assert (set(cuts.origins(value)), set(other.origins(value))) == ({7}, set())
    other.note((hidden,), {}, value)
    assert other.origins(value) == set()
    other.mark((), hidden, 8)
    other.note((hidden,), {}, value)
    assert (set(cuts.origins(value)), set(other.origins(value))) == ({7}, {8})
