"""Test ``lightning_gradwatch.remedy.rehearsal``."""

from __future__ import annotations

import copy
import math
import random
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from models import WIDTH, deep_net
from torch import nn

from lightning_gradwatch import ClipByGlobalNorm, Diagnosis, Remedy, Symptom
from lightning_gradwatch.remedy import budget, copying
from lightning_gradwatch.remedy.rehearsal import effect_in_words, rehearse
from lightning_gradwatch.remedy.trial import Stage

SICK = Diagnosis("vanishing.depth", Symptom.VANISHING)
INPUTS, LABELS = torch.randn(16, WIDTH), torch.arange(16) % 3


def loss_of(model: nn.Module) -> torch.Tensor:
    """Return the loss of a model on one batch."""
    return nn.functional.cross_entropy(model(INPUTS), LABELS)


def he_and_relu_(model: nn.Module) -> None:
    """Do by hand what cures a stack of sigmoids."""
    for place, layer in enumerate(model):
        if isinstance(layer, nn.Sigmoid):
            model[place] = nn.ReLU()
        elif isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)


def smaller_(model: nn.Module) -> None:
    """Make everything worse."""
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=1e-3)


def nothing_(model: nn.Module) -> None:
    """Change nothing."""


CURE = Remedy("cure", "", SICK, needs_restart=True, change=he_and_relu_)
HARM = Remedy("harm", "", SICK, needs_restart=True, change=smaller_)
IDLE = Remedy("idle", "", SICK, change=nothing_)
WORDS = Remedy("words", "", SICK, code="# look at your data")


def stage_of(model: nn.Module, **settings: Any) -> Stage:
    """Return a stage with plain SGD."""
    return Stage(model, loss_of, torch.optim.SGD(model.parameters(), lr=0.1), **settings)


def test_what_helped_comes_first_and_what_harmed_last():
    """In between stands what changed nothing, and what cannot be tried, in the expert's order."""
    result = rehearse([HARM, WORDS, IDLE, CURE], stage_of(deep_net(nn.Sigmoid, 12)))
    assert [remedy.title for remedy in result.remedies] == ["cure", "words", "idle", "harm"]
    assert result.order == (3, 1, 2, 0)
    assert result.notes == ()
    assert [remedy.effect is None for remedy in result.remedies] == [False, True, False, False]


def test_the_effect_is_what_a_plain_loop_sees():
    """Losses and the ratio of first to last delta, from plain autograd and plain SGD on a copy by hand."""
    model = deep_net(nn.Tanh, 4)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[0].weight.mul_(3)

    def triple_(net: nn.Module) -> None:
        with torch.no_grad():
            net[0].weight.mul_(3)

    effect = rehearse([replace(IDLE, change=triple_)], stage_of(model)).remedies[0].effect

    def train(net: nn.Module) -> tuple[float, float, float]:
        optimizer, first = torch.optim.SGD(net.parameters(), lr=0.1), math.nan
        for step in range(10):
            head, tail = net[0](INPUTS), None
            head.retain_grad()
            tail = net[1:](head)
            tail.retain_grad()
            loss = nn.functional.cross_entropy(tail, LABELS)
            optimizer.zero_grad()
            loss.backward()
            if not step:
                first, before = float(head.grad.norm() / tail.grad.norm()), float(loss.detach())
            optimizer.step()
        return before, float(loss_of(net).detach()), first

    before, untreated, ratio_before = train(copy.deepcopy(model))
    _, after, ratio_after = train(twin)
    assert effect == {
        "loss_before": pytest.approx(before),
        "loss_after": pytest.approx(after),
        "loss_untreated": pytest.approx(untreated),
        "first_over_last_before": pytest.approx(ratio_before, rel=1e-5),
        "first_over_last_after": pytest.approx(ratio_after, rel=1e-5),
        "steps": 10,
    }


