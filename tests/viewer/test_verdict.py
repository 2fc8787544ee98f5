"""Test ``lightning_gradwatch.viewer.verdict``."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from viewer.planted import planted_diagnosis, planted_run

from lightning_gradwatch.viewer.run import Run
from lightning_gradwatch.viewer.symptoms import SYMPTOMS
from lightning_gradwatch.viewer.verdict import failing, newest_norms, norms_in_words, verdict, why_not_measured


def onset(rule: str, step: int, **more) -> dict:
    """Return the event of an onset."""
    return {"event": "onset", "diagnosis": planted_diagnosis(rule, **{"step": step, "layers": ["a"], **more})}


def test_a_verdict_names_what_lasts_and_counts_the_rest():
    """With how much was seen."""
    assert verdict(planted_run(kind="sigmoid")) == "VANISHING since step 3 (20 layers, steps 0 to 199)"
    assert verdict(planted_run(kind="relu")) == "no warning (20 layers, steps 0 to 199)"
    mixed = "2 warnings recovered: NON-FINITE, VANISHING, 1 notice, 1 muted (20 layers, steps 0 to 199)"
    assert verdict(planted_run(kind="mixed")) == mixed


def test_a_run_that_did_not_end_well_is_told_so():
    """A healthy verdict on half a run is half a verdict."""
    run = planted_run(kind="relu", ended=False)
    assert verdict(run).endswith("steps 0 to 199, not ended: it goes on, or was killed)")
    failed = replace(run, events=(*run.events, {"event": "end", "reason": "error", "error": "ValueError: x"}))
    assert verdict(failed).endswith("steps 0 to 199, ended by an error: ValueError: x)")


def test_many_warnings_are_counted():
    """A line stays a line."""
    events = tuple(onset("vanishing.depth", step, layers=[str(step)]) for step in range(5))
    lasting = "VANISHING since step 0, VANISHING since step 1, VANISHING since step 2, 2 more that last"
    assert verdict(Run("r", (), events)) == lasting


def test_a_run_without_numbers_is_not_healthy():
    """Nor one in which GradWatch had switched itself off."""
    silent = Run("r", (), ({"event": "start"}, {"event": "end"}))
    assert why_not_measured(silent) == "r: nothing was measured"
    assert verdict(silent) == "nothing was measured"
    run = planted_run(kind="relu")
    empty = replace(run, series=tuple(replace(series, windows=series.windows.take(slice(0))) for series in run.series))
    assert why_not_measured(empty).endswith("nothing was measured")
    assert verdict(empty) == "nothing was measured"
    healthy = planted_run(kind="relu")
    assert why_not_measured(healthy) == ""
    off = replace(healthy, events=(*healthy.events, {"event": "end", "disabled": "RuntimeError: x"}))
    assert why_not_measured(off).endswith(": GradWatch switched itself off during the run: RuntimeError: x")
    assert verdict(off) == "no warning (20 layers, steps 0 to 199, GradWatch switched itself off)"


def test_steps_that_never_had_a_gradient_are_not_healthy():
    """An optimizer that steps without a backward pass is read, and nothing is there to judge."""
    healthy = planted_run(kind="relu")
    windows = {s.about.quantity: s.windows for s in healthy.series}
    nothing = {q: replace(w, state=np.zeros_like(w.state)) if q != "signal" else w for q, w in windows.items()}
    idle = replace(healthy, series=tuple(replace(s, windows=nothing[s.about.quantity]) for s in healthy.series))
    assert why_not_measured(idle).endswith(": no gradient was ever seen")
    assert verdict(idle) == "no gradient was ever seen (20 layers, steps 0 to 199)"


def test_only_warnings_of_the_symptoms_asked_for_fail():
    """Recovered ones too; never a notice, never what was muted."""
    mixed = planted_run(kind="mixed")
    assert {f.rule for f in failing(mixed, SYMPTOMS)} == {"non_finite", "vanishing.depth"}
    assert [f.rule for f in failing(mixed, ["vanishing"])] == ["vanishing.depth"]
    assert failing(mixed, ["spike", "dead"]) == []
    assert failing(mixed, []) == []


def test_the_newest_norms_are_those_of_each_layers_last_window():
    """Beside a computation by hand, layer by layer."""
    run = planted_run(kind="mixed", num_columns=80)  # the zeros of row 15 last to the end
    (newest,) = newest_norms(run)
    windows = newest.series.windows
    for layer in range(20):
        seen = [row for row in range(len(windows)) if windows.state[row, layer] & 1]
        expected = windows.median[seen[-1], layer] if seen else np.nan
        assert newest.logs[layer] == pytest.approx(expected, nan_ok=True)
    words = norms_in_words(newest)
    assert words.endswith("; 1 layer exactly zero; 1 layer without a gradient")
    least = int(np.nanargmin(np.where(np.isfinite(newest.logs), newest.logs, np.nan)))
    assert f"{10.0 ** newest.logs[least]:.2g} ({newest.series.layers[least]})" in words


def test_a_layer_of_an_earlier_window_keeps_its_last_value():
    """As that of a layer that was frozen later."""
    run = planted_run(num_columns=10)
    windows = run.series[0].windows
    windows.state[5:, 0], windows.median[5:, 0] = 0, np.nan
    assert newest_norms(run)[0].logs[0] == windows.median[4, 0]


def test_a_layer_that_is_not_a_number_is_counted():
    """It is neither the least nor the largest."""
    run = planted_run(num_columns=10)
    windows = run.series[0].windows
    windows.state[-1, 3], windows.median[-1, 3] = 1 | 4, np.nan
    assert norms_in_words(newest_norms(run)[0]).endswith("; 1 layer not finite")
