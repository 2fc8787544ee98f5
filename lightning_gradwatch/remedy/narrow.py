"""How likely a ReLU network is born dead: narrow layers lose every unit at once."""

from __future__ import annotations

import math
from collections.abc import Iterable

from lightning_gradwatch.measure.layers import find_layers
from lightning_gradwatch.remedy.case import Case

# One start in twenty that learns nothing is one too many.
_LIKELY = 0.05


def born_dead(widths: Iterable[int]) -> float:
    """Return the probability that some layer of a ReLU network is off as a whole, for a given sample.

    ``p = 1 - prod_l (1 - 2^-width_l)``: with symmetric weights and biases of zero each unit is off in half of the
    cases.

    Args:
        widths: Units of each layer that a ReLU follows.

    Example:
        >>> round(born_dead([5] * 8), 3), born_dead([64] * 8) < 1e-6
        (0.224, True)

    References:
        Lu, Shin, Su and Karniadakis, Dying ReLU and initialization: theory and numerical examples, 2020.
    """
    return 1.0 - math.prod(1.0 - 2.0**-width for width in widths)


def may_die(case: Case, layers: Iterable[str]) -> bool:
    """Tell whether layers are so narrow and many that with ReLU behind them they are likely born dead.

    Args:
        case: What is known, with the model.
        layers: Names of the layers.
    """
    if case.model is None:
        return False
    wanted = set(layers)
    weights = (layer.parameters.get("weight") for layer in find_layers(case.model) if layer.name in wanted)
    return born_dead(weight.shape[0] for weight in weights if weight is not None and weight.ndim > 1) > _LIKELY
