"""What is done about a sick run: our first remedy, the usual rules of thumb, and AUTOTRAINER's first repair."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.ward.case import Case, Lesson
from benchmarks.ward.networks import ACTIVATIONS, Exponential, Functional, linears
from benchmarks.ward.rivals.autotrainer import AutoTrainer
from benchmarks.ward.rivals.look import Flag
from benchmarks.ward.treatment import Treated, changes_nothing, reschedule, treat
from lightning_gradwatch import GradWatch, Remedy, Symptom


@dataclass(frozen=True, eq=False)
class Seen:
    """What the run that failed has shown.

    Attributes:
        watch: The GradWatch that has watched it.
        seed: Which run it was.
        flags: What AUTOTRAINER's rules have said, by their name; empty where they have not watched.
    """

    watch: GradWatch
    seed: int = 0
    flags: Mapping[str, Sequence[Flag]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Proposal:
    """What a strategy says is to be done.

    Attributes:
        title: What it is, in a line.
        treat: Does it to a fresh lesson.
        rule: The rule whose diagnosis it is for; empty where none was asked.
        severity: The severity of that diagnosis.
        words_only: Whether it tells a person to look or to edit and changes nothing itself.
        remedy: The remedy that it carries out; None where it is none of ours. What two strategies propose is done once.
    """

    title: str
    treat: Callable[[Lesson], Treated]
    rule: str = ""
    severity: str = ""
    words_only: bool = False
    remedy: Remedy | None = None


# Cases in which something in the source cuts the graph, or has slope 0 everywhere.
_CUT = ("disconnected/", "rest/detached-trunk", "rest/no-grad-trunk", "rest/numpy-trunk")

Strategy = Callable[[Seen], "Proposal | None"]
"""Returns what is to be done, None where it has nothing to say."""


def ours(seen: Seen, place: int = 0) -> Proposal | None:
    """Return a remedy of ``watch.remedies``, as it stands when training has ended.

    Args:
        seen: The run that failed.
        place: Which remedy; the first is what the benchmark is about.
    """
    remedies = seen.watch.remedies
    return _proposal(remedies[place]) if len(remedies) > place else None


def told(seen: Seen) -> Proposal | None:
    """Return the first remedy of the first warning that had one, as the log told it; of a notice where none warned.

    It is there as well where the diagnosis has recovered, and differs from ``ours`` where several faults followed.
    """
    diagnoses = sorted(seen.watch.diagnoses, key=lambda diagnosis: diagnosis.severity == "notice")
    return next((_proposal(diagnosis.remedies[0]) for diagnosis in diagnoses if diagnosis.remedies), None)


def _proposal(remedy: Remedy) -> Proposal:
    return Proposal(
        remedy.title,
        partial(treat, remedy=remedy),
        remedy.diagnosis.rule,
        remedy.diagnosis.severity,
        words_only=changes_nothing(remedy),
        remedy=remedy,
    )


def names_the_culprit(case: Case, proposal: Proposal) -> bool:
    """Tell whether words say between which two layers the source cuts the graph or flattens it, and are right.

    Only a person can take ``x.detach()`` or ``x.round()`` out of a source. Who is told the two layers has one line to
    look for; the ward's cure of such a case is that edit and nothing else. What is right is what the case claims: the
    layer before the cut is one of its culprits and the next one is none.

    Args:
        case: The case.
        proposal: What was proposed.
    """
    remedy = proposal.remedy
    if remedy is None or case.cure is None or not case.name.startswith(_CUT):
        return False
    before, following = remedy.diagnosis.layers[:1], remedy.diagnosis.evidence.get("next_layer")
    if not before or not following or f"between {before[0]} and {following}" not in remedy.title:
        return False
    ends = [
        any(fnmatchcase(name.removeprefix("net."), culprit) for culprit in case.culprits)
        for name in (before[0], following)
    ]
    return ends == [True, False]


def xavier(seen: Seen) -> Proposal:
    """Return Xavier's initialization of every weight matrix, whatever is wrong (Glorot and Bengio, 2010)."""
    return Proposal("Xavier on all weight matrices", partial(_filled, fill=nn.init.xavier_uniform_))


def he(seen: Seen) -> Proposal:
    """Return He's initialization of every weight matrix, whatever is wrong (He et al., 2015)."""
    fill = partial(nn.init.kaiming_uniform_, nonlinearity="relu")
    return Proposal("He on all weight matrices", partial(_filled, fill=fill))


