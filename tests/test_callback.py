"""Test ``lightning_gradwatch.callback``."""

from __future__ import annotations

import copy
import csv
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import CLASSES, WIDTH, deep_net, healthy_net, module_in, trainer_in
from oracle import assert_same, saves_gradients
from probe_oracle import num_hooks
from torch import nn

from lightning_gradwatch import (
    ClipByGlobalNorm,
    GradientFault,
    GradWatch,
)


def test_norms_are_those_of_the_gradients_that_the_optimizer_uses(lightning, tmp_path, data):
    """Every reading equals the norm of the flattened float64 gradients inside ``optimizer.step``."""
    module, watch = module_in(lightning), GradWatch()
    saved = saves_gradients(module)
    trainer_in(lightning, tmp_path, watch, max_steps=8).fit(module, data)
    assert_same(watch.history, saved)
    assert watch.history.layers == ("net.0", "net.2")
    assert watch.history.steps.tolist() == list(range(8))
    assert watch.disabled_reason is None


@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), lambda p: torch.optim.AdamW(p, 0.01)]
)
def test_training_is_bit_identical_with_and_without(pl, tmp_path, data, make):
    """Weights, buffers, optimizer state and random state do not know that they were watched."""
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(16, 3))
    ends = []
    for callbacks in ([], [GradWatch(per_layer_scalars=True, vanishing_threshold=1e-3)]):
        torch.manual_seed(1)
        module = module_in(pl, copy.deepcopy(net), make)
        trainer = trainer_in(pl, tmp_path, *callbacks, max_steps=16, logger=True, log_every_n_steps=2)
        trainer.fit(module, data)
        optimizer = trainer.optimizers[0].state_dict()["state"]
        ends.append((module.state_dict(), optimizer, torch.get_rng_state()))
    (weights, state, random), (watched_weights, watched_state, watched_random) = ends
    assert all(torch.equal(weights[name], watched_weights[name]) for name in weights)
    for moments, watched in zip(state.values(), watched_state.values(), strict=True):
        assert all(value is watched[k] is None or torch.equal(value, watched[k]) for k, value in moments.items())
    assert torch.equal(random, watched_random)


def test_a_frozen_layer_and_an_unused_one_are_absent_not_zero(pl, tmp_path, data):
    """None is told apart from zero: no gradient is NaN and not present, a zero gradient is 0 and present."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen, self.used, self.unused, self.zero = (nn.Linear(8, 8) for _ in range(4))
            self.frozen.requires_grad_(False)

        def forward(self, inputs):
            hidden = self.used(self.frozen(inputs))
            return (hidden + 0 * self.zero(inputs))[:, :3]

    watch = GradWatch()
    trainer_in(pl, tmp_path, watch).fit(module_in(pl, Net()), data)
    by_name = dict(zip(watch.history.layers, watch.history.norms.T, strict=True))
    present = dict(zip(watch.history.layers, watch.history.present.T, strict=True))
    assert np.isnan(by_name["net.frozen"]).all()
    assert np.isnan(by_name["net.unused"]).all()
    assert (by_name["net.zero"] == 0).all()
    assert (by_name["net.used"] > 0).all()
    assert [bool(present[name].any()) for name in watch.history.layers] == [False, True, False, True]


def test_every_n_steps_thins_the_history_of_each_optimizer(pl, tmp_path, data):
    """Only every n-th step of an optimizer is judged and remembered."""
    watch = GradWatch(every_n_steps=3)
    trainer_in(pl, tmp_path, watch, max_steps=8).fit(module_in(pl), data)
    assert watch.history.steps.tolist() == [0, 3, 6]


def test_the_clipper_does_what_torch_does(pl, tmp_path, data):
    """Training with ClipByGlobalNorm ends in the weights of training with the Trainer's own clipping."""
    ends = []
    for clips_itself in (True, False):
        torch.manual_seed(2)
        watch = GradWatch(clipper=ClipByGlobalNorm(0.1) if clips_itself else None)
        module = module_in(pl)
        kwargs = {} if clips_itself else {"gradient_clip_val": 0.1}
        trainer_in(pl, tmp_path, watch, **kwargs).fit(module, data)
        ends.append((module.state_dict(), watch.history))
    (ours, history), (theirs, clipped_elsewhere) = ends
    assert all(torch.allclose(ours[name], theirs[name], rtol=1e-6, atol=0) for name in ours)
    for rows in (history, clipped_elsewhere):
        assert (np.sqrt((rows.norms**2).sum(axis=1)) > 0.1).all()
        assert np.sqrt((rows.clipped_norms**2).sum(axis=1)) == pytest.approx(np.full(5, 0.1), rel=1e-4)


