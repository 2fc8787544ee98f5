"""Test ``lightning_gradwatch.measure.snapshot``."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gradwatch.measure.snapshot import GradientSnapshot, combine_norms, global_norm


def make(norms: list[float], present: list[bool], clipped: list[float] | None = None) -> GradientSnapshot:
    """Make a snapshot of which only the norms matter."""
    table = np.array(norms)
    return GradientSnapshot(
        step=0,
        optimizer=0,
        norms=table,
        clipped_norms=table if clipped is None else np.array(clipped),
        bias_norms=table,
        weight_norms=table,
        present=np.array(present),
        learning_rates=table,
    )


@given(st.lists(st.tuples(st.floats(0, 1e305, allow_subnormal=False), st.integers(0, 3)), max_size=12))
@settings(deadline=None, max_examples=60)
def test_groups_are_combined_as_hypot_does(parts):
    """Each group's norm is the ``math.hypot`` of its parts, however large or small; an empty group is NaN."""
    norms = np.array([norm for norm, _ in parts], dtype=np.float64)
    groups = np.array([group for _, group in parts], dtype=np.int64)
    expected = [math.hypot(*norms[groups == group]) if (groups == group).any() else math.nan for group in range(4)]
    np.testing.assert_allclose(combine_norms(norms, groups, 4), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([np.inf, 1e300], np.inf),
        ([np.nan, 1e300], np.nan),
        ([np.nan, np.inf], np.nan),
        ([1e308, 1e308, 1e308, 1e308], np.inf),
        ([1e-300, 1e-300], math.sqrt(2) * 1e-300),
        ([5e-324], 5e-324),
        ([0.0, 0.0], 0.0),
    ],
)
def test_what_float64_cannot_hold_comes_out_without_a_warning(parts, expected):
    """Infinite and NaN parts make the group infinite or NaN, leave the other group alone and warn of nothing."""
    norms = np.array([*parts, 1e-250])
    groups = np.array([0] * len(parts) + [1])
    combined = combine_norms(norms, groups, 2)
    np.testing.assert_allclose(combined[0], expected, rtol=1e-12)
    assert combined[1] == 1e-250


def test_the_global_norm_counts_layers_that_are_present():
    """Layers without a gradient do not count; no gradient at all has norm 0."""
    snapshot = make([3.0, np.nan, 4.0], [True, False, True])
    assert snapshot.global_norm == 5.0
    assert snapshot.finite
    assert global_norm(snapshot.norms, np.zeros(3, dtype=np.bool_)) == 0.0


def test_a_nan_gradient_that_is_present_is_not_finite():
    """A NaN that is a gradient makes the snapshot and its global norm not finite."""
    snapshot = make([3.0, np.nan], [True, True])
    assert not snapshot.finite
    assert math.isnan(snapshot.global_norm)


def test_the_clipped_global_norm_is_that_of_the_clipped_norms():
    """Without clipping it is the global norm itself; with it, the norm after."""
    assert make([3.0, 4.0], [True, True]).clipped_global_norm == 5.0
    assert make([3.0, 4.0], [True, True], [0.6, 0.8]).clipped_global_norm == pytest.approx(1.0)
