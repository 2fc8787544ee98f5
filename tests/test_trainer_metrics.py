"""Test ``lightning_gradwatch.trainer_metrics``."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from models import module_in, trainer_in
from torch import nn

from lightning_gradwatch import GradWatch


def test_callback_metrics_carry_the_global_norm(pl, tmp_path, data):
    """EarlyStopping and ModelCheckpoint can watch ``gradwatch/global_norm``."""
    watch = GradWatch()
    checkpoint = pl.callbacks.ModelCheckpoint(tmp_path, monitor="gradwatch/global_norm", every_n_train_steps=1)
    stopping = pl.callbacks.EarlyStopping("gradwatch/global_norm", check_on_train_epoch_end=True)
    trainer = trainer_in(pl, tmp_path, watch, checkpoint, stopping, max_steps=4, enable_checkpointing=True)
    trainer.fit(module_in(pl), data)
    expected = np.sqrt((watch.history.norms[-1] ** 2).sum())
    assert float(trainer.callback_metrics["gradwatch/global_norm"]) == pytest.approx(expected)
    norms = np.sqrt((watch.history.norms**2).sum(axis=1))
    assert float(checkpoint.best_model_score) == pytest.approx(norms.min())


def test_the_metric_tells_nan_and_never_invents_a_zero(pl, tmp_path, data):
    """``callback_metrics`` is NaN where the gradient is; a step without a gradient leaves it alone."""

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        return loss * float("nan") if batch_idx else loss

    trainer = trainer_in(pl, tmp_path, GradWatch(), max_steps=4)
    trainer.fit(module_in(pl, training_step=training_step), data)
    assert np.isnan(float(trainer.callback_metrics["gradwatch/global_norm"]))


@pytest.mark.refuses("DeepSpeed")
def test_the_global_norm_of_an_engine_is_passed_on(pl, tmp_path, data):
    """Where only DeepSpeed's engine knows the gradients, its own global norm is logged; here a stand-in's."""

    class Engine:
        def get_global_grad_norm(self):
            return 2.5

    class DeepSpeedStrategy(pl.strategies.SingleDeviceStrategy):
        deepspeed_engine = Engine()

    logger = pl.loggers.CSVLogger(tmp_path)
    trainer = trainer_in(
        pl, tmp_path, GradWatch(), strategy=DeepSpeedStrategy("cpu"), logger=logger, log_every_n_steps=2
    )
    trainer.fit(module_in(pl), data)
    assert float(trainer.callback_metrics["gradwatch/global_norm"]) == 2.5
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = [(row["step"], row["gradwatch/global_norm"]) for row in csv.DictReader(file)]
    assert rows == [("1", "2.5"), ("3", "2.5")]
