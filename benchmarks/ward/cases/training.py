"""What goes wrong, or only looks wrong, in the course of training: learning rates, batches, losses, schedules."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor, nn

from benchmarks.ward.case import Batch, Case
from benchmarks.ward.networks import linears
from benchmarks.ward.recipes import Recipe, sick, well
from lightning_gradwatch import Symptom

_HE = Recipe(depth=4, scheme="he")
_EVENT = 120


def _scaled_batch(factor: float, at: int) -> Callable[[int, Batch], Batch]:
    def change(number: int, batch: Batch) -> Batch:
        return (batch[0] * factor, batch[1]) if number == at else batch

    return change


def _poisoned(value: float) -> Callable[[int, Batch], Batch]:
    def change(number: int, batch: Batch) -> Batch:
        if number != _EVENT:
            return batch
        inputs = batch[0].clone()
        inputs[0, 0] = value
        return inputs, batch[1]

    return change


class RootOfAbsolute(nn.Module):
    """``sqrt(|x|)``, whose derivative at 0 is infinite."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the root."""
        return x.abs().sqrt()


def _root(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, 32, bias=False), RootOfAbsolute(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, outputs)
    )


def _root_with_bias(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 32), RootOfAbsolute(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, outputs))


def _clipping() -> dict[str, object]:
    return {"gradient_clip_val": 1.0}


def _blank(number: int, batch: Batch) -> Batch:
    """Put a picture without a single dot into one batch."""
    if number != _EVENT:
        return batch
    inputs = batch[0].clone()
    inputs[3] = 0.0
    return inputs, batch[1]


def _log_of_probability(out: Tensor, targets: Tensor) -> Tensor:
    """The cross entropy as beginners write it: the logarithm of 0 is not far."""
    chosen = out.softmax(-1).gather(1, targets.unsqueeze(1))
    return -chosen.log().mean()


def _reinforced(out: Tensor, targets: Tensor) -> Tensor:
    """The policy gradient of a bandit that is told only whether its guess was right: this loss need not fall."""
    logs = out.log_softmax(-1)
    guess = torch.multinomial(logs.exp().detach(), 1)
    reward = (guess.squeeze(1) == targets).float()
    return -(logs.gather(1, guess).squeeze(1) * (reward - reward.mean())).mean()


def _far(number: int, batch: Batch) -> Batch:
    return batch[0] * 40, batch[1]


def _off(model: nn.Module) -> None:
    for layer in list(linears(model))[:-1]:
        assert layer.bias is not None
        nn.init.constant_(layer.bias, -20.0)


def _off_second(model: nn.Module) -> None:
    bias = list(linears(model))[1].bias
    assert bias is not None
    nn.init.constant_(bias, -50.0)


def _zero(model: nn.Module) -> None:
    for layer in linears(model):
        nn.init.zeros_(layer.weight)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)


def _rates() -> Sequence[Case]:
    slow = {"decided": "start"}
    return (
        sick("training/sgd-far-too-fast", Recipe(depth=4, scheme="he", optimizer="sgd", rate=100.0),
             Symptom.EXPLODING, ("*",), {"rate": 0.05}, decided="start"),
        sick("training/momentum-too-fast", Recipe(depth=8, scheme="he", optimizer="momentum", rate=5.0),
             Symptom.EXPLODING, ("*",), {"rate": 0.01}, decided="start"),
        sick("training/adam-far-too-fast", Recipe(depth=6, scheme="he", rate=3.0),
             Symptom.EXPLODING, ("*",), {"rate": 1e-3}, decided="start"),
        sick("training/sum-loss-too-fast", Recipe(depth=4, scheme="he", optimizer="sgd", rate=1.0, sum_loss=True),
             Symptom.EXPLODING, ("*",), {"sum_loss": False, "rate": 0.05}, decided="start"),
        sick("training/sgd-1e-9", Recipe(depth=4, scheme="he", optimizer="sgd", rate=1e-9),
             Symptom.VANISHING, ("*",), {"rate": 0.05}, **slow),
        sick("training/adam-1e-10", Recipe(depth=3, scheme="he", rate=1e-10),
             Symptom.VANISHING, ("*",), {"rate": 1e-3}, **slow),
        sick("training/loss-1e-8-sgd", Recipe(depth=3, scheme="he", optimizer="sgd", rate=0.05, factor=1e-8),
             Symptom.VANISHING, ("*",), {"factor": 1.0}, **slow),
        sick("training/momentum-1e-8", Recipe(depth=5, activation="tanh", optimizer="momentum", rate=1e-8),
             Symptom.VANISHING, ("*",), {"rate": 0.05}, **slow),
    )  # fmt: skip


