"""Drawn models, gradients and runs: nothing that training can do makes GradWatch fail, or measure wrongly.

``hypothesis`` draws a plan (models, dtypes, sharing, freezing, several optimizers, settings, loss scaling, restarts,
checkpoints) and gradients that are set by hand, from none to infinite, and holds each row of the history against the
oracle. A second test draws runs of a real Trainer and holds the weights against those of a run without GradWatch.

The ordinary suite tries a few plans, always the same. To look for more, say for how many seconds each of the two tests
is to draw new ones::

    FUZZ_SECONDS=300 pytest tests/support/test_fuzz.py -k drawn

What that found stands below as plain tests.
"""

from __future__ import annotations

import copy
import inspect
import io
import logging
import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from models import WIDTH, RecordingSink, module_in, trainer_in
from oracle import assert_same, flat, norm, saves_gradients
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import ClipByGlobalNorm, ClipByValue, GradientFault, GradWatch
from lightning_gradwatch.measure.layers import ROOT
from lightning_gradwatch.remedy.remedy import Remedy
from lightning_gradwatch.report.loggers import sinks_for
from lightning_gradwatch.settings import Settings
from lightning_gradwatch.watching import Watch

OUTSIDE = "(outside the model)"
FUZZ_SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
HALF = (torch.float16, torch.bfloat16)
# Half of the last digit, by which a product in half precision may be off.
LAST_DIGIT = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def drawn(plans: st.SearchStrategy[Any], examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test with drawn plans: always the same few, or as many new ones as ``FUZZ_SECONDS`` allows."""
    quiet = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
    phases = [Phase.generate, Phase.shrink]

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        if not FUZZ_SECONDS:
            few = settings(max_examples=examples, derandomize=True, phases=phases, **quiet)
            return few(given(plan=plans)(test))
        many = settings(max_examples=examples, phases=phases, print_blob=False, **quiet)(given(plan=plans)(test))

        def repeated(**fixtures: Any) -> None:
            end = time.monotonic() + FUZZ_SECONDS
            while time.monotonic() < end:
                many(**fixtures)

        repeated.__name__, repeated.__doc__ = test.__name__, test.__doc__
        repeated.__signature__ = inspect.signature(many)
        return repeated

    return decorate


# --- what is drawn ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One module of a model."""

    kind: str = "linear"
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Fill:
    """What a gradient is: a value everywhere, in one place only, or in one place among ones."""

    value: str = "random"
    where: str = "all"
    sparse: bool = False


@dataclass(frozen=True)
class Step:
    """What one optimizer does in a batch."""

    optimizer: int = 0
    fill: Fill = Fill()
    others: tuple[tuple[int, Fill], ...] = ()
    evaluations: int = 1
    stepped: bool = True
    elsewhere: str = ""


@dataclass(frozen=True)
class Batch:
    """What happens before a batch, its losses, and its steps."""

    event: str = ""
    losses: tuple[str, ...] = ("plain",)
    steps: tuple[Step, ...] = (Step(),)


@dataclass(frozen=True)
class Plan:
    """A whole run."""

    parts: tuple[Part, ...] = (Part(),)
    optimizers: tuple[tuple[str, int], ...] = (("SGD", -1),)
    batches: tuple[Batch, ...] = (Batch(),)
    options: tuple[tuple[str, Any], ...] = ()
    late: bool = False
    clips_elsewhere: bool = False
    scale: float | None = None
    unscales: bool = False
    alone: bool = True
    writes: bool = False
    small: bool = False
    same_numbers: bool = False


PARTS = "linear matrix norm batch_norm rows sparse_rows empty scalar list normed lazy again tied frozen recurrent loose"
VALUES = "none zero inf minus_inf nan subnormal smallest huge largest large tiny small moderate one random"
EVENTS = (
    "add_nothing add_stray add_module add_sparse materialize freeze unfreeze zero_grad restart reload remove new_rate "
    "unannounced"
)
DTYPES = [torch.float32] * 4 + [torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.complex128]


def tuples(elements: st.SearchStrategy[Any], least: int, most: int) -> st.SearchStrategy[Any]:
    return st.lists(elements, min_size=least, max_size=most).map(tuple)


def either(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


FILLS = st.builds(
    Fill,
    value=st.sampled_from(["random", *VALUES.split()]),
    where=either("all", "all", "one", "among_ones"),
    sparse=st.booleans(),
)
STEPS = st.builds(
    Step,
    optimizer=st.integers(0, 2),
    fill=st.just(Fill()) | FILLS,
    others=tuples(st.tuples(st.integers(0, 11), FILLS), 0, 3),
    evaluations=either(1, 1, 1, 2, 3),
    stepped=either(True, True, True, False),
    elsewhere=either("", "halve", "zero", "clamp"),
)
BATCHES = st.builds(
    Batch,
    event=st.just("") | st.sampled_from(EVENTS.split()),
    losses=tuples(either("plain", "graph", "nan", "inf", "half", "several", "one_element"), 0, 2),
    steps=tuples(STEPS, 0, 3),
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "vanishing_threshold": either(1e-30, 1e-6, 0.5),
        "exploding_threshold": either(1.0, 1e3, 1e30),
        "patience": st.integers(1, 4),
        "warmup_steps": st.integers(0, 4),
        "every_n_steps": st.integers(1, 4),
        "clipper": either(*map(ClipByGlobalNorm, (1e-3, 1.0, 1e20)), *map(ClipByValue, (1e-3, 1.0, 1e30))),
        "on_nonfinite": either("warn", "skip", "raise"),
        "max_consecutive_skips": st.integers(1, 3),
        "ignore": either(["vanishing"], ["vanishing.depth:0"], ["dead", "exploding"], ["non_finite"]),
        "stop_on": either(["non_finite"], ["vanishing", "exploding"]),
    },
).map(lambda options: tuple(options.items()))
PLANS = st.builds(
    Plan,
    parts=tuples(st.builds(Part, kind=st.sampled_from(PARTS.split()), dtype=st.sampled_from(DTYPES)), 1, 6),
    optimizers=tuples(st.tuples(either("SGD", "momentum", "Adam", "LBFGS", "tensor_rate"), st.integers(1, 255)), 1, 3),
    batches=tuples(BATCHES, 1, 9),
    options=OPTIONS,
    late=st.booleans(),
    clips_elsewhere=st.booleans(),
    scale=st.none() | either(1.0, 65536.0, 2.0**120, 2.0**-20, 2.0**-149, 0.0),
    unscales=st.booleans(),
    alone=either(True, True, True, False),
    writes=either(*[False] * 9, True),
    small=either(False, False, False, True),
    same_numbers=st.booleans(),
)

# --- models and gradients --------------------------------------------------------------------------------------------


class Holder(nn.Module):
    """Holds parameters and does nothing."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape)))


def make_part(kind: str, before: Sequence[nn.Module]) -> nn.Module:
    """Make a module; some kinds need those that came before it."""
    linears = [module for module in before if type(module) is nn.Linear]
    if kind == "again" and before:
        return before[len(before) // 2]
    if kind == "tied" and linears:
        module = nn.Linear(3, 3)
        module.weight = linears[0].weight
        return module
    makers = {
        "matrix": lambda: nn.Linear(3, 3, bias=False),
        "norm": lambda: nn.LayerNorm(3),
        "batch_norm": lambda: nn.BatchNorm1d(3),
        "rows": lambda: nn.Embedding(5, 3),
        "sparse_rows": lambda: nn.Embedding(5, 3, sparse=True),
        "empty": lambda: Holder(weight=(0, 3), bias=(3,)),
        "scalar": lambda: Holder(scale=()),
        "list": lambda: nn.ParameterList([torch.randn(2), torch.randn(3, 2)]),
        "normed": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
        "lazy": lambda: nn.LazyLinear(3),
        "frozen": lambda: nn.Linear(3, 3).requires_grad_(False),
        "recurrent": lambda: nn.GRUCell(3, 3),
    }
    return makers.get(kind, lambda: nn.Linear(3, 3))()


def make_model(parts: Sequence[Part]) -> nn.Sequential:
    """Make a stack of modules, each in its dtype, with loose parameters at the root where that is drawn."""
    modules: list[nn.Module] = []
    for part in parts:
        modules.append(make_part(part.kind, modules))
        in_dtype_(modules[-1], part.dtype)
    model = nn.Sequential(*modules)
    for number, part in enumerate(parts):
        if part.kind == "loose":
            model.register_parameter(f"loose_{number}", nn.Parameter(torch.randn(3).to(part.dtype)))
    return model


def in_dtype_(module: nn.Module, dtype: torch.dtype) -> None:
    for parameter in module.parameters():
        # A module that is used again, or a tied weight, keeps the dtype that it has.
        if has_shape(parameter) and parameter.dtype == torch.float32:
            parameter.data = parameter.data.to(dtype)


def has_shape(parameter: Tensor) -> bool:
    return not isinstance(parameter, nn.parameter.UninitializedParameter)


def number_of(value: str, dtype: torch.dtype, late: bool) -> float:
    """Return a value that the dtype holds; where norms are summed in float64 alone, one whose square that holds."""
    about = torch.finfo(dtype)
    double = about.bits == 64
    largest = (1e150 if late else 1e300) if double else about.max
    return {
        "zero": 0.0,
        "inf": math.inf,
        "minus_inf": -math.inf,
        "nan": math.nan,
        "subnormal": 1e-140 if double and late else about.smallest_normal / 4,
        "smallest": 1e-140 if double and late else about.smallest_normal,
        "huge": min(1e30, about.max),
        "largest": largest,
        "large": 6e4,
        "tiny": 1e-30,
        "small": 1e-20,
        "moderate": 1e-6,
    }.get(value, 1.0)


def make_gradient(parameter: Tensor, fill: Fill, sparse_rows: bool, late: bool, generator: Any) -> Tensor | None:
    """Make a gradient as drawn; that of a sparse embedding names one row twice."""
    if fill.value == "none" or not has_shape(parameter):
        return None
    dtype, shape = parameter.dtype, tuple(parameter.shape)
    sparse = sparse_rows and fill.sparse and dtype not in HALF
    shape = (3, shape[1]) if sparse else shape
    if fill.value == "random":
        values = torch.randn(shape, generator=generator).to(dtype)
    else:
        value = number_of(fill.value, dtype, late)
        values = torch.full(shape, 1.0 if fill.where == "among_ones" else 0.0, dtype=dtype)
        if fill.where == "all":
            values.fill_(value)
        elif values.numel():
            values.view(-1)[-1] = value
    if not sparse:
        return values
    return torch.sparse_coo_tensor(torch.tensor([[1, 3, 1]]), values, parameter.shape, check_invariants=False)


def bits(tensor: Tensor) -> tuple[bytes, ...]:
    """Return all that a tensor holds, NaN and the order of sparse entries included."""
    whole = tensor.detach()
    parts = [whole] if whole.layout == torch.strided else [whole._indices(), whole._values()]
    return tuple(part.reshape(-1).view(torch.uint8).numpy().tobytes() for part in parts)


def exact(tensors: Sequence[Tensor]) -> float:
    """Ask the oracle for a norm whose squares float64 need not hold."""
    vectors = [flat(tensor) for tensor in tensors]
    numbers = torch.cat([*vectors, torch.zeros(1, dtype=torch.float64)]).abs()
    largest = float(numbers.max())
    if not math.isfinite(largest):
        # Its kind counts alone; squares of the others must not overflow beside it.
        return math.nan if bool(numbers.isnan().any()) else math.inf
    if largest == 0 or 1e-100 < largest < 1e100:
        return norm(*vectors)
    scale = 2.0 ** math.floor(math.log2(largest))
    return norm(*[vector / scale for vector in vectors]) * scale


def rounding(gradients: Sequence[Tensor], coefficient: float) -> tuple[float, float]:
    """Return by how much gradients may be off after a multiplication, relative and absolute, as a norm."""
    dtypes = [gradient.dtype for gradient in gradients]
    lost = [LAST_DIGIT.get(dtype, 0.0) for dtype in dtypes]
    last = [torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps for dtype in dtypes]
    absolute = sum(digit * math.sqrt(2 * gradient.numel()) for digit, gradient in zip(last, gradients, strict=True))
    # Below 1e-38 a coefficient in float32 has lost digits.
    return 1e-5 + max(lost, default=0.0) + 2.0**-149 / coefficient, absolute


def finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(flat(tensor)).all())


# --- running a plan --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """The norm of a layer; less where a tensor that was zero may read as zero for a while."""

    value: float
    least: float
    ambiguous: bool
    relative: float = 1e-5
    absolute: float = 1e-322

    def agrees(self, found: float) -> bool:
        if self.ambiguous and not math.isfinite(self.value):
            # The absolute value of a complex number with an infinite and a NaN part is either.
            return not math.isfinite(found)
        if not math.isfinite(self.value):
            return str(found) == str(self.value)
        least, most = self.least * (1 - self.relative), self.value * (1 + self.relative)
        return least - self.absolute <= found <= most + self.absolute

    def times(self, factor: float) -> Expected:
        return replace(self, value=self.value * factor, least=self.least * factor)

    def scaled_in(self, gradients: Sequence[Tensor], coefficient: float) -> Expected:
        """Allow for what each element and the coefficient lose when they are multiplied in their own precision."""
        relative, absolute = rounding(gradients, coefficient)
        return replace(self, relative=relative, absolute=self.absolute + absolute)


@dataclass
class Row:
    """What a reading should say."""

    norms: dict[str, Expected]
    clipped: dict[str, Expected]
    gradients: list[tuple[Tensor, Tensor]]
    wanted: bool
    finite: bool
    # Whether it belongs to the present start; later ones may forget what is outside of the model.
    new: bool = True


class Scaler:
    """Stands for ``torch.amp.GradScaler``."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def scale(self, outputs: Tensor) -> Tensor:
        return outputs * self.factor


@dataclass
class Run:
    """Drives a watch as a plan says and keeps what its history should be."""

    plan: Plan
    directory: Path
    records: list[logging.LogRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.settings = Settings(**dict(self.plan.options))
        self.model = make_model(self.plan.parts)
        self.optimizers = [self._make_optimizer(kind, chosen) for kind, chosen in self.plan.optimizers]
        self.scaler = None if self.plan.scale is None else Scaler(self.plan.scale)
        self.unscales = self.plan.unscales and self.scaler is not None and not self.settings.acts
        self.generator = torch.Generator().manual_seed(0)
        self.counts: dict[int, int] = {}
        self.newest: dict[int, int] = {}
        self.rows: dict[tuple[int, int], Row] = {}
        self.open: dict[int, Row] = {}
        self.zeros: set[tuple[int, int]] = set()
        self.strays: dict[int, str] = {}
        self.sick: set[int] = set()
        self.num_finished, self.step, self.num_brought = 0, 0, 0
        self.consecutive: Counter[int] = Counter()
        self.watch = Watch(self.settings)

    def _make_optimizer(self, kind: str, chosen: int) -> torch.optim.Optimizer:
        unique = list(self.model.parameters())
        picked = [p for number, p in enumerate(unique) if chosen >> (number % 8) & 1] or unique[:1]
        picked = picked or [nn.Parameter(torch.ones(2))]
        middle = len(picked) // 2
        groups = [{"params": picked[:middle], "lr": 1e-3}, {"params": picked[middle:]}]
        if kind == "LBFGS":
            real = [p for p in picked if has_shape(p)] or [nn.Parameter(torch.ones(2))]
            return torch.optim.LBFGS(real)
        if kind == "Adam":
            return torch.optim.Adam(groups, lr=1e-3)
        if kind == "tensor_rate":
            return torch.optim.SGD(groups, lr=torch.tensor(1e-3), foreach=False)
        return torch.optim.SGD(groups, lr=1e-2, momentum=0.9 if kind == "momentum" else 0.0)

    def run(self) -> None:
        self.start()
        for number, batch in enumerate(self.plan.batches):
            self.before(batch.event)
            self.watch.begin_batch(number, due=number % 2 == 1)
            for kind in batch.losses:
                self.watch.before_backward(self.loss(kind))
            try:
                for step in batch.steps:
                    self.do(step)
            except GradientFault:
                break
            assert isinstance(self.watch.end_batch(), tuple)
            self.open.clear()
            if not self.plan.alone:
                self.watch.agree(list)
            assert self.watch.disabled_reason is None, self.watch.disabled_reason
        self.finish()

    def start(self) -> None:
        directory = self.directory if self.plan.writes else None
        self.watch.join(alone=self.plan.alone)
        self.watch.start(
            self.model,
            num_optimizers=len(self.optimizers),
            make_sinks=lambda: [*sinks_for([], directory), RecordingSink()],
            clips_elsewhere=self.plan.clips_elsewhere,
            anywhere=None if self.plan.alone else bool,
        )
        if self.plan.small:
            self.watch.history.max_bytes, self.watch.history.window = 700, 3
        # What a checkpoint brought stays until the next reading.
        self.num_brought = len(self.watch.history)
        self.zeros.clear()
        for row in self.rows.values():
            row.new = False

    def finish(self) -> None:
        assert isinstance(self.watch.finish(), tuple)
        self.num_finished += 1
        self.open.clear()
        self.check()

    # What may happen between two batches.

    def before(self, event: str) -> None:
        if event:
            getattr(self, f"event_{event}")()

    def event_add_nothing(self) -> None:
        self.add([])

    def event_add_stray(self) -> None:
        self.add([nn.Parameter(torch.ones(2))])

    def event_add_module(self) -> None:
        self.model.append(nn.Linear(3, 2))
        self.add(list(self.model[-1].parameters()))

    def event_add_sparse(self) -> None:
        self.model.append(nn.Embedding(5, 2, sparse=True))
        self.add(list(self.model[-1].parameters()))

    def add(self, parameters: list[nn.Parameter]) -> None:
        optimizer = self.optimizers[-1]
        if not isinstance(optimizer, torch.optim.LBFGS):
            optimizer.add_param_group({"params": parameters})

    def event_remove(self) -> None:
        group = self.optimizers[0].param_groups[-1]
        if len(group["params"]) > 1:
            group["params"].pop()

    def event_new_rate(self) -> None:
        self.optimizers[0].param_groups[0]["lr"] = None

    def event_materialize(self) -> None:
        for module in self.model:
            if isinstance(module, nn.LazyLinear):
                module(torch.ones(2, 3))

    def event_freeze(self) -> None:
        for parameter in [p for p in self.model.parameters() if has_shape(p)][::2]:
            parameter.requires_grad_(False)

    def event_unfreeze(self) -> None:
        for parameter in filter(has_shape, self.model.parameters()):
            parameter.requires_grad_(True)

    def event_zero_grad(self) -> None:
        self.watch.before_zero_grad()

    def event_unannounced(self) -> None:
        # A step whose numbers are on their way, and that was dropped, would be taken for this one.
        if not self.plan.late:
            self.watch.after_step(0)

    def event_restart(self) -> None:
        """Start again with the same model, which may have grown: what is known of it stays."""
        self.finish()
        if not self.watch.history.layers:
            self.rows.clear()
            self.counts.clear()
            self.newest.clear()
            self.step += 1
        self.start()

    def event_reload(self) -> None:
        """Go on in another watch, as after a checkpoint; readings under way are lost, and layers outside the model."""
        file = io.BytesIO()
        torch.save(self.watch.state_dict(), file)
        file.seek(0)
        old, told = self.watch, [str(diagnosis) for diagnosis in self.watch.diagnoses]
        saved = set(zip(old.history.optimizers.tolist(), old.history.steps.tolist(), strict=True))
        self.finish()
        self.watch = Watch(self.settings)
        self.watch.load_state_dict(torch.load(file, weights_only=True))
        assert self.watch.state_dict() is not None
        self.rows = {key: row for key, row in self.rows.items() if key in saved}
        self.start()
        assert self.watch.disabled_reason is None, self.watch.disabled_reason
        assert len(self.watch.diagnoses) == len(told)
        self.newest.clear()
        self.step += 1

    # Losses and steps.

    def loss(self, kind: str) -> Tensor:
        if kind == "graph":
            used = [p for p in self.model.parameters() if has_shape(p) and not p.is_complex()]
            return sum((p.float().sum() for p in used), torch.zeros(()))
        constants = {"nan": math.nan, "inf": math.inf, "several": [1.0, 2.0], "one_element": [3.0]}
        loss = torch.tensor(constants.get(kind, 0.5))
        return loss.half() if kind == "half" else loss

    def do(self, step: Step) -> None:
        number = step.optimizer % len(self.optimizers)
        optimizer = self.optimizers[number]
        taken = self.newest.get(number, -1) == self.step
        self.step += taken or not self.plan.same_numbers
        for _ in range(step.evaluations):
            self.set_gradients(optimizer, step)
            self.evaluate(number, optimizer)
        if step.stepped:
            self.use(number, optimizer, step.elsewhere)

    def set_gradients(self, optimizer: torch.optim.Optimizer, step: Step) -> None:
        rows = {id(m.weight) for m in self.model.modules() if isinstance(m, nn.Embedding) and m.sparse}
        flat_parameters = [p for group in optimizer.param_groups for p in group["params"]]
        fills = {place % max(len(flat_parameters), 1): fill for place, fill in step.others}
        for place, parameter in enumerate(flat_parameters):
            fill = fills.get(place, step.fill)
            parameter.grad = make_gradient(parameter, fill, id(parameter) in rows, self.plan.late, self.generator)

    def evaluate(self, number: int, optimizer: torch.optim.Optimizer) -> None:
        """Let the watch read, and hold against the plan what it does to the gradients."""
        if self.newest.get(number) != self.step:
            self.newest[number] = self.step
            self.counts[number] = self.counts.get(number, 0) + 1
        wanted = (self.counts[number] - 1) % self.settings.every_n_steps == 0
        measured = wanted or self.settings.acts or self.unscales
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        pairs = [(p, p.grad) for p in parameters if p.grad is not None]
        before = [bits(tensor) for pair in pairs for tensor in pair]
        was_finite = all(finite(gradient) for _, gradient in pairs)
        total = exact([gradient for _, gradient in pairs])
        norms = self.expect(number, parameters, pairs, new=True) if measured else {}
        fault = None
        try:
            self.watch.before_step(
                number, optimizer, self.step, scaler=self.scaler, unscales=self.unscales, divided_by=1
            )
        except GradientFault as error:
            fault = error
        clipper = self.settings.clipper
        if clipper is None:
            assert [bits(tensor) for pair in pairs for tensor in pair] == before
        elif was_finite:
            self.check_clipped(clipper, [gradient for _, gradient in pairs], total)
        usable = all(finite(gradient) for _, gradient in pairs)
        self.check_dropped(number, parameters, pairs, dropped=not usable and self.scaler is None, fault=fault)
        if measured:
            clipped = norms if clipper is None else self.expect(number, parameters, pairs, total=total)
            row = Row(norms, clipped, pairs, wanted, usable and (self.is_known() or not pairs))
            self.rows[number, self.step] = self.open[number] = row
        if fault is not None:
            raise fault

    def is_known(self) -> bool:
        """Tell whether norms can be known: what was multiplied by zero cannot."""
        return not self.unscales or self.plan.scale != 0

    def check_clipped(self, clipper: Any, gradients: Sequence[Tensor], total: float) -> None:
        """Finite gradients are within the bound afterwards, but for the last digit of their precision."""
        relative, absolute = rounding(gradients, coefficient_of(clipper, total))
        if isinstance(clipper, ClipByGlobalNorm):
            assert exact(gradients) <= clipper.max_norm * (1 + relative) + absolute
        else:
            for gradient in gradients:
                largest = float(flat(gradient).abs().max()) if gradient.numel() else 0.0
                assert largest <= clipper.max_value * (1 + relative) + absolute

    def check_dropped(
        self,
        number: int,
        parameters: Sequence[Tensor],
        pairs: Sequence[tuple[Tensor, Tensor]],
        *,
        dropped: bool,
        fault: Any,
    ) -> None:
        """A poisoned step is dropped, or ends training, where that was asked, and is left alone elsewhere."""
        mode = self.settings.on_nonfinite
        if mode == "skip":
            self.consecutive[number] = self.consecutive[number] + 1 if dropped else 0
        ends = dropped and (
            mode == "raise" or (mode == "skip" and self.consecutive[number] > self.settings.max_consecutive_skips)
        )
        assert (fault is not None) == ends
        if dropped and mode == "skip":
            assert all(parameter.grad is None for parameter in parameters)
        else:
            assert all(parameter.grad is gradient for parameter, gradient in pairs)

    def expect(
        self,
        number: int,
        parameters: Sequence[Tensor],
        pairs: Sequence[tuple[Tensor, Tensor]],
        *,
        new: bool = False,
        total: float | None = None,
    ) -> dict[str, Expected]:
        """Ask the oracle for each layer's norm as the watch should know it.

        Args:
            number: Number of the optimizer.
            parameters: Its parameters.
            pairs: Those that have a gradient, with it.
            new: Whether this is the first look at these gradients.
            total: Their global norm before our clipper has scaled them, None where they are measured as they are.
        """
        names = {id(p): layer_of(name) for name, p in self.model.named_parameters()}
        for parameter in parameters:
            if id(parameter) not in names:
                self.strays.setdefault(id(parameter), f"{OUTSIDE} {len(self.strays)}")
        names.update(self.strays)
        layers: dict[str, list[tuple[Tensor, bool]]] = {}
        for parameter, gradient in pairs:
            layers.setdefault(names[id(parameter)], []).append(
                (gradient, self.excused(number, parameter, gradient, new=new))
            )
        factor = self.scaler.factor if self.unscales and self.scaler is not None else 1.0
        expected = {}
        for name, members in layers.items():
            ambiguous = any(gradient.is_complex() for gradient, _ in members)
            least = exact([gradient for gradient, excused in members if not excused])
            value = Expected(exact([gradient for gradient, _ in members]), least, ambiguous)
            if total is not None and isinstance(self.settings.clipper, ClipByGlobalNorm):
                value = value.scaled_in([g for g, _ in members], coefficient_of(self.settings.clipper, total))
            expected[name] = value.times(1 / factor) if factor else Expected(math.nan, math.nan, ambiguous=True)
        return expected

    def excused(self, number: int, parameter: Tensor, gradient: Tensor, *, new: bool) -> bool:
        """Tell whether a gradient may read as zero, since it was zero before and float32 squares of it vanish."""
        if self.plan.late:
            return False
        key, value = (number, id(parameter)), exact([gradient])
        bound = 1e-150 if torch.finfo(gradient.dtype).bits == 64 else 1e-18
        may_read_zero = value == 0 or (key in self.zeros and value < bound * math.sqrt(gradient.numel()))
        if new:
            (self.zeros.add if may_read_zero else self.zeros.discard)(key)
        return may_read_zero

    def use(self, number: int, optimizer: torch.optim.Optimizer, elsewhere: str) -> None:
        """Change the gradients as somebody else's clipping or a fused optimizer would, step, and tell the watch."""
        row = self.open.get(number)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        factor = 1 / self.plan.scale if self.plan.scale else math.inf
        if self.unscales and all(finite(gradient * factor) for gradient in gradients):
            for gradient in gradients:
                gradient.mul_(factor)
        elif self.plan.clips_elsewhere:
            change_(gradients, elsewhere)
        rates = [(group["lr"], group.get("momentum")) for group in optimizer.param_groups]
        plain = type(optimizer) is torch.optim.SGD and all(
            rate is not None and not momentum for rate, momentum in rates
        )
        self.watch.after_step(number)
        if row is not None and self.plan.clips_elsewhere:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            row.clipped = self.expect(number, parameters, row.gradients)
            row.finite = all(finite(gradient) for _, gradient in row.gradients) and self.is_known()
            if self.unscales and self.plan.scale and row.finite:
                row.clipped = {name: value.times(self.plan.scale) for name, value in row.clipped.items()}
        if plain:
            optimizer.step()

    # What has to be true at the end.

    def check(self) -> None:
        watch, history = self.watch, self.watch.history
        assert watch.disabled_reason is None, watch.disabled_reason
        said = [record.getMessage() for record in self.records]
        assert not [text for text in said if "failed" in text or "found no advice" in text or "afresh" in text]
        assert sum("cost  " in text for text in said) == self.num_finished
        keys = list(zip(history.optimizers.tolist(), history.steps.tolist(), strict=True))
        needed = {key for key, row in self.rows.items() if row.wanted or not row.finite}
        assert len(history) <= max(history.capacity, self.num_brought)
        assert set(keys) == needed if not self.plan.small else set(keys) <= needed
        assert len(set(keys)) == len(keys)
        for place, key in enumerate(keys):
            self.check_row(self.rows[key], place)
        self.sick |= {step for (_, step), row in self.rows.items() if not row.finite}
        assert {d.step for d in watch.diagnoses if d.rule == "non_finite"} <= self.sick
        assert all(diagnosis.message and diagnosis.layers for diagnosis in watch.diagnoses)
        assert all(isinstance(remedy, Remedy) for remedy in watch.remedies)

    def check_row(self, row: Row, place: int) -> None:
        history = self.watch.history
        for column, expected in (("norms", row.norms), ("clipped_norms", row.clipped)):
            found = dict(zip(history.layers, getattr(history, column)[place].tolist(), strict=True))
            present = dict(zip(history.layers, history.present[place].tolist(), strict=True))
            inside = {name: value for name, value in expected.items() if not name.startswith(OUTSIDE)}
            assert {name for name in found if present[name] and not name.startswith(OUTSIDE)} == set(inside)
            assert all(math.isnan(value) for name, value in found.items() if not present[name])
            if not self.is_known():
                continue
            for name, value in inside.items():
                assert value.agrees(found[name]), (column, name, found[name], value)
            # What is outside of the model has a number for a name, which another start may give to another.
            strays = [value for name, value in expected.items() if name.startswith(OUTSIDE)]
            values = [found[name] for name in found if present[name] and name.startswith(OUTSIDE)]
            if values or row.new:
                assert len(values) == len(strays)
                assert all(any(stray.agrees(value) for stray in strays) for value in values)


def layer_of(name: str) -> str:
    """Return the layer that a parameter belongs to: the module that owns it, or that is parametrized by it."""
    return name.partition(".parametrizations.")[0] if ".parametrizations." in name else name.rpartition(".")[0] or ROOT


def coefficient_of(clipper: Any, total: float) -> float:
    return min(1.0, clipper.max_norm / total) if isinstance(clipper, ClipByGlobalNorm) and 0 < total < math.inf else 1.0


def change_(gradients: Sequence[Tensor], how: str) -> None:
    for gradient in gradients:
        if how == "halve":
            gradient.mul_(0.5)
        elif how == "zero":
            gradient.zero_()
        elif how == "clamp" and gradient.layout == torch.strided and not gradient.is_complex():
            gradient.clamp_(-1, 1)


@contextmanager
def listening() -> Iterator[list[logging.LogRecord]]:
    """Collect what the training log says, at once and without pytest's fixture, which lasts for all examples."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("lightning_gradwatch")
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield records
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
        logger.setLevel(level)


def run_plan(plan: Plan) -> Run:
    """Run a plan and check what is true of every run."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as directory, listening() as records:
        if plan.late:
            for module in ("norms", "reading"):
                patch.setattr(f"lightning_gradwatch.measure.{module}.sums_in_double", lambda _: True)
        run = Run(plan, Path(directory), records)
        run.run()
    return run


@pytest.mark.supports("drawn models and gradients (fuzz)")
@drawn(PLANS, 40)
def test_a_drawn_run_is_measured_rightly_and_never_fails(plan):
    """Whatever models, gradients and calls are drawn: every row is that of the oracle, and nothing is switched off."""
    run_plan(plan)


# --- the callback in a Trainer ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """A run of a Trainer."""

    depth: int = 1
    width: int = 4
    activation: type[nn.Module] = nn.ReLU
    normalized: str = ""
    precision: str = "32-true"
    optimizer: str = "SGD"
    batch_size: int = 4
    steps: int = 4
    accumulate: int = 1
    clips: float | None = None
    algorithm: str = "norm"
    frozen: bool = False
    factor: float = 1.0
    options: tuple[tuple[str, Any], ...] = ()


OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    "LBFGS": lambda parameters: torch.optim.LBFGS(parameters, lr=0.1, max_iter=3),
}
WATCHING = st.fixed_dictionaries(
    {},
    optional={
        "vanishing_threshold": either(1e-30, 1e-6),
        "exploding_threshold": either(1.0, 1e30),
        "patience": st.integers(1, 3),
        "warmup_steps": st.integers(0, 2),
        "heatmap": st.booleans(),
        "stop_on": st.just([]),
    },
).map(lambda options: tuple(options.items()))
FITS = st.builds(
    Fit,
    depth=st.integers(0, 8),
    width=st.integers(1, 9),
    activation=either(nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Identity, nn.GELU, nn.Softplus, nn.PReLU),
    normalized=either("", "layer", "batch"),
    precision=either("32-true", "64-true", "bf16-true", "bf16-mixed", "16-true", "scaled"),
    optimizer=st.sampled_from(list(OPTIMIZERS)),
    batch_size=st.integers(2, 6),
    steps=st.integers(3, 5),
    accumulate=either(1, 1, 2, 3),
    clips=st.none() | either(1e-3, 1.0),
    algorithm=either("norm", "value"),
    frozen=st.booleans(),
    factor=either(1.0, 1e-30, 1e-20, 1e-8, 1e4, 1e20, 1e30),
    options=WATCHING,
).filter(lambda fit: not (fit.optimizer == "LBFGS" and (fit.precision == "scaled" or fit.accumulate > 1)))


def net_of(fit: Fit) -> nn.Module:
    norms = {"layer": nn.LayerNorm, "batch": nn.BatchNorm1d}
    parts: list[nn.Module] = []
    for number in range(fit.depth):
        parts.append(nn.Linear(fit.width if number else WIDTH, fit.width))
        parts += [norms[fit.normalized](fit.width)] if fit.normalized else []
        parts.append(fit.activation())
    net = nn.Sequential(*parts, nn.Linear(fit.width if fit.depth else WIDTH, 3))
    if fit.frozen and fit.depth:
        net[0].requires_grad_(False)
    return net


def run_fit(package: Any, fit: Fit) -> None:
    """Train with and without GradWatch and hold the ends against each other."""

    def training_step(self: Any, batch: Any, batch_idx: int) -> Tensor:
        inputs, labels = batch
        return nn.functional.cross_entropy(self.net(inputs.to(self.net[-1].weight.dtype)).float(), labels) * fit.factor

    torch.manual_seed(0)
    net = net_of(fit)
    inputs = torch.randn(24, WIDTH)
    data = DataLoader(TensorDataset(inputs, inputs[:, :3].argmax(dim=1)), batch_size=fit.batch_size, drop_last=True)
    watch, ends = GradWatch(**dict(fit.options)), []
    for callbacks in ([], [watch]):
        torch.manual_seed(1)
        module = module_in(package, copy.deepcopy(net), OPTIMIZERS[fit.optimizer], training_step=training_step)
        saved = saves_gradients(module)
        kwargs: dict[str, Any] = {"precision": fit.precision}
        if fit.precision == "scaled":
            plugin = package.plugins.precision.MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
            kwargs = {"plugins": [plugin]}
        with tempfile.TemporaryDirectory() as directory:
            trainer = trainer_in(
                package,
                directory,
                *callbacks,
                max_steps=fit.steps,
                accumulate_grad_batches=fit.accumulate,
                gradient_clip_val=fit.clips,
                gradient_clip_algorithm=fit.algorithm,
                **kwargs,
            )
            trainer.fit(module, data)
        ends.append({name: bits(value) for name, value in module.state_dict().items()})
    assert ends[0] == ends[1]
    assert watch.disabled_reason is None
    if fit.precision != "scaled":
        assert watch.history.steps.tolist() == list(range(fit.steps))
        # A tensor that was zero may read as zero for a while; see ``Expected``.
        if fit.factor >= 1e-8 and np.isfinite(watch.history.clipped_norms[watch.history.present]).all():
            assert_same(watch.history, saved, column="clipped_norms")


# What torch and Lightning say of drawn settings is not what is tested.
@pytest.mark.filterwarnings("ignore::UserWarning")
@drawn(FITS, 8)
def test_a_drawn_fit_ends_in_the_weights_of_one_without_gradwatch(pl, plan):
    """Whatever is trained, however, the Trainer's run is the same to the last bit, and every row is the oracle's."""
    with listening() as records:
        run_fit(pl, plan)
    assert not [r.getMessage() for r in records if "failed" in r.getMessage() or "found no advice" in r.getMessage()]
    assert sum("cost  " in r.getMessage() for r in records) == 1


# --- what was found --------------------------------------------------------------------------------------------------


def watched_step(watch: Watch, number: int, optimizer: torch.optim.Optimizer, step: int, **scaling: Any) -> None:
    """Let the watch see one step with the gradients that the parameters have."""
    watch.before_step(number, optimizer, step, **scaling)
    watch.after_step(number)
    watch.end_batch()


@pytest.mark.parametrize("unscales", [False, True])
def test_a_loss_scale_that_has_fallen_to_zero_switches_nothing_off(unscales):
    """A scaler halves its factor at each overflow, and after 165 of them it is 0: nothing is divided by it."""
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watch = Watch(Settings())
    watch.start(net, num_optimizers=1)
    loss = net(torch.ones(1, 2)).sum()
    watch.before_backward(loss)
    loss.backward()
    watched_step(watch, 0, optimizer, 0, scaler=Scaler(0.0), unscales=unscales)
    assert watch.disabled_reason is None
    assert len(watch.history) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_whose_global_norm_alone_overflows_are_clipped(dtype):
    """Each norm fits into float32 and the norm of all of them does not: the step is finite, and is clipped."""
    net = nn.ParameterList([torch.ones(1, dtype=dtype) for _ in range(4)])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watch = Watch(Settings(clipper=ClipByGlobalNorm(2.0)))
    watch.start(net, num_optimizers=1)
    for parameter in net:
        parameter.grad = torch.full_like(parameter, 3e38)
    watched_step(watch, 0, optimizer, 0)
    assert watch.history.norms[0, 0] == pytest.approx(6e38, rel=1e-2)
    assert norm(*[parameter.grad for parameter in net]) == pytest.approx(2.0, rel=1e-2)
    assert watch.history.clipped_norms[0, 0] == pytest.approx(2.0, rel=1e-2)


def test_a_sparse_complex_gradient_is_clipped_by_value():
    """The real and the imaginary parts of an embedding's rows are clamped, as those of a dense gradient are."""
    net = nn.Embedding(5, 2, sparse=True, dtype=torch.complex64)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watch = Watch(Settings(clipper=ClipByValue(0.1)))
    watch.start(net, num_optimizers=1)
    values = torch.full((3, 2), 0.5 - 0.01j, dtype=torch.complex64)
    net.weight.grad = torch.sparse_coo_tensor(torch.tensor([[1, 3, 1]]), values, (5, 2), check_invariants=False)
    with listening() as records:
        watched_step(watch, 0, optimizer, 0)
    assert not [record for record in records if record.levelno >= logging.WARNING]
    clipped = net.weight.grad.to_dense()
    assert torch.allclose(clipped[[1, 3]], torch.tensor([[0.1 - 0.02j], [0.1 - 0.01j]]).expand(2, 2))
    assert watch.history.clipped_norms[0, 0] == pytest.approx(norm(clipped))


@pytest.mark.parametrize("first", [0, 1])
def test_a_second_start_knows_parameters_outside_of_the_model(first):
    """Columns beyond the model's own do not confuse a run that goes on, whichever optimizer steps first."""
    net, strays = nn.Linear(2, 2), [nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1), torch.optim.SGD(strays, lr=0.1)]
    for number, parameter in enumerate([*net.parameters(), *strays]):
        parameter.grad = torch.full_like(parameter, number + 1.0)
    watch, step = Watch(Settings()), 0
    with listening() as records:
        for order in ((0, 1), (first, 1 - first)):
            watch.start(net, num_optimizers=2)
            for number in order:
                watched_step(watch, number, optimizers[number], step)
                step += 1
            watch.finish()
    assert watch.disabled_reason is None
    assert not [record for record in records if record.levelno >= logging.WARNING]
    for place, number in enumerate([first, 1 - first], start=2):
        present = watch.history.norms[place][watch.history.present[place]]
        expected = [norm(*[p.grad for p in net.parameters()])] if number == 0 else [3.0, 4.0]
        assert sorted(present.tolist()) == pytest.approx(expected)
