"""Rows of docs/support.md about number formats: half precision, double precision and loss scaling."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from models import CLASSES, module_in, trainer_in
from oracle import assert_same, before_clipping, same_weights, saves_gradients, totals
from torch import nn

from lightning_gradwatch import ClipByGlobalNorm, ClipByValue, GradientFault, GradWatch


def scaled(pl: Any, **kwargs: Any) -> Any:
    """Return a precision plugin with a loss scaler on the CPU, where Lightning itself would take none."""
    scaler = torch.amp.GradScaler("cpu", **kwargs)
    return pl.plugins.precision.MixedPrecision("16-mixed", "cpu", scaler)


def watched(pl: Any, directory: Any, data: Any, make: Any, watch: GradWatch, settings: Any = dict) -> Any:
    """Train without and with GradWatch and hold the weights against each other to the last bit.

    Args:
        pl: The Lightning package.
        directory: Where the runs write.
        data: What is trained on.
        make: Makes the module.
        watch: The GradWatch; a healthy run is expected.
        settings: Makes the Trainer's settings, each time anew: a scaler has a state.

    Returns:
        What the optimizers used in the watched run, and its module.
    """
    runs = []
    for callbacks in ([], [watch]):
        torch.manual_seed(1)
        module = make()
        saved = saves_gradients(module)
        trainer_in(pl, directory, *callbacks, **settings()).fit(module, data)
        runs.append((saved, module))
    (plain_saved, plain), (saved, module) = runs
    assert plain_saved.steps == saved.steps
    assert same_weights(plain, module)
    assert watch.disabled_reason is None
    assert watch.diagnoses == []
    return saved, module


def loss_of(module: Any, batch: Any) -> Any:
    return nn.functional.cross_entropy(module.net(batch[0]), batch[1])


def exact_step(self: Any, batch: Any, batch_idx: int) -> Any:
    """Compute the loss without half precision: then scaling by a power of two costs no digit."""
    with torch.autocast("cpu", enabled=False):
        return loss_of(self, batch)


def manual(pl: Any, training_step: Any, **hooks: Any) -> Any:
    module = module_in(pl, training_step=training_step, **hooks)
    module.automatic_optimization = False
    return module


def two_optimizers(self: Any) -> Any:
    return [torch.optim.SGD(self.net[0].parameters(), 0.05), torch.optim.SGD(self.net[2].parameters(), 0.05)]


def steps_each(self: Any, batch: Any, batch_idx: int) -> None:
    """Let each optimizer compute its gradients and step, without half precision."""
    for optimizer in self.optimizers():
        optimizer.zero_grad()
        with torch.autocast("cpu", enabled=False):
            # Backward too would compute in half precision otherwise.
            self.manual_backward(loss_of(self, batch))
        optimizer.step()


# ---- formats


@pytest.mark.parametrize(
    "precision",
    [
        pytest.param("bf16-mixed", marks=pytest.mark.supports("precision bf16-mixed")),
        pytest.param("bf16-true", marks=pytest.mark.supports("precision bf16-true")),
        pytest.param("16-true", marks=pytest.mark.supports("precision 16-true")),
        pytest.param("64-true", marks=pytest.mark.supports("precision 64-true")),
    ],
)
@pytest.mark.parametrize("every", [1, 3])
def test_every_format_is_read_in_full(lightning, tmp_path, data, precision, every):
    """Gradients of any format are read as what they are, with more digits than half precision has for a result."""
    watch = GradWatch()
    saved, module = watched(
        lightning,
        tmp_path,
        data,
        lambda: module_in(lightning),
        watch,
        lambda: {"precision": precision, "accumulate_grad_batches": every, "max_steps": 6, "max_epochs": 4},
    )
    assert_same(watch.history, saved)
    expected = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
    assert {parameter.grad.dtype for parameter in module.parameters()} == {expected.get(precision, torch.float32)}
    assert np.isfinite(watch.history.losses).all()


@pytest.mark.supports("precision 64-true")
def test_double_precision_is_read_in_double_precision(pl, tmp_path, data):
    """Gradients of 64-true keep their digits, beyond those of float32."""
    watch = GradWatch()
    saved, _ = watched(pl, tmp_path, data, lambda: module_in(pl), watch, lambda: {"precision": "64-true"})
    assert_same(watch.history, saved, rel=1e-12)


@pytest.mark.supports("precision 64-true")
@pytest.mark.parametrize("size", [1e-60, 1e60])
def test_double_precision_reaches_where_float32_does_not(pl, tmp_path, data, size):
    """Gradients that float32 would make zero or infinite are told as they are."""

    def training_step(self, batch, batch_idx):
        return loss_of(self, batch) * size

    module = module_in(pl, optimizer=lambda p: torch.optim.SGD(p, lr=0.0), training_step=training_step)
    saved, watch = saves_gradients(module), GradWatch()
    trainer_in(pl, tmp_path, watch, max_steps=3, precision="64-true").fit(module, data)
    assert_same(watch.history, saved)
    assert (watch.history.norms > 0).all()
    assert watch.disabled_reason is None


@pytest.mark.parametrize(
    "precision",
    [
        pytest.param("bf16-mixed", marks=pytest.mark.supports("precision bf16-mixed")),
        pytest.param("bf16-true", marks=pytest.mark.supports("precision bf16-true")),
        pytest.param("64-true", marks=pytest.mark.supports("precision 64-true")),
    ],
)
@pytest.mark.parametrize("clipper", [ClipByGlobalNorm(0.05), ClipByValue(0.01)])
def test_the_clipper_works_in_every_format(pl, tmp_path, data, precision, clipper):
    """Both norms are right, after clipping as far as the format of the gradients can hold it."""
    callback, before = before_clipping(pl)
    module = module_in(pl)
    after, watch = saves_gradients(module), GradWatch(clipper=clipper)
    trainer_in(pl, tmp_path, callback, watch, precision=precision).fit(module, data)
    # Scaled gradients are rounded to their format once more, by at most this share.
    digits = max(1e-5, torch.finfo(next(module.parameters()).grad.dtype).eps)
    assert_same(watch.history, before, "norms")
    assert_same(watch.history, after, "clipped_norms", rel=digits)
    if isinstance(clipper, ClipByGlobalNorm):
        assert totals(after) == pytest.approx([0.05] * 5, rel=max(1e-4, digits))
    assert watch.disabled_reason is None


@pytest.mark.supports("autocast in training_step")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_transformer_under_autocast_of_its_own(pl, tmp_path, data, dtype):
    """A training_step that computes in half precision by itself leaves float32 gradients, which are read as such."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(1, 8)
            self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
            self.head = nn.Linear(8, CLASSES)

        def forward(self, inputs):
            return self.head(self.block(self.embed(inputs.unsqueeze(-1))).mean(dim=1))

    def training_step(self, batch, batch_idx):
        with torch.autocast("cpu", dtype=dtype):
            return loss_of(self, batch)

    watch = GradWatch()
    saved, _ = watched(
        pl,
        tmp_path,
        data,
        lambda: module_in(pl, Net(), lambda p: torch.optim.AdamW(p, 1e-3), training_step=training_step),
        watch,
        lambda: {"max_steps": 8},
    )
    assert_same(watch.history, saved)
    assert "net.block.self_attn" in watch.history.layers
    watch.assert_healthy()


