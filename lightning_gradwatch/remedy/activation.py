"""Another activation in the place of one that passes too little back, with the weights that belong to it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from torch import nn

from lightning_gradwatch.measure.activations import activation_of
from lightning_gradwatch.remedy.case import Case, count_layers
from lightning_gradwatch.remedy.edits import Edit, Edits, FunctionCalls
from lightning_gradwatch.remedy.fresh_weights import FreshWeights
from lightning_gradwatch.remedy.initialization import HE, LECUN, Scheme
from lightning_gradwatch.remedy.places import Line, Place, in_loops, places_in, set_module_, written
from lightning_gradwatch.remedy.remedy import Remedy

# Dropout that keeps what SELU needs, mean and variance (Klambauer et al., 2017).
_ALPHA: Final[Mapping[type[nn.Module], str]] = {
    nn.Dropout: "AlphaDropout", nn.Dropout1d: "FeatureAlphaDropout", nn.Dropout2d: "FeatureAlphaDropout",
    nn.Dropout3d: "FeatureAlphaDropout",
}  # fmt: skip
# Of the others torch itself has a function.
_FUNCTIONAL: Final = ("gelu", "silu", "elu", "softplus", "leaky_relu")


@dataclass(frozen=True)
class Exchange:
    """What comes in the place of which activations.

    Attributes:
        name: Name of the new activation (``"relu"``).
        module: Its class in ``torch.nn``.
        replaces: Names of those that it may replace.
        scheme: The initialization that belongs to it; None where the weights stay what they are.
        reason: Why, with its source.
        settings: Arguments of the module.
        alpha_dropout: Whether the dropout behind it has to change as well.
    """

    name: str
    module: str
    replaces: frozenset[str]
    scheme: Scheme | None
    reason: str
    settings: tuple[tuple[str, Any], ...] = ()
    alpha_dropout: bool = False


TO_RELU = Exchange(
    "relu",
    "ReLU",
    frozenset({"sigmoid", "tanh"}),
    HE,
    "a sigmoid's slope is at most a quarter; no usual initialization makes up for that over many layers "
    "(Glorot and Bengio, 2010; He et al., 2015)",
)
TO_SELU = Exchange(
    "selu",
    "SELU",
    frozenset({"sigmoid", "tanh", "relu", "leaky_relu", "gelu", "silu", "elu", "softplus"}),
    LECUN,
    "SELU draws what goes through it back to mean 0 and variance 1, layer after layer (Klambauer et al., 2017)",
    alpha_dropout=True,
)
_EXPONENTIAL = "exp of exp of exp outgrows every number within a few layers"
FROM_EXP = (
    Exchange("relu", "ReLU", frozenset({"exp"}), HE, f"{_EXPONENTIAL}; a ReLU keeps the size of what it lets through"),
    Exchange("selu", "SELU", frozenset({"exp"}), LECUN, f"{_EXPONENTIAL}; SELU keeps mean 0 and variance 1"),
)
# A slope of 0.01 is that of the paper, and torch's default.
TO_LEAKY_RELU = Exchange(
    "leaky_relu",
    "LeakyReLU",
    frozenset({"relu"}),
    None,
    "it passes a hundredth of the gradient back where ReLU passes none (Maas et al., 2013)",
    settings=(("negative_slope", 0.01),),
)
_SATURATED = "a tanh that is far from 0 passes next to nothing back, a ReLU that is on all of it (Glorot et al., 2011)"


@dataclass(frozen=True)
class Replacement:
    """One place of the model and what comes there.

    Attributes:
        place: The place, as ``get_submodule`` takes it.
        written: The same as a person would write it.
        module: Class in ``torch.nn``.
        settings: Its arguments.
    """

    place: str
    written: str
    module: str
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def call(self) -> str:
        """The call that makes the new module."""
        return f"nn.{self.module}({', '.join(f'{name}={value!r}' for name, value in self.settings)})"

    def made(self) -> nn.Module:
        """Make the new module."""
        module: nn.Module = getattr(nn, self.module)(**dict(self.settings))
        return module


@dataclass(frozen=True)
class ActivationSwap:
    """Put other activations in the places of registered ones.

    Attributes:
        replacements: What comes where.
        says: The same in a line for the source.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
        >>> swap = plan_swap(model, TO_RELU, {"0": "tanh"})
        >>> print(swap.code)
        # where the model is built: nn.Tanh() -> nn.ReLU()
        from torch import nn
        model[1] = nn.ReLU()
        >>> swap.apply_(model)
        >>> model[1]
        ReLU()
    """

    replacements: tuple[Replacement, ...]
    says: str = ""

    @property
    def code(self) -> str:
        """Lines to paste."""
        lines = [Line((f"{{0}} = {each.call}",), (each.written,)) for each in self.replacements]
        return "\n".join([f"# where the model is built: {self.says}", "from torch import nn", *in_loops(lines)])

    def apply_(self, model: nn.Module) -> None:
        """Do it in place: each place gets a module of its own.

        Args:
            model: The model.
        """
        for each in self.replacements:
            set_module_(model, each.place, each.made())


def plan_swap(
    model: nn.Module, exchange: Exchange, followed: Mapping[str, str], outputs: Collection[str] = ()
) -> ActivationSwap:
    """Find the places where activations are registered behind layers.

    They are those in registration order behind one of the layers and before the next; where there are none at all,
    those of the same kind anywhere: one module may be registered last and used by all.

    Args:
        model: The model.
        exchange: What comes in their place.
        followed: The activation behind each of the layers, by name.
        outputs: Names of the output layers: what stands behind them makes probabilities, and stays.

    Returns:
        The plan; without replacements where activations of that kind are no modules.
    """
    kinds = frozenset(followed.values()) & exchange.replaces
    places = list(places_in(model))
    anywhere = [place for place in places if activation_of(place.module) in kinds and place.behind not in outputs]
    chosen = [place for place in anywhere if place.behind in followed] or anywhere
    replacements = [_replacement(model, place, exchange) for place in chosen]
    if exchange.alpha_dropout and chosen:
        replacements += _dropouts(model, places, {place.behind for place in chosen})
    old = dict.fromkeys(type(place.module).__name__ for place in chosen)
    says = ", ".join(f"nn.{name}() -> nn.{exchange.module}()" for name in old)
    return ActivationSwap(tuple(replacements), says)


def _replacement(model: nn.Module, place: Place, exchange: Exchange) -> Replacement:
    in_place = (("inplace", True),) if getattr(place.module, "inplace", False) else ()
    return Replacement(place.path, written(model, place.path), exchange.module, (*exchange.settings, *in_place))


def _dropouts(model: nn.Module, places: Sequence[Place], behind: Collection[str]) -> Iterator[Replacement]:
    for place in places:
        module, name = place.module, _ALPHA.get(type(place.module))
        if name is not None and isinstance(module, nn.modules.dropout._DropoutNd) and place.behind in behind:
            in_place = (("inplace", True),) if module.inplace else ()
            yield Replacement(place.path, written(model, place.path), name, (("p", module.p), *in_place))


def with_activation(case: Case, exchange: Exchange, layers: Sequence[str]) -> list[Remedy]:
    """Advise another activation behind layers, with the initialization that belongs to it.

    Args:
        case: What is known; without its model no module is found.
        exchange: Which activation in the place of which.
        layers: Names of the layers; those that another activation follows are left out.

    Returns:
        One remedy; none where no such activation follows any of the layers. Where one is called as a function, or as
        a module that could not be found, ``apply_`` refuses and ``tried`` swaps the function.
    """
    followed = {name: kind for name in layers if (kind := case.activations.get(name)) in exchange.replaces and kind}
    if not followed:
        return []
    fresh = _fresh_weights(case, exchange, followed)
    # Where another kind of activation makes the output, or none, what is registered behind its layer is none of it.
    made = frozenset(followed.values()) & case.at_output
    outputs = {name for name, kind in case.activations.items() if kind == "output" and made}
    swap = plan_swap(case.model or nn.Module(), exchange, _as_modules(case, followed), outputs)
    calls = _calls(case, exchange, followed, found=bool(swap.replacements))
    if swap.replacements and _makes_the_output(case, followed, outputs):
        swap, calls = ActivationSwap(()), replace(_all_calls(exchange, followed), shared=True)
    found: list[Edit] = [swap] if swap.replacements else []
    edits = Edits((*found, *([fresh] if fresh is not None else [])), calls)
    initialized = f", with {exchange.scheme.name} initialization" if exchange.scheme and fresh and fresh.schemes else ""
    olds = _in_words(dict.fromkeys(followed.values()))
    return [
        Remedy(
            title=f"{exchange.module} instead of {olds} after {count_layers(len(followed))}{initialized}, "
            "then start again",
            reason=_SATURATED if exchange is TO_RELU and "sigmoid" not in followed.values() else exchange.reason,
            diagnosis=case.diagnosis,
            code=edits.code,
            where=calls.lines[0] if calls is not None and calls.lines else None,
            needs_restart=True,
            change=edits,
        )
    ]


def _as_modules(case: Case, followed: Mapping[str, str]) -> dict[str, str]:
    return {name: kind for name, kind in followed.items() if name not in case.called_at}


def _calls(case: Case, exchange: Exchange, followed: Mapping[str, str], *, found: bool) -> FunctionCalls | None:
    """Return what is called as a function: what a probe has seen to be, or all where no module was found."""
    called = {name: kind for name, kind in followed.items() if name in case.called_at or not found}
    if not called:
        return None
    kinds = dict.fromkeys(called.values())
    says = ", ".join(f"{_function(kind)}(...) -> {_function(exchange.name)}(...)" for kind in kinds)
    lines = dict.fromkeys(case.called_at[name] for name in called if name in case.called_at)
    return FunctionCalls(dict.fromkeys(kinds, exchange.name), tuple(called), tuple(lines), says)


def _all_calls(exchange: Exchange, followed: Mapping[str, str]) -> FunctionCalls:
    kinds = dict.fromkeys(followed.values())
    return FunctionCalls(dict.fromkeys(kinds, exchange.name), tuple(followed), says=f"nn.{exchange.module}()")


def _makes_the_output(case: Case, followed: Mapping[str, str], outputs: Collection[str]) -> bool:
    """Tell whether an activation module of the hidden layers makes the output, too: none of its own stands there."""
    kinds = frozenset(followed.values()) & case.at_output
    if not kinds or case.model is None or any(name in case.called_at for name in outputs):
        return False
    return not any(activation_of(place.module) in kinds and place.behind in outputs for place in places_in(case.model))


def _function(kind: str) -> str:
    return f"F.{kind}" if kind in _FUNCTIONAL else f"torch.{kind}"


def _fresh_weights(case: Case, exchange: Exchange, followed: Mapping[str, str]) -> FreshWeights | None:
    if exchange.scheme is None:
        return None
    standings = [standing for standing in case.standings if standing.layer in followed]
    return FreshWeights(
        {s.layer: exchange.scheme for s in standings if not s.refusal},
        {s.layer: s.refusal for s in standings if s.refusal},
    )


def _in_words(names: Collection[str]) -> str:
    *first, last = (name.replace("_", " ") for name in names)
    return f"{', '.join(first)} and {last}" if first else last
