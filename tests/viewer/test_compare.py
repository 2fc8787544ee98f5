"""Test ``lightning_gradwatch.viewer.compare``."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from viewer.planted import planted_run

from lightning_gradwatch.viewer.compare import (
    compared,
    comparison_lines,
    comparison_markdown,
    comparison_values,
    factor,
)
from lightning_gradwatch.viewer.run import Run
from lightning_gradwatch.viewer.terminal import Paper, columns_of


def renamed(run: Run, names: tuple[str, ...]) -> Run:
    """Return a run whose layers are called differently."""
    return replace(run, series=tuple(replace(series, layers=names) for series in run.series))


def test_factors_are_those_of_the_medians():
    """Of each layer's median over the steps that both have, beside numpy on the raw columns."""
    sigmoid, relu = planted_run("a", num_columns=100), planted_run("b", kind="relu", num_columns=160, first_step=40)
    norms = compared(sigmoid, relu)[0]
    assert (norms.about.name, norms.steps) == ("norms/0", (40, 99))
    first = 10.0 ** sigmoid.series[0].windows.median[40:100].astype(float)
    second = 10.0 ** relu.series[0].windows.median[:60].astype(float)
    expected = np.median(second, axis=0) / np.median(first, axis=0)
    # The middle of an even number is taken on the log scale.
    assert 10.0**norms.factors == pytest.approx(expected, rel=0.02)
    assert norms.far_apart == [layer for layer in range(20) if expected[layer] > 10]


def test_time_steps_are_no_layers():
    """They are on the page."""
    one, other = (planted_run(name, kind="recurrent") for name in "ab")
    assert [pair.about.name for pair in compared(one, other)] == [
        "norms/0",
        "ratios/0",
        "signal/0",
        "delta/0",
        "updates/0",
    ]


def test_zeros_and_layers_without_a_value_have_a_factor_too():
    """Zero beside zero is no difference, zero beside a number is infinite, nothing beside a number is nothing."""
    one, other = planted_run("a", kind="relu", num_columns=4), planted_run("b", kind="relu", num_columns=4)
    mine, theirs = one.series[0].windows.median, other.series[0].windows.median
    mine[:] = theirs[:] = 0
    mine[:, 0] = theirs[:, 0] = mine[:, 1] = theirs[:, 2] = -np.inf
    mine[:, 3] = np.nan
    norms = compared(one, other)[0]
    assert [factor(log) for log in norms.factors[:5]] == ["x1", "x inf", "x0", "-", "x1"]
    assert norms.far_apart == [1, 2]
    values = comparison_values(one, other)[0]
    assert [row["factor"] for row in values["layers"][:5]] == [1.0, float("inf"), 0.0, None, 1.0]


def test_layers_are_paired_by_name():
    """Those of one run only are counted."""
    one, other = planted_run("a", kind="relu"), planted_run("b", kind="relu")
    names = one.series[0].layers
    norms = compared(one, renamed(other, ("new", *names[:-1])))[0]
    assert (norms.layers, norms.only_first, norms.only_second) == (names[:-1], (names[-1],), ("new",))
    assert norms.second[0] == pytest.approx(np.median(other.series[0].windows.median[:, 1]))


def test_without_a_shared_name_they_are_paired_by_their_place():
    """As where one run was compiled; which is said."""
    one, other = planted_run("a", kind="relu"), planted_run("b", kind="relu")
    moved = renamed(other, tuple(f"_orig_mod.{name}" for name in one.series[0].layers))
    assert compared(one, moved)[0].by_position
    assert "paired by their place" in " ".join(comparison_lines(one, moved, Paper(200)))
    assert compared(one, renamed(planted_run("c", num_layers=7), tuple("uvwxyz0"))) == []


def test_runs_without_shared_steps_are_compared_whole():
    """Which is said."""
    one, other = planted_run("a", num_columns=10), planted_run("b", num_columns=10, first_step=500)
    assert compared(one, other)[0].steps is None
    assert "median over all steps of each" in " ".join(comparison_lines(one, other, Paper(140)))


def test_it_reads_verdicts_side_by_side_then_layers():
    """Within the width of the window."""
    lines = comparison_lines(planted_run("sigmoid"), planted_run("relu", kind="relu"), Paper(100))
    assert lines[0].split() == ["first:", "sigmoid", "second:", "relu"]
    assert lines[1].split()[:2] == ["verdict", "VANISHING"]
    assert "no warning" in lines[1]
    assert all(columns_of(line) <= 100 for line in lines)
    text = "\n".join(lines)
    assert "gradient norm, median over steps 0 to 199: 18 of 20 layers differ by more than 10x: encoder" in " ".join(
        text.split()
    )
    head = next(number for number, line in enumerate(lines) if line.split() == ["layer", "first", "second", "factor"])
    assert len([line for line in lines[head + 1 :] if " x" in line]) >= 20


def test_of_many_layers_those_that_differ_most_are_shown():
    """In the order of the network; the rest is counted."""
    one, other = (
        planted_run("a", num_layers=2000, num_columns=8),
        planted_run("b", kind="relu", num_layers=2000, num_columns=8),
    )
    lines = comparison_lines(one, other, Paper(100))
    assert len(lines) < 80
    assert "  and 1,960 layers that differ less" in lines
    assert len(comparison_values(one, other)[0]["layers"]) == 2000


def test_nothing_in_common_is_said():
    """With both verdicts above it."""
    assert "no layer in common" in comparison_lines(planted_run("a"), Run("empty"), Paper(100))[-1]
    assert "no layer in common" in comparison_markdown(planted_run("a"), Run("empty"))


def test_as_markdown_hostile_names_are_text():
    """And both runs follow."""
    text = comparison_markdown(planted_run("a|b", hostile=True), planted_run("relu", kind="relu", hostile=True))
    assert text.startswith(
        "### GradWatch: `a|b` beside `relu`\n\n- gradient norm, median over steps 0 to 199: 18 of 20"
    )
    assert r"\<img src=x onerror=alert(1)\>" in text.split("###")[1]
    assert text.count("### GradWatch: ") == 3