class Busy(nn.Module):
    """Draws from every generator, counts its calls, keeps a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.drop, self.norm = deep_net(nn.Sigmoid, 12), nn.Dropout(0.5), nn.BatchNorm1d(WIDTH)
        self.calls, self.last = [], torch.zeros(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append(random.random())
        self.last += 1
        return self.net(self.drop(self.norm(x)) + float(np.random.rand()))  # noqa: NPY002


def state_of(model: Busy, optimizer: Any) -> list[Any]:
    """Return everything that must not change, as bytes and plain values."""
    tensors = [*model.state_dict().values(), model.last, *(p.grad for p in model.parameters())]
    moments = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    plain = [model.calls[:], random.getstate(), np.random.get_state()[1].tolist()]  # noqa: NPY002
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    kept = [t.detach().numpy().tobytes() for t in (*tensors, *moments, torch.get_rng_state())]
    return [kept, plain, groups, [m.training for m in model.modules()]]


def test_nothing_of_the_persons_is_changed():
    """Model, buffers, attributes, optimizer and random states, to the last bit; gradients are the same objects."""
    model = Busy()
    optimizer = torch.optim.Adam(model.parameters())
    loss_of(model).backward()
    optimizer.step()
    before, gradients = state_of(model, optimizer), [p.grad for p in model.parameters()]
    faster = Remedy("faster", "", SICK, optimizer_changes={"lr": 1.0}, clipper=ClipByGlobalNorm(1.0))
    result = rehearse([faster, replace(CURE, change=lambda m: he_and_relu_(m.net))], Stage(model, loss_of, optimizer))
    assert all(remedy.effect is not None for remedy in result.remedies)
    assert state_of(model, optimizer) == before
    assert all(p.grad is gradient for p, gradient in zip(model.parameters(), gradients, strict=True))


def test_all_copies_draw_the_same_numbers():
    """A remedy that changes nothing leaves a stochastic network where the untreated one is, to the last bit."""
    model = Busy()
    effect = rehearse([IDLE], stage_of(model)).remedies[0].effect
    assert effect["loss_after"] == effect["loss_untreated"]
    assert effect["first_over_last_after"] == effect["first_over_last_before"]


def test_settings_of_a_remedy_count():
    """A learning rate and a clipper are part of what is tried."""
    model = deep_net(nn.Tanh, 2)
    still = Remedy("still", "", SICK, optimizer_changes={"lr": 0.0})
    bound = Remedy("bound", "", SICK, clipper=ClipByGlobalNorm(1e-20))
    for remedy in rehearse([still, bound], stage_of(model)).remedies:
        assert remedy.effect["loss_after"] == pytest.approx(remedy.effect["loss_before"], abs=1e-7)
        assert remedy.effect["loss_untreated"] < remedy.effect["loss_before"] - 1e-3


def test_a_start_afresh_is_never_first_where_training_has_made_progress():
    """It would forget what was learned; something that does no harm and keeps it comes first."""
    progressed = replace(SICK, evidence={"loss_has_fallen": True})
    remedies = [replace(CURE, diagnosis=progressed), replace(IDLE, diagnosis=progressed)]
    model = deep_net(nn.Sigmoid, 12)
    assert [r.title for r in rehearse(remedies, stage_of(model)).remedies] == ["idle", "cure"]
    assert [r.title for r in rehearse([CURE, IDLE], stage_of(model)).remedies] == ["cure", "idle"]


def test_what_fails_on_the_copy_is_told_and_the_rest_is_tried():
    """A remedy that refuses keeps its place without an effect, and the reason is its own."""

    def refuse(model: nn.Module) -> None:
        raise ValueError("edit the source")

    result = rehearse([replace(IDLE, title="refuses", change=refuse), CURE], stage_of(deep_net(nn.Sigmoid, 12)))
    assert [(r.title, r.effect is None) for r in result.remedies] == [("cure", False), ("refuses", True)]
    assert result.notes == ("refuses: not rehearsed, it fails on a copy of the model (ValueError: edit the source)",)


def test_functions_are_swapped_where_the_remedy_knows_how():
    """A change with ``tried`` is used as a context, around all passes of its copy and no longer."""

    class Swap:
        inside = 0

        def __call__(self, model: nn.Module) -> None:
            raise ValueError("edit the source")

        def tried(self, model: nn.Module) -> Any:
            @contextmanager
            def block() -> Any:
                Swap.inside += 1
                yield
                Swap.inside -= 1

            return block()

    seen: list[int] = []

    def closure(model: nn.Module) -> torch.Tensor:
        seen.append(Swap.inside)
        return loss_of(model)

    stage = replace(stage_of(deep_net(nn.Tanh, 2), num_steps=4), loss_closure=closure)
    result = rehearse([replace(IDLE, change=Swap())], stage)
    assert result.remedies[0].effect["steps"] == 4
    # Four steps and a look at the loss, without and with it.
    assert seen == [0] * 5 + [1] * 5
    assert Swap.inside == 0


def test_a_model_too_large_is_advised_by_closed_form_alone(monkeypatch):
    """The remedies stay in the expert's order, and it is said why."""
    monkeypatch.setattr(copying, "bytes_free", lambda _: 100)
    result = rehearse([HARM, CURE], stage_of(deep_net(nn.Sigmoid, 12)))
    assert result.remedies == (HARM, CURE)
    assert "more than 50% of the 0 MiB that are free" in result.notes[0]
    assert result.notes[0].startswith("not rehearsed: a copy with its gradients would take")


