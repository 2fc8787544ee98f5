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

from lightning_gradwatch.measure.cuts import CutTensors
from lightning_gradwatch.measure.functions import ActivationCalls

RAW = torch.arange(6.0).reshape(2, 3) + 1


class Followed:
    """Cut tensors that are told of everything that torch does in a ``with`` block."""

    def __init__(self) -> None:
        self.cuts = CutTensors()
        self.mode = ActivationCalls(lambda *_: None, self.cuts.note)

    def __enter__(self) -> CutTensors:
        self.mode.listen()
        return self.cuts

    def __exit__(self, *error: object) -> None:
        self.mode.rest()


def is_cut(make: Callable[[Tensor], Any], *, raw: bool = False) -> bool:
    """Tell whether what is made of a layer's output, or of a raw batch, is told to be cut."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 3)
    with Followed() as cuts:
        made = make(RAW.clone() if raw else layer(RAW))
    return cuts.has(made)


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
    """However a result comes off the graph, and whatever becomes of it; the same of a raw batch is not cut."""
    assert is_cut(CUTS[name])
    assert not is_cut(CUTS[name], raw=True)


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
    assert not is_cut(WHOLE[name])


def test_what_numpy_has_computed_is_not_found_again():
    """A new array lies in memory of its own: that is a limit, and no false alarm."""
    assert not is_cut(lambda x: torch.from_numpy(np.tanh(x.detach().numpy())))


def test_the_memory_of_an_array_that_is_gone_is_anybodys():
    """A tensor that lies where a cut array lay, or beside one, is not cut."""
    block = np.zeros(12, dtype=np.float32)
    whole = torch.from_numpy(block)
    cuts, weight = CutTensors(), torch.ones(1, requires_grad=True)
    array = whole[:4].numpy()
    cuts.note((weight,), {}, array)
    assert [cuts.has(whole[start:]) for start in (0, 3, 4)] == [True, True, False]
    del array
    gc.collect()
    assert not cuts.has(whole)


@pytest.mark.parametrize("size", [(0,), (0, 3)])
def test_an_empty_array_has_no_memory(size):
    """Tensors without numbers and without storage are not found in it."""
    cuts, weight = CutTensors(), torch.ones(1, requires_grad=True)
    empty = np.empty(size, dtype=np.float32)
    cuts.note((weight,), {}, empty)
    assert not cuts.has([torch.empty(0), torch.empty(3, device="meta"), RAW])


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
def test_tensors_without_storage_do_not_fail():
    """Sparse ones, those of another device and those inside a torch.func transform have no address."""
    with Followed() as cuts:
        kept = nn.Linear(3, 3)(RAW).detach().numpy()
        strange = [RAW.to_sparse(), RAW.to_sparse_csr(), torch.empty(3, device="meta")]
        assert not cuts.has(strange)
        cuts.note(tuple(strange), {}, RAW)
        found = torch.vmap(lambda x: torch.relu(x * 2 + float(cuts.has(x))))(RAW)
    assert kept.shape == (2, 3)
    assert not cuts.has(RAW)
    assert torch.equal(found, RAW * 2)


@pytest.mark.parametrize("how", ["tensor", "array"])
def test_nothing_is_kept_alive(how):
    """What was noted dies when the person lets go of it, also in the middle of a step."""
    layer = nn.Linear(3, 3)
    with Followed() as cuts:
        hidden = layer(RAW).detach() * 2
        kept: Any = hidden.numpy() if how == "array" else hidden.clone()
        assert cuts.has(torch.from_numpy(kept) if how == "array" else kept)
        references = [weakref.ref(hidden), weakref.ref(kept)]
        del hidden, kept
        gc.collect()
        assert [reference() for reference in references] == [None, None]


def test_many_arrays_leave_nothing_behind():
    """Arrays that are gone are forgotten: a loop that logs does not make each look dearer."""
    cuts, weight = CutTensors(), torch.ones(1, requires_grad=True)
    for _ in range(100):
        cuts.note((weight,), {}, np.ones(3))
    assert len(cuts._arrays) <= 2


@pytest.mark.parametrize("again", [copy.deepcopy, lambda cuts: pickle.loads(pickle.dumps(cuts))])
def test_a_copy_knows_nothing(again):
    """Copied and pickled at any time, with tensors and arrays noted; the copy works."""
    cuts, weight = CutTensors(), torch.ones(1, requires_grad=True)
    value, array = weight.detach(), weight.detach().numpy()
    cuts.note((weight,), {}, value)
    cuts.note((weight,), {}, array)
    other = again(cuts)
    assert (cuts.has(value), other.has(value)) == (True, False)
    other.note((weight,), {}, value)
    assert other.has(value)
