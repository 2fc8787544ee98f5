"""What asks to be trained and no optimizer holds: layers that were left out, and modules that the model hides."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradwatch.measure.layers import Layer, num_elements

# Only these very types: to iterate over a subclass may run anything (a dataset, a lazy sequence).
_CONTAINERS = frozenset({list, tuple, set, frozenset, dict, OrderedDict, defaultdict, deque})
_MAX_DEPTH = 3
# Blocks are some dozens; what is longer holds data.
_MAX_ITEMS = 1000
_MAX_VISITED = 20_000
# What a module keeps of its own accord: its children, and in Lightning a copy of its hyperparameters.
_NOT_HIDDEN = frozenset({"_modules", "_parameters", "_buffers", "_hparams", "_hparams_initial"})


@dataclass(frozen=True)
class HiddenModules:
    """Modules in a plain container, which PyTorch does not see.

    Attributes:
        owner: Class name of the module that has the attribute.
        attribute: The attribute's name.
        container: Type name of the container that the attribute is.
        num_modules: How many hidden modules it holds, in all instances of the class.
        num_parameters: How many numbers they have that could be trained.
    """

    owner: str
    attribute: str
    container: str
    num_modules: int
    num_parameters: int


@dataclass(frozen=True)
class LeftOut:
    """What no optimizer holds although it asks for a gradient.

    Attributes:
        layers: The layers; single parameters (``net.0.bias``) where the rest of the layer is held.
        num_parameters: How many numbers they have.
        everything: Whether the optimizers hold nothing of the model at all.
        hidden: Modules that are registered nowhere.
    """

    layers: tuple[str, ...] = ()
    num_parameters: int = 0
    everything: bool = False
    hidden: tuple[HiddenModules, ...] = ()


def find_left_out(model: nn.Module, layers: Sequence[Layer], optimizers: Iterable[Optimizer]) -> LeftOut:
    """Find what no optimizer holds although it asks for a gradient; an error finds nothing.

    Frozen parameters, and those without numbers (lazy ones, the meta device), are never meant. Optimizers that a
    module keeps as attributes count as well.

    Args:
        model: The model.
        layers: Its layers.
        optimizers: The optimizers that train it, all together; without one nothing is known.

    Returns:
        What was left out.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> from lightning_gradwatch.measure.layers import find_layers
        >>> find_left_out(model, find_layers(model), [Optimizer(model[0].parameters(), {})]).layers
        ('1',)
    """
    try:
        return _find(model, layers, list(optimizers))
    except Exception:
        # Here a person's objects are walked through; what is told at the start is not worth a failure.
        return LeftOut()


def _find(model: nn.Module, layers: Sequence[Layer], optimizers: Sequence[Optimizer]) -> LeftOut:
    if not optimizers:
        return LeftOut()
    # A layer without a module was held by an optimizer of an earlier fit, and is no part of the model.
    layers = [layer for layer in layers if layer.module is not None]
    plain = list(_plain_attributes(model))
    held = {id(parameter) for optimizer in optimizers for parameter in _held_by(optimizer)}
    held.update(id(parameter) for found in plain for optimizer in found.optimizers for parameter in _held_by(optimizer))
    missing = {layer.name: missed for layer in layers if (missed := _missing(layer.parameters, held))}
    names = [_names(layer, missing[layer.name]) for layer in layers if layer.name in missing]
    trainable = [p for layer in layers for p in layer.parameters.values() if _could_be_trained(p)]
    return LeftOut(
        layers=tuple(name for several in names for name in several),
        num_parameters=sum(num_elements(p) for missed in missing.values() for p in missed.values()),
        everything=bool(trainable) and not any(id(parameter) in held for parameter in trainable),
        hidden=_hidden(plain, held | {id(parameter) for parameter in model.parameters()}),
    )


def _held_by(optimizer: Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _could_be_trained(parameter: Tensor) -> bool:
    return parameter.requires_grad and not parameter.is_meta and num_elements(parameter) > 0


def _missing(parameters: Mapping[str, Tensor], held: set[int]) -> dict[str, Tensor]:
    return {name: p for name, p in parameters.items() if _could_be_trained(p) and id(p) not in held}


def _names(layer: Layer, missing: Mapping[str, Tensor]) -> list[str]:
    if len(missing) == sum(map(_could_be_trained, layer.parameters.values())):
        return [layer.name]
    return [f"{layer.name}.{name}" for name in missing]


@dataclass(frozen=True, eq=False)
class _PlainAttribute:
    owner: str
    name: str
    container: str
    modules: tuple[nn.Module, ...]
    optimizers: tuple[Optimizer, ...]

    @property
    def withholds(self) -> bool:
        """Whether it is the idiom that keeps a teacher out of ``parameters()``: ``[teacher]``."""
        return self.container in ("list", "tuple") and len(self.modules) == 1


def _plain_attributes(model: nn.Module) -> Iterator[_PlainAttribute]:
    """Look for modules and optimizers in the attributes of every module, without asking a property."""
    left = [_MAX_VISITED]
    for owner in model.modules():
        # A copy: nothing that is looked at here may change what is walked through.
        for name, value in list(vars(owner).items()):
            kind = type(value)
            if name in _NOT_HIDDEN or (kind not in _CONTAINERS and not issubclass(kind, Optimizer)):
                # A module that is an attribute and no child was hidden by hand (object.__setattr__, __dict__).
                continue
            if kind in _CONTAINERS and not value:
                continue
            inside = list(_inside(value, left, 0))
            # type(...) and not isinstance, which asks a lazy proxy for its class and so wakes it up.
            modules = tuple(each for each in inside if issubclass(type(each), nn.Module))
            optimizers = tuple(each for each in inside if issubclass(type(each), Optimizer))
            if modules or optimizers:
                yield _PlainAttribute(type(owner).__name__, name, kind.__name__, modules, optimizers)


def _inside(value: Any, left: list[int], depth: int) -> Iterator[Any]:
    """Yield what a value is, or what it holds; ``left`` counts how many more may be visited."""
    if left[0] <= 0:
        return
    left[0] -= 1
    if type(value) not in _CONTAINERS:
        yield value
    elif depth < _MAX_DEPTH:
        items = value.values() if issubclass(type(value), dict) else value
        for item in list(islice(items, _MAX_ITEMS)):
            yield from _inside(item, left, depth + 1)


def _hidden(plain: Iterable[_PlainAttribute], known: set[int]) -> tuple[HiddenModules, ...]:
    """Return what holds trainable parameters that are not known; instances of one class are one, and so are aliases."""
    found: dict[tuple[str, str, str], tuple[int, int]] = {}
    for attribute in plain:
        if attribute.withholds:
            continue
        modules = [module for module in attribute.modules if _hidden_parameters(module, known)]
        parameters = {id(p): p for module in modules for p in _hidden_parameters(module, known)}
        if parameters:
            key = (attribute.owner, attribute.name, attribute.container)
            number, size = found.get(key, (0, 0))
            found[key] = (number + len(modules), size + sum(map(num_elements, parameters.values())))
            known = known | parameters.keys()
    return tuple(HiddenModules(*key, number, size) for key, (number, size) in found.items())


def _hidden_parameters(module: nn.Module, known: set[int]) -> list[Tensor]:
    """Return the parameters of a module that could be trained and are not known.

    None of a module in evaluation mode: ``train()`` does not reach what is not registered, so a person has set it.
    """
    return [p for p in module.parameters() if module.training and _could_be_trained(p) and id(p) not in known]
