"""A library for single cells with GradWatch added to `train`, and nothing else changed."""

from __future__ import annotations

from typing import Any

import pytest
from strangers.witness import train_twice

pytestmark = pytest.mark.stranger


@pytest.mark.supports("scvi-tools")
def test_scvi():
    """A variational autoencoder of gene counts, with the library's own training plan, trains the same."""
    import scvi

    def fit(callbacks: list[Any]) -> None:
        scvi.settings.seed = 0
        cells = scvi.data.synthetic_iid(batch_size=64, n_genes=30, n_proteins=0, n_regions=0)
        scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
        model = scvi.model.SCVI(cells, n_hidden=16, n_latent=4)
        model.train(max_epochs=30, batch_size=32, accelerator="cpu", callbacks=callbacks, enable_progress_bar=False)

    watch = train_twice(fit, steps=120, package="lightning")
    assert "module.z_encoder.encoder.fc_layers.Layer 0.0" in watch.history.layers
    assert "module.z_encoder.mean_encoder" in watch.history.layers


@pytest.mark.supports("scvi-tools with an adversary (manual optimization, two optimizers)")
def test_totalvi():
    """TOTALVI steps two optimizers by hand, its own and an adversary's; each is watched on its own."""
    import scvi

    def fit(callbacks: list[Any]) -> None:
        scvi.settings.seed = 0
        cells = scvi.data.synthetic_iid(batch_size=64, n_genes=30, n_proteins=5, n_regions=0)
        scvi.model.TOTALVI.setup_anndata(cells, batch_key="batch", protein_expression_obsm_key="protein_expression")
        model = scvi.model.TOTALVI(cells, n_latent=4)
        model.train(
            max_epochs=15,
            batch_size=32,
            accelerator="cpu",
            callbacks=callbacks,
            enable_progress_bar=False,
            adversarial_classifier=True,
            early_stopping=False,
        )

    watch = train_twice(fit, steps=120, package="lightning")
    assert set(watch.history.optimizers) == {0, 1}
    assert "adversarial_classifier.classifier.1" in watch.history.layers
