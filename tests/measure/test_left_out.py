"""Test ``lightning_gradwatch.measure.left_out``."""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from lightning_gradwatch.measure.layers import Layer, find_layers
from lightning_gradwatch.measure.left_out import HiddenModules, LeftOut, find_left_out


def find(model: nn.Module, *optimizers: Any) -> LeftOut:
    """Look at a model as it is at the start."""
    return find_left_out(model, find_layers(model), optimizers)


def sgd(*modules: nn.Module) -> SGD:
    """Return an optimizer of all parameters of some modules."""
    return SGD([p for module in modules for p in module.parameters()], lr=0.1)


def net() -> nn.Sequential:
    """Return two layers of 6 and 8 numbers."""
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(3, 2))


def holder(value: Any, **more: Any) -> nn.Module:
    """Return a module with a registered head and a plain attribute ``kept``."""
    module = nn.Module()
    module.head = nn.Linear(2, 1)
    module.kept = value
    for name, each in more.items():
        setattr(module, name, each)
    return module


class TestLayers:
    """Registered parameters that no optimizer holds."""

    def test_a_layer_that_no_optimizer_holds_is_counted(self) -> None:
        """The layer is named with how many numbers it has."""
        model = net()
        assert find(model, sgd(model[0])) == LeftOut(("2",), 8)

    def test_of_a_layer_that_is_held_in_part_the_rest_is_named(self) -> None:
        """A bias that was forgotten is not the layer."""
        model = net()
        assert find(model, SGD([*model[0].parameters(), model[2].weight], lr=0.1)) == LeftOut(("2.bias",), 2)

    def test_what_is_held_is_not_told(self) -> None:
        """Nothing is left out where all is held, in several groups or by several optimizers together."""
        model = net()
        groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 1.0}]
        assert find(model, SGD(groups, lr=0.1)) == LeftOut()
        assert find(model, sgd(model[0]), Adam(model[2].parameters())) == LeftOut()

    def test_an_optimizer_that_the_module_keeps_itself_counts(self) -> None:
        """Who steps by hand has the optimizer as an attribute, or in a list."""
        for keep in (lambda optimizer: optimizer, lambda optimizer: [optimizer]):
            model = net()
            model.own = keep(sgd(model[2]))
            assert find(model, sgd(model[0])) == LeftOut()

    def test_without_an_optimizer_nothing_is_known(self) -> None:
        """Optimizers that are known later only may hold anything."""
        assert find(holder([nn.Linear(2, 2), nn.Linear(2, 2)])) == LeftOut()

    def test_what_cannot_be_trained_is_not_left_out(self) -> None:
        """Frozen, lazy, empty and meta parameters, and whole numbers, are nobody's loss."""
        model = nn.Sequential(
            nn.Linear(2, 2),
            nn.Linear(2, 2).requires_grad_(requires_grad=False),
            nn.LazyLinear(3),
            nn.Linear(2, 2, device="meta"),
        )
        model.flags = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
        model.empty = nn.Parameter(torch.zeros(0))
        assert find(model, sgd(model[0])) == LeftOut()

    def test_a_tied_weight_is_held_once(self) -> None:
        """One of its names in an optimizer is enough."""
        model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
        model[1].weight = model[0].weight
        assert find(model, sgd(model[1])) == LeftOut()

    def test_an_optimizer_of_another_model_is_told_apart(self) -> None:
        """Where the optimizers hold nothing of the model, that is said; a frozen model is no such case."""
        model = net()
        assert find(model, sgd(net())).everything
        assert not find(model, sgd(model[0])).everything
        assert find(model.requires_grad_(requires_grad=False), sgd(net())) == LeftOut()

    def test_a_layer_of_an_earlier_fit_is_no_part_of_the_model(self) -> None:
        """A parameter that lived outside of the model and is held no more is not missed."""
        model = net()
        layers = (*find_layers(model), Layer("(outside the model) 0", None, {"parameter": nn.Parameter(torch.ones(2))}))
        assert find_left_out(model, layers, [sgd(model)]) == LeftOut()


