"""What is told at the start beside what is watched: what asks to be trained and no optimizer holds."""

from __future__ import annotations

from lightning_gradwatch.measure.left_out import HiddenModules, LeftOut
from lightning_gradwatch.report.log import named, plural

_TOLD_CONTAINERS = 3


def left_out_lines(left_out: LeftOut) -> list[str]:
    """Say what asks for a gradient and no optimizer holds: a statement, no alarm, since it may be meant so.

    Args:
        left_out: What was left out.

    Returns:
        One line for the layers and one for each container of hidden modules; none where nothing was left out.

    Example:
        >>> print(*left_out_lines(LeftOut(("aux.0", "aux.2.bias"), 1290)))
        GradWatch  no optimizer holds aux.0, aux.2.bias (1,290 parameters): they stay as they are until one does
    """
    lines = []
    if left_out.layers:
        size = f"{left_out.num_parameters:,} {plural('parameter', left_out.num_parameters)}"
        stay = "it stays as it is" if len(left_out.layers) == 1 else "they stay as they are"
        lines.append(
            f"GradWatch  the optimizers hold no parameter of this model ({size}): was it made anew after them?"
            if left_out.everything
            else f"GradWatch  no optimizer holds {named(left_out.layers)} ({size}): {stay} until one does"
        )
    lines += [f"GradWatch  {_hidden_in_words(hidden)}" for hidden in left_out.hidden[:_TOLD_CONTAINERS]]
    rest = len(left_out.hidden) - _TOLD_CONTAINERS
    return lines + ([f"GradWatch  {rest} more {plural('container', rest)} of hidden modules"] if rest > 0 else [])


def _hidden_in_words(hidden: HiddenModules) -> str:
    modules = plural("module", hidden.num_modules)
    they, them = ("it is", "it") if hidden.num_modules == 1 else ("they are", "them")
    known = "ModuleDict" if "dict" in hidden.container.lower() else "ModuleList"
    return (
        f"self.{hidden.attribute} of {hidden.owner} is a plain {hidden.container} with {hidden.num_modules} {modules} "
        f"({hidden.num_parameters:,} parameters): {they} not registered, so no optimizer trains {them} and "
        f".to(device) does not move {them}; nn.{known} registers {them}"
    )
