"""Test ``lightning_gradwatch.poisoned``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import healthy_net, module_in, trainer_in
from torch import nn

from lightning_gradwatch import GradientFault, GradWatch
from lightning_gradwatch.poisoned import PoisonedSteps


@pytest.fixture
def adam():
    """Return an optimizer that has momentum to lose, about to do its second step."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(2):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    return optimizer


def test_warn_leaves_the_step_alone(adam):
    """Nothing is dropped and nothing ends."""
    steps = PoisonedSteps("warn", 1)
    assert not steps.handle_(adam)
    assert all(parameter.grad is not None for parameter in adam.param_groups[0]["params"])


def test_skip_moves_neither_weights_nor_moments(adam):
    """Without gradients AdamW has nothing to do: no step, no decay."""
    steps = PoisonedSteps("skip", 3)
    weights = [parameter.detach().clone() for parameter in adam.param_groups[0]["params"]]
    assert not steps.handle_(adam)
    adam.step()
    assert all(torch.equal(p, w) for p, w in zip(adam.param_groups[0]["params"], weights, strict=True))
    assert {float(state["step"]) for state in adam.state.values()} == {2.0}
    assert steps.num_skipped == 1


def test_only_skips_in_a_row_end_training(adam):
    """A clean step between two poisoned ones starts the count anew."""
    steps = PoisonedSteps("skip", 2)
    assert [steps.handle_(adam), steps.handle_(adam)] == [False, False]
    steps.clean()
    assert [steps.handle_(adam) for _ in range(3)] == [False, False, True]
    assert steps.num_skipped == 5


def test_each_optimizer_has_a_row_of_its_own(adam):
    """A generator that is well does not hide that every step of its discriminator is dropped."""
    steps, other = PoisonedSteps("skip", 2), torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    ends = []
    for step in range(3):
        ends.append(steps.handle_(other, 1, 2 * step + 1))
        steps.clean(0)
    assert ends == [False, False, True]
    assert not steps.handle_(adam, 0, 6)


def test_a_step_that_evaluates_its_closure_several_times_counts_once(adam):
    """The gradients of each evaluation are dropped; LBFGS may do twenty of them in a step."""
    steps = PoisonedSteps("skip", 1)
    assert [steps.handle_(adam, 0, 4) for _ in range(5)] == [False] * 5
    assert steps.num_skipped == 1
    assert steps.handle_(adam, 0, 5)


def test_the_reason_names_step_and_layers(adam):
    """At most three layers are named; after many skips also where and when the row began."""
    assert (
        PoisonedSteps("raise", 1).reason(0, 7, list("bcde"))
        == 'step 7: gradients are not finite in b, c, d and 1 more (on_nonfinite="raise")'
    )
    steps = PoisonedSteps("skip", 1)
    steps.handle_(adam, 0, 3, ["a"])
    steps.handle_(adam, 0, 4, ["b"])
    assert steps.reason(0, 4, ["b"]) == (
        "2 steps in a row had gradients that are not finite, since step 3, then in a, now in b; more than "
        "`max_consecutive_skips`=1"
    )


def test_counts_survive_a_checkpoint(adam):
    """A row of skips goes on where it was."""
    steps, fresh = PoisonedSteps("skip", 2), PoisonedSteps("skip", 2)
    assert [steps.handle_(adam), steps.handle_(adam)] == [False, False]
    fresh.load_state_dict(**steps.state_dict())
    assert fresh.num_skipped == 2
    assert fresh.handle_(adam)
    old = PoisonedSteps("skip", 2)
    old.load_state_dict(num_skipped=2, consecutive=2)
    assert old.handle_(adam)


# Real training: a run with a poisoned batch ends as one in which that batch never came.

POISONED = 3
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.1),
    "AMSGrad": lambda p: torch.optim.Adam(p, lr=0.05, amsgrad=True, foreach=False),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, weight_decay=0.1),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
    "LBFGS, line search": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3, line_search_fn="strong_wolfe"),
}


