"""A normalization between a layer and its activation: batch norm where a batch is many rows, else layer norm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lightning_gradwatch.measure.activations import activation_of
from lightning_gradwatch.measure.layers import find_layers
from lightning_gradwatch.remedy.case import Case, count_layers
from lightning_gradwatch.remedy.edits import Edits
from lightning_gradwatch.remedy.places import Line, Place, in_loops, is_chain, places_in, set_module_, written
from lightning_gradwatch.remedy.remedy import Remedy

_BATCH: Final = "a unit's inputs then have mean 0 and variance 1 in each batch, whatever the layers before it do"
# Ours: in stacks of 12 sigmoid, ReLU or GELU layers at PyTorch's default, SGD learns with batch norm in every run and
# with layer norm alone in none; Adam learns with both.
_LAYER: Final = (
    "a layer's output then has mean 0 and variance 1 in each sample; in a deep stack under SGD add residual connections"
    ", since it does not keep samples apart as batch norm does (Daneshmand et al., 2020)"
)
_REASONS: Final = {
    "BatchNorm1d": f"{_BATCH} (Ioffe and Szegedy, 2015)",
    "BatchNorm2d": f"{_BATCH} (Ioffe and Szegedy, 2015)",
    "BatchNorm3d": f"{_BATCH} (Ioffe and Szegedy, 2015)",
    "LayerNorm": f"{_LAYER}; Ba et al., 2016",
    "GroupNorm": f"{_LAYER}; Wu and He, 2018",
}
_CONVOLUTIONS: Final = (
    (nn.Conv1d, nn.ConvTranspose1d),
    (nn.Conv2d, nn.ConvTranspose2d),
    (nn.Conv3d, nn.ConvTranspose3d),
)
_NORMS: Final = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
# Where these are, a linear layer's input has a dimension of positions beside that of samples.
_OF_SEQUENCES: Final = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.Embedding)
# What leaves the kind and the number of dimensions: a norm may stand behind it as well as before.
_PASSED: Final = (
    nn.Identity, nn.modules.dropout._DropoutNd, nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd,
)  # fmt: skip


_RESTART = ", then start again"


@dataclass(frozen=True)
class Norm:
    """A normalization for one layer.

    Attributes:
        layer: Where the layer is registered, as ``get_submodule`` takes it.
        kind: Class in ``torch.nn``.
        num_features: How many units the layer puts out.
        dtype: Of the layer's weights.
        place: Where the activation is registered; empty where it is not in the same ``nn.Sequential``.
        written: The activation's place as a person would write it, the layer's where that is empty.
    """

    layer: str
    kind: str
    num_features: int
    dtype: torch.dtype
    place: str
    written: str

    @property
    def call(self) -> str:
        """The call that makes it."""
        groups = "1, " if self.kind == "GroupNorm" else ""
        dtype = "" if self.dtype is torch.float32 else f", dtype={self.dtype}"
        return f"nn.{self.kind}({groups}{self.num_features}{dtype})"

    def made(self, device: torch.device | None) -> nn.Module:
        """Make it."""
        sizes = (1, self.num_features) if self.kind == "GroupNorm" else (self.num_features,)
        module: nn.Module = getattr(nn, self.kind)(*sizes, device=device, dtype=self.dtype)
        return module

    @property
    def line(self) -> Line:
        """What is done, written down."""
        if self.place:
            return Line((f"{{0}} = nn.Sequential({self.call}, {{0}})",), (self.written,))
        forms = (
            "layer = {0}",
            f"layer.norm = {self.call}",
            "layer.register_forward_hook(lambda layer, args, output: layer.norm(output))",
        )
        return Line(forms, (self.written,))


@dataclass(frozen=True)
class Normalization:
    """Put a normalization between layers and their activations.

    Where both stand in one ``nn.Sequential``, the activation's place gets ``nn.Sequential(norm, activation)``: nothing
    moves, and the layer keeps its name, its class and its weights' names. Elsewhere the model's own ``forward`` calls
    the activation, so the norm becomes the layer's ``norm`` and a forward hook runs it. Either way the new parameters
    are the model's, and what is made anew, copied or saved has them; the hook is a function of the layer that it is
    given, so a copy runs its own norm.

    Attributes:
        norms: Which, and where.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> edit = Normalization((Norm("0", "BatchNorm1d", 8, torch.float32, "1", "model[1]"),))
        >>> print(edit.code)
        # where the model is built: nn.BatchNorm1d(8) between a layer and its activation
        from torch import nn
        model[1] = nn.Sequential(nn.BatchNorm1d(8), model[1])
        >>> edit.apply_(model)
        >>> [type(module).__name__ for module in model[1]]
        ['BatchNorm1d', 'Tanh']
    """

    norms: tuple[Norm, ...]

    @property
    def code(self) -> str:
        """Lines to paste."""
        calls = ", ".join(dict.fromkeys(norm.call for norm in self.norms))
        says = f"# where the model is built: {calls} between a layer and its activation"
        outside = any(not norm.place for norm in self.norms)
        hint = ["# and in forward: activation(norm(layer(x))); or, from outside, a hook:"] if outside else []
        torch_too = ["import torch"] if any(norm.dtype is not torch.float32 for norm in self.norms) else []
        lines = in_loops([norm.line for norm in self.norms])
        return "\n".join([says, *hint, *torch_too, "from torch import nn", *lines])

    def apply_(self, model: nn.Module) -> None:
        """Do it in place, on the device of each layer.

        Args:
            model: The model.
        """
        for norm in self.norms:
            layer = model.get_submodule(norm.layer)
            made = norm.made(next((parameter.device for parameter in layer.parameters()), None))
            made.training = layer.training
            if norm.place:
                set_module_(model, norm.place, nn.Sequential(made, model.get_submodule(norm.place)))
            else:
                layer.norm = made
                layer.register_forward_hook(_normalized)


def _normalized(layer: nn.Module, args: Any, output: Tensor) -> Tensor:
    """Run the norm that was given to a layer; a plain function, so that a copied or pickled layer runs its own."""
    normalized: Tensor = layer.get_submodule("norm")(output)
    return normalized


def together(first: Sequence[Remedy], second: Sequence[Remedy]) -> list[Remedy]:
    """Return both edits of a model as one remedy; none where one is missing.

    Args:
        first: Weights made anew, at most one remedy.
        second: Norms, at most one remedy.
    """
    return [
        replace(
            norms,
            title=f"{weights.title.removesuffix(_RESTART)}, and {norms.title}",
            reason=f"{weights.reason}; {norms.reason}",
            code=both.code,
            change=both,
        )
        for weights, norms in zip(first, second, strict=False)
        if isinstance(weights.change, Edits) and isinstance(norms.change, Edits)
        for both in [Edits((*weights.change.edits, *norms.change.edits))]
    ]


def convolutional(case: Case) -> bool:
    """Tell whether most of the layers that a case is about are convolutions without a norm behind them.

    Args:
        case: What is known, with the model.
    """
    if case.model is None:
        return False
    modules = {layer.name: layer.module for layer in find_layers(case.model)}
    bare = [name for name in case.hidden if name not in case.feed_batch_norm]
    return 2 * sum(isinstance(modules.get(name), _ConvNd) for name in bare) > len(case.hidden)


def with_normalization(case: Case, layers: Sequence[str]) -> list[Remedy]:
    """Advise a normalization between layers and their activations.

    ``nn.BatchNorm1d(num_features)`` behind a linear layer and ``nn.BatchNorm2d`` (1d, 3d) behind a convolution;
    ``nn.LayerNorm`` behind a linear layer whose input has more than two dimensions, that is used step after step or at
    several places, or that sees one sample at a time, and ``nn.GroupNorm(1, num_features)``, its likeness for channels,
    behind such a convolution. Where ``case.shapes`` does not tell how many dimensions there are, a model with
    embeddings, attention or recurrent layers is taken for one of sequences.

    Args:
        case: What is known, with the model.
        layers: Names of the layers. Left out are those that no activation follows (the output's is the loss's
            business), gates, those that are normalized already, and those of an unknown kind.

    Returns:
        One remedy; none where no layer is left.

    References:
        Ioffe and Szegedy, Batch normalization, ICML 2015. Ba, Kiros and Hinton, Layer normalization, 2016. Wu and He,
        Group normalization, ECCV 2018. Daneshmand et al., Batch normalization provably avoids rank collapse for
        randomly initialised deep networks, NeurIPS 2020.
    """
    norms = _plan(case, layers)
    if not norms:
        return []
    kinds = dict.fromkeys(norm.kind for norm in norms)
    edits = Edits((Normalization(norms),))
    return [
        Remedy(
            title=f"{' and '.join(f'nn.{kind}' for kind in kinds)} between {count_layers(len(norms))} and "
            f"{'its activation' if len(norms) == 1 else 'their activations'}, then start again",
            reason="; ".join(dict.fromkeys(_REASONS[kind] for kind in kinds)),
            diagnosis=case.diagnosis,
            code=edits.code,
            where=next((case.called_at[name] for name in layers if name in case.called_at), None),
            needs_restart=True,
            change=edits,
        )
    ]


def _plan(case: Case, layers: Sequence[str]) -> tuple[Norm, ...]:
    if case.model is None:
        return ()
    places = list(places_in(case.model))
    modules = {layer.name: layer.module for layer in find_layers(case.model)}
    # Of layers that are one module, one; and in the order of registration, whatever that of the diagnosis is.
    wanted = [name for name in modules if name in layers and case.is_hidden(name) and name not in case.feed_batch_norm]
    found = (_norm(case, name, modules[name], places) for name in wanted)
    return tuple(norm for norm in found if norm is not None)


def _norm(case: Case, name: str, module: nn.Module | None, places: Sequence[Place]) -> Norm | None:
    own = [number for number, place in enumerate(places) if place.module is module]
    num_features = getattr(module, "out_features", getattr(module, "out_channels", None))
    if not own or module is None or num_features is None or hasattr(module, "norm"):
        return None
    assert case.model is not None
    following = places[own[0] + 1].module if own[0] + 1 < len(places) else None
    if isinstance(following, _NORMS):
        return None
    layer = places[own[0]].path
    activation = _activation_behind(places[own[0]]) if len(own) == 1 else ""
    kind = _kind(case, name, module, shared=len(own) > 1)
    # Weights that are packed into bytes are no numbers.
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    return Norm(layer, kind, num_features, dtype, activation, written(case.model, activation or layer))


def _activation_behind(place: Place) -> str:
    """Return the place of the activation behind a layer in one chain, past what leaves its output's dimensions."""
    prefix, _, own = place.path.rpartition(".")
    if not is_chain(place.parent):
        return ""
    names = list(place.parent._modules)
    for name in names[names.index(own) + 1 :]:
        module = place.parent._modules[name]
        if module is not None and activation_of(module):
            return f"{prefix}.{name}" if prefix else name
        if not isinstance(module, _PASSED):
            return ""
    return ""


def _kind(case: Case, name: str, module: nn.Module, *, shared: bool) -> str:
    shape = case.shapes.get(name, ())
    again = shared or case.diagnosis.rule.endswith(".time")
    dimensions = next((number for number, kinds in enumerate(_CONVOLUTIONS, 1) if isinstance(module, kinds)), 0)
    if isinstance(module, _ConvNd) and dimensions:
        alone = bool(shape) and (shape[0] == 1 or len(shape) < dimensions + 2)
        return "GroupNorm" if again or alone else f"BatchNorm{dimensions}d"
    assert case.model is not None
    of_sequences = any(isinstance(each, _OF_SEQUENCES) for each in case.model.modules())
    rows = (len(shape) == 2 and shape[0] > 1) if shape else not of_sequences
    return "BatchNorm1d" if rows and not again else "LayerNorm"