def _dead() -> Sequence[Case]:
    return (
        sick("training/bias-minus-20", Recipe(depth=4, scheme="he", edit=_off), Symptom.DEAD, ("*",), {"edit": None},
             decided="start"),
        sick("training/second-layer-off", Recipe(depth=5, scheme="he", edit=_off_second, optimizer="sgd", rate=0.05),
             Symptom.DEAD, ("0", "2", "4"), {"edit": None}, decided="start"),
        sick("training/all-zero-weights", Recipe(depth=4, edit=_zero), Symptom.DEAD, ("*",), {"edit": None},
             decided="start"),
    )  # fmt: skip


def _batches() -> Sequence[Case]:
    event = {"event_step": _EVENT, "decided": "start"}
    momentum = Recipe(depth=4, scheme="he", optimizer="momentum", rate=0.02)
    return (
        sick("training/nan-in-a-batch", Recipe(depth=4, scheme="he", change=_poisoned(float("nan"))),
             Symptom.NON_FINITE, ("*",), {"change": None}, **event),
        sick("training/inf-in-a-batch", Recipe(depth=6, scheme="he", change=_poisoned(float("inf"))),
             Symptom.NON_FINITE, ("*",), {"change": None}, **event),
        sick("training/root-of-zero", Recipe(network=_root, change=_blank), Symptom.NON_FINITE, ("0",),
             {"network": _root_with_bias}, **event),
        sick("training/log-of-zero", Recipe(depth=4, scheme="he", gain=1.6, loss=_log_of_probability, change=_far),
             Symptom.NON_FINITE, ("*",), {"loss": None, "change": None, "gain": 1.0}, decided="start"),
        sick("training/poisoned-batch-sgd", Recipe(depth=4, scheme="he", optimizer="sgd", rate=0.05,
                                                   change=_scaled_batch(1e4, _EVENT)),
             Symptom.SPIKE, ("*",), {"change": None}, **event),
        sick("training/poisoned-batch-momentum", Recipe(depth=5, activation="leaky", scheme="he", optimizer="momentum",
                                                        rate=0.02, change=_scaled_batch(3e3, _EVENT)),
             Symptom.SPIKE, ("*",), {"change": None}, **event),
        well("training/poisoned-batch-tanh", Recipe(depth=4, activation="tanh", scheme="xavier", optimizer="momentum",
                                                    rate=0.02, change=_scaled_batch(1e5, _EVENT)),
             "one odd batch that training survives"),
        sick("training/poisoned-batch-deep", Recipe(depth=10, scheme="he", optimizer="sgd", rate=0.02, num_steps=600,
                                                    change=_scaled_batch(1e5, 300)),
             Symptom.SPIKE, ("*",), {"change": None}, event_step=300, decided="start"),
        well("training/odd-batch-survived", Recipe(depth=4, scheme="he", change=_scaled_batch(8.0, _EVENT)),
             "one odd batch that training survives"),
        well("training/odd-batch-clipped", Recipe(depth=4, scheme="he", optimizer="momentum", rate=0.02,
                                                  change=_scaled_batch(100.0, _EVENT),
                                                  trainer=_clipping),
             "one odd batch that is clipped"),
        well("training/batch-of-1", Recipe(depth=3, scheme="he", batch_size=1, num_steps=1500), "small batches"),
        well("training/batch-of-2-sgd", Recipe(depth=3, scheme="he", batch_size=2, optimizer="sgd", rate=0.01,
                                               num_steps=1200), "small batches"),
        well("training/batch-of-4-momentum", Recipe(depth=6, scheme="he", batch_size=4, optimizer="momentum",
                                                    rate=0.003, num_steps=800), "small batches"),
        well("training/momentum-plain", momentum),
    )  # fmt: skip


