"""Test ``lightning_gradwatch.display``: a run as it is shown."""

from __future__ import annotations

import json
import logging
import pickle
from typing import Any

import numpy as np
from models import CLASSES, deep_net, module_in, trainer_in
from torch import nn

from lightning_gradwatch import GradWatch
from lightning_gradwatch.viewer.events import read_runs


def test_what_is_shown_is_what_the_event_files_hold(lightning, tmp_path, data):
    """The page of ``watch.show()`` and the tab have the same series, numbers, marks and diagnoses."""
    watch = GradWatch(vanishing_threshold=1e-9)
    logger = lightning.loggers.TensorBoardLogger(tmp_path, name="", version="")
    net = nn.Sequential(deep_net(nn.Sigmoid, 12), nn.Linear(CLASSES, CLASSES))
    net[1].requires_grad_(requires_grad=False)
    trainer_in(lightning, tmp_path, watch, max_steps=12, logger=logger).fit(module_in(lightning, net), data)
    (written,) = read_runs(tmp_path)
    mine = watch.core.recorded()
    assert mine.name == tmp_path.name
    assert [series.name for series in mine.series] == [series.name for series in written.series]
    assert len(mine.series) == 5
    for ours, theirs in zip(mine.series, written.series, strict=True):
        assert (ours.layers, ours.kinds) == (theirs.layers, theirs.kinds)
        assert ours.windows.steps.tolist() == theirs.windows.steps.tolist()
        assert ours.windows.state.tolist() == theirs.windows.state.tolist()
        # A float16 holds a logarithm to three digits.
        np.testing.assert_allclose(ours.windows.median, theirs.windows.median, rtol=1e-3, atol=1e-3)
        for name in ("quantity", "optimizer_label", "vanishing_threshold", "exploding_threshold"):
            assert getattr(ours.about, name) == getattr(theirs.about, name)
    assert len(mine.diagnoses) == len(watch.diagnoses) > 0
    assert [(d["rule"], d["step"]) for d in mine.diagnoses] == [(d["rule"], d["step"]) for d in written.diagnoses]
    # Layers that join a fault after its onset are known here; the file holds what was told.
    for ours, theirs in zip(mine.diagnoses, written.diagnoses, strict=True):
        assert set(theirs["layers"]) <= set(ours["layers"])


def test_show_save_and_plot_work_while_training_runs(pl, tmp_path, data):
    """From a callback of the person's own, in the middle of a run, the page has what there is so far."""
    watch, seen = GradWatch(), []

    class Looks(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 3:
                seen.append((watch.show(), watch.save(tmp_path / "mine" / "so_far.json"), watch.plot("delta")))

    trainer_in(pl, tmp_path, watch, Looks(), max_steps=6).fit(module_in(pl), data)
    ((shown, saved, figure),) = seen
    assert shown == tmp_path / "gradwatch" / "report.html"
    assert json.loads(saved.read_text())["runs"][0]["norms"][0]["layers"].keys() == {"net.0", "net.2"}
    assert figure.axes[0].get_title(loc="left").startswith("gradient reaching the layer")
    assert watch.disabled_reason is None


def test_the_log_says_where_the_page_is(pl, tmp_path, data, caplog):
    """Outside of a notebook a person is told the path, and gets it."""
    watch = GradWatch()
    trainer_in(pl, tmp_path, watch).fit(module_in(pl), data)
    with caplog.at_level(logging.INFO):
        path = watch.show()
    assert f"GradWatch  page       {path}" in caplog.messages


def test_a_watch_that_switched_itself_off_says_so_on_its_page(pl, tmp_path, data, monkeypatch):
    """The page of a monitor that died does not look like health; it keeps the kinds of the layers, also pickled."""
    from lightning_gradwatch.judging import Judge

    def fail(*_: Any) -> Any:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(Judge, "judge", fail)
    watch = GradWatch()
    trainer_in(pl, tmp_path, watch).fit(module_in(pl), data)
    assert "switched itself off during the run: ZeroDivisionError: ours" in watch.save(tmp_path / "a.json").read_text()
    run = pickle.loads(pickle.dumps(watch)).core.recorded()
    assert run.series[0].kinds == ("Linear", "Linear")
    assert run.events[-1]["disabled"] == "ZeroDivisionError: ours"
