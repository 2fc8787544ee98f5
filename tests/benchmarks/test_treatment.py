"""Test ``benchmarks.ward.treatment``."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, fields, make_dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.optim.lr_scheduler import LambdaLR, StepLR

from benchmarks.ward import treatment
from benchmarks.ward.case import Lesson
from benchmarks.ward.train import train
from benchmarks.ward.treatment import NeedsEditError, changes_nothing, treat, watch_arguments
from lightning_gradwatch import ClipByGlobalNorm, Diagnosis, Remedy, Symptom

SICK = Diagnosis("vanishing.depth", Symptom.VANISHING)


def lesson(optimizer: type[torch.optim.Optimizer] = torch.optim.SGD, **settings: Any) -> Lesson:
    """Make a lesson of two layers and three steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2))
    return Lesson(
        model=model,
        optimizer=optimizer(model.parameters(), lr=0.1, **settings),
        batches=[(torch.randn(8, 3), torch.randint(0, 2, (8,))) for _ in range(3)],
        loss=lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]),
        score=lambda _: 1.0,
        passes=0.5,
    )


def remedy(**what: Any) -> Remedy:
    """Make a remedy that does what is given."""
    return Remedy("do it", "it helps", what.pop("diagnosis", SICK), **what)


def held(optimizer: torch.optim.Optimizer) -> list[int]:
    """Return the ids of what an optimizer trains."""
    return [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]


def test_a_remedy_of_words_changes_nothing() -> None:
    """Title, reason, place and rehearsed effect are told and not done, and the lesson stays as it was."""
    told = remedy(code="# look at the batch", where="model.py:3", needs_restart=True, effect={"loss": 0.1})
    assert changes_nothing(told)
    before, after = lesson(), treat(lesson(), told)
    assert (after.watch, after.by_hand, after.lesson.trainer) == ({}, False, {})
    for own, other in zip(before.model.parameters(), after.lesson.model.parameters(), strict=True):
        assert torch.equal(own, other)
    assert after.lesson.optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize(
    "what",
    [
        {"change": lambda _: None},
        {"clipper": ClipByGlobalNorm(1.0)},
        {"optimizer_changes": {"lr": 1.0}},
        {"trainer_kwargs": {"gradient_clip_val": 1.0}},
        {"code": 'GradWatch(on_nonfinite="skip")'},
    ],
)
def test_whatever_is_to_be_done_is_more_than_words(what: dict[str, Any]) -> None:
    """Each field that changes something, and a setting of GradWatch, counts."""
    assert not changes_nothing(remedy(**what))


def test_the_model_is_changed_as_gradwatch_has_seen_it() -> None:
    """``apply_`` gets the LightningModule, so the names of its layers are those of the diagnosis."""
    seen: list[str] = []

    def change(model: nn.Module) -> None:
        seen.extend(name for name, _ in model.named_parameters())
        model.get_submodule("net")[1] = nn.ReLU()

    treated = treat(lesson(), remedy(change=change)).lesson
    assert seen == ["net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"]
    assert isinstance(treated.model[1], nn.ReLU)


def test_new_parameters_are_trained_and_those_that_are_gone_are_not() -> None:
    """The optimizer holds what the model has after the edit, and a network that was put in whole trains as well."""

    def change(model: nn.Module) -> None:
        model.net = nn.Sequential(model.net[0], nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))

    fresh = lesson()
    kept = [id(parameter) for parameter in fresh.model[0].parameters()]
    treated = treat(fresh, remedy(change=change)).lesson
    assert sorted(held(treated.optimizer)) == sorted(map(id, treated.model.parameters()))
    assert held(treated.optimizer)[:2] == kept
    before = {name: parameter.detach().clone() for name, parameter in treated.model.named_parameters()}
    train(treated)
    assert not any(torch.equal(before[name], now) for name, now in treated.model.named_parameters())