# ---- a loss scaler


@pytest.mark.supports("precision 16-mixed with a loss scaler")
@pytest.mark.parametrize("scale", [1.0, 2.0**10, 2.0**16, 2.0**60])
def test_norms_and_losses_are_those_of_the_run_without_a_scaler(pl, tmp_path, data, scale):
    """However large the scale, rows and weights equal those of a run that scales nothing."""
    torch.manual_seed(1)
    plain, unscaled = module_in(pl, training_step=exact_step), GradWatch()
    expected = saves_gradients(plain)
    trainer_in(pl, tmp_path, unscaled, max_steps=8).fit(plain, data)
    watch = GradWatch()
    saved, module = watched(
        pl,
        tmp_path,
        data,
        lambda: module_in(pl, training_step=exact_step),
        watch,
        lambda: {"max_steps": 8, "plugins": [scaled(pl, init_scale=scale)]},
    )
    assert same_weights(module, plain)
    assert saved.steps == expected.steps
    assert_same(watch.history, expected)
    assert watch.history.losses == pytest.approx(unscaled.history.losses, rel=1e-6)
    assert watch.history.bias_norms == pytest.approx(unscaled.history.bias_norms, rel=1e-6)
    assert watch.overflowed_steps == 0


@pytest.mark.supports("precision 16-mixed with a loss scaler")
def test_gradients_of_half_precision_under_a_scaler(lightning, tmp_path, data):
    """With half precision in the forward pass, rows are what the optimizer used, while the scale grows."""
    losses: list[float] = []

    def training_step(self, batch, batch_idx):
        loss = loss_of(self, batch)
        losses.append(float(loss.detach()))
        return loss

    watch = GradWatch()
    saved, _ = watched(
        lightning,
        tmp_path,
        data,
        lambda: module_in(lightning, training_step=training_step),
        watch,
        lambda: {"max_steps": 8, "plugins": [scaled(lightning, init_scale=64.0, growth_interval=2)]},
    )
    assert_same(watch.history, saved)
    assert watch.history.losses == pytest.approx(losses[8:], rel=1e-6)
    assert watch.overflowed_steps == 0


