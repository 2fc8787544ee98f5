"""The person's own optimizer, made anew for a copy of the model."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer


class NotRebuiltError(Exception):
    """Says in words why an optimizer cannot be made anew."""


def rebuild(
    optimizer: Optimizer, twins: Mapping[int, Tensor], copied: nn.Module, *, everything: bool = False
) -> Optimizer:
    """Make an optimizer of the same class and settings for a copy, without what it remembers.

    Each group keeps its settings. Parameters that a remedy has added belong to the first group; those that it has
    taken away are left out, and so are those outside the model.

    Args:
        optimizer: The person's.
        twins: The copy's parameter for each of the model's, by ``id``, as they were when the copy was made.
        copied: The copy, perhaps changed since.
        everything: Whether it gets all parameters of the copy, also those that the person's does not hold.

    Returns:
        The new one.

    Raises:
        NotRebuiltError: If its class asks for more than parameters and settings.

    Example:
        >>> import copy
        >>> import torch
        >>> model = nn.Linear(2, 1)
        >>> copied = copy.deepcopy(model)
        >>> twins = dict(zip(map(id, model.parameters()), copied.parameters()))
        >>> rebuild(torch.optim.Adam(model.parameters(), lr=0.5), twins, copied).param_groups[0]["lr"]
        0.5
    """
    alive = {id(parameter) for parameter in copied.parameters()}
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    known = {id(twin) for number, twin in twins.items() if number in held or not everything}
    groups = []
    for group in optimizer.param_groups:
        members = [twins[id(p)] for p in group["params"] if id(p) in twins and id(twins[id(p)]) in alive]
        settings = {name: _own(value) for name, value in group.items() if name not in ("params", "param_names")}
        groups.append({**settings, "params": members})
    groups[0]["params"] += [p for p in copied.parameters() if p.requires_grad and id(p) not in known]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise NotRebuiltError("the optimizer holds no parameter of the model")
    return _made(type(optimizer), groups, optimizer.defaults)


def _made(kind: type[Optimizer], groups: list[dict[str, Any]], defaults: Mapping[str, Any]) -> Optimizer:
    try:
        accepted = inspect.signature(kind).parameters
        settings = {name: _own(value) for name, value in defaults.items() if name in accepted and name != "params"}
        return kind(groups, **settings)
    except Exception as error:
        raise NotRebuiltError(f"{kind.__name__} cannot be made anew: {type(error).__name__}: {error}") from error


def _own(value: Any) -> Any:
    """Return a setting that nobody else changes: a learning rate may be a tensor that a schedule writes to."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    return list(value) if isinstance(value, list) else value


def change_(optimizer: Optimizer, changes: Mapping[str, Any]) -> None:
    """Set what a remedy changes in every group of an optimizer.

    Args:
        optimizer: Any optimizer.
        changes: Such as ``{"lr": 1e-3}``.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> change_(optimizer, {"lr": 0.25})
        >>> optimizer.param_groups[0]["lr"]
        0.25
    """
    for group in optimizer.param_groups:
        for name, value in changes.items():
            if name == "params":
                # Whose parameters it holds was settled when it was made.
                continue
            if isinstance(group.get(name), Tensor):
                group[name].fill_(value)
            else:
                group[name] = value


def twins_of(model: nn.Module, copied: nn.Module) -> dict[int, Tensor]:
    """Return the copy's parameter for each of the model's, by ``id``.

    Args:
        model: A model.
        copied: Its copy, as yet unchanged.
    """
    parameters: Iterable[Tensor] = copied.parameters()
    return dict(zip(map(id, model.parameters()), parameters, strict=True))
