"""A library for tables with GradWatch added to `fit`, and nothing else changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from strangers.witness import train_twice

pytestmark = pytest.mark.stranger


@pytest.mark.supports("PyTorch Tabular")
@pytest.mark.parametrize(
    ("name", "settings", "layer"),
    [
        ("CategoryEmbeddingModelConfig", {}, "head.layers.0"),
        ("FTTransformerConfig", {"input_embed_dim": 8, "num_heads": 2, "num_attn_blocks": 2}, "_head.layers.0"),
        # Each of its layers keeps a flag in a parameter of whole numbers, which can have no gradient.
        ("NodeConfig", {"num_layers": 2, "num_trees": 16, "depth": 3}, "_backbone.dense_block.0"),
    ],
)
def test_pytorch_tabular(tmp_path, name, settings, layer):
    """A plain network, a transformer over columns and soft trees take GradWatch in `fit` and train the same."""
    import pandas as pd
    import pytorch_tabular
    from pytorch_tabular import models
    from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig

    def fit(callbacks: list[Any]) -> None:
        generator = np.random.default_rng(0)
        numbers = generator.normal(size=(320, 3))
        table = pd.DataFrame(numbers, columns=["height", "width", "weight"])
        table["color"] = generator.choice(["red", "green", "blue"], size=320)
        table["label"] = (numbers[:, 0] + (table["color"] == "red") > 0).astype(int)
        model = pytorch_tabular.TabularModel(
            data_config=DataConfig(
                target=["label"], continuous_cols=["height", "width", "weight"], categorical_cols=["color"]
            ),
            model_config=getattr(models, name)(task="classification", **settings),
            optimizer_config=OptimizerConfig(),
            trainer_config=TrainerConfig(
                max_epochs=15,
                batch_size=32,
                accelerator="cpu",
                checkpoints=None,
                early_stopping=None,
                load_best=False,
                progress_bar="none",
            ),
            verbose=False,
        )
        model.fit(train=table, callbacks=callbacks)
        # What is saved holds the callbacks.
        model.save_model(str(tmp_path / "saved"))
        loaded = pytorch_tabular.TabularModel.load_model(str(tmp_path / "saved"))
        assert len(loaded.predict(table)) == 320

    watch = train_twice(fit, steps=120, package="pytorch_lightning")
    assert layer in watch.history.layers