@pytest.mark.supports("gradient accumulation under a loss scaler")
def test_accumulated_batches_under_a_scaler(pl, tmp_path, data):
    """Windows of three batches, the last of an epoch shorter: rows and losses equal those without a scaler."""

    def make():
        return module_in(pl, training_step=exact_step)

    def settings(**more):
        return {"max_steps": -1, "max_epochs": 2, "accumulate_grad_batches": 3, **more}

    torch.manual_seed(1)
    plain, unscaled = make(), GradWatch()
    trainer_in(pl, tmp_path, unscaled, **settings()).fit(plain, data)
    watch = GradWatch()
    saved, module = watched(
        pl,
        tmp_path,
        data,
        make,
        watch,
        lambda: settings(plugins=[scaled(pl, init_scale=1024.0, growth_interval=2)]),
    )
    assert same_weights(module, plain)
    assert_same(watch.history, saved)
    assert watch.history.norms == pytest.approx(unscaled.history.norms, rel=1e-6)
    assert watch.history.losses == pytest.approx(unscaled.history.losses, rel=1e-6)


@pytest.mark.supports("Trainer(gradient_clip_val=...) under a loss scaler")
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_the_trainers_clipping_under_a_scaler(pl, tmp_path, data, algorithm):
    """Norms before and after the Trainer's clipping are both those of unscaled gradients."""
    callback, before = before_clipping(pl)
    module, watch = module_in(pl), GradWatch()
    after = saves_gradients(module)
    trainer_in(
        pl,
        tmp_path,
        watch,
        callback,
        gradient_clip_val=0.05 if algorithm == "norm" else 0.01,
        gradient_clip_algorithm=algorithm,
        plugins=[scaled(pl, init_scale=1024.0)],
    ).fit(module, data)
    assert_same(watch.history, before, "norms")
    assert_same(watch.history, after, "clipped_norms")
    assert (watch.history.norms > watch.history.clipped_norms).all()
    if algorithm == "norm":
        assert totals(after) == pytest.approx([0.05] * 5, rel=1e-4)
    assert watch.disabled_reason is None
    assert watch.diagnoses == []


@pytest.mark.supports("a clipper of GradWatch under a loss scaler")
@pytest.mark.parametrize("clipper", [ClipByGlobalNorm(0.05), ClipByValue(0.01)])
@pytest.mark.parametrize("every", [1, 3])
def test_the_clipper_clips_unscaled_gradients(pl, tmp_path, data, clipper, every):
    """The bound holds for what the optimizer uses, and the weights are those of clipping without a scaler."""
    ends = []
    for plugins in ([], [scaled(pl, init_scale=1024.0)]):
        torch.manual_seed(1)
        callback, before = before_clipping(pl)
        module, watch = module_in(pl, training_step=exact_step), GradWatch(clipper=clipper)
        after = saves_gradients(module)
        settings = {"accumulate_grad_batches": every, "max_epochs": 4, "plugins": plugins}
        trainer_in(pl, tmp_path, callback, watch, **settings).fit(module, data)
        assert_same(watch.history, before, "norms")
        assert_same(watch.history, after, "clipped_norms")
        if isinstance(clipper, ClipByGlobalNorm):
            assert totals(after) == pytest.approx([0.05] * 5, rel=1e-4)
        assert watch.disabled_reason is None
        ends.append(module)
    assert same_weights(*ends)