def poisoned(batches: set[int]) -> Any:
    """Return a training_step whose loss is NaN in some batches."""

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        return loss * float("nan") if batch_idx in batches else loss

    return training_step


def test_skip_drops_just_the_poisoned_step(pl, tmp_path, data):
    """With "skip" neither weights nor Adam's moments move in the poisoned step, and everything stays finite."""
    module = module_in(pl, optimizer=lambda p: torch.optim.AdamW(p, 0.01), training_step=poisoned({2}))
    watch = GradWatch(on_nonfinite="skip")
    trainer = trainer_in(pl, tmp_path, watch, max_steps=5)
    trainer.fit(module, data)
    assert all(bool(torch.isfinite(p).all()) for p in module.parameters())
    assert {float(state["step"]) for state in trainer.optimizers[0].state.values()} == {4.0}
    assert [d.symptom.value for d in watch.diagnoses] == ["non_finite"]
    assert watch.diagnoses[0].step == 2
    assert watch.skipped_steps == 1


def test_too_many_skips_in_a_row_end_training(pl, tmp_path, data):
    """More than ``max_consecutive_skips`` raise GradientFault, which says where it began."""
    module = module_in(pl, training_step=poisoned({1, 2, 3, 4}))
    watch = GradWatch(on_nonfinite="skip", max_consecutive_skips=2)
    with pytest.raises(
        GradientFault,
        match=r"3 steps in a row.*since step 1, then in net\.0, net\.2.*Where it began: batch 1: loss nan",
    ):
        trainer_in(pl, tmp_path, watch).fit(module, data)


def test_raise_ends_training_with_layer_and_step(pl, tmp_path, data, caplog):
    """With "raise" the error names step and layers, carries the diagnoses, and the closing lines are still told."""
    watch = GradWatch(on_nonfinite="raise")
    with caplog.at_level(logging.INFO), pytest.raises(GradientFault, match=r"step 1: .*net\.0, net\.2") as caught:
        trainer_in(pl, tmp_path, watch).fit(module_in(pl, training_step=poisoned({1})), data)
    assert [d.symptom.value for d in caught.value.diagnoses] == ["non_finite"]
    assert watch.history.steps.tolist() == [0, 1]
    assert "NON-FINITE in net.2, net.0 since step 1" in caplog.text


def test_warn_only_tells(pl, tmp_path, data, caplog):
    """By default a NaN is told once, with its layers, and training is left alone."""
    watch = GradWatch()
    with caplog.at_level(logging.INFO):
        trainer_in(pl, tmp_path, watch, max_steps=8).fit(module_in(pl, training_step=poisoned({1})), data)
    assert caplog.text.count("NON-FINITE: gradients are NaN") == 1
    assert watch.diagnoses[0].layers == ("net.2", "net.0")


def test_a_deep_sigmoid_network_is_told_and_its_he_relu_twin_is_cleared(pl, tmp_path, data, caplog):
    """The classic: vanishing is told within five steps with a way out; the twin gets its verdict and is quiet."""
    sick, well = GradWatch(), GradWatch()
    with caplog.at_level(logging.INFO):
        trainer_in(pl, tmp_path, sick, max_steps=8).fit(module_in(pl, deep_net(nn.Sigmoid, 12)), data)
    (diagnosis,) = sick.diagnoses
    assert (diagnosis.rule, diagnosis.severity) == ("vanishing.depth", "warning")
    assert diagnosis.step < 5
    assert diagnosis.layers[0] == "net.0"
    assert "nn.BatchNorm1d between" in sick.remedies[0].title
    assert "ReLU instead of sigmoid" in sick.remedies[1].title
    assert "12 x sigmoid" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        trainer_in(pl, tmp_path, well, max_steps=8).fit(module_in(pl, deep_net(nn.ReLU, 6, he=True)), data)
    assert well.diagnoses == []
    assert caplog.text.count("gradients reach all 7 layers") == 1
    well.assert_healthy()
    with pytest.raises(AssertionError, match=r"VANISHING.*net\.0"):
        sick.assert_healthy()
    sick.assert_healthy(symptoms=["exploding"])


def test_assert_healthy_fails_when_nothing_was_measured():
    """A watch that saw no gradient proves nothing."""
    with pytest.raises(AssertionError, match="saw no gradient"):
        GradWatch().assert_healthy()


