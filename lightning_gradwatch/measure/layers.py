"""Which parameters form a layer, what the layer is called, and which layer a parameter belongs to."""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

ROOT = "(root)"
# What torch.compile, activation checkpointing and FSDP put into a module's name; no user wrote them.
_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module|_forward_module)(?:\.|$)"
)
# torch.nn.utils.parametrize keeps the real parameters of `layer` in `layer.parametrizations.weight`.
_PARAMETRIZATION = re.compile(r"(?:^|\.)parametrizations\.[^.]+(?:\.\d+)?$")


@dataclass(frozen=True, eq=False)
class Layer:
    """The parameters that one module owns directly, under the module's name.

    Attributes:
        name: Name in ``named_modules()`` without the prefixes of wrappers; ``(root)`` for the model's own parameters.
        module: The module that owns them.
        parameters: The parameters by their name in the module (``weight``, ``bias``, ``weight_hh_l0``).
    """

    name: str
    module: nn.Module | None
    parameters: Mapping[str, Tensor]

    @property
    def kind(self) -> str:
        """Name of the module's class, without what parametrizations put before it."""
        if self.module is None:
            return "Parameter"
        name = type(self.module).__name__
        return name.removeprefix("Parametrized")

    @property
    def trainable(self) -> bool:
        """Whether any of the parameters asks for a gradient."""
        return any(parameter.requires_grad for parameter in self.parameters.values())

    @property
    def num_parameters(self) -> int:
        """How many numbers the layer has; a lazy parameter that has no shape yet counts as none."""
        return sum(num_elements(parameter) for parameter in self.parameters.values())


def num_elements(parameter: Tensor) -> int:
    """Return how many numbers a parameter has that can be trained.

    0 for a lazy one that has no shape yet, and for whole numbers: a flag, or 4-bit weights packed into bytes.

    Example:
        >>> num_elements(nn.Linear(2, 3).weight), num_elements(nn.LazyLinear(3).weight)
        (6, 0)
    """
    return parameter.numel() if _is_filled(parameter) else 0


def _is_filled(parameter: Tensor) -> bool:
    numbers = parameter.is_floating_point() or parameter.is_complex()
    return numbers and not isinstance(parameter, UninitializedParameter)


@dataclass(frozen=True)
class KnownLayer:
    """A column of an earlier fit, which keeps no model alive.

    Attributes:
        name: The layer's name.
        outside: The parameter of a layer that no module owns, as long as somebody holds it; None for other layers.
    """

    name: str
    outside: weakref.ref[Tensor] | None = None

    @staticmethod
    def of(layer: Layer) -> KnownLayer:
        """Remember a layer."""
        outside = next(iter(layer.parameters.values()), None) if layer.module is None else None
        return KnownLayer(layer.name, None if outside is None else weakref.ref(outside))

    def again(self) -> Layer:
        """Return a layer outside the model, without a parameter where nobody holds it any more."""
        parameter = None if self.outside is None else self.outside()
        return Layer(self.name, None, {} if parameter is None else {"parameter": parameter})


def in_known_order(layers: Sequence[Layer], known: Sequence[KnownLayer]) -> tuple[Layer, ...]:
    """Put layers where they were in an earlier fit, with those outside the model; new ones stand behind.

    Args:
        layers: The model's layers.
        known: The columns of the earlier fit; of another model where one of them is gone.

    Returns:
        The layers, in registration order for another model.
    """
    fresh = {layer.name: layer for layer in layers}
    if any(column.name not in fresh and column.outside is None for column in known):
        return tuple(layers)
    kept = [fresh.pop(column.name) if column.name in fresh else column.again() for column in known]
    return (*kept, *fresh.values())


def find_layers(model: nn.Module) -> tuple[Layer, ...]:
    """Find the layers of a model in registration order.

    A tied parameter belongs to the first module that holds it, as in ``named_parameters()``. Parametrized weights
    (``torch.nn.utils.parametrizations``) belong to the module that they parametrize.

    Args:
        model: Any module.

    Returns:
        One layer for each module that owns parameters, frozen ones too.

    Example:
        >>> layers = find_layers(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)))
        >>> [(layer.name, layer.kind, list(layer.parameters)) for layer in layers]
        [('0', 'Linear', ['weight', 'bias']), ('2', 'Linear', ['weight', 'bias'])]
    """
    owners: dict[str, nn.Module] = {}
    members: dict[str, dict[str, Tensor]] = {}
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        name = clean_name(module_name)
        inside = _PARAMETRIZATION.search(module_name)
        if not inside:
            # A wrapper has the name of what it wraps and comes first: the module inside is the layer.
            owners[name] = module
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                key = f"{inside.group().lstrip('.')}.{parameter_name}" if inside else parameter_name
                members.setdefault(name, {})[key] = parameter
    return tuple(Layer(name, owners[name], parameters) for name, parameters in members.items())