def test_what_the_optimizer_did_not_hold_stays_outside() -> None:
    """A parameter that was there before and left out by the person is not slipped in, nor is a frozen new one."""
    fresh = lesson()
    fresh = replace(fresh, optimizer=torch.optim.SGD(fresh.model[2].parameters(), lr=0.1))

    def change(model: nn.Module) -> None:
        model.net.append(nn.Linear(2, 2).requires_grad_(requires_grad=False))

    treated = treat(fresh, remedy(change=change)).lesson
    assert held(treated.optimizer) == [id(parameter) for parameter in treated.model[2].parameters()]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.01}),
        (torch.optim.Adam, {"betas": (0.5, 0.9)}),
        (torch.optim.AdamW, {"weight_decay": 0.1}),
        (torch.optim.RMSprop, {"alpha": 0.5}),
        (torch.optim.Adagrad, {}),
    ],
)
def test_the_optimizer_is_of_the_same_class_and_settings(kind: type[torch.optim.Optimizer], settings) -> None:
    """Only what the remedy changes is another, in every group."""
    fresh = lesson(kind, **settings)
    before = {name: value for name, value in fresh.optimizer.param_groups[0].items() if name != "params"}
    after = treat(fresh, remedy(optimizer_changes={"lr": 0.025})).lesson.optimizer
    assert type(after) is kind
    assert {name: value for name, value in after.param_groups[0].items() if name != "params"} == {**before, "lr": 0.025}
    fresh = lesson()
    groups = [{"params": fresh.model[place].parameters(), "lr": rate} for place, rate in ((0, 1), (2, 2))]
    fresh = replace(fresh, optimizer=torch.optim.SGD(groups))
    changed = treat(fresh, remedy(optimizer_changes={"lr": 0.025})).lesson.optimizer
    assert [group["lr"] for group in changed.param_groups] == [0.025, 0.025]


def test_the_optimizer_in_which_the_fault_was_found_is_changed() -> None:
    """Of several optimizers only the one of the diagnosis gets the learning rate and the new parameters."""
    fresh = lesson()
    fresh = replace(
        fresh,
        optimizer=torch.optim.SGD(fresh.model[0].parameters(), lr=0.1),
        others=[torch.optim.Adam(fresh.model[2].parameters(), lr=0.2)],
    )
    told = remedy(
        diagnosis=replace(SICK, optimizer=1),
        optimizer_changes={"lr": 0.5},
        change=lambda model: model.net.append(nn.Linear(2, 2)),
    )
    treated = treat(fresh, told).lesson
    assert treated.optimizer.param_groups[0]["lr"] == 0.1
    assert treated.others[0].param_groups[0]["lr"] == 0.5
    assert len(held(treated.optimizer)) == 2
    assert held(treated.others[0])[2:] == [id(parameter) for parameter in treated.model[3].parameters()]


def test_the_schedule_goes_on_from_the_new_learning_rate() -> None:
    """A warm-up multiplies the rate that the remedy gives, not the one that was there."""
    fresh = lesson()
    fresh = replace(fresh, schedule=LambdaLR(fresh.optimizer, lambda step: (step + 1) / 4))
    treated = treat(fresh, remedy(optimizer_changes={"lr": 0.8})).lesson
    assert treated.schedule.base_lrs == [0.8]
    train(treated)
    assert treated.schedule.get_last_lr() == pytest.approx([0.8])
    unchanged = lesson()
    unchanged = replace(unchanged, schedule=LambdaLR(unchanged.optimizer, lambda _: 0.5))
    assert treat(unchanged, remedy()).lesson.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    other = lesson()
    with pytest.raises(TypeError, match=r"must be a LambdaLR\. Got StepLR"):
        treat(replace(other, schedule=StepLR(other.optimizer, 1)), remedy())


def test_the_trainer_gets_what_the_remedy_says_beside_what_the_lesson_says() -> None:
    """Arguments are added and replaced; accumulation is one of the lesson's own settings."""
    fresh = replace(lesson(), trainer={"gradient_clip_val": 5.0, "detect_anomaly": False})
    told = remedy(trainer_kwargs={"gradient_clip_val": 1.0, "precision": "bf16-mixed", "accumulate_grad_batches": 3})
    treated = treat(fresh, told).lesson
    assert treated.trainer == {"gradient_clip_val": 1.0, "detect_anomaly": False, "precision": "bf16-mixed"}
    assert treated.accumulate == 3
    train(treated)


