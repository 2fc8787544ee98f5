"""Test ``lightning_gradwatch.rehearsing``, also through the core that drives it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from models import WIDTH, deep_net
from torch import nn

from lightning_gradwatch import Diagnosis, Remedy, Symptom, rehearsing
from lightning_gradwatch.rehearsing import rehearsed
from lightning_gradwatch.remedy.rehearsal import Rehearsal
from lightning_gradwatch.remedy.trial import NotRehearsedError, Stage
from lightning_gradwatch.settings import Settings
from lightning_gradwatch.watching import Watch

BARE = Diagnosis("vanishing.update", Symptom.VANISHING)
SLOW, FAST = (Remedy(f"lr {rate}", "", BARE, optimizer_changes={"lr": rate}) for rate in (1e-7, 1e-1))
SICK = replace(BARE, remedies=(SLOW, FAST), evidence={"update_ratio": 0.0})


def stage() -> Stage:
    """Return a stage on which a higher learning rate helps."""
    model, x = nn.Linear(2, 1), torch.ones(1, 2)
    return Stage(model, lambda model: model(x).square().sum(), torch.optim.SGD(model.parameters(), lr=1e-8))


def test_the_diagnosis_gets_its_remedies_in_the_order_of_what_they_did():
    """With the effect of each; the evidence stays as it is where everything was tried."""
    told = rehearsed(SICK, stage)
    assert [remedy.title for remedy in told.remedies] == ["lr 0.1", "lr 1e-07"]
    assert all(remedy.effect is not None for remedy in told.remedies)
    assert told.evidence == SICK.evidence


@pytest.mark.parametrize("kept", [replace(SICK, severity="notice"), replace(SICK, count=4), BARE])
def test_what_is_no_new_fault_is_left_alone(kept):
    """Notices, faults that come again and again, and those without a way out cost nothing."""

    def fail() -> Stage:
        raise AssertionError("no stage was asked for")

    assert rehearsed(kept, fail) is kept


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (NotRehearsedError("manual"), "not rehearsed: manual"),
        (KeyError("x"), "not rehearsed: KeyError: 'x'"),
    ],
)
def test_a_stage_that_cannot_be_made_is_told(error, says):
    """The remedies stay in the expert's order."""

    def fail() -> Stage:
        raise error

    told = rehearsed(SICK, fail)
    assert told.remedies == SICK.remedies
    assert told.evidence["rehearsal"] == says


def test_a_run_gives_it_ten_seconds(monkeypatch):
    """A stage that names its own time keeps it."""
    seen: list[Stage] = []

    def rehearse(remedies: Any, stage: Stage) -> Rehearsal:
        seen.append(stage)
        return Rehearsal(remedies)

    monkeypatch.setattr(rehearsing, "rehearse", rehearse)
    rehearsed(SICK, stage)
    rehearsed(SICK, lambda: replace(stage(), seconds=1.0))
    assert [place.seconds for place in seen] == [10.0, 1.0]
    assert seen[0].say is not None


def test_the_core_ranks_and_remembers(caplog):
    """Driven by hand: the diagnosis in the list, its message and ``remedies`` all have the effect."""
    model, watch = deep_net(nn.Sigmoid, 12), Watch(Settings(rehearse=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs, labels = torch.randn(4, WIDTH), torch.tensor([0, 1, 2, 0])

    def loss_of(model: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(model(inputs), labels)

    watch.start(model, num_optimizers=1)
    for step in range(6):
        watch.begin_batch(step, due=False)
        optimizer.zero_grad()
        loss = loss_of(model)
        watch.before_backward(loss)
        loss.backward()
        watch.before_step(0, optimizer, step)
        optimizer.step()
        watch.after_step(0)
        told = watch.end_batch(make_stage=lambda: Stage(model, loss_of, optimizer))
        if told:
            assert told[0].remedies[0].effect is not None
    watch.finish()
    assert watch.disabled_reason is None
    assert watch.diagnoses[0].remedies == tuple(watch.remedies)
    assert watch.remedies[0].effect["first_over_last_after"] > 1e-2
    assert watch._record.make_stage is None