def loss_of(net: nn.Module, batch: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(net(batch[0]), batch[1])


def without_the_batch(net: nn.Module, optimizer: torch.optim.Optimizer, batches: Any, every: int = 1) -> None:
    """Train plainly, and leave out each window of batches that holds the poisoned one."""
    for start in range(0, len(batches), every):
        window = range(start, min(start + every, len(batches)))
        if POISONED in window:
            continue

        def closure(window: range = window) -> torch.Tensor:
            optimizer.zero_grad()
            losses = [loss_of(net, batches[each]) / every for each in window]
            for loss in losses:
                loss.backward()
            return torch.stack(losses).sum().detach()

        optimizer.step(closure)


def poisoned(value: float) -> Callable[..., torch.Tensor]:
    def training_step(self: Any, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = loss_of(self.net, batch)
        return loss * value if batch_idx == POISONED else loss

    return training_step


def assert_same_training(net: nn.Module, optimizer: Any, twin: nn.Module, oracle: torch.optim.Optimizer) -> None:
    """Hold weights and everything that the optimizer remembers against each other, to the last bit."""
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))
    mine, other = optimizer.state_dict()["state"], oracle.state_dict()["state"]
    assert mine.keys() == other.keys()
    for key in mine:
        assert mine[key].keys() == other[key].keys()
        # LBFGS counts how often it has asked for gradients, and it has asked for those, too.
        for name, value in ((n, v) for n, v in mine[key].items() if n != "func_evals"):
            torch.testing.assert_close(value, other[key][name], rtol=0, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_with_a_dropped_step_is_the_run_without_its_batch(pl, tmp_path, data, name, value):
    """Moments, weight decay and the counts behind bias corrections do not move: nothing of the step is left."""
    net = healthy_net()
    twin, batches = copy.deepcopy(net), list(data)
    module = module_in(pl, net, optimizer=OPTIMIZERS[name], training_step=poisoned(value))
    watch = GradWatch(on_nonfinite="skip")
    trainer = trainer_in(pl, tmp_path, watch, max_steps=-1, max_epochs=1)
    trainer.fit(module, data)
    oracle = OPTIMIZERS[name](twin.parameters())
    without_the_batch(twin, oracle, batches)
    assert_same_training(net, trainer.optimizers[0], twin, oracle)
    assert (watch.skipped_steps, watch.disabled_reason) == (1, None)
    assert [(d.rule, d.step) for d in watch.diagnoses] == [("non_finite", POISONED)]


def test_a_dropped_window_leaves_nothing_behind(pl, tmp_path, data):
    """With accumulation all batches of the window are lost, and of no other."""
    net = healthy_net()
    twin, batches = copy.deepcopy(net), list(data)
    module = module_in(pl, net, optimizer=OPTIMIZERS["AdamW"], training_step=poisoned(float("nan")))
    trainer = trainer_in(
        pl, tmp_path, GradWatch(on_nonfinite="skip"), max_steps=-1, max_epochs=1, accumulate_grad_batches=2
    )
    trainer.fit(module, data)
    oracle = OPTIMIZERS["AdamW"](twin.parameters())
    without_the_batch(twin, oracle, batches, every=2)
    assert_same_training(net, trainer.optimizers[0], twin, oracle)


@pytest.mark.parametrize("closure", [False, True])
def test_by_hand_one_of_two_optimizers_loses_its_step(pl, tmp_path, data, closure):
    """Manual optimization: the optimizer with the NaN keeps weights and moments, the other one steps."""
    net = healthy_net()
    twin, batches = copy.deepcopy(net), list(data)

    def configure_optimizers(self):
        return [OPTIMIZERS["AdamW"](self.net[0].parameters()), OPTIMIZERS["SGD"](self.net[2].parameters())]

    def training_step(self, batch, batch_idx):
        for number, optimizer in enumerate(self.optimizers()):

            def compute(optimizer=optimizer, number=number):
                optimizer.zero_grad()
                bad = number == 0 and batch_idx == POISONED
                self.manual_backward(loss_of(self.net, batch) * (float("nan") if bad else 1.0))

            if closure:
                optimizer.step(closure=compute)
            else:
                compute()
                optimizer.step()

    module = module_in(pl, net, training_step=training_step, configure_optimizers=configure_optimizers)
    module.automatic_optimization = False
    watch = GradWatch(on_nonfinite="skip")
    trainer = trainer_in(pl, tmp_path, watch, max_steps=-1, max_epochs=1)
    trainer.fit(module, data)
    oracles = [OPTIMIZERS["AdamW"](twin[0].parameters()), OPTIMIZERS["SGD"](twin[2].parameters())]
    for index, batch in enumerate(batches):
        for number, oracle in enumerate(oracles):
            oracle.zero_grad()
            loss_of(twin, batch).backward()
            if (index, number) != (POISONED, 0):
                oracle.step()
    for number, oracle in enumerate(oracles):
        assert_same_training(net, trainer.optimizers[number], twin, oracle)
    assert watch.skipped_steps == 1
    assert [(d.optimizer, d.layers) for d in watch.diagnoses] == [(0, ("net.0",))]


def test_warn_changes_nothing_of_a_poisoned_run(pl, tmp_path, data):
    """With "warn" weights, optimizer state and random numbers end as without GradWatch, NaN and all."""
    ends = []
    for callbacks in ([], [GradWatch()]):
        torch.manual_seed(3)
        net = nn.Sequential(healthy_net(), nn.Dropout(0.2))
        module = module_in(pl, net, optimizer=OPTIMIZERS["AdamW"], training_step=poisoned(float("nan")))
        trainer = trainer_in(pl, tmp_path, *callbacks, max_steps=-1, max_epochs=1)
        trainer.fit(module, data)
        state = trainer.optimizers[0].state_dict()["state"]
        moments = [value for each in state.values() for value in each.values()]
        ends.append([torch.get_rng_state(), *(p.detach() for p in net.parameters()), *moments])
    for alone, watched in zip(*ends, strict=True):
        torch.testing.assert_close(alone, watched, rtol=0, atol=0, equal_nan=True)
    assert not torch.isfinite(ends[0][1]).any()


def test_raise_names_layer_step_and_batch_and_moves_no_weight(pl, tmp_path, data):
    """Training ends before the optimizer has used the step; the error carries the diagnosis with its layers."""
    net = healthy_net()
    twin, batches = copy.deepcopy(net), list(data)
    module = module_in(pl, net, optimizer=OPTIMIZERS["AdamW"], training_step=poisoned(float("nan")))
    with pytest.raises(
        GradientFault, match=r"step 3: gradients are not finite in net\.0, net\.2 .*batch 3: loss nan"
    ) as e:
        trainer_in(pl, tmp_path, GradWatch(on_nonfinite="raise"), max_steps=-1, max_epochs=1).fit(module, data)
    assert [(d.rule, d.step, d.layers) for d in e.value.diagnoses] == [("non_finite", 3, ("net.2", "net.0"))]
    without_the_batch(twin, OPTIMIZERS["AdamW"](twin.parameters()), batches[: POISONED + 1])
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("settings", [{"rules": []}, {"ignore": ["non_finite"]}])
def test_the_error_says_what_it_is_about_where_the_rule_is_muted(pl, tmp_path, data, settings):
    """A muted rule mutes what is told, and not what was asked to end training."""
    module = module_in(pl, training_step=poisoned(float("inf")))
    with pytest.raises(GradientFault, match="step 3") as caught:
        trainer_in(pl, tmp_path, GradWatch(on_nonfinite="raise", **settings), max_steps=8).fit(module, data)
    assert [(d.symptom.value, d.step, d.layers) for d in caught.value.diagnoses] == [
        ("non_finite", 3, ("net.0", "net.2"))
    ]