def test_weights_that_are_lost_are_not_rehearsed():
    """Where the weights are NaN no copy tells anything."""
    model = deep_net(nn.Tanh, 2)
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    result = rehearse([CURE], stage_of(model))
    assert result.notes == (
        "not rehearsed: the weights are not finite any more; examine() on a fresh model tries them",
    )


def test_an_optimizer_that_cannot_be_made_anew_leaves_one_backward_pass(monkeypatch):
    """The profile along depth is known from it; the loss of a drawn start is not held against another."""

    class Special(torch.optim.SGD):
        def __init__(self, params: Any, secret: str, rate: float) -> None:
            super().__init__(params, lr=rate)

    model = deep_net(nn.Sigmoid, 12)
    result = rehearse([HARM, CURE], Stage(model, loss_of, Special(model.parameters(), "x", 0.1)))
    assert [(r.title, r.effect["steps"]) for r in result.remedies] == [("cure", 0), ("harm", 0)]
    assert "Special cannot be made anew" in result.notes[0]


def test_time_that_is_over_is_obeyed():
    """With no time at all one pass is made without a remedy, and it is said what was not tried."""
    model = deep_net(nn.Sigmoid, 12)
    result = rehearse([HARM, CURE], stage_of(model, seconds=0.0))
    assert result.untreated.steps == 0
    assert result.notes == ("2 more not rehearsed: the 0 s for it do not reach so far",)


class Clock:
    """A clock that only a pass advances."""

    def __init__(self, a_pass: float) -> None:
        self.now, self._a_pass = 0.0, a_pass

    def __call__(self) -> float:
        return self.now

    def closure(self, model: nn.Module) -> torch.Tensor:
        self.now += self._a_pass
        return loss_of(model)


@pytest.mark.parametrize(
    ("a_pass", "steps", "says"),
    [
        # Five copies in 10 s have 2 s each.
        (0.01, [10] * 4, None),
        (0.3, [5] * 4, "trying 4 ways out on copies, about 10 s"),
        # Three steps and the look at the loss fit twice; the other three ways out are not reached.
        (1.2, [3], "trying 4 ways out on copies, about 10 s"),
        # A pass each; two went to find that out.
        (2.0, [0] * 3, "trying 4 ways out on copies, about 10 s"),
        (4.0, [0], "trying 4 ways out on copies, about 10 s"),
        (6.0, [], "trying 4 ways out on copies, about 10 s"),
    ],
)
def test_a_slow_step_gets_fewer_steps_and_fewer_tries(monkeypatch, a_pass, steps, says):
    """It takes no more than its seconds, whatever a step takes, and long waits are announced once."""
    clock, heard = Clock(a_pass), []
    monkeypatch.setattr(budget, "perf_counter", clock)
    stage = replace(stage_of(deep_net(nn.Tanh, 2), seconds=10.0), loss_closure=clock.closure, say=heard.append)
    result = rehearse([IDLE] * 4, stage)
    assert clock.now <= 10.0
    assert [r.effect["steps"] for r in result.remedies if r.effect is not None] == steps
    left = 4 - len(steps)
    assert result.notes == ((f"{left} more not rehearsed: the 10 s for it do not reach so far",) if left else ())
    assert heard == ([f"GradWatch  {says}"] if says else [])