# ---- optimizers that unscale by themselves


FUSED = {
    "Adam": lambda p: torch.optim.Adam(p, 0.01, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.01, fused=True),
}


@pytest.mark.supports("fused optimizers under a loss scaler")
@pytest.mark.parametrize("name", FUSED)
def test_a_fused_optimizer_is_read_without_its_scale(pl, tmp_path, data, name):
    """What is unscaled inside ``step`` is divided by the scale of that step, also while the scale grows."""
    watch = GradWatch()
    saved, _ = watched(
        pl,
        tmp_path,
        data,
        lambda: module_in(pl, optimizer=FUSED[name], training_step=exact_step),
        watch,
        lambda: {"max_steps": 8, "plugins": [scaled(pl, init_scale=1024.0, growth_interval=2)]},
    )
    assert_same(watch.history, saved, "norms")
    assert_same(watch.history, saved, "clipped_norms")


@pytest.mark.supports("fused optimizers under a loss scaler")
def test_a_fused_optimizer_beside_a_hook_of_the_module(pl, tmp_path, data):
    """Where the gradients are read once more after the step, they are unscaled by then."""

    def on_before_optimizer_step(self, optimizer):
        self.seen = self.seen + 1

    def make():
        hooks = {"on_before_optimizer_step": on_before_optimizer_step, "training_step": exact_step, "seen": 0}
        return module_in(pl, optimizer=FUSED["Adam"], **hooks)

    watch = GradWatch()
    saved, module = watched(
        pl, tmp_path, data, make, watch, lambda: {"plugins": [scaled(pl, init_scale=1024.0, growth_interval=2)]}
    )
    assert module.seen == 5
    assert_same(watch.history, saved, "norms")
    assert_same(watch.history, saved, "clipped_norms")


@pytest.mark.supports("fused optimizers")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("clipper", [None, ClipByGlobalNorm(0.05), ClipByValue(0.01)])
def test_fused_optimizers_without_a_scaler_are_read_and_clipped(pl, tmp_path, data, precision, clipper):
    """Without a scaler a fused optimizer is one like any other."""
    callback, before = before_clipping(pl)
    module = module_in(pl, optimizer=FUSED["AdamW"])
    after, watch = saves_gradients(module), GradWatch(clipper=clipper)
    trainer_in(pl, tmp_path, callback, watch, precision=precision).fit(module, data)
    assert_same(watch.history, before, "norms")
    assert_same(watch.history, after, "clipped_norms")
    assert watch.disabled_reason is None


@pytest.mark.refuses("clipping or dropping steps of a fused optimizer under a loss scaler")
@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize(
    "asked", [{"clipper": ClipByGlobalNorm(1.0)}, {"on_nonfinite": "skip"}, {"on_nonfinite": "raise"}], ids=str
)
def test_acting_on_a_fused_optimizer_under_a_scaler_is_refused(pl, tmp_path, data, name, asked):
    """Said before the first batch, with the ways out; no weight has moved."""
    module = module_in(pl, optimizer=FUSED[name])
    saved = saves_gradients(module)
    trainer = trainer_in(pl, tmp_path, GradWatch(**asked), plugins=[scaled(pl)])
    with pytest.raises(ValueError, match=r"fused=True under precision='16-mixed'.* Use fused=False, or .*bf16-mixed"):
        trainer.fit(module, data)
    assert trainer.global_step == 0
    assert saved.steps == []


# ---- overflows