def clip(seen: Seen) -> Proposal:
    """Return clipping by a global norm of 1, whatever is wrong (the bound of torchtitan and OLMo)."""
    return Proposal(
        "clip by global norm 1",
        lambda lesson: Treated(replace(lesson, trainer={**lesson.trainer, "gradient_clip_val": 1.0})),
    )


def autotrainer(seen: Seen) -> Proposal | None:
    """Return AUTOTRAINER's first repair for what its own rules have found in the same run.

    Its order ("balance" in its code) begins with SELU for a vanishing and an exploding gradient and for dying ReLUs,
    and with another optimizer for slow convergence, which the ward's rules call vanishing: then the raw rule for
    vanishing gradients has not held.

    References:
        Zhang et al., AUTOTRAINER: An Automatic DNN Training Problem Detection and Repair System, ICSE 2021; code:
        AutoTrainer/utils/repair.py.
    """
    told = seen.flags.get(AutoTrainer(gate=True).name, ())
    if not told:
        return None
    first = told[0]
    raw = seen.flags.get(AutoTrainer(gate=False).name, ())
    held = any(flag.symptom is Symptom.VANISHING and flag.step <= first.step for flag in raw)
    if first.symptom is Symptom.VANISHING and not held:
        return Proposal("another optimizer", partial(_other_optimizer, seed=seen.seed), "slow convergence")
    return Proposal("SELU, with LeCun initialization", _selu, first.symptom.value)


STRATEGIES: Mapping[str, Strategy] = {
    "ours": ours,
    "xavier": xavier,
    "he": he,
    "clip": clip,
    "autotrainer": autotrainer,
    "ours-told": told,
    "ours-second": partial(ours, place=1),
    "ours-third": partial(ours, place=2),
}


def _filled(lesson: Lesson, fill: Callable[[torch.Tensor], object]) -> Treated:
    for name, parameter in lesson.model.named_parameters():
        if parameter.ndim > 1 and name.rpartition(".")[2].startswith("weight"):
            fill(parameter)
    return Treated(lesson)


def _selu(lesson: Lesson) -> Treated:
    """Put SELU behind every layer but the last, and draw their weights and biases anew; recurrent layers stay."""
    kinds = (*(kind for kind in ACTIVATIONS.values() if isinstance(kind, type)), Exponential)
    hidden = list(linears(lesson.model))[:-1]
    if hidden:
        _replace_before(lesson.model, list(linears(lesson.model))[-1], kinds)
    for layer in hidden:
        _uniform_(layer.weight, nn.init._calculate_correct_fan(layer.weight, "fan_in"))
        if layer.bias is not None:
            # Keras takes the root of its size for the fan_in of a vector.
            _uniform_(layer.bias, math.sqrt(layer.bias.numel()))
    return Treated(lesson)


def _replace_before(model: nn.Module, last: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
    """Put SELU in the place of every activation that is registered before the last layer."""
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if module is last:
            return
        if isinstance(module, Functional):
            # In Keras an activation is an argument of its layer, and AUTOTRAINER could change it.
            module._activation = F.selu
        if isinstance(module, kinds):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, nn.SELU())


def _uniform_(tensor: torch.Tensor, fan_in: float) -> None:
    """Fill as LeCun's uniform initialization does: up to ``sqrt(3 / fan_in)``."""
    bound = math.sqrt(3 / fan_in)
    nn.init.uniform_(tensor, -bound, bound)


# Those that it draws from, with the learning rates that Keras 2 gives them.
_OPTIMIZERS: Mapping[str, float] = {"SGD": 0.01, "Adam": 1e-3, "NAdam": 2e-3, "Adamax": 2e-3, "RMSprop": 1e-3}


def _other_optimizer(lesson: Lesson, seed: int) -> Treated:
    """Train with another optimizer, drawn by lot, as Keras sets it."""
    others = [name for name in _OPTIMIZERS if name != type(lesson.optimizer).__name__]
    name = random.Random(seed).choice(others)  # noqa: S311 - nothing secret
    held = [parameter for group in lesson.optimizer.param_groups for parameter in group["params"]]
    made = getattr(torch.optim, name)(held, lr=_OPTIMIZERS[name])
    return Treated(replace(lesson, optimizer=made, schedule=reschedule(lesson.schedule, made)))
