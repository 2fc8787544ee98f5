"""Observations made from plain arrays, for the tests of the rules."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_gradwatch.detect.diagnosis import Observations
from lightning_gradwatch.measure.history import Readings
from lightning_gradwatch.measure.snapshot import (
    LayerDescription,
    OptimizerDescription,
    SignalSnapshot,
    TimeProfile,
    global_norm,
)


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
        signals=(),
    ):
        norms = np.atleast_2d(np.asarray(norms, dtype=np.float64))
        shape = norms.shape
        losses = np.full(shape[0], 1.0) if loss is None else np.asarray(loss, dtype=np.float64)
        recent = np.concatenate([np.full(max(0, shape[0] - len(losses)), np.nan), losses])[len(losses) - shape[0] :]
        present = np.ones(shape, dtype=np.bool_) if present is None else np.broadcast_to(present, shape)
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
                present=present,
                losses=recent[-shape[0] :],
                global_norms=np.array([global_norm(row, here) for row, here in zip(norms, present, strict=True)]),
            ),
            loss=losses,
            signals=signals,
        )

    return make


@pytest.fixture(scope="session")
def probe():
    """Return a function that makes what a signal probe saw: the norm of delta of each layer, ``[num_layers]``.

    ``time`` maps a column to the gradient that reaches its time steps; ``recurrent=False`` makes them calls.
    ``training`` and ``fed_by_cut`` are ones and zeros, one a layer.
    """

    def make(
        levels,
        *,
        sizes=64.0,
        signal=1.0,
        update_ratio=1e-3,
        training=1.0,
        fed_by_cut=0.0,
        dead=np.nan,
        saturated=np.nan,
        order=None,
        time=None,
        recurrent=True,
        both_ways=False,
        step=0,
    ):
        levels = np.asarray(levels, dtype=np.float64)
        spread = lambda values: np.broadcast_to(np.asarray(values, dtype=np.float64), levels.shape)  # noqa: E731
        return SignalSnapshot(
            step=step,
            optimizer=0,
            layers=tuple(f"fc{i}" for i in range(len(levels))),
            order=np.arange(len(levels)) if order is None else np.asarray(order, dtype=np.int64),
            sizes=spread(sizes),
            signal=spread(signal),
            delta=levels / np.sqrt(spread(sizes)),
            dead=spread(dead),
            saturated=spread(saturated),
            update_ratio=spread(update_ratio),
            training=spread(training),
            fed_by_cut=spread(fed_by_cut),
            time=tuple(
                TimeProfile(column, np.asarray(delta, dtype=np.float64), recurrent, both_ways)
                for column, delta in (time or {}).items()
            ),
        )

    return make


_OF_A_PROBE = ("sizes", "signal", "update_ratio", "dead", "order", "time", "recurrent", "both_ways")


@pytest.fixture(scope="session")
def probed(observe, probe):
    """Return a function that makes observations whose two newest probes saw the same levels, in registration order.

    ``before`` gives the earlier probe other levels, ``norms`` the parameter gradients (all 1 otherwise).
    """

    def make(levels, *, before=None, norms=None, **more):
        about = {name: more.pop(name) for name in _OF_A_PROBE if name in more}
        levels = np.asarray(levels, dtype=np.float64)
        norms = np.ones(len(levels)) if norms is None else norms
        signals = [probe(levels if before is None else before, **about), probe(levels, **about)]
        return observe(norms, signals=signals, **more)

    return make