@pytest.mark.supports("overflows of a loss scaler")
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("scale", "backoff"), [(2.0**30, 0.5), (2.0**120, 2.0**-10)])
def test_the_first_steps_of_mixed_precision_raise_no_alarm(pl, tmp_path, data, fused, scale, backoff):
    """Overflows while the scale is found are counted apart; every other row is what the optimizer used."""
    module = module_in(pl, optimizer=lambda p: torch.optim.Adam(p, 0.01, fused=fused))
    before, watch = saves_gradients(module), GradWatch(stop_on=["non_finite", "exploding", "vanishing"])
    plugin = scaled(pl, init_scale=scale, backoff_factor=backoff)
    trainer = trainer_in(pl, tmp_path, watch, max_steps=-1, max_epochs=6, plugins=[plugin])
    trainer.fit(module, data)
    # A fused optimizer steps in name at an overflow as well.
    used = [step for step in before.steps if np.isfinite(list(step.values())).all()]
    assert trainer.global_step == len(watch.history) == 48
    assert 5 <= watch.overflowed_steps == 48 - len(used)
    finite = np.isfinite(watch.history.norms).all(axis=1)
    assert not finite[:5].any()
    assert (~finite).sum() == watch.overflowed_steps
    for row, expected in zip(watch.history.norms[finite], used, strict=True):
        assert row == pytest.approx([expected[layer] for layer in watch.history.layers], rel=1e-5)
    # What other callbacks monitor is the norm of a step that was made.
    told = float(trainer.callback_metrics["gradwatch/global_norm"])
    assert told == pytest.approx(float(np.linalg.norm(list(used[-1].values()))), rel=1e-5)
    assert watch.diagnoses == []
    watch.assert_healthy()


@pytest.mark.supports("overflows of a loss scaler")
def test_a_run_of_overflows_alone_has_no_norm_to_tell(pl, tmp_path, data):
    """While every step is dropped nothing is monitored, nothing is diagnosed, and nothing counts as measured."""
    watch = GradWatch()
    trainer = trainer_in(pl, tmp_path, watch, max_steps=6, plugins=[scaled(pl, init_scale=2.0**120)])
    trainer.fit(module_in(pl), data)
    assert watch.overflowed_steps == len(watch.history) == 6
    assert "gradwatch/global_norm" not in trainer.callback_metrics
    assert watch.diagnoses == []
    with pytest.raises(AssertionError, match="saw no gradient"):
        watch.assert_healthy()


@pytest.mark.supports("overflows of a loss scaler")
def test_overflows_now_and_then_are_no_fault(pl, tmp_path, data):
    """A scale that grows until it overflows, again and again, is how a scaler works: counted, no alarm."""
    watch = GradWatch()
    saved, _ = watched(
        pl,
        tmp_path,
        data,
        lambda: module_in(pl),
        watch,
        lambda: {"max_steps": -1, "max_epochs": 8, "plugins": [scaled(pl, init_scale=2.0**16, growth_interval=3)]},
    )
    assert watch.overflowed_steps == 64 - len(saved.steps) >= 8
    assert len(watch.history) == 64


@pytest.mark.supports("overflows of a loss scaler")
def test_overflows_are_counted_whatever_every_n_steps_says(pl, tmp_path, data):
    """A step that the scaler drops between two readings counts as dropped."""
    module = module_in(pl)
    saved, watch = saves_gradients(module), GradWatch(every_n_steps=3)
    trainer = trainer_in(pl, tmp_path, watch, max_steps=32, plugins=[scaled(pl, init_scale=2.0**26)])
    trainer.fit(module, data)
    assert watch.overflowed_steps == 32 - len(saved.steps) >= 3
    assert watch.diagnoses == []


@pytest.mark.supports("overflows of a loss scaler")
def test_overflows_are_counted_across_a_resume(pl, tmp_path, data):
    """Steps that the scaler dropped before a checkpoint are counted after it."""
    first, second = GradWatch(), GradWatch()
    plugin = scaled(pl, init_scale=2.0**22)
    trainer = trainer_in(pl, tmp_path, first, max_steps=-1, max_epochs=2, plugins=[plugin])
    trainer.fit(module_in(pl), data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert first.overflowed_steps > 0
    module = module_in(pl)
    saved = saves_gradients(module)
    trainer = trainer_in(pl, tmp_path, second, max_steps=-1, max_epochs=3, plugins=[scaled(pl, init_scale=1.0)])
    trainer.fit(module, data, ckpt_path=str(tmp_path / "last.ckpt"))
    assert second.overflowed_steps == first.overflowed_steps + 8 - len(saved.steps)
    assert second.history.steps.tolist() == list(range(24))
    assert second.disabled_reason is None


@pytest.mark.supports("overflows of a loss scaler")
@pytest.mark.parametrize("fused", [False, True])
def test_gradients_that_stay_nan_under_a_scaler_are_told_in_the_end(pl, tmp_path, data, fused):
    """NaN that no scale cures is told after 24 dropped steps in a row, and ends the run where that is asked."""

    def training_step(self, batch, batch_idx):
        loss = loss_of(self, batch)
        return loss * float("nan") if self.trainer.global_step >= 5 else loss

    module = module_in(pl, optimizer=lambda p: torch.optim.Adam(p, 0.01, fused=fused), training_step=training_step)
    watch = GradWatch(stop_on=["non_finite"])
    trainer = trainer_in(pl, tmp_path, watch, max_steps=-1, max_epochs=10, plugins=[scaled(pl, init_scale=1024.0)])
    trainer.fit(module, data)
    assert [(d.rule, d.step, d.layers) for d in watch.diagnoses] == [("non_finite", 29, ("net.2", "net.0"))]
    assert trainer.global_step == 30
    assert watch.overflowed_steps == 25
    with pytest.raises(AssertionError, match="NON-FINITE"):
        watch.assert_healthy()
    assert all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters())