@pytest.mark.no_cover
def test_thousand_steps_of_a_sick_run_are_a_handful_of_lines(pl, tmp_path, data, caplog):
    """What lasts is told at its onset and in the closing lines, not at every step."""
    with caplog.at_level(logging.INFO, logger="lightning_gradwatch"):
        trainer_in(pl, tmp_path, GradWatch(), max_steps=1000).fit(module_in(pl, deep_net(nn.Sigmoid, 8)), data)
    records = [record for record in caplog.records if record.name == "lightning_gradwatch"]
    assert len(records) <= 5


def test_stop_on_ends_training_after_the_step(lightning, tmp_path, data):
    """A symptom in ``stop_on`` stops the run at the batch in which it begins."""
    watch = GradWatch(stop_on=["vanishing"])
    trainer = trainer_in(lightning, tmp_path, watch, max_steps=50)
    trainer.fit(module_in(lightning, deep_net(nn.Sigmoid, 12)), data)
    assert trainer.global_step == watch.diagnoses[0].step + 1


@pytest.mark.parametrize(
    ("least", "steps", "words"),
    [
        ({}, 4, "training ends here"),
        # Lightning makes `min_epochs` 1 where `min_steps` is given.
        ({"min_steps": 3}, 8, "training goes on until min_epochs=1, and ends then"),
        ({"min_steps": 6}, 8, "training goes on until min_steps=6 and min_epochs=1, and ends then"),
        ({"min_epochs": 2}, 16, "training goes on until min_epochs=2, and ends then"),
        ({"min_steps": 20, "min_epochs": 2}, 20, "goes on until min_steps=20 and min_epochs=2"),
    ],
)
def test_stop_on_says_when_training_ends(pl, tmp_path, data, caplog, least, steps, words):
    """What the Trainer was told to do at least is done first, and that is said, once, beside the exit status."""
    watch = GradWatch(stop_on=["vanishing"])
    with caplog.at_level(logging.INFO, logger="lightning_gradwatch"):
        trainer = trainer_in(pl, tmp_path, watch, max_steps=50, **least)
        trainer.fit(module_in(pl, deep_net(nn.Sigmoid, 12)), data)
    messages = [record.getMessage() for record in caplog.records]
    told = [message for message in messages if message.startswith("GradWatch  stop_on")]
    assert len(told) == 1
    assert told[0].startswith("GradWatch  stop_on    VANISHING: ")
    assert words in told[0]
    assert "the exit status stays 0" in told[0]
    assert trainer.global_step == steps


def logged(logger: Any) -> list[dict[str, str]]:
    """Return the rows of a CSV logger's file."""
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_scalars_stand_on_the_axis_and_interval_of_self_log(pl, tmp_path, data):
    """Lightning's private counter still means what we take it for: our values stand where ``self.log`` puts its own."""

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    logger = pl.loggers.CSVLogger(tmp_path)
    trainer = trainer_in(pl, tmp_path, GradWatch(), max_steps=8, logger=logger, log_every_n_steps=3)
    trainer.fit(module_in(pl, training_step=training_step), data)
    rows = logged(logger)
    ours = [int(row["step"]) for row in rows if row.get("gradwatch/global_norm")]
    theirs = [int(row["step"]) for row in rows if row.get("loss")]
    assert ours == theirs == [2, 5]


def test_a_short_run_has_its_picture_whatever_the_interval(lightning, tmp_path, data):
    """Forty steps at Lightning's interval of fifty leave a heatmap and a card in TensorBoard's files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = lightning.loggers.TensorBoardLogger(tmp_path)
    trainer_in(lightning, tmp_path, GradWatch(), max_steps=40, logger=logger).fit(module_in(lightning), data)
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0})
    events.Reload()
    assert events.Tags()["images"] == ["gradwatch/heatmap"]
    ours = events.PluginTagToContent("gradwatch")
    assert [tag for tag in events.Tags()["tensors"] if tag not in ours] == ["gradwatch/diagnoses/text_summary"]
    assert {tag.split("/")[1] for tag in ours} == {"norms", "ratios", "signal", "delta", "updates", "events"}


def test_without_a_logger_picture_and_diagnoses_are_files(pl, tmp_path, data):
    """No logger at all is fine: the picture and the JSON lines stand in the Trainer's directory."""
    trainer_in(pl, tmp_path, GradWatch()).fit(module_in(pl, deep_net(nn.Sigmoid, 12)), data)
    assert (tmp_path / "gradwatch" / "heatmap.png").stat().st_size > 1000
    assert (tmp_path / "gradwatch" / "diagnoses.jsonl").read_text().count('"onset"') == 1


