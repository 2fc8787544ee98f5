"""A way around square blocks: residual connections whose branch begins as nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lightning_gradwatch.measure.activations import activation_of
from lightning_gradwatch.measure.layers import ROOT, find_layers
from lightning_gradwatch.remedy.case import Case, count_layers
from lightning_gradwatch.remedy.edits import Edits
from lightning_gradwatch.remedy.places import Line, Place, in_loops, is_chain, places_in, set_module_, written
from lightning_gradwatch.remedy.remedy import Remedy

# What may stand between a layer and its activation and leaves the shape what it is.
_SAME_SHAPE: Final = (
    nn.Identity, nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm,
)  # fmt: skip
_CLASS: Final = """\
class ReZero(nn.Sequential):
    def __init__(self, *block):
        super().__init__(*block)
        self.alpha = nn.Parameter(self[0].weight.new_zeros(1))

    def forward(self, x):
        return x + self.alpha * super().forward(x)

"""


class ReZero(nn.Sequential):
    """``y = x + alpha * block(x)``, where ``alpha`` is learned and begins at 0.

    At the start the block passes on what it gets, so the gradient reaches the layers before it undiminished; only
    ``alpha`` has a gradient in the first step, its own layers from the second on.

    Args:
        block: A layer that has a ``weight``, and what follows it; the output has the input's shape.

    Example:
        >>> import torch
        >>> block = ReZero(nn.Linear(3, 3), nn.Sigmoid())
        >>> torch.equal(block(torch.ones(2, 3)), torch.ones(2, 3)), block.alpha
        (True, Parameter containing:
        tensor([0.], requires_grad=True))

    References:
        Bachlechner et al., ReZero is all you need: fast convergence at large depth, UAI 2021.
    """

    def __init__(self, *block: nn.Module) -> None:
        super().__init__(*block)
        # Of one number, not of none: FSDP takes no parameter without a dimension.
        weight = self[0].weight
        assert isinstance(weight, Tensor)
        self.alpha = nn.Parameter(weight.new_zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum."""
        out: Tensor = x + self.alpha * super().forward(x)  # type: ignore[no-untyped-call]
        return out


@dataclass(frozen=True)
class Block:
    """Neighbors in an ``nn.Sequential`` that get a way around them.

    Attributes:
        places: A layer, its activation, and what stands between, as ``get_submodule`` takes them.
        written: The same as a person would write them.
    """

    places: tuple[str, ...]
    written: tuple[str, ...]

    @property
    def line(self) -> Line:
        """What is done, written down."""
        numbers = range(len(self.written))
        emptied = " = ".join(f"{{{number}}}" for number in numbers[1:])
        forms = (f"{{0}} = ReZero({', '.join(f'{{{number}}}' for number in numbers)})", f"{emptied} = nn.Identity()")
        return Line(forms, self.written)


@dataclass(frozen=True)
class Residuals:
    """Put a way around blocks of a layer and its activation.

    The block comes where its layer was, and ``nn.Identity`` where its activation was: all other modules keep their
    names. The layer ``net.2`` becomes ``net.2.0``.

    Attributes:
        blocks: Which.
        left_out: Why other layers have none, by name; written as comments.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> Residuals((Block(("2", "3"), ("model[2]", "model[3]")),)).apply_(model)
        >>> [type(module).__name__ for module in model]
        ['Linear', 'Tanh', 'ReZero', 'Identity', 'Linear']
    """

    blocks: tuple[Block, ...]
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def code(self) -> str:
        """Lines to paste."""
        left_out = [f"# left out: {names}, {reason}" for reason, names in self._reasons]
        if not self.blocks:
            return "\n".join(left_out)
        lines = in_loops([block.line for block in self.blocks])
        return "\n".join([*left_out, "from torch import nn", "", "", *_CLASS.split("\n"), *lines])

    @property
    def _reasons(self) -> list[tuple[str, str]]:
        """Each reason once, with the layers that it holds for."""
        names: dict[str, list[str]] = {}
        for name, reason in self.left_out:
            names.setdefault(reason, []).append(name)
        return [(reason, _several(layers)) for reason, layers in names.items()]

    def apply_(self, model: nn.Module) -> None:
        """Do it in place.

        Args:
            model: The model.

        Raises:
            ValueError: If no block stands in an ``nn.Sequential``.
        """
        if not self.blocks:
            raise ValueError(
                "no way around a layer can be added from outside: "
                + "; ".join(f"{names}: {reason}" for reason, names in self._reasons)
            )
        for block in self.blocks:
            set_module_(model, block.places[0], ReZero(*(model.get_submodule(place) for place in block.places)))
            for place in block.places[1:]:
                set_module_(model, place, nn.Identity())