def test_what_a_step_has_overwritten_is_not_tried():
    """From ruins, loss nan, no way out can be judged; where the loss is finite it can."""
    model, seen = deep_net(nn.Tanh, 2), []
    over = replace(IDLE, diagnosis=Diagnosis("exploding.update", Symptom.EXPLODING))

    def closure(net: nn.Module) -> torch.Tensor:
        seen.append(net)
        return loss_of(net) * math.nan

    result = rehearse([over, over], replace(stage_of(model, num_steps=3), loss_closure=closure))
    assert result.notes == (
        "not rehearsed: the step has overwritten the weights; examine() on a fresh model tries them",
    )
    assert result.remedies == (over, over)
    # Nothing but the untreated copy was run.
    assert len(set(map(id, seen))) == 1
    assert rehearse([over], stage_of(model)).remedies[0].effect is not None


def test_tries_that_end_without_a_finite_loss_are_not_told_one_by_one():
    """Loss nan -> nan says nothing; a single way out that makes it finite says all."""
    stage = replace(stage_of(deep_net(nn.Tanh, 2), num_steps=3), loss_closure=lambda net: loss_of(net) * mended[0])
    mended = [math.nan]
    result = rehearse([IDLE, IDLE], stage)
    assert result.notes == ("tried without use: on no copy is the loss finite",)
    assert [remedy.effect for remedy in result.remedies] == [None, None]

    def mend_(model: nn.Module) -> None:
        mended[0] = 1.0

    result = rehearse([IDLE, replace(IDLE, title="mends", change=mend_)], stage)
    assert result.remedies[0].title == "mends"
    assert result.notes == ()


class Recurrent(nn.Module):
    """Forgets: from state to state the gradient is multiplied by a tenth."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.memory, self.head = nn.RNN(WIDTH, WIDTH, batch_first=True), nn.Linear(WIDTH, 3)
        nn.init.orthogonal_(self.memory.weight_hh_l0, gain=gain)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.memory(x)[0][:, -1])


def test_what_a_network_forgets_is_told_over_time_and_never_worse():
    """The profile along time is that of autograd; a higher loss after ten steps is not held against a remedy."""
    torch.manual_seed(0)
    model, x = Recurrent(0.1), 0.1 * torch.randn(16, 12, WIDTH)
    forgets = Diagnosis("vanishing.time", Symptom.VANISHING)

    def closure(net: nn.Module) -> torch.Tensor:
        return nn.functional.cross_entropy(net(x), LABELS)

    def remember_(net: nn.Module) -> None:
        nn.init.orthogonal_(net.memory.weight_hh_l0)
        nn.init.normal_(net.head.weight, std=5.0)

    remember = Remedy("remember", "", forgets, change=remember_)
    stage = replace(stage_of(model), loss_closure=closure)
    result = rehearse([replace(IDLE, diagnosis=forgets), remember], stage)
    # It mended the profile, which counts more than what ten steps of a loss can say.
    assert [remedy.title for remedy in result.remedies] == ["remember", "idle"]
    effect = result.remedies[0].effect
    assert effect["loss_after"] > 1.1 * effect["loss_untreated"]
    x.requires_grad_()
    closure(model).backward()
    reaching = x.grad.square().sum(dim=(0, 2)).sqrt()
    assert effect["over_time_before"] == pytest.approx(float(reaching[0] / reaching[-1]), rel=1e-3, abs=0)
    assert effect["over_time_before"] < 1e-9
    assert effect["over_time_after"] > 1e-3
    for remedy in result.remedies:
        assert effect_in_words(remedy.effect).endswith("10 steps say little about what lies far back")
        assert "worse" not in effect_in_words(remedy.effect)
    assert "what reaches the first time step, of the last one's, " in effect_in_words(effect)


def test_no_more_than_six_are_tried():
    """The rest keeps its place, and is counted."""
    model = deep_net(nn.Tanh, 2)
    result = rehearse([IDLE] * 8, stage_of(model, num_steps=1))
    assert sum(remedy.effect is not None for remedy in result.remedies) == 6
    assert result.notes == ("2 more not rehearsed: the first 6 are",)


def test_nothing_to_try_costs_nothing():
    """Advice in words alone runs no pass."""

    def fail(model: nn.Module) -> torch.Tensor:
        raise AssertionError("no pass was asked for")

    assert rehearse([WORDS], Stage(nn.Linear(1, 1), fail)).remedies == (WORDS,)


def test_a_loss_that_fails_on_the_copy_is_told():
    """The person's own error is part of the reason."""

    def fail(model: nn.Module) -> torch.Tensor:
        raise KeyError("mask")

    result = rehearse([CURE], Stage(deep_net(nn.Tanh, 2), fail))
    assert result.notes == ("not rehearsed: it fails on a copy of the model (KeyError: 'mask')",)
    assert result.remedies == (CURE,)