@pytest.mark.parametrize("kwargs", [{"fast_dev_run": 3}, {"barebones": True}])
def test_runs_without_logging_are_watched_all_the_same(pl, tmp_path, data, kwargs, caplog):
    """``fast_dev_run`` and ``barebones`` are measured and told; the former writes no file."""
    watch = GradWatch()
    trainer = pl.Trainer(accelerator="cpu", default_root_dir=tmp_path, callbacks=[watch], max_steps=3, **kwargs)
    with caplog.at_level(logging.INFO):
        trainer.fit(module_in(pl), data)
    assert len(watch.history) == 3
    assert "no fault in 3 readings" in caplog.text
    assert ("fast_dev_run" in kwargs) != (tmp_path / "gradwatch").exists()


@pytest.mark.filterwarnings("ignore:.*configure_optimizers` returned `None`", "ignore:`training_step` returned `None`")
def test_a_model_without_trainable_parameters_is_no_crash(pl, tmp_path, data, caplog):
    """Nothing to watch is said, not raised."""
    net = healthy_net().requires_grad_(False)

    def training_step(self, batch, batch_idx):
        return None

    module = module_in(pl, net, training_step=training_step, configure_optimizers=lambda _: None)
    with caplog.at_level(logging.INFO):
        trainer_in(pl, tmp_path, GradWatch()).fit(module, data)
    assert "watching 0 layers, 0 parameters (2 layers frozen)" in caplog.text
    assert "no gradient was ever seen" in caplog.text


def test_an_exception_in_training_loses_nothing(pl, tmp_path, data, caplog, sink):
    """Pending readings are settled, sinks closed, hooks removed and the closing lines told when training fails."""

    def training_step(self, batch, batch_idx):
        if batch_idx == 3:
            raise RuntimeError("the person's own")
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    watch = GradWatch(sinks=[sink])
    trainer = trainer_in(pl, tmp_path, watch)
    with caplog.at_level(logging.INFO), pytest.raises(RuntimeError, match="the person's own"):
        trainer.fit(module_in(pl, training_step=training_step), data)
    assert watch.history.steps.tolist() == [0, 1, 2]
    assert len(sink.reports) == 3
    assert sink.closed == 1
    assert trainer.optimizers[0]._optimizer_step_post_hooks == {}
    assert caplog.text.count("no fault in 3 readings") == 1


def fails_at(step: int, read: Any, error: Exception) -> Any:
    """Return a reading that fails in one step."""

    def read_or_fail(self, number, optimizer, now, *args, **kwargs):
        if now == step:
            raise error
        return read(self, number, optimizer, now, *args, **kwargs)

    return read_or_fail


def test_an_error_of_our_own_never_ends_training(pl, tmp_path, data, caplog, monkeypatch):
    """A failure inside GradWatch is told once, logged as inactive and repeated at the end; training goes on."""
    from lightning_gradwatch.measure.reader import Reader

    monkeypatch.setattr(Reader, "read", fails_at(2, Reader.read, ZeroDivisionError("ours")))
    watch = GradWatch()
    logger = pl.loggers.CSVLogger(tmp_path)
    trainer = trainer_in(pl, tmp_path, watch, max_steps=6, logger=logger, log_every_n_steps=1)
    with caplog.at_level(logging.INFO):
        trainer.fit(module_in(pl), data)
    assert trainer.global_step == 6
    assert watch.disabled_reason == "ZeroDivisionError: ours"
    assert caplog.text.count("training goes on unwatched") == 1
    assert "SWITCHED OFF" in caplog.text
    assert [row["gradwatch/active"] for row in logged(logger) if row["gradwatch/active"]] == ["1.0", "1.0", "0.0"]
    with pytest.raises(AssertionError, match="switched off"):
        watch.assert_healthy()


def test_clipping_outlives_an_error_of_our_own(pl, tmp_path, data, monkeypatch, caplog):
    """What was asked for by name goes on after GradWatch had to switch itself off."""
    from lightning_gradwatch.judging import Judge

    def fail(self, *args):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(Judge, "judge", fail)
    module = module_in(pl)
    saved, watch = saves_gradients(module), GradWatch(clipper=ClipByGlobalNorm(0.1))
    trainer_in(pl, tmp_path, watch, max_steps=4).fit(module, data)
    assert watch.disabled_reason == "ZeroDivisionError: ours"
    assert "`clipper` and `on_nonfinite` go on" in caplog.text
    norms = [np.sqrt(sum(norm**2 for norm in step.values())) for step in saved.steps]
    assert norms == pytest.approx([0.1] * 4, rel=1e-4)


def test_a_clipper_that_fails_is_told_and_training_goes_on(pl, tmp_path, data, caplog):
    """A clipper of a person's own that raises is named once; nothing pretends that it still clips."""

    class Broken:
        def clip_(self, norms):
            raise OSError("mine")

    trainer = trainer_in(pl, tmp_path, GradWatch(clipper=Broken()), max_steps=4)
    trainer.fit(module_in(pl), data)
    assert trainer.global_step == 4
    assert caplog.text.count("clipper failed, training goes on unclipped: Broken: OSError: mine") == 1


