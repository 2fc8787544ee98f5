"""What follows each layer: seen in one forward pass, or read off a plain ``nn.Sequential``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves

from lightning_gradwatch.measure.activations import activation_of, describe_layers
from lightning_gradwatch.measure.compiled import is_compiled
from lightning_gradwatch.measure.curves import curve_of_module
from lightning_gradwatch.measure.graph import Topology, read_topology
from lightning_gradwatch.measure.layers import Layer
from lightning_gradwatch.measure.outputs import tensors_of
from lightning_gradwatch.measure.snapshot import Curve, LayerDescription
from lightning_gradwatch.remedy.places import is_chain
from lightning_gradwatch.remedy.traceless import call, traceless

_PACKAGE = "torch.nn.modules."
# Where torch keeps the modules that leave an activation in its place.
_PASSED = frozenset({
    "batchnorm", "channelshuffle", "dropout", "flatten", "fold", "instancenorm", "normalization", "padding",
    "pixelshuffle", "pooling", "upsampling",
})  # fmt: skip
_NORMALIZE_OUTPUT = (nn.Softmax, nn.LogSoftmax, nn.Softmax2d, nn.Softmin)


def describe_following(
    module: nn.Module, layers: Sequence[Layer], example_input: Any, caller: str
) -> tuple[LayerDescription, ...]:
    """Describe each layer with the activation that follows it in the forward pass.

    Args:
        module: The module.
        layers: Its layers.
        example_input: What to run it on, see ``call``; None for a plain ``nn.Sequential``.
        caller: The name of the function that asks, for what is said where it is refused.

    Returns:
        One description a layer, ``[num_layers]``.

    Raises:
        ValueError: Without an example for anything but a plain ``nn.Sequential`` of torch's own modules; where the
            module is compiled, holds lazy parameters, or keeps its output out of the autograd graph.
    """
    if example_input is None:
        return describe_layers(module, layers, _sequential(_in_order(module, caller), layers))
    refuse_unready(module, caller)
    with torch.inference_mode(mode=False), torch.enable_grad(), traceless(module):
        output = call(module, example_input)
        ends = [tensor for tensor in tensors_of(output) if tensor.requires_grad]
        topology = read_topology(_joined(ends), layers) if ends else Topology()
        returns_complex = any(isinstance(leaf, Tensor) and leaf.is_complex() for leaf in tree_leaves(output))
        # Before attributes are put back: no graph may outlive this.
        del output, ends
    if any(layer.trainable for layer in layers):
        _check(topology, caller, returns_complex=returns_complex)
    return describe_layers(module, layers, topology)


def refuse_stranger(module: object, caller: str) -> None:
    """Refuse what is no module.

    Args:
        module: What a person has passed.
        caller: The name of the function that asks.

    Raises:
        TypeError: With what came.
    """
    if not isinstance(module, nn.Module):
        came = f"the class {module.__name__}" if isinstance(module, type) else type(module).__name__
        raise TypeError(f"`module` must be a torch.nn.Module, as in {caller}(model, batch). Got {came}")


def refuse_unready(module: nn.Module, caller: str) -> None:
    """Refuse what cannot be run without harm: compiled modules, and lazy ones, which a run would fill.

    Args:
        module: The module.
        caller: The name of the function that asks.

    Raises:
        ValueError: With the way out.
    """
    if is_compiled(module):
        raise ValueError(f"`module` is compiled, which hides its layers. Call {caller} before torch.compile")
    if any(torch.nn.parameter.is_lazy(parameter) for parameter in module.parameters()):
        raise ValueError(
            "`module` has lazy parameters, which have no shape before its first forward pass. Run it once, as in "
            f"module(example_input), then call {caller}"
        )


def _joined(ends: Sequence[Tensor]) -> Tensor:
    """Make one number of all outputs, so that one graph leads to each of them."""
    whole = ends[0].sum()
    for end in ends[1:]:
        whole = whole + end.sum().to(whole)
    return whole


def _check(topology: Topology, caller: str, *, returns_complex: bool) -> None:
    if topology.opaque:
        raise ValueError(f"A part of `module` is compiled, which hides its layers. Call {caller} before torch.compile")
    if not topology.order and returns_complex:
        raise ValueError(
            f"`module` must return real numbers for {caller}: no gain is known for complex ones. Got complex numbers; "
            "end its forward pass with .abs() or .real, or fill its layers one by one with torch.nn.init"
        )
    if not topology.order:
        raise ValueError(
            f"{caller} found no way from a layer to the output of `module`: its forward pass runs under "
            "torch.no_grad(), detaches, returns no tensor, or has more than 200,000 operations (pass a shorter example)"
        )


def _in_order(module: nn.Module, caller: str) -> list[nn.Module]:
    """List the modules of a plain Sequential as they run.

    Raises:
        ValueError: For anything else.
    """
    stranger = _stranger(module)
    if stranger is None:
        return list(_leaves(module))
    what = type(module).__name__ if stranger is module else f"{type(module).__name__} with a {type(stranger).__name__}"
    raise ValueError(
        "`module` must be a plain nn.Sequential of torch's own layers and activations where no example is given. Got "
        f"{what}, and what follows which layer only a forward pass can tell. Pass a batch: "
        f"{caller}(module, example_input); a tuple holds several arguments, a dictionary named ones"
    )


def _stranger(module: nn.Module) -> nn.Module | None:
    """Return the first module that is neither a plain Sequential, at the root, nor a module of torch's own."""
    if not is_chain(module):
        return module
    for child in module.children():
        own = type(child).__module__.startswith((_PACKAGE, "torch.nn.utils.parametriz"))
        leaf = parametrize.is_parametrized(child) or not any(child.children())
        stranger = _stranger(child) if is_chain(child) else (None if own and leaf else child)
        if stranger is not None:
            return stranger
    return None


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    # Not children(), which leaves out the second place of a module that is used twice.
    for child in module._modules.values():
        assert child is not None, "nn.Sequential calls all of its modules"
        if is_chain(child):
            yield from _leaves(child)
        else:
            yield child


def _sequential(modules: Sequence[nn.Module], layers: Sequence[Layer]) -> Topology:
    """Tell of modules that run one after the other what the autograd graph would tell."""
    columns = {id(layer.module): number for number, layer in enumerate(layers)}
    activations: dict[int, str] = {}
    curves: dict[int, Curve] = {}
    order: list[int] = []
    for place, module in enumerate(modules):
        number = columns.get(id(module))
        # The first use of a layer counts, as in the graph.
        if number is None or number in order:
            continue
        order.append(number)
        name, source = _following(modules[place + 1 :])
        if name is not None:
            activations[number] = name
        curve = None if source is None else curve_of_module(source)
        if curve is not None:
            curves[number] = curve
    return Topology(order=tuple(order), activations=activations, curves=curves)


def _following(modules: Sequence[nn.Module]) -> tuple[str | None, nn.Module | None]:
    """Name the first of some modules that is more than passed through."""
    for place, module in enumerate(modules):
        name = activation_of(module)
        if name is not None:
            # An output's sigmoid belongs to the loss.
            last = not any(_has_matrix(later) for later in modules[place + 1 :])
            return ("output" if name == "sigmoid" and last else name), module
        if isinstance(module, _NORMALIZE_OUTPUT):
            return "output", None
        if _has_matrix(module):
            return "linear", None
        if not (isinstance(module, nn.Identity) or _home(module) in _PASSED):
            return None, None
    return "output", None


def _has_matrix(module: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in module.parameters())


def _home(module: nn.Module) -> str:
    return type(module).__module__.removeprefix(_PACKAGE)
