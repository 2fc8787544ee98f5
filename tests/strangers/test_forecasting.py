"""Libraries for forecasting: each with GradWatch added where its users add callbacks, and nothing else changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from strangers.witness import train_twice

pytestmark = pytest.mark.stranger
SERIES, LENGTH = 4, 60


def series() -> Any:
    """Return sine waves with noise, one after the other, as a table."""
    import pandas as pd

    generator = np.random.default_rng(0)
    times = np.tile(np.arange(LENGTH), SERIES)
    names = np.repeat([f"series {number}" for number in range(SERIES)], LENGTH)
    values = 2 + np.sin(times / 4 + np.repeat(np.arange(SERIES), LENGTH)) + 0.1 * generator.normal(size=times.size)
    return pd.DataFrame({"name": names, "time": times, "value": values})


@pytest.mark.supports("pytorch-forecasting")
def test_pytorch_forecasting(tmp_path):
    """A temporal fusion transformer, clipped by the Trainer as its tutorial does, trains the same."""
    import lightning.pytorch
    import pytorch_forecasting

    def fit(callbacks: list[Any]) -> None:
        data = pytorch_forecasting.TimeSeriesDataSet(
            series(),
            time_idx="time",
            target="value",
            group_ids=["name"],
            max_encoder_length=12,
            max_prediction_length=4,
            static_categoricals=["name"],
            time_varying_known_reals=["time"],
            time_varying_unknown_reals=["value"],
            add_relative_time_idx=True,
        )
        network = pytorch_forecasting.TemporalFusionTransformer.from_dataset(
            data, learning_rate=0.03, hidden_size=8, attention_head_size=2, hidden_continuous_size=4
        )
        trainer = lightning.pytorch.Trainer(
            accelerator="cpu",
            default_root_dir=tmp_path,
            max_steps=120,
            max_epochs=-1,
            gradient_clip_val=0.1,
            callbacks=callbacks,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(network, data.to_dataloader(train=True, batch_size=32, num_workers=0))

    watch = train_twice(fit, steps=120, package="lightning")
    assert "lstm_encoder" in watch.history.layers
    assert "multihead_attn.q_layers.0" in watch.history.layers


@pytest.mark.supports("neuralforecast")
def test_neuralforecast(tmp_path):
    """NHITS takes GradWatch among the Trainer's arguments and trains the same; it trains a copy and saves it."""
    from neuralforecast import NeuralForecast
    from neuralforecast.models import NHITS

    def fit(callbacks: list[Any]) -> list[Any]:
        model = NHITS(
            h=4,
            input_size=12,
            max_steps=120,
            mlp_units=[[16, 16]] * 3,
            accelerator="cpu",
            callbacks=callbacks,
            default_root_dir=tmp_path,
            enable_progress_bar=False,
        )
        table = series().rename(columns={"name": "unique_id", "time": "ds", "value": "y"})
        forecast = NeuralForecast(models=[model], freq=1)
        forecast.fit(table)
        forecast.save(str(tmp_path / f"saved beside {len(callbacks)}"))
        assert len(forecast.predict()) == SERIES * 4
        # The library trains a deep copy of the model, and of the callbacks with it.
        return forecast.models[0].trainer_kwargs["callbacks"]

    watch = train_twice(fit, steps=120, package="pytorch_lightning")
    assert "blocks.0.layers.0" in watch.history.layers


@pytest.mark.supports("GluonTS")
def test_gluonts(tmp_path):
    """DeepAR takes GradWatch in its `trainer_kwargs` and trains the same."""
    from gluonts.dataset.common import ListDataset
    from gluonts.torch import DeepAREstimator

    def fit(callbacks: list[Any]) -> None:
        values = series()["value"].to_numpy().reshape(SERIES, LENGTH)
        data = ListDataset([{"start": "2024-01-01", "target": row} for row in values], freq="D")
        estimator = DeepAREstimator(
            freq="D",
            prediction_length=4,
            context_length=12,
            hidden_size=8,
            batch_size=16,
            num_batches_per_epoch=30,
            trainer_kwargs={
                "accelerator": "cpu",
                "max_epochs": 4,
                "callbacks": callbacks,
                "default_root_dir": tmp_path,
                "enable_progress_bar": False,
            },
        )
        estimator.train(data)

    watch = train_twice(fit, steps=120, package="lightning")
    assert "model.rnn" in watch.history.layers


@pytest.mark.supports("Darts")
def test_darts(tmp_path):
    """A transformer of Darts takes GradWatch in its `pl_trainer_kwargs`, trains the same and can be saved after it."""
    import darts
    from darts.models import TransformerModel

    def fit(callbacks: list[Any]) -> None:
        model = TransformerModel(
            input_chunk_length=12,
            output_chunk_length=4,
            d_model=8,
            nhead=2,
            num_encoder_layers=2,
            num_decoder_layers=2,
            dim_feedforward=16,
            batch_size=32,
            n_epochs=20,
            random_state=0,
            work_dir=str(tmp_path),
            pl_trainer_kwargs={"accelerator": "cpu", "callbacks": callbacks, "enable_progress_bar": False},
        )
        values = series()["value"].to_numpy(dtype=np.float32).reshape(SERIES, LENGTH)
        model.fit([darts.TimeSeries.from_values(row) for row in values])
        # What is saved holds the callbacks.
        model.save(str(tmp_path / "saved.pt"))
        loaded = TransformerModel.load(str(tmp_path / "saved.pt"), weights_only=False)
        assert len(loaded.predict(4, series=darts.TimeSeries.from_values(values[0]))) == 4

    watch = train_twice(fit, steps=120, package="pytorch_lightning")
    assert "encoder" in watch.history.layers