def test_skipping_outlives_an_error_of_our_own(pl, tmp_path, data, monkeypatch):
    """A poisoned step is dropped, and too many of them raise, after GradWatch had to switch itself off."""
    from lightning_gradwatch.judging import Judge

    def fail(self, *args):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(Judge, "judge", fail)
    module, watch = module_in(pl, training_step=poisoned({2, 4, 5, 6})), GradWatch(on_nonfinite="skip")
    trainer_in(pl, tmp_path, watch, max_steps=4).fit(module, data)
    assert all(bool(torch.isfinite(p).all()) for p in module.parameters())
    watch = GradWatch(on_nonfinite="skip", max_consecutive_skips=2)
    with pytest.raises(GradientFault, match="3 steps in a row"):
        trainer_in(pl, tmp_path, watch, max_steps=8).fit(module, data)


def scaled(pl: Any, **kwargs: Any) -> Any:
    """Return a precision plugin with a gradient scaler on the CPU."""
    from pytorch_lightning.plugins.precision import MixedPrecision

    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", **kwargs))


def test_overflows_do_not_end_training_after_an_error_of_our_own(pl, tmp_path, data, monkeypatch):
    """What a loss scaler drops is its business, with "raise" and GradWatch switched off as well."""
    from lightning_gradwatch.judging import Judge

    def fail(self, *args):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(Judge, "judge", fail)
    watch = GradWatch(on_nonfinite="raise")
    steps = {"training_step": poisoned({4})}
    trainer = trainer_in(pl, tmp_path, watch, max_steps=6, plugins=[scaled(pl, init_scale=8.0)])
    trainer.fit(module_in(pl, **steps), data)
    assert watch.disabled_reason == "ZeroDivisionError: ours"
    assert trainer.global_step == 6


def test_on_diagnosis_is_called_for_the_fault_that_ends_the_run(pl, tmp_path, data):
    """The last diagnosis reaches the person's own code as well."""
    seen = []

    class Mine(GradWatch):
        def on_diagnosis(self, trainer, pl_module, diagnosis):
            seen.append(diagnosis.rule)

    with pytest.raises(GradientFault):
        trainer_in(pl, tmp_path, Mine(on_nonfinite="raise")).fit(module_in(pl, training_step=poisoned({1})), data)
    assert seen == ["non_finite"]


def test_a_poisoned_step_is_told_whatever_every_n_steps_says(pl, tmp_path, data):
    """A step that is dropped between two readings is judged and named."""
    watch = GradWatch(on_nonfinite="skip", every_n_steps=10)
    trainer_in(pl, tmp_path, watch, max_steps=8).fit(module_in(pl, training_step=poisoned({3})), data)
    assert [(d.rule, d.step) for d in watch.diagnoses] == [("non_finite", 3)]
    with pytest.raises(GradientFault) as caught:
        trainer_in(pl, tmp_path, GradWatch(on_nonfinite="raise", every_n_steps=10)).fit(
            module_in(pl, training_step=poisoned({3})), data
        )
    assert [d.rule for d in caught.value.diagnoses] == ["non_finite"]


def test_every_n_steps_counts_steps_and_not_batches(pl, tmp_path, data):
    """An optimizer that steps twice in a batch is read at every n-th of its steps."""

    def training_step(self, batch, batch_idx):
        for _ in range(2):
            self.optimizers().zero_grad()
            self.manual_backward(nn.functional.cross_entropy(self.net(batch[0]), batch[1]))
            self.optimizers().step()

    module, watch = module_in(pl, training_step=training_step), GradWatch(every_n_steps=3)
    module.automatic_optimization = False
    trainer_in(pl, tmp_path, watch, max_steps=10).fit(module, data)
    assert watch.history.steps.tolist() == [0, 3, 6, 9]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("FSDPStrategy", marks=pytest.mark.refuses("FSDP1")),
        pytest.param("DeepSpeedStrategy", marks=pytest.mark.refuses("DeepSpeed")),
    ],
)
def test_strategies_whose_gradients_cannot_be_read_are_refused_in_words(pl, tmp_path, data, name, caplog):
    """Watching is left alone with the reason; clipping and skipping are refused before training."""
    strategy = type(name, (pl.strategies.SingleDeviceStrategy,), {})
    watch = GradWatch()
    trainer = trainer_in(pl, tmp_path, watch, strategy=strategy("cpu"))
    trainer.fit(module_in(pl), data)
    assert trainer.global_step == 5
    assert "does not watch this run" in caplog.text
    assert "ModelParallelStrategy (FSDP2)" in caplog.text
    assert watch.disabled_reason
    trainer = trainer_in(pl, tmp_path, GradWatch(clipper=ClipByGlobalNorm(1.0)), strategy=strategy("cpu"))
    with pytest.raises(ValueError, match="cannot work here"):
        trainer.fit(module_in(pl), data)