def _losses() -> Sequence[Case]:
    return (
        well("training/summed-loss-sgd", Recipe(depth=5, scheme="he", optimizer="sgd", rate=5e-4, sum_loss=True),
             "a summed loss"),
        well("training/summed-loss-adam", Recipe(depth=8, scheme="he", sum_loss=True), "a summed loss"),
        well("training/loss-1e-4-adam", Recipe(depth=5, scheme="he", factor=1e-4), "a tiny loss under Adam"),
        well("training/loss-1e-6-adam", Recipe(depth=4, activation="tanh", scheme="xavier", factor=1e-6, num_steps=400),
             "a tiny loss under Adam"),
        well("training/loss-1e4-adam", Recipe(depth=5, scheme="he", factor=1e4), "a large loss under Adam"),
        well("training/big-targets-adam", Recipe(data="curve", depth=3, target_scale=1e3, rate=3e-2, num_steps=1000,
                                                 width=64), "big targets"),
        well("training/big-targets-sgd", Recipe(data="curve", depth=2, width=64, target_scale=10.0, optimizer="sgd",
                                                rate=1e-3, num_steps=2000), "big targets"),
        well("training/curve-adam", Recipe(data="curve", depth=4, rate=3e-3, num_steps=800)),
        well("training/noisy-labels-adam", Recipe(data="noisy", depth=3, scheme="he", num_steps=400), "noisy labels"),
        well("training/noisy-labels-sgd", Recipe(data="noisy", depth=3, scheme="he", optimizer="sgd", rate=0.05,
                                                 num_steps=600), "noisy labels"),
        well("training/policy-gradient-adam", Recipe(depth=2, width=64, scheme="he", rate=1e-3, num_steps=900,
                                                     loss=_reinforced), "a loss that need not fall"),
        well("training/policy-gradient-sgd", Recipe(data="blob", depth=2, scheme="he", optimizer="sgd", rate=0.2,
                                                    num_steps=500, loss=_reinforced), "a loss that need not fall"),
        well("training/converged", Recipe(data="circle", depth=3, scheme="he", rate=5e-3, num_steps=1500),
             "trained long after it has converged"),
        well("training/converged-sgd", Recipe(data="digits", depth=3, scheme="he", optimizer="momentum", rate=0.05,
                                              num_steps=1200), "trained long after it has converged"),
    )  # fmt: skip


def _warm_up(step: int) -> float:
    return min(1.0, step / 60)


def _drop(step: int) -> float:
    return 1.0 if step < 150 else 0.05


def _restart(step: int) -> float:
    return 1.0 if step % 100 == 0 else max(0.02, 1 - (step % 100) / 100)


def _sixteen_bits() -> dict[str, object]:
    """Return half precision with a fresh loss scaler, which begins at 65,536 and overflows a few times."""
    return {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]}


def _schedules() -> Sequence[Case]:
    return (
        well("training/warm-up-adam", Recipe(depth=8, scheme="he", schedule=_warm_up), "warm-up of the learning rate"),
        well("training/warm-up-sgd", Recipe(depth=4, scheme="he", optimizer="sgd", rate=0.05, schedule=_warm_up,
                                            num_steps=400), "warm-up of the learning rate"),
        well("training/drop-momentum", Recipe(depth=5, scheme="he", optimizer="momentum", rate=0.02, schedule=_drop),
             "a new learning rate"),
        well("training/restarts-adam", Recipe(depth=5, scheme="he", rate=3e-3, schedule=_restart),
             "a new learning rate"),
        well("training/accumulation-4", Recipe(depth=5, scheme="he", accumulate=4, batch_size=16), "accumulation"),
        well("training/accumulation-8-sgd", Recipe(depth=3, scheme="he", accumulate=8, batch_size=8, optimizer="sgd",
                                                   rate=0.1), "accumulation"),
        well("training/loss-scaler", Recipe(depth=4, scheme="he", trainer=_sixteen_bits),
             "warm-up of a loss scaler"),
        well("training/loss-scaler-sgd", Recipe(depth=3, scheme="he", optimizer="sgd", rate=0.05,
                                                trainer=_sixteen_bits, num_steps=400),
             "warm-up of a loss scaler"),
        well("training/dropout-half", Recipe(depth=3, width=64, scheme="he", more={"dropout": 0.5}, num_steps=600),
             "dropout"),
        well("training/weight-decay", Recipe(depth=4, scheme="he", optimizer="adamw")),
    )  # fmt: skip


def cases() -> tuple[Case, ...]:
    """Return the cases of this family."""
    return (*_rates(), *_dead(), *_batches(), *_losses(), *_schedules())