@pytest.mark.supports("skipping and raising under a loss scaler")
@pytest.mark.parametrize("asked", ["skip", "raise"])
def test_steps_that_the_scaler_drops_are_neither_skipped_nor_raised(pl, tmp_path, data, asked):
    """With ``on_nonfinite`` an overflow is still the scaler's business, more in a row than may be skipped as well."""
    module = module_in(pl)
    saved, watch = saves_gradients(module), GradWatch(on_nonfinite=asked, max_consecutive_skips=1)
    trainer = trainer_in(pl, tmp_path, watch, max_steps=32, plugins=[scaled(pl, init_scale=2.0**26)])
    trainer.fit(module, data)
    assert trainer.global_step == 32
    assert watch.overflowed_steps == 32 - len(saved.steps) >= 3
    assert watch.skipped_steps == 0
    assert watch.diagnoses == []
    assert watch.disabled_reason is None
    assert all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters())


# ---- manual optimization


@pytest.mark.supports("several optimizers under one loss scaler")
def test_two_optimizers_under_one_scaler(pl, tmp_path, data):
    """Each optimizer's rows equal those of the run without a scaler, while the scale grows between their steps."""

    def make():
        return manual(pl, steps_each, configure_optimizers=two_optimizers)

    torch.manual_seed(1)
    plain, unscaled = make(), GradWatch()
    trainer_in(pl, tmp_path, unscaled, max_steps=12).fit(plain, data)
    watch = GradWatch()
    saved, module = watched(
        pl,
        tmp_path,
        data,
        make,
        watch,
        lambda: {"max_steps": 12, "plugins": [scaled(pl, init_scale=1024.0, growth_interval=3)]},
    )
    assert same_weights(module, plain)
    assert_same(watch.history, saved)
    assert watch.history.optimizers.tolist() == [0, 1] * 6
    assert watch.history.norms == pytest.approx(unscaled.history.norms, rel=1e-6, nan_ok=True)
    assert watch.history.losses == pytest.approx(unscaled.history.losses, rel=1e-6)


@pytest.mark.supports("several optimizers under one loss scaler")
def test_an_overflow_of_one_optimizer_is_its_own(pl, tmp_path, data):
    """Where one optimizer's step is dropped, the other's row is right and only one step is counted."""

    def training_step(self, batch, batch_idx):
        for number, optimizer in enumerate(self.optimizers()):
            optimizer.zero_grad()
            loss = loss_of(self, batch)
            self.manual_backward(loss * float("inf") if (batch_idx, number) == (2, 0) else loss)
            optimizer.step()

    module = manual(pl, training_step, configure_optimizers=two_optimizers)
    saved, watch = saves_gradients(module), GradWatch()
    trainer = trainer_in(pl, tmp_path, watch, max_steps=-1, max_epochs=1, plugins=[scaled(pl, init_scale=64.0)])
    trainer.fit(module, data)
    assert len(saved.steps) == 15
    assert watch.overflowed_steps == 1
    assert len(watch.history) == 16
    assert watch.history.optimizers.tolist() == [0, 1] * 8
    kept = [row for row in range(16) if row != 4]
    for row, expected in zip(watch.history.norms[kept], saved.steps, strict=True):
        values = [expected.get(layer, np.nan) for layer in watch.history.layers]
        assert row == pytest.approx(values, rel=1e-5, nan_ok=True)
    assert watch.diagnoses == []
    assert watch.disabled_reason is None