def test_on_diagnosis_is_called_for_each_onset_and_may_fail(pl, tmp_path, data, caplog):
    """The method to override gets each diagnosis; what it raises does not end training."""
    seen = []

    class Mine(GradWatch):
        def on_diagnosis(self, trainer, pl_module, diagnosis):
            seen.append(diagnosis.rule)
            raise OSError("no network")

    trainer = trainer_in(pl, tmp_path, Mine(), max_steps=8)
    with caplog.at_level(logging.INFO):
        trainer.fit(module_in(pl, deep_net(nn.Sigmoid, 12)), data)
    assert seen == ["vanishing.depth"]
    assert "on_diagnosis failed: OSError: no network" in caplog.text
    assert trainer.global_step == 8


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_checkpoint_of_one_package_is_resumed_under_the_other(lightning, tmp_path, data):
    """History and open diagnoses come back, by Lightning's default weights-only loading."""
    import lightning.pytorch as other_package
    import pytorch_lightning

    other = other_package if lightning is pytorch_lightning else pytorch_lightning
    first, second = GradWatch(), GradWatch()
    trainer = trainer_in(lightning, tmp_path, first, max_steps=4)
    trainer.fit(module_in(lightning, deep_net(nn.Sigmoid, 12)), data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    torch.load(tmp_path / "last.ckpt", weights_only=True)
    resumed = trainer_in(other, tmp_path, second, max_steps=6)
    resumed.fit(module_in(other, deep_net(nn.Sigmoid, 12)), data, ckpt_path=str(tmp_path / "last.ckpt"))
    assert second.history.steps.tolist() == [0, 1, 2, 3, 4, 5]
    assert np.array_equal(second.history.norms[:4], first.history.norms)
    assert [d.step for d in second.diagnoses] == [d.step for d in first.diagnoses]
    assert second.disabled_reason is None


def test_gradients_that_the_module_repairs_are_no_fault(pl, tmp_path, data):
    """What a module's own ``on_before_optimizer_step`` does to the gradients is what counts."""

    def on_before_optimizer_step(self, optimizer):
        for parameter in self.parameters():
            torch.nan_to_num_(parameter.grad)

    hooks = {"training_step": poisoned({2}), "on_before_optimizer_step": on_before_optimizer_step}
    module, watch = module_in(pl, **hooks), GradWatch()
    saved = saves_gradients(module)
    trainer_in(pl, tmp_path, watch).fit(module, data)
    assert watch.diagnoses == []
    assert np.isnan(watch.history.norms[2]).all()
    assert_same(watch.history, saved, "clipped_norms")


@pytest.mark.parametrize("defaults", [{"lr": None}, {}])
def test_an_optimizer_without_a_learning_rate_is_watched(pl, tmp_path, data, defaults):
    """An optimizer that chooses its own step (Adafactor) is measured; its rate is not known."""

    class Own(torch.optim.Optimizer):
        def __init__(self, parameters):
            super().__init__(parameters, defaults)

        def step(self, closure=None):
            return closure()

    watch = GradWatch()
    trainer_in(pl, tmp_path, watch).fit(module_in(pl, optimizer=Own), data)
    assert watch.disabled_reason is None
    assert np.isnan(watch.history.learning_rates).all()


def test_another_model_in_the_same_trainer_starts_anew(pl, tmp_path, data):
    """What is known of one model is not told of another."""
    watch = GradWatch()
    trainer = trainer_in(pl, tmp_path, watch, max_steps=-1, max_epochs=1)
    trainer.fit(module_in(pl), data)
    trainer.fit_loop.max_epochs = 2
    other = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))
    trainer.fit(module_in(pl, other), data)
    assert watch.disabled_reason is None
    assert watch.history.layers == ("net.0", "net.1")
    assert watch.history.steps.tolist() == list(range(8, 16))