def clean_name(name: str) -> str:
    """Strip from a module's name what wrappers and parametrizations added to it.

    Example:
        >>> clean_name("_orig_mod.net.0.parametrizations.weight"), clean_name("")
        ('net.0', '(root)')
    """
    stripped = _WRAPPERS.sub("", _PARAMETRIZATION.sub("", name)).rstrip(".")
    return stripped or ROOT


@dataclass(frozen=True, eq=False)
class ParameterIndex:
    """Which layer each parameter of one optimizer belongs to.

    Attributes:
        parameters: The optimizer's parameters in the order of its groups.
        layer: Index of each parameter's layer, ``[num_parameters]``.
        bias: Whether the parameter is a bias, so that its gradient is the batch sum of delta, ``[num_parameters]``.
        group: Index of each parameter's group in ``param_groups``, ``[num_parameters]``.
        sizes: How many numbers each parameter has, ``[num_parameters]``.
        filled: Positions of the parameters that have a norm: a lazy one has none before its first use, nor have whole
            numbers.
        sharded: Whether a parameter is spread over processes (DTensor), so that its norm needs all of them.
        num_layers: How many layers the model has.
    """

    parameters: tuple[Tensor, ...]
    layer: npt.NDArray[np.int64]
    bias: npt.NDArray[np.bool_]
    group: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    filled: npt.NDArray[np.int64]
    sharded: bool
    num_layers: int

    @cached_property
    def _identities(self) -> list[int]:
        return list(map(id, self.parameters))

    @cached_property
    def alike(self) -> bool:
        """Whether all parameters are plain real numbers of one dtype on one device, as most models have them."""
        kinds = {(parameter.dtype, parameter.device, parameter.layout) for parameter in self.parameters}
        plain = {Tensor, nn.Parameter}.issuperset(map(type, self.parameters))
        return plain and len(kinds) == 1 and not self.parameters[0].is_complex()

    @cached_property
    def largest(self) -> int:
        """How many numbers the largest parameter has."""
        return int(self.sizes.max(initial=0))

    def covers(self, parameters: Sequence[Tensor]) -> bool:
        """Tell whether the index speaks of just these parameters, one by one, and of all that have a norm."""
        if list(map(id, parameters)) != self._identities:
            return False
        return len(self.filled) == len(parameters) or len(self.filled) == sum(map(_is_filled, parameters))


def index_parameters(layers: Sequence[Layer], groups: Iterable[Iterable[Tensor]]) -> ParameterIndex | None:
    """Find the layer of every parameter that an optimizer holds.

    Args:
        layers: The model's layers.
        groups: The parameters of each of the optimizer's ``param_groups``.

    Returns:
        The index, or None where a parameter belongs to none of the layers.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> index = index_parameters(find_layers(model), [model.parameters()])
        >>> index.layer.tolist(), index.bias.tolist()
        ([0, 0, 1, 1], [False, True, False, True])
    """
    places = {
        id(parameter): (number, name == "bias" and parameter.ndim == 1)
        for number, layer in enumerate(layers)
        for name, parameter in layer.parameters.items()
    }
    flat = [(parameter, group) for group, parameters in enumerate(groups) for parameter in parameters]
    found = [places.get(id(parameter)) for parameter, _ in flat]
    known = [place for place in found if place is not None]
    if len(known) < len(found):
        return None
    return ParameterIndex(
        parameters=tuple(parameter for parameter, _ in flat),
        layer=np.array([number for number, _ in known], dtype=np.int64),
        bias=np.array([bias for _, bias in known], dtype=np.bool_),
        group=np.array([group for _, group in flat], dtype=np.int64),
        sizes=np.array([num_elements(parameter) for parameter, _ in flat], dtype=np.int64),
        filled=np.array([i for i, (parameter, _) in enumerate(flat) if _is_filled(parameter)], dtype=np.int64),
        sharded=any(hasattr(parameter, "full_tensor") for parameter, _ in flat),
        num_layers=len(layers),
    )


def stray_layers(layers: Sequence[Layer], parameters: Iterable[Tensor]) -> tuple[Layer, ...]:
    """Make a layer of every parameter that an optimizer holds and no module of the model owns.

    Such parameters live in a plain list, in a loss outside the module, or in another model.

    Args:
        layers: The model's layers.
        parameters: The optimizer's parameters.

    Returns:
        One layer a parameter, named by its number among the strays.
    """
    owned = {id(parameter) for layer in layers for parameter in layer.parameters.values()}
    strays = [parameter for parameter in parameters if id(parameter) not in owned]
    names = {layer.name for layer in layers}
    start = sum(name.startswith("(outside the model) ") for name in names)
    return tuple(
        Layer(f"(outside the model) {start + number}", None, {"parameter": parameter})
        for number, parameter in enumerate(strays)
    )
