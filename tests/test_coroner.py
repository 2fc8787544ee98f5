"""Test ``lightning_gradwatch.coroner``: when an inquest opens, when it closes, and what ends training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gradwatch.coroner import Coroner
from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.measure.history import GradientHistory
from lightning_gradwatch.measure.reader import Reader, describe_optimizer
from lightning_gradwatch.poisoned import Poison, PoisonedSteps
from lightning_gradwatch.settings import Settings
from lightning_gradwatch.stepper import Stepper
from lightning_gradwatch.steps import OptimizerStep, PendingStep

NAN = float("nan")


class Calls:
    """Stands for inquests, and writes down what happens to them."""

    def __init__(self) -> None:
        self.rows: set[int] = set()
        self.opened: list[tuple[Any, bool]] = []
        self.closed: list[tuple[Any, ...]] = []
        self.where = ""

    def finite(self, number: int) -> None:
        self.rows.discard(number)

    def begins(self, number: int) -> bool:
        new = number not in self.rows
        self.rows.add(number)
        return new

    def open(self, about: Any, layers: Any, *, at_once: bool) -> None:
        self.opened.append((about, at_once))

    def is_open(self, number: int) -> bool:
        return len(self.opened) > len(self.closed)

    def close(self, *about: Any) -> None:
        self.closed.append(about)

    def origin(self, number: int) -> str:
        return self.where


class Known:
    """Stands for the record."""

    def __init__(self, *diagnoses: Diagnosis, several: bool = False) -> None:
        self.diagnoses, self.several, self.history = list(diagnoses), several, GradientHistory(["(root)"])


def fault(rule: str = "non_finite", **more: Any) -> Diagnosis:
    """Return a diagnosis."""
    return Diagnosis(rule, more.pop("symptom", Symptom.NON_FINITE), layers=more.pop("layers", ("(root)",)), **more)


class Loop:
    """Steps of one small network."""

    def __init__(self, *, before_steps: bool, record: Known | None = None) -> None:
        self.inquests = Calls()
        self.coroner = Coroner(self.inquests, record or Known(), before_steps=before_steps)
        self.net = nn.Linear(4, 1, bias=False)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        settings = Settings(on_nonfinite="skip" if before_steps else "warn")
        poisoned = PoisonedSteps(settings.on_nonfinite, 10)
        self.stepper = Stepper(settings, Reader(self.net), poisoned, lambda _: None, clips_elsewhere=False)

    def read(self, step: int, value: float) -> Any:
        self.net.weight.grad = torch.full((1, 4), value)
        return self.stepper.read(OptimizerStep(0, self.optimizer, step))

    def settle(self, step: int, value: float) -> None:
        described = describe_optimizer(self.optimizer)
        reading = self.read(step, value)
        pending = PendingStep(step, reading, described, scaled=False, unscales=False, wanted=True, log_step=0, due=0)
        pending.losses = ((step, torch.tensor(value)),)
        self.coroner.settled(self.stepper, pending, reading, (2, step))


def test_where_nobody_drops_steps_a_row_is_looked_into_when_it_is_settled():
    """Once a row, with what is known of its first step, and it is closed at once."""
    loop = Loop(before_steps=False)
    for step, value in enumerate([1.0, NAN, NAN, 1.0, NAN]):
        loop.settle(step, value)
    abouts = [about for about, _ in loop.inquests.opened]
    assert [(about.step, about.place, about.optimizer_kind) for about in abouts] == [
        (1, (2, 1), "SGD"),
        (4, (2, 4), "SGD"),
    ]
    assert {(about.sick, about.before_step) for about in abouts} == {(("(root)",), False)}
    assert [batch for about in abouts for batch, _ in about.losses] == [1, 4]
    assert [at_once for _, at_once in loop.inquests.opened] == [False, False]
    assert len(loop.inquests.closed) == 2


@pytest.mark.parametrize("agreed", [True, False])
def test_where_steps_may_be_dropped_it_opens_before_the_step(agreed):
    """When it is settled there is only to close; all processes are asked at once where they have agreed."""
    loop = Loop(before_steps=True)
    about = OptimizerStep(0, loop.optimizer, 5)
    for _ in range(2):
        reading = loop.read(5, NAN)
        loop.coroner.open(loop.stepper, about, reading, Poison(("a",), agreed=agreed), (), None)
    ((found, at_once),) = loop.inquests.opened
    assert (found.step, found.sick, found.before_step, at_once) == (5, ("a",), True, agreed)
    assert np.isnan(found.snapshot.norms).all()
    assert loop.inquests.closed == []
    loop.settle(5, NAN)
    assert (len(loop.inquests.opened), len(loop.inquests.closed)) == (1, 1)
    loop.coroner.clear(0)
    loop.coroner.open(loop.stepper, about, None, Poison(), (), None)
    assert loop.inquests.opened[1][0].snapshot is None


def test_an_inquest_is_closed_with_the_newest_fault_of_its_own_optimizer_that_lasts():
    """Not with one that is over, of another symptom or of another optimizer."""
    mine = fault(step=3)
    record = Known(
        fault(step=1, recovered_at=2),
        fault(step=2),
        mine,
        fault(step=4, recovered_at=5),
        fault(step=6, optimizer=1),
        fault("dead", symptom=Symptom.DEAD, step=7),
        several=True,
    )
    loop = Loop(before_steps=False, record=record)
    loop.settle(8, NAN)
    assert loop.inquests.closed == [(0, ["(root)"], record.history, mine, "optimizer_0")]


def test_the_error_names_the_layer_nearest_the_loss_and_where_it_began():
    """It carries the lasting faults; where none was told it carries one of its own."""
    about = OptimizerStep(1, torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1), 7)
    told = [fault(layers=("a",)), fault(layers=("b", "c")), fault(layers=("d",), recovered_at=3)]
    coroner, inquests = Coroner(Calls(), Known(*told), before_steps=True), Calls()
    error = coroner.fault(about, Poison(("x",), "so it ends"))
    assert (str(error), error.diagnoses) == ("so it ends; nearest the loss: b", tuple(told[:2]))
    inquests.where = "batch 3"
    bare = Coroner(inquests, Known(), before_steps=True).fault(about, Poison(("x",), "so it ends"))
    assert str(bare) == "so it ends; nearest the loss: x. Where it began: batch 3"
    (diagnosis,) = bare.diagnoses
    assert (diagnosis.symptom, diagnosis.optimizer, diagnosis.layers, diagnosis.step) == (
        Symptom.NON_FINITE,
        1,
        ("x",),
        7,
    )
    assert str(Coroner(Calls(), Known(), before_steps=True).fault(about, Poison((), "so it ends"))) == "so it ends"