def test_a_branch_that_is_multiplied_by_zero_is_a_notice(pl, tmp_path, data):
    """A first layer whose output does not count is told, and is no warning while the others learn."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused, self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, inputs):
            return self.head(torch.relu(self.body(inputs + 0 * self.unused(inputs))))

    watch = GradWatch()
    trainer_in(pl, tmp_path, watch, max_steps=200).fit(module_in(pl, Net()), data)
    assert [(d.rule, d.severity, d.layers) for d in watch.diagnoses] == [("dead", "notice", ("net.unused",))]
    assert watch.remedies == []


def poisons_a_gradient(self):
    """Put a NaN into the gradient of the fourth step."""
    if self.trainer.global_step == 3:
        self.net[0].weight.grad[0, 0] = float("nan")


def replaces(self, optimizer):
    for parameter in self.parameters():
        parameter.grad = torch.nan_to_num(parameter.grad)


def drops(self, optimizer):
    if not all(bool(torch.isfinite(parameter.grad).all()) for parameter in self.parameters()):
        optimizer.zero_grad()


@pytest.mark.parametrize(("repair", "used"), [(replaces, True), (drops, False)])
def test_what_the_module_makes_of_a_poisoned_step_is_what_counts(pl, tmp_path, data, repair, used):
    """A gradient that is replaced is measured as it is then, one that is dropped counts as zero: no fault, no stop."""
    hooks = {"on_after_backward": poisons_a_gradient, "on_before_optimizer_step": repair}
    module, watch = module_in(pl, **hooks), GradWatch(stop_on=["non_finite"])
    trainer = trainer_in(pl, tmp_path, watch, max_steps=8)
    trainer.fit(module, data)
    assert trainer.global_step == 8
    assert watch.diagnoses == []
    assert bool((watch.history.clipped_norms[3] > 0).all()) is used
    assert np.isfinite(watch.history.clipped_norms).all()


def test_a_callback_that_clips_after_us_is_seen(pl, tmp_path, data):
    """Whoever changes gradients between our hook and the step is noticed by the change itself."""

    class Clips(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            for parameter in pl_module.parameters():
                parameter.grad.mul_(1e-3)

    watch = GradWatch()
    trainer_in(pl, tmp_path, watch, Clips()).fit(module_in(pl), data)
    np.testing.assert_allclose(watch.history.clipped_norms, watch.history.norms * 1e-3, rtol=1e-5)


def test_a_callback_is_pickled_in_the_middle_of_a_fit(pl, tmp_path, data):
    """Lightning pickles callbacks that are hyperparameters; what belongs to the fit stays behind."""
    copies = []

    class Pickles(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            copies.append(pickle.loads(pickle.dumps(trainer.callbacks[0])))

    logger = pl.loggers.CSVLogger(tmp_path)
    watch = GradWatch()
    trainer_in(pl, tmp_path, watch, Pickles(), logger=logger).fit(module_in(pl), data)
    assert [len(each.history) for each in copies] == [1, 2, 3, 4, 5]
    assert watch.disabled_reason is None


def test_weights_that_grow_between_two_measurements_are_no_explosion(pl, tmp_path):
    """What began near zero and is measured now and then only is judged by what it may have become."""
    net = nn.Sequential(nn.Linear(20, 20, bias=False), nn.Linear(20, 20, bias=False))
    for layer in net:
        nn.init.normal_(layer.weight, std=2e-3)
    inputs = torch.randn(320, 20)
    batches = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(inputs, inputs @ torch.randn(20, 20)), batch_size=32
    )

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    watch = GradWatch()
    module = module_in(pl, net, lambda p: torch.optim.SGD(p, lr=1.0), training_step=training_step)
    trainer_in(pl, tmp_path, watch, max_steps=60).fit(module, batches)
    assert watch.diagnoses == []


def test_what_no_optimizer_trains_is_told_at_the_start(lightning, tmp_path, data, caplog):
    """A layer that was forgotten and blocks in a plain list are one line of INFO each, and no fault."""
    module = module_in(lightning, optimizer=lambda p: torch.optim.SGD(list(p)[:-2], lr=0.1))
    module.extra, module.hidden = nn.Linear(2, 2), [nn.Linear(2, 2), nn.Linear(2, 2)]
    watch = GradWatch()
    with caplog.at_level(logging.INFO):
        trainer_in(lightning, tmp_path, watch, max_steps=2).fit(module, data)
    lines = [r.getMessage() for r in caplog.records if r.name == "lightning_gradwatch"]
    assert lines[1] == "GradWatch  no optimizer holds extra (6 parameters): it stays as it is until one does"
    assert lines[2].startswith("GradWatch  self.hidden of Module is a plain list with 2 modules (12 parameters): ")
    assert watch.diagnoses == []


def test_what_is_frozen_until_later_is_not_missed(pl, tmp_path, data, caplog):
    """BaseFinetuning freezes what it will add to the optimizer; nothing is said of it."""
    from pytorch_lightning.callbacks import BaseFinetuning

    class Later(BaseFinetuning):
        def freeze_before_training(self, pl_module):
            self.freeze(pl_module.net[0])

        def finetune_function(self, pl_module, epoch, optimizer):
            if epoch == 1:
                self.unfreeze_and_add_param_group(pl_module.net[0], optimizer)

    net = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    module = module_in(pl, net, lambda p: torch.optim.SGD([q for q in p if q.requires_grad], lr=0.1))
    with caplog.at_level(logging.INFO):
        trainer_in(pl, tmp_path, GradWatch(), Later(), max_epochs=2, max_steps=-1).fit(module, data)
    assert "no optimizer holds" not in caplog.text


def test_two_optimizers_hold_a_gan_together(pl, tmp_path, data, caplog):
    """Each of them holds a half, and nothing is left out."""

    class Gan(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.generator, self.critic = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(self.critic(self.generator(batch[0])).mean())
                optimizer.step()

        def configure_optimizers(self):
            return [torch.optim.SGD(half.parameters(), lr=0.01) for half in (self.generator, self.critic)]

    with caplog.at_level(logging.INFO):
        trainer_in(pl, tmp_path, GradWatch(), max_steps=4).fit(Gan(), data)
    assert "watching 2 layers" in caplog.text
    assert "no optimizer holds" not in caplog.text


class TwoParts(nn.Module):
    """A generator and a critic; what the generator makes may be detached by mistake."""

    def __init__(self, cut: bool):
        super().__init__()
        self.generator, self.critic = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.cut = cut

    def forward(self, inputs):
        made = self.generator(inputs)
        return self.critic(made.detach() if self.cut else made)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("cut", [True, False])
def test_an_optimizer_that_never_gets_a_gradient_is_told(pl, tmp_path, data, order, cut):
    """Of two optimizers one steps in vain, whichever steps first; its twin without the cut is healthy."""

    def training_step(self, batch, batch_idx):
        optimizers = self.optimizers()
        self.manual_backward(self.net(batch[0]).square().mean())
        for number in order:
            optimizers[number].step()
            optimizers[number].zero_grad()

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.01) for part in (self.net.generator, self.net.critic)]

    module = module_in(pl, TwoParts(cut), training_step=training_step, configure_optimizers=configure_optimizers)
    module.automatic_optimization = False
    watch = GradWatch()
    trainer_in(pl, tmp_path, watch, max_steps=40, max_epochs=-1).fit(module, data)
    assert watch.disabled_reason is None
    told = [(d.rule, d.severity, d.optimizer, d.layers) for d in watch.diagnoses]
    assert told == ([("disconnected", "warning", 0, ("net.generator",))] if cut else [])


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_batches_without_a_loss_are_no_idle_optimizer(pl, tmp_path, data):
    """Where ``training_step`` returns None for a long time the optimizer steps all the same, and nobody is to blame."""

    def training_step(self, batch, batch_idx):
        if self.global_step < 20:
            return None
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    watch = GradWatch()
    trainer_in(pl, tmp_path, watch, max_steps=24, max_epochs=-1).fit(module_in(pl, training_step=training_step), data)
    assert watch.diagnoses == []
    assert len(watch.history) == 24


def test_a_batch_that_the_module_skips_leaves_no_hook(pl, tmp_path, data):
    """``on_train_batch_start`` returns -1 and ends the epoch: what follows, such as evaluation, has no probe in it."""
    seen = []

    class Looks(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append(num_hooks(pl_module))

    module = module_in(pl, on_train_batch_start=lambda *args: -1 if args[-1] == 2 else None)
    watch = GradWatch(probe_every_n_steps=1)
    trainer_in(pl, tmp_path, watch, Looks(), max_epochs=2, max_steps=-1).fit(module, data)
    assert len(watch.probes) == 4
    assert seen == [0, 0]


@pytest.mark.parametrize("clips", [True, False])
def test_no_clipper_is_advised_beside_the_trainers_own(pl, tmp_path, data, clips):
    """GradWatch would refuse the two together; where nobody clips it is the way out of a jump."""

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        return loss * (1e6 if self.trainer.global_step == 40 else 1.0)

    watch = GradWatch()
    more = {"gradient_clip_val": 1e9} if clips else {}
    trainer = trainer_in(pl, tmp_path, watch, max_steps=42, **more)
    trainer.fit(module_in(pl, deep_net(nn.ReLU, 3, he=True), training_step=training_step), data)
    jumps = [diagnosis for diagnosis in watch.diagnoses if diagnosis.step == 40]
    assert jumps
    assert any(remedy.clipper for diagnosis in jumps for remedy in diagnosis.remedies) != clips
