"""Where modules are registered in a model, and how a person writes such a place."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from lightning_gradwatch.measure.layers import find_layers
from lightning_gradwatch.remedy.edits import loop_over

# model.blocks[3].act: what stands before its last index, the index, and what stands behind it.
_LAST_INDEX = re.compile(r"^(.*)\[(\d+)\]((?:(?!\[\d+\]).)*)$")
_ASSIGNED = re.compile(r"^(.*)\.get_submodule\((\S+)\) = (.*)$")


@dataclass(frozen=True, eq=False)
class Place:
    """A module under one of its names.

    Attributes:
        path: Its name from the model on, as ``get_submodule`` takes it.
        module: The module.
        parent: The module in which it is registered.
        behind: Name of the layer that is registered last before it; empty for none.
    """

    path: str
    module: nn.Module
    parent: nn.Module
    behind: str


def places_in(model: nn.Module) -> Iterator[Place]:
    """Yield every place of a model in registration order; a module that is used twice has two.

    Args:
        model: Any module.

    Example:
        >>> act = nn.ReLU()
        >>> model = nn.Sequential(nn.Linear(1, 1), act, nn.Linear(1, 1), act)
        >>> [(place.path, place.behind) for place in places_in(model)]
        [('0', ''), ('1', '0'), ('2', '0'), ('3', '2')]
    """
    names = {id(layer.module): layer.name for layer in find_layers(model)}
    seen = {id(model)}
    last = names.get(id(model), "")
    waiting = list(_children(model, ""))[::-1]
    while waiting:
        path, module, parent = waiting.pop()
        yield Place(path, module, parent, last)
        last = names.get(id(module), last)
        if id(module) not in seen:
            seen.add(id(module))
            waiting += list(_children(module, f"{path}."))[::-1]


def _children(parent: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    # Not named_children(), which leaves out the second place of a module that is used twice.
    for name, module in parent._modules.items():
        if module is not None:
            yield prefix + name, module, parent


def is_chain(module: nn.Module) -> bool:
    """Tell whether a module calls its children one after another: an ``nn.Sequential`` with no forward of its own.

    Example:
        >>> is_chain(nn.Sequential()), is_chain(nn.ModuleList())
        (True, False)
    """
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def set_module_(model: nn.Module, path: str, module: nn.Module) -> None:
    """Register a module at a place, in the stead of what is there and in its mode (training or not).

    Args:
        model: The model.
        path: The place.
        module: What to put there.

    Example:
        >>> model = nn.Sequential(nn.ReLU())
        >>> set_module_(model, "0", nn.Tanh())
        >>> model[0]
        Tanh()
    """
    parent, _, name = path.rpartition(".")
    module.training = model.get_submodule(path).training
    setattr(model.get_submodule(parent), name, module)


def written(model: nn.Module, path: str) -> str:
    """Write a place as a person would, with ``model`` for the model.

    Example:
        >>> model = nn.ModuleDict({"net": nn.Sequential(nn.ReLU())})
        >>> model.net.extra = nn.ModuleList([nn.Tanh()])
        >>> written(model, "net.0"), written(model, "net.extra.0"), written(model, "")
        ("model['net'].get_submodule('0')", "model['net'].extra[0]", 'model')
    """
    text, module = "model", model
    for name in path.split(".") if path else ():
        text += _step(module, name)
        module = module.get_submodule(name)
    return text


def _step(parent: nn.Module, name: str) -> str:
    if isinstance(parent, nn.ModuleDict):
        return f"[{name!r}]"
    if isinstance(parent, (nn.Sequential, nn.ModuleList)) and list(parent._modules) == [*map(str, range(len(parent)))]:
        return f"[{name}]"
    return f".{name}" if name.isidentifier() and not keyword.iskeyword(name) else f".get_submodule({name!r})"


@dataclass(frozen=True)
class Line:
    """What is done to some places, to be written alike for all that it is done to.

    Attributes:
        forms: Lines with ``{0}``, ``{1}`` where the places stand.
        places: The places, as ``written`` writes them.
    """

    forms: tuple[str, ...]
    places: tuple[str, ...]

    def written(self, number: str = "") -> tuple[str, ...]:
        """Return the lines; with the name of a variable in the place of the last index, where there is one."""
        places = self.places
        index = self.index
        if number and index is not None:
            places = tuple(_general(place, index, number) for place in self.places)
        return tuple(_ASSIGNED.sub(r"setattr(\1, \2, \3)", form.format(*places)) for form in self.forms)

    @property
    def index(self) -> re.Match[str] | None:
        """The last index of the first place."""
        return _LAST_INDEX.match(self.places[0])


def _general(place: str, index: re.Match[str], number: str) -> str:
    own = _LAST_INDEX.match(place)
    if own is None or own.group(1) != index.group(1):
        return place
    ahead = int(own.group(2)) - int(index.group(2))
    offset = f" {'+' if ahead > 0 else '-'} {abs(ahead)}" if ahead else ""
    return f"{own.group(1)}[{number}{offset}]{own.group(3)}"


def in_loops(lines: Sequence[Line]) -> list[str]:
    """Write what differs in one index only as a loop over it, in the order of their first.

    Args:
        lines: What is done; to several places in any order.

    Returns:
        Lines.

    Example:
        >>> places = ["model[1]", "model[3]", "model.act", "model.get_submodule('5')"]
        >>> for line in in_loops([Line(("{0} = nn.ReLU()",), (place,)) for place in places]):
        ...     print(line)
        for number in [1, 3]:
            model[number] = nn.ReLU()
        model.act = nn.ReLU()
        setattr(model, '5', nn.ReLU())
    """
    alike: dict[tuple[str, ...], list[Line]] = {}
    for line in lines:
        alike.setdefault(line.written("number"), []).append(line)
    found: list[str] = []
    for general, several in alike.items():
        numbers = [int(line.index.group(2)) for line in several if line.index is not None]
        if len(numbers) < 2:
            found += several[0].written()
        else:
            found += [*loop_over("number", numbers), *(f"    {line}" for line in general)]
    return found