class TestHidden:
    """Modules in plain containers."""

    @pytest.mark.parametrize(
        ("make", "container"),
        [
            (list, "list"),
            (tuple, "tuple"),
            (set, "set"),
            (frozenset, "frozenset"),
            (deque, "deque"),
            (lambda several: dict(enumerate(several)), "dict"),
            (lambda several: OrderedDict(enumerate(several)), "OrderedDict"),
            (lambda several: [[several[0]], {"b": (several[1],)}, several[2]], "list"),
        ],
        ids=["list", "tuple", "set", "frozenset", "deque", "dict", "ordered", "nested"],
    )
    def test_modules_in_a_plain_container_are_found(self, make: Any, container: str) -> None:
        """Every plain container of three layers of 6 numbers is named, with its owner; nested ones as well."""
        model = holder(make([nn.Linear(2, 2) for _ in range(3)]))
        assert find(model, sgd(model)).hidden == (HiddenModules("Module", "kept", container, 3, 18),)

    def test_a_dict_with_one_module_is_found(self) -> None:
        """Only a list or tuple of one is the idiom that hides on purpose."""
        model = holder({"a": nn.Linear(2, 2)})
        assert [hidden.num_modules for hidden in find(model, sgd(model)).hidden] == [1]

    def test_blocks_of_one_class_are_one_finding(self) -> None:
        """Twelve blocks that hide two layers each are told in one line, not in twelve."""
        blocks = [holder([nn.Linear(2, 2), nn.Linear(2, 2)]) for _ in range(12)]
        model = nn.Sequential(*blocks)
        assert find(model, sgd(model)).hidden == (HiddenModules("Module", "kept", "list", 24, 144),)

    def test_the_same_modules_under_two_names_are_told_once(self) -> None:
        """An alias hides nothing more."""
        several = [nn.Linear(2, 2), nn.Linear(2, 2)]
        model = holder(several, by_name=dict(enumerate(several)))
        assert [hidden.attribute for hidden in find(model, sgd(model)).hidden] == ["kept"]

    def test_hidden_modules_that_an_optimizer_holds_are_not_told(self) -> None:
        """Who gave them to an optimizer knows of them."""
        several = [nn.Linear(2, 2), nn.Linear(2, 2)]
        model = holder(several)
        assert find(model, sgd(model, *several)).hidden == ()
        assert [hidden.num_modules for hidden in find(model, sgd(model, several[0])).hidden] == [1]

    @pytest.mark.parametrize(
        "kept",
        [
            [nn.Linear(2, 2)],
            (nn.Linear(2, 2),),
            [nn.Linear(2, 2).requires_grad_(requires_grad=False) for _ in range(3)],
            [nn.Linear(2, 2).eval() for _ in range(3)],
            [nn.ReLU(), nn.MSELoss(), nn.Identity()],
            [nn.LazyLinear(2), nn.LazyLinear(3)],
            [nn.Linear(2, 2, device="meta"), nn.Linear(2, 2, device="meta")],
            [torch.zeros(3), 1, "a", None, nn.Linear],
            {},
        ],
        ids=["teacher", "teacher tuple", "frozen", "eval", "no parameters", "lazy", "meta", "other things", "empty"],
    )
    def test_what_is_meant_to_be_hidden_is_not_told(self, kept: Any) -> None:
        """A teacher in a list of its own, frozen or evaluating networks, losses and data are no fault."""
        model = holder(kept)
        assert find(model, sgd(model)) == LeftOut()

    def test_registered_modules_may_be_listed_again(self) -> None:
        """A list of modules that are children as well, or the model itself, hides nothing."""
        model = holder([nn.Linear(2, 2), nn.Linear(2, 2)])
        model.children_again = nn.ModuleList(model.kept)
        model.me = [model, model.head]
        assert find(model, sgd(model)) == LeftOut()

    def test_what_lightning_keeps_of_its_own_is_passed_over(self, pl: Any) -> None:
        """Hyperparameters are copied with the modules in them, and the copies are nobody's layers."""

        class Saved(pl.LightningModule):
            def __init__(self, backbones: list[nn.Module]) -> None:
                super().__init__()
                self.save_hyperparameters()
                self.backbones = nn.ModuleList(backbones)

        model = Saved([nn.Linear(2, 2), nn.Linear(2, 2)])
        assert "backbones" in model.hparams_initial
        assert find(model, sgd(model)) == LeftOut()

    def test_a_copy_that_averages_weights_is_not_told(self) -> None:
        """Frozen copies for an average, several in a dict, are meant to be out of reach."""
        model = holder(None)
        model.averages = {n: copy.deepcopy(model.head).requires_grad_(requires_grad=False) for n in range(2)}
        assert find(model, sgd(model)) == LeftOut()


class TestWalk:
    """How a person's objects are walked through."""

    def test_no_property_is_asked_and_nothing_lazy_is_woken(self) -> None:
        """Properties, generators, sequences of a person's own and proxies stay untouched."""
        asked = []

        class Lazy(list):
            def __iter__(self) -> Any:
                asked.append("sequence")
                return super().__iter__()

        class Proxy:
            @property
            def __class__(self) -> Any:
                asked.append("proxy")
                return nn.Linear

        class Net(nn.Module):
            @property
            def blocks(self) -> Any:
                asked.append("property")
                return [nn.Linear(2, 2), nn.Linear(2, 2)]

        generator = (nn.Linear(2, 2) for _ in range(3))
        model = Net()
        model.head = nn.Linear(2, 1)
        model.lazy, model.proxies = Lazy([nn.Linear(2, 2), nn.Linear(2, 2)]), [Proxy(), Proxy()]
        model.generator, model.generators = generator, [generator]
        asked.clear()
        assert find(model, sgd(model)) == LeftOut()
        assert asked == []
        assert len(list(generator)) == 3

    def test_a_container_that_holds_itself_ends(self) -> None:
        """Depth is bounded, and so is what is visited of long lists."""
        loop: list[Any] = [nn.Linear(2, 2), nn.Linear(2, 2)]
        loop.append(loop)
        model = holder(loop, data=list(range(10**6)), many=[list(range(2000)) for _ in range(2000)])
        assert [hidden.num_parameters for hidden in find(model, sgd(model)).hidden] == [12]

    @pytest.mark.parametrize("broken", ["optimizer", "module"])
    def test_an_error_finds_nothing(self, broken: str) -> None:
        """An optimizer without groups, or a module whose parameters fail, ends nothing."""

        class Failing(nn.Module):
            def parameters(self, recurse: bool = True) -> Any:
                raise RuntimeError("mine")

        model = net() if broken == "optimizer" else holder([Failing(), Failing()])
        optimizer = object() if broken == "optimizer" else sgd(model)
        assert find(model, optimizer) == LeftOut()

    def test_nothing_is_changed(self) -> None:
        """Neither attributes nor modes nor parameters are others than before."""
        model = holder([nn.Linear(2, 2), nn.Linear(2, 2)])
        before = {name: id(value) for name, value in vars(model).items()}
        find(model, sgd(model))
        assert {name: id(value) for name, value in vars(model).items()} == before
        assert all(each.training and each.weight.grad is None for each in model.kept)
