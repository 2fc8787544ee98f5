"""Ways out for recurrent layers: orthogonal weights, forget gates that stay open, gates at all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lightning_gradwatch.measure.layers import ROOT, find_layers
from lightning_gradwatch.remedy.case import Case
from lightning_gradwatch.remedy.memory import GATES, Memory
from lightning_gradwatch.remedy.remedy import Remedy


def orthogonal(case: Case, memory: Memory) -> Remedy:
    """Advise recurrent weights that neither shrink nor stretch.

    Args:
        case: What is known.
        memory: Of a layer without gates.

    Returns:
        The remedy.
    """
    name = "" if memory.layer == ROOT else memory.layer
    return Remedy(
        title=f"{_condition(case)}orthogonal recurrent weights in {memory.layer}, then start again",
        reason="an orthogonal matrix keeps the length of what it multiplies, however often (Saxe et al., 2014)",
        diagnosis=case.diagnosis,
        code=f"""\
from torch import nn
layer = model.get_submodule({name!r})
for name, weight in layer.named_parameters(recurse=False):
    if name == "weight" or name.startswith("weight_hh"):
        nn.init.orthogonal_(weight)""",
        needs_restart=True,
        change=_Orthogonal(memory.layer),
    )


def gated(case: Case, layer: str) -> Remedy:
    """Advise a layer with gates in the place of one without."""
    return Remedy(
        title=f"{_condition(case)}nn.LSTM or nn.GRU in the place of {layer}",
        reason="a gate carries the state over many steps unchanged (Hochreiter and Schmidhuber, 1997)",
        diagnosis=case.diagnosis,
        needs_restart=True,
    )


def upright(case: Case, layer: str) -> Remedy:
    """Advise a tanh in the place of the sigmoid of a cell made by hand."""
    return Remedy(
        title=f"{_condition(case)}torch.tanh in the place of the sigmoid behind {layer}, and orthogonal weights from "
        "state to state, then start again",
        reason="a tanh has slope 1 at 0, a sigmoid at most 0.25; an orthogonal matrix keeps the length of what it "
        "multiplies (Saxe et al., 2014)",
        diagnosis=case.diagnosis,
        needs_restart=True,
    )


def chrono(case: Case, memory: Memory, num_steps: int) -> Remedy:
    """Advise gate biases with which the layer remembers as long as the sequence is.

    ``bias_forget = log(uniform(1, T - 1))`` and ``bias_input = -bias_forget`` for an LSTM; the update gate's bias
    alone for a GRU, whose update gate is both.

    Args:
        case: What is known.
        memory: Of a layer with gates and biases.
        num_steps: The length of the sequence, ``T``.

    Returns:
        The remedy.
    """
    name = "" if memory.layer == ROOT else memory.layer
    longest = max(num_steps - 1, 2)
    inputs = "\n            bias[: layer.hidden_size] = -keeps" if memory.kind == "LSTM" else ""
    return Remedy(
        title=f"{_condition(case)}chrono initialization of the {GATES[memory.kind]} gates in {memory.layer} for "
        f"{num_steps} steps, then start again",
        reason=f"a gate with bias log(n) keeps the state for about n steps, n from 1 to {longest} "
        "(Tallec and Ollivier, 2018)",
        diagnosis=case.diagnosis,
        code=f"""\
import torch
layer = model.get_submodule({name!r})
with torch.no_grad():
    for name, bias in layer.named_parameters(recurse=False):
        if name.startswith("bias_hh"):
            bias.zero_()
        elif name.startswith("bias_ih"):
            keeps = torch.empty(layer.hidden_size).uniform_(1, {longest}).log().to(bias)
            bias[layer.hidden_size : 2 * layer.hidden_size] = keeps{inputs}""",
        needs_restart=True,
        change=_Chrono(memory.layer, longest, opens_input=memory.kind != "LSTM"),
    )


def _condition(case: Case) -> str:
    """A network that forgets and whose loss falls needs no cure, unless more is asked of it."""
    return "if the answer lies far back: " if case.diagnosis.severity == "notice" else ""


@dataclass(frozen=True)
class _Orthogonal:
    layer: str

    def __call__(self, model: nn.Module) -> None:
        for name, weight in _parameters(model, self.layer):
            if name == "weight" or name.startswith("weight_hh"):
                nn.init.orthogonal_(weight)


@dataclass(frozen=True)
class _Chrono:
    layer: str
    longest: int
    opens_input: bool

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> None:
        for name, bias in _parameters(model, self.layer):
            hidden = bias.shape[0] // (3 if self.opens_input else 4)
            if name.startswith("bias_hh"):
                bias.zero_()
            elif name.startswith("bias_ih"):
                keeps = torch.empty(hidden).uniform_(1, self.longest).log().to(bias)
                bias[hidden : 2 * hidden] = keeps
                if not self.opens_input:
                    bias[:hidden] = -keeps


def _parameters(model: nn.Module, layer: str) -> list[tuple[str, torch.Tensor]]:
    return [pair for each in find_layers(model) if each.name == layer for pair in each.parameters.items()]
