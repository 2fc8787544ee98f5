"""Whether a model and its optimizers can be watched without a Trainer: what is inside their wrappers, and fits."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from lightning_gradwatch.measure.layers import num_elements
from lightning_gradwatch.settings import Settings

# Set on an optimizer while it is watched.
MARK = "_gradwatch_attached"


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside what Fabric, Accelerate and torch put around it."""
    # By name: Lightning's classes are not imported here.
    while {cls.__name__ for cls in type(model).__mro__} & {"DistributedDataParallel", "DataParallel", "_FabricModule"}:
        inside = model.module
        assert isinstance(inside, nn.Module), "a wrapper has a module inside"
        model = inside
    return model


def inner_optimizer(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer inside what Fabric and Accelerate put around it."""
    while isinstance(inside := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inside
    return optimizer


def check_attachable(model: nn.Module, optimizers: Sequence[Optimizer], settings: Settings) -> None:
    """Refuse what cannot be watched, before anything is changed.

    Args:
        model: The model itself, not what wraps it.
        optimizers: Its optimizers, likewise.
        settings: What the person has set.

    Raises:
        TypeError: If the model is no module, or an optimizer none or one that tells nobody of its steps.
        ValueError: If the two do not belong together, the model has no memory yet, an optimizer is watched already, or
            a setting needs the Trainer.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module. Got {type(model).__name__}")
    if not optimizers:
        raise ValueError("`optimizer` must be an optimizer or a list of them. Got an empty list")
    for optimizer in optimizers:
        _check_optimizer(optimizer)
    if len({id(optimizer) for optimizer in optimizers}) < len(optimizers):
        raise ValueError("`optimizer` must name each optimizer once. Got the same one twice")
    if settings.rehearse:
        raise ValueError(
            "`rehearse=True` needs the Trainer, which knows how a batch is run again. Remove it, and try the remedies "
            "with lightning_gradwatch.examine(model, loss_closure)."
        )
    _check_memory(model)
    _check_parameters(model, optimizers)


def _check_optimizer(optimizer: Optimizer) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"`optimizer` must be a torch.optim.Optimizer. Got {type(optimizer).__name__}")
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        kind = type(optimizer).__name__
        raise TypeError(
            f"This {kind} tells nobody of its steps: it is built without Optimizer.__init__, as wrappers such as "
            "Lookahead are. Pass the optimizer inside it, if it steps that one."
        )
    if MARK in optimizer.__dict__:
        raise ValueError(
            f"This {type(optimizer).__name__} is being watched already: every gradient would be read twice. Leave "
            "the other `with` block first; several rules, sinks and thresholds fit into one GradWatch."
        )


def _check_memory(model: nn.Module) -> None:
    empty = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if empty:
        raise ValueError(
            f"`model` must have its weights in memory. {len(empty)} parameters are on the meta device, the first is "
            f"{empty[0]}: load or initialize them (model.to_empty(device=...)) and attach then."
        )


def _check_parameters(model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    known = set(map(id, model.parameters()))
    for optimizer in optimizers:
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        foreign = [parameter for parameter in held if id(parameter) not in known]
        if foreign and len(foreign) == len(held):
            raise ValueError(
                f"`optimizer` must train parameters of `model`. All {len(held)} parameters of this "
                f"{type(optimizer).__name__} ({sum(map(num_elements, held)):,} numbers) belong to something else: make "
                "the optimizer after the model was moved, wrapped or built anew, from its own model.parameters()."
            )
