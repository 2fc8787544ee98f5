"""Test ``lightning_gradwatch.report.layout``."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_gradwatch.report.layout import elide, plan_layout
from lightning_gradwatch.report.pen import MARGIN, WIDTH

ONE = np.zeros(1, dtype=np.int64)  # the step of a single reading


def test_uneven_readings_lie_at_their_true_steps() -> None:
    """Every cell contains its step, and the border lies halfway between two steps."""
    steps = np.array([0, 10, 20, 100])
    layout = plan_layout(("fc",), steps)
    for reading, step in enumerate(steps):
        columns = layout.cell(reading, 0)[1]
        assert columns.start <= layout.x_of(step) < columns.stop
    assert abs(int(layout.column_edges[3]) - layout.x_of(60)) <= 1


@pytest.mark.parametrize("n", [1, 2, 7, 240, 281, 300, 5000])
def test_columns_cover_the_plot(n: int) -> None:
    """Columns of any number of readings are at least a pixel wide and leave no gap."""
    steps = np.cumsum(np.random.default_rng(n).integers(1, 50, n))
    layout = plan_layout(("fc",), steps)
    assert (np.diff(layout.column_edges) >= 1).all()
    assert set(layout.column_of_reading) == set(range(len(layout.column_edges) - 1))
    assert layout.column_edges[-1] == WIDTH - MARGIN


def test_the_first_layer_is_on_top() -> None:
    """Rows go from the input at the top to the output at the bottom."""
    layout = plan_layout(("fc1", "fc2"), ONE)
    assert layout.cell(0, 0)[0].stop <= layout.cell(0, 1)[0].start


def test_the_common_prefix_is_dropped_once() -> None:
    """Whole dotted parts that all names share are named once."""
    layout = plan_layout(("net.model.block1.fc", "net.model.block2.fc"), ONE)
    assert (layout.prefix, layout.labels) == ("net.model.", ("block1.fc", "block2.fc"))


def test_equal_or_nested_names_keep_a_label() -> None:
    """Dropping the prefix leaves no name empty."""
    for names in (("a.b", "a.b"), ("a", "a.b"), ("", "a"), ("x.", "x.")):
        labels = plan_layout(names, ONE).labels
        assert len(labels) == 2
    assert plan_layout(("a.b", "a.b"), ONE).labels == ("b", "b")


@pytest.mark.parametrize(
    ("name", "length", "expected"),
    [
        ("encoder.blocks.3.mlp.fc1", 40, "encoder.blocks.3.mlp.fc1"),
        ("encoder.blocks.3.attention.self.query", 32, "encoder.blocks.3...self.query"),
        ("encoder.blocks.3.attention.self.query", 20, "...blocks.3...query"),
        ("encoder.blocks.3.attention.self.query", 14, "...3...query"),
        ("stages.1.blocks.12.mlp.fc1", 16, "...1...12...fc1"),
        ("abcdefghijklmnopqrstuvwxyz", 11, "abcd...wxyz"),
        ("abcdefghijklmnopqrstuvwxyz", 3, "..."),
    ],
)
def test_long_names_keep_the_block_number_and_the_end(name: str, length: int, expected: str) -> None:
    """Names lose words in the middle and in front before they lose a number or the end."""
    assert elide(name, lambda text: len(text) <= length) == expected