def with_residuals(case: Case, layers: Sequence[str]) -> list[Remedy]:
    """Advise residual connections with a scale of zero around square blocks.

    A block is a layer with its activation whose output has the shape of its input: a linear layer of as many outputs
    as inputs, a convolution of as many channels whose stride is 1 and whose padding keeps the size. Both must stand in
    one ``nn.Sequential`` whose forward nobody has written anew; for others the remedy says what to write, and
    ``apply_`` refuses.

    Args:
        case: What is known, with the model.
        layers: Names of the layers. Left out are those that no activation follows, gates, and those that change the
            shape.

    Returns:
        One remedy; none where no layer is square.
    """
    plan = _plan(case, layers)
    number = len(plan.blocks) or len(plan.left_out)
    if not number:
        return []
    edits = Edits((plan,))
    return [
        Remedy(
            title=f"a residual connection around {count_layers(number)}, x + alpha * f(x) with alpha = 0 at first, "
            "then start again",
            reason="each block then begins as nothing, and the gradient passes it undiminished (Bachlechner et al., "
            "2021)",
            diagnosis=case.diagnosis,
            code=edits.code,
            where=next((case.called_at[name] for name, _ in plan.left_out if name in case.called_at), None),
            needs_restart=True,
            change=edits,
        )
    ]


def _plan(case: Case, layers: Sequence[str]) -> Residuals:
    blocks, left_out = [], []
    places = list(places_in(case.model)) if case.model is not None else []
    for layer in find_layers(case.model or nn.Module()):
        if layer.name not in layers or layer.module is None or not case.is_hidden(layer.name):
            continue
        if layer.name == ROOT or not is_square(layer.module):
            continue
        own = [place for place in places if place.module is layer.module]
        found = _block(case.model or nn.Module(), own[0]) if len(own) == 1 else None
        if found is None:
            left_out.append((layer.name, _by_hand(case, layer.name, shared=len(own) > 1)))
        else:
            blocks.append(found)
    return Residuals(tuple(blocks), tuple(left_out))


def is_square(module: nn.Module) -> bool:
    """Tell whether a layer's output has the shape of its input, whatever that is.

    Example:
        >>> is_square(nn.Linear(3, 3)), is_square(nn.Conv2d(4, 4, 3)), is_square(nn.Conv2d(4, 4, 3, padding=1))
        (True, False, True)
    """
    if isinstance(module, nn.Linear):
        return module.in_features == module.out_features
    if not isinstance(module, _ConvNd) or module.in_channels != module.out_channels:
        return False
    if any(stride != 1 for stride in module.stride):
        return False
    if isinstance(module.padding, str):
        return module.padding == "same" or all(size == 1 for size in module.kernel_size)
    if any(module.output_padding):
        return False
    spans = zip(module.padding, module.dilation, module.kernel_size, strict=True)
    return all(2 * padding == dilation * (size - 1) for padding, dilation, size in spans)


def _block(model: nn.Module, place: Place) -> Block | None:
    """Return a layer with all up to its activation, None where they are no neighbors in a chain."""
    if not is_chain(place.parent):
        return None
    prefix, _, own = place.path.rpartition(".")
    names = list(place.parent._modules)
    paths = [place.path]
    for name in names[names.index(own) + 1 :]:
        module = place.parent._modules[name]
        paths.append(f"{prefix}.{name}" if prefix else name)
        if module is not None and activation_of(module):
            return Block(tuple(paths), tuple(written(model, path) for path in paths))
        if not isinstance(module, _SAME_SHAPE):
            return None
    return None


def _several(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]} ({len(names)} layers)"


def _by_hand(case: Case, name: str, *, shared: bool) -> str:
    if shared:
        return "it is used at several places"
    line = f" ({case.called_at[name]})" if name in case.called_at else ""
    return (
        f"the model's own forward calls it{line}. Write there x = x + alpha * activation(layer(x)), "
        "with alpha = nn.Parameter(torch.zeros(1)) registered in the model"
    )