def test_gradwatch_gets_the_clipper_and_what_its_code_sets() -> None:
    """The clipper comes from its field; constants in a line like ``GradWatch(...)`` are read, other code is not run."""
    clipper = ClipByGlobalNorm(0.5)
    code = "GradWatch(clipper=ClipByGlobalNorm(max_norm=0.5))"
    assert watch_arguments(remedy(clipper=clipper, code=code)) == {"clipper": clipper}
    assert treat(lesson(), remedy(clipper=clipper)).watch == {"clipper": clipper}
    skips = remedy(code='GradWatch(on_nonfinite="skip", max_consecutive_skips=3)')
    assert watch_arguments(skips) == {"on_nonfinite": "skip", "max_consecutive_skips": 3}
    for other in ("", "Trainer(detect_anomaly=True)", "for name in [", "import os\nos.abort()"):
        assert watch_arguments(remedy(code=other)) == {}


def test_a_setting_that_the_optimizer_lacks_is_an_error() -> None:
    """Nothing that a remedy says is left out in silence."""
    with pytest.raises(TypeError, match=r"SGD has no setting \['eps'\]"):
        treat(lesson(), remedy(optimizer_changes={"eps": 1e-4}))


def test_every_field_of_a_remedy_is_known_and_an_unknown_one_is_an_error(monkeypatch) -> None:
    """A field that a remedy gets later has to be carried out, or named as words, before it may be filled."""
    assert {each.name for each in fields(Remedy)} <= treatment._TOLD | treatment._DONE
    later = make_dataclass("Later", [("dropout", float, 0.0)], bases=(Remedy,), frozen=True)
    treat(lesson(), later("do it", "it helps", SICK))
    with pytest.raises(TypeError, match=r"\['dropout'\] must be carried out"):
        treat(lesson(), later("do it", "it helps", SICK, dropout=0.5))


def _refuse(model: nn.Module) -> None:
    raise ValueError("edit model.py:3")


def test_a_remedy_that_refuses_needs_an_edit() -> None:
    """Where ``apply_`` refuses and nothing else can be done, its words are passed on."""
    with pytest.raises(NeedsEditError, match=r"edit model.py:3"):
        treat(lesson(), remedy(change=_refuse))


@dataclass
class Swap:
    """A change that refuses, and can be tried."""

    log: list[str]
    possible: bool = True

    def __call__(self, model: nn.Module) -> None:
        _refuse(model)

    @contextmanager
    def tried(self, model: nn.Module):
        if not self.possible:
            raise ValueError("cannot be tried")
        self.log.append("in")
        model.net.append(nn.Linear(2, 2))
        yield
        self.log.append("out")


def test_an_edit_of_the_source_is_tried_where_it_can_be() -> None:
    """The change is done on entering its context, new parameters are trained, and the context ends with ``swap``."""
    log: list[str] = []
    treated = treat(lesson(), remedy(change=Swap(log)))
    assert treated.by_hand
    assert len(held(treated.lesson.optimizer)) == 6
    with treated.swap:
        assert log == ["in"]
    assert log == ["in", "out"]
    with pytest.raises(NeedsEditError, match="cannot be tried"):
        treat(lesson(), remedy(change=Swap(log, possible=False)))


def test_an_optimizer_is_given_the_whole_model_where_the_remedy_says_so() -> None:
    """All parameters that no optimizer has held go to the one of the diagnosis; the others keep theirs."""
    fresh = lesson()
    fresh = replace(
        fresh,
        optimizer=torch.optim.SGD([fresh.model[0].weight], lr=0.1),
        others=[torch.optim.Adam([fresh.model[2].weight], lr=0.2)],
    )
    treated = treat(fresh, remedy(optimizer_changes={"params": "all"})).lesson
    first, last = treated.model[0], treated.model[2]
    assert held(treated.optimizer) == [id(first.weight), id(first.bias), id(last.bias)]
    assert held(treated.others[0]) == [id(last.weight)]