@pytest.mark.supports("a clipper of GradWatch under a loss scaler")
def test_the_clipper_in_a_manual_loop_under_a_scaler(pl, tmp_path, data):
    """Each optimizer's unscaled gradients are clipped, which ``self.clip_gradients`` cannot do."""
    callback, before = before_clipping(pl)
    module = manual(pl, steps_each, configure_optimizers=two_optimizers)
    after, watch = saves_gradients(module), GradWatch(clipper=ClipByGlobalNorm(0.05))
    trainer_in(pl, tmp_path, callback, watch, max_steps=8, plugins=[scaled(pl, init_scale=1024.0)]).fit(module, data)
    assert_same(watch.history, before, "norms")
    assert_same(watch.history, after, "clipped_norms")
    assert totals(after) == pytest.approx([0.05] * 8, rel=1e-4)
    assert watch.disabled_reason is None
    assert watch.diagnoses == []


@pytest.mark.supports("manual clipping under a loss scaler")
def test_clipping_by_hand_under_a_scaler_is_read_as_it_is(pl, tmp_path, data):
    """``self.clip_gradients`` clips scaled gradients, so that the step is too small: both columns show it."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        with torch.autocast("cpu", enabled=False):
            self.manual_backward(loss_of(self, batch))
        self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
        optimizer.step()

    watch = GradWatch()
    saved, _ = watched(
        pl,
        tmp_path,
        data,
        lambda: manual(pl, training_step),
        watch,
        lambda: {"max_steps": 3, "plugins": [scaled(pl, init_scale=8.0)]},
    )
    assert_same(watch.history, saved, "norms")
    assert_same(watch.history, saved, "clipped_norms")
    assert totals(saved) == pytest.approx([0.5 / 8] * 3, rel=1e-4)


@pytest.mark.supports("fused optimizers under a loss scaler")
def test_fused_optimizers_in_a_manual_loop_under_a_scaler(pl, tmp_path, data):
    """Two fused optimizers under one scaler are each divided by the scale of their own step."""

    def configure_optimizers(self):
        return [FUSED["SGD"](self.net[0].parameters()), FUSED["Adam"](self.net[2].parameters())]

    watch = GradWatch()
    saved, _ = watched(
        pl,
        tmp_path,
        data,
        lambda: manual(pl, steps_each, configure_optimizers=configure_optimizers),
        watch,
        lambda: {"max_steps": 12, "plugins": [scaled(pl, init_scale=1024.0, growth_interval=3)]},
    )
    assert_same(watch.history, saved, "norms")
    assert_same(watch.history, saved, "clipped_norms")
    assert watch.history.optimizers.tolist() == [0, 1] * 6


@pytest.mark.supports("skipping and raising under a loss scaler")
@pytest.mark.parametrize("on_nonfinite", ["skip", "raise"])
def test_a_scaler_that_is_switched_off_drops_nothing(pl, tmp_path, data, on_nonfinite):
    """With ``GradScaler(enabled=False)`` a poisoned step is ours to drop, and to raise at."""

    def training_step(self, batch, batch_idx):
        return loss_of(self, batch) * (float("nan") if batch_idx == 2 else 1.0)

    module, watch = module_in(pl, training_step=training_step), GradWatch(on_nonfinite=on_nonfinite)
    trainer = trainer_in(pl, tmp_path, watch, plugins=[scaled(pl, enabled=False)])
    with pytest.raises(GradientFault) if on_nonfinite == "raise" else nullcontext():
        trainer.fit(module, data)
    assert watch.skipped_steps == int(on_nonfinite == "skip")
    assert all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters())


@pytest.mark.supports("skipping and raising under a loss scaler")
def test_a_scaler_that_never_finds_its_scale_is_no_excuse_for_ever(pl, tmp_path, data):
    """After 24 overflows in a row a poisoned step counts: ``"raise"`` ends the run."""

    def training_step(self, batch, batch_idx):
        return loss_of(self, batch) * float("nan")

    watch = GradWatch(on_nonfinite="raise")
    trainer = trainer_in(pl, tmp_path, watch, plugins=[scaled(pl)], max_steps=40)
    with pytest.raises(GradientFault, match="step 24"):
        trainer.fit(module_in(pl, training_step=training_step), data)