def test_words_leave_out_what_is_not_known():
    """Without depth there is no ratio; without steps there is no loss after them."""
    did = {"loss_before": 2.0, "loss_after": 1.0, "loss_untreated": 1.5, "steps": 3}
    nan = {"first_over_last_before": math.nan, "first_over_last_after": math.nan}
    assert effect_in_words({**did, **nan}) == "loss 2 -> 1 in 3 steps (1.5 without it)"
    one = {**did, "steps": 0, "first_over_last_before": 1e-9, "first_over_last_after": 0.5}
    assert effect_in_words(one) == "first/last gradient 1e-09 -> 0.5 (one backward pass, no step)"


def test_an_optimizer_that_gets_the_whole_model_trains_the_whole_copy():
    """The loss is that of a plain loop over all parameters, and not that of the copy that was left as it is."""
    model, twin = (deep_net(nn.Tanh, 2) for _ in range(2))
    twin.load_state_dict(model.state_dict())
    whole = Remedy("give it all", "", SICK, optimizer_changes={"params": "all"})
    stage = Stage(model, loss_of, torch.optim.SGD(model[-1].parameters(), lr=0.1))
    effect = rehearse([whole], stage).remedies[0].effect
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for _ in range(10):
        optimizer.zero_grad()
        loss_of(twin).backward()
        optimizer.step()
    assert effect["loss_after"] == pytest.approx(float(loss_of(twin).detach()), rel=1e-6)
    assert effect["loss_untreated"] > effect["loss_after"] + 1e-3


def test_words_begin_with_it_where_a_remedy_did_not_help():
    """By the loss without it, not by the loss before; a ratio that prints the same is left out."""
    did = {"loss_before": 2.0, "loss_untreated": 1.5, "steps": 3}
    even = {"first_over_last_before": 0.52, "first_over_last_after": 0.54}
    assert effect_in_words({**did, **even, "loss_after": 1.6}).startswith("worse: loss 2 -> 1.6 in 3 steps (1.5")
    assert effect_in_words({**did, **even, "loss_after": 1.5}).startswith("no better: loss 2 -> 1.5")
    assert effect_in_words({**did, **even, "loss_after": 1.4}).startswith("loss 2 -> 1.4")
    none = effect_in_words({**did, **even, "loss_after": 2.0, "steps": 0})
    assert none == "no better: the gradient is what it was (one backward pass, no step)"
    lost = {**did, "loss_after": 1.0, "loss_untreated": math.nan, "first_over_last_before": math.nan}
    said = effect_in_words({**lost, "first_over_last_after": 0.5})
    assert said == "first/last gradient unknown -> 0.5, loss 2 -> 1 in 3 steps (nan without it)"


def test_a_branch_that_is_closed_at_first_is_measured_after_its_steps():
    """ReZero lets nothing through before its first step: a ratio of 0 would tell nothing of it."""

    class Branch(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.alpha = inner, nn.Parameter(torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.alpha * self.inner(x)

    def close_(model: nn.Module) -> None:
        for place in range(0, len(model) - 1, 2):
            model[place] = Branch(nn.Sequential(model[place], nn.Tanh()))

    effect = rehearse([replace(IDLE, change=close_)], stage_of(deep_net(nn.Sigmoid, 6))).remedies[0].effect
    assert 0 < effect["first_over_last_after"] < 1
    assert effect["steps"] == 10
