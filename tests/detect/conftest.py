"""Observations made from plain arrays, for the tests of the rules."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_gradwatch.detect.diagnosis import Observations
from lightning_gradwatch.measure.history import Readings
from lightning_gradwatch.measure.snapshot import LayerDescription, OptimizerDescription


@pytest.fixture(scope="session")
def observe():
    """Return a function that makes observations of layers ``fc0, fc1, ...`` from norms ``[n, num_layers]``."""

    def make(
        norms,
        *,
        biases=None,
        clipped=None,
        weights=10.0,
        learning_rate=0.1,
        present=None,
        loss=None,
        kind="SGD",
        eps=0.0,
        order=None,
        optimizer=0,
        layers=None,
    ):
        norms = np.atleast_2d(np.asarray(norms, dtype=np.float64))
        shape = norms.shape
        losses = np.full(shape[0], 1.0) if loss is None else np.asarray(loss, dtype=np.float64)
        recent = np.concatenate([np.full(max(0, shape[0] - len(losses)), np.nan), losses])[len(losses) - shape[0] :]
        spread = lambda values: np.broadcast_to(np.asarray(values, dtype=np.float64), shape)  # noqa: E731
        if layers is None:
            described = [
                LayerDescription(f"fc{i}", "Linear", num_parameters=100, num_biases=0 if biases is None else 16)
                for i in range(shape[1])
            ]
        else:
            described = list(layers)
        return Observations(
            step=shape[0] - 1,
            optimizer=optimizer,
            optimizer_description=OptimizerDescription(kind, eps=eps),
            layers=tuple(described),
            order=np.arange(shape[1]) if order is None else np.asarray(order),
            gradients=Readings(
                steps=np.arange(shape[0]),
                norms=norms,
                clipped_norms=norms if clipped is None else spread(clipped),
                bias_norms=spread(np.nan if biases is None else biases),
                weight_norms=spread(weights),
                learning_rates=spread(learning_rate),
                present=np.ones(shape, dtype=np.bool_) if present is None else np.broadcast_to(present, shape),
                losses=recent[-shape[0] :],
            ),
            loss=losses,
        )

    return make


@pytest.fixture(scope="session")
def profile_of(observe):
    """Return a function that makes observations whose newest bias gradients have given levels, input first."""

    def make(levels, **more):
        levels = np.asarray(levels, dtype=np.float64)
        biases = np.sqrt(16) * levels  # every layer of ``observe`` has 16 biases
        return observe(more.pop("norms", levels), biases=biases, **more)

    return make
