"""A softmax over one unit gives 1 whatever goes in: a sigmoid in its place."""

from __future__ import annotations

from torch import nn

from lightning_gradwatch.remedy.activation import ActivationSwap, Replacement
from lightning_gradwatch.remedy.case import Case
from lightning_gradwatch.remedy.edits import Edits
from lightning_gradwatch.remedy.places import places_in, written
from lightning_gradwatch.remedy.remedy import Remedy


def to_sigmoid(case: Case, layer: str) -> list[Remedy]:
    """Advise a sigmoid in the place of the softmax that is registered behind a layer of one unit.

    Args:
        case: What is known, with the model.
        layer: Name of the layer.

    Returns:
        One remedy; none where no ``nn.Softmax`` is registered behind it.

    Example:
        >>> from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
        >>> model = nn.Sequential(nn.Linear(4, 1), nn.Softmax(-1))
        >>> remedy, = to_sigmoid(Case(Diagnosis("dead", Symptom.DEAD), model=model), "0")
        >>> remedy.apply_(model)
        >>> model[1]
        Sigmoid()
    """
    if case.model is None:
        return []
    found = [p for p in places_in(case.model) if isinstance(p.module, nn.Softmax) and p.behind == layer]
    if not found:
        return []
    replacements = tuple(Replacement(place.path, written(case.model, place.path), "Sigmoid") for place in found)
    edits = Edits((ActivationSwap(replacements, "nn.Softmax() -> nn.Sigmoid()"),))
    return [
        Remedy(
            title=f"nn.Sigmoid in the place of the softmax behind {layer}, with nn.BCELoss(); then start again",
            reason="a softmax over one number is 1 whatever the number, so its gradient is 0; a sigmoid is the softmax "
            "over two numbers of which one is 0",
            diagnosis=case.diagnosis,
            code=edits.code,
            needs_restart=True,
            change=edits,
        )
    ]
