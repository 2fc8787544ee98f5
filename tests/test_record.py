"""Test ``lightning_gradwatch.record``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gradwatch.agreement import EVERY_N_BATCHES, Agreement
from lightning_gradwatch.measure.reader import Reader, describe_optimizer
from lightning_gradwatch.record import Record
from lightning_gradwatch.report.heatmap import HeatmapSink
from lightning_gradwatch.report.picture import PictureSink
from lightning_gradwatch.report.teller import Teller
from lightning_gradwatch.settings import Settings
from lightning_gradwatch.steps import PendingStep


@pytest.fixture
def optimizer() -> torch.optim.Optimizer:
    """Return an optimizer of one layer whose gradient is 2 in four places."""
    net = nn.Linear(4, 1, bias=False)
    net.weight.grad = torch.full((1, 4), 2.0)
    return torch.optim.SGD([{"params": net.parameters(), "net": net}], lr=0.1)


def settle(record: Record, optimizer: torch.optim.Optimizer, step: int, **more: Any) -> None:
    """Read and settle a step."""
    net = optimizer.param_groups[0]["net"]
    reader = Reader(net)
    reading = reader.read(0, optimizer, step, loss=torch.tensor(3.0))
    about = {"wanted": True, "log_step": step, "due": 0, **{k: v for k, v in more.items() if k in ("wanted", "due")}}
    pending = PendingStep(step, reading, describe_optimizer(optimizer), scaled=False, unscales=False, **about)
    record.expects(0, "SGD", 0)
    record.settle(
        pending,
        reader,
        overflow=more.get("overflow", False),
        agreement=more.get("agreement"),
        skipped_steps=0,
    )


def begun(sink: Any = None) -> Record:
    """Return a record that has begun."""
    record = Record(Settings(), Teller())
    record.open([] if sink is None else [sink])
    assert record.begin(["(root)"], several=False)
    return record


def test_a_settled_step_is_remembered_and_reported(optimizer, sink):
    """The row, the global norm and the report are of the same reading."""
    record = begun(sink)
    settle(record, optimizer, 7)
    assert record.history.norms.tolist() == [[4.0]]
    assert (record.norms, record.num_readings) == ({0: 4.0}, 1)
    assert [report.snapshot.step for report in sink.reports] == [7]


def test_a_step_that_nobody_wants_is_forgotten_unless_it_is_poisoned(optimizer, sink):
    """Its global norm is known all the same."""
    record = begun(sink)
    settle(record, optimizer, 0, wanted=False)
    assert (len(record.history), record.norms) == (0, {0: 4.0})
    optimizer.param_groups[0]["params"][0].grad[0, 0] = float("nan")
    settle(record, optimizer, 1, wanted=False)
    assert [d.rule for d in record.take_onsets()] == ["non_finite"]
    assert record.take_onsets() == ()


def test_an_overflow_is_a_row_and_no_fault(optimizer):
    """It is neither judged nor counted as a reading, and the last true norm stays."""
    record = begun()
    settle(record, optimizer, 0)
    optimizer.param_groups[0]["params"][0].grad[0, 0] = float("inf")
    settle(record, optimizer, 1, overflow=True)
    assert (len(record.history), record.num_readings, record.norms) == (2, 1, {0: 4.0})
    assert record.diagnoses == []


def test_beside_other_processes_a_loss_is_not_known_before_it_is_exchanged(optimizer):
    """It goes into the exchange instead."""
    record, agreement = begun(), Agreement()
    settle(record, optimizer, 5, agreement=agreement)
    assert np.isnan(record.history.losses).all()
    for _ in range(EVERY_N_BATCHES):
        known = agreement.end_batch(lambda values: values, off=False, unclipped=False, tells=True)
    assert known is not None
    assert known.losses == [(0, 5, 3.0)]


def test_the_same_model_goes_on_and_another_one_begins_anew(optimizer):
    """A model that has grown is the same; one without a known layer is another."""
    record = begun()
    settle(record, optimizer, 0)
    assert not record.begin(["(root)", "new"], several=False)
    assert len(record.history) == 1
    assert record.begin(["other"], several=False)
    assert len(record.history) == record.num_readings == 0


def test_a_state_that_cannot_be_taken_back_leaves_nothing_behind(optimizer):
    """Half of a checkpoint is worse than none."""
    record, fresh = begun(), begun()
    settle(record, optimizer, 0)
    state = record.state_dict()
    fresh.load_state_dict(state, ["(root)"])
    assert fresh.history.norms.tolist() == [[4.0]]
    with pytest.raises(KeyError):
        fresh.load_state_dict({"history": state["history"]}, ["(root)"])
    assert len(fresh.history) == 0


class Fails:
    """A part of a sink that cannot be written."""

    def write(self, report):
        raise OSError("full")

    def close(self):
        """Do nothing."""


class FailingPicture(Fails, PictureSink):
    """A picture that cannot be written."""

    def __init__(self):
        """Draw nothing."""


class FailingHeatmap(Fails, HeatmapSink):
    """The same of the other one."""

    def __init__(self):
        """Write nothing."""


@pytest.mark.parametrize(
    ("sinks", "told"),
    [
        ([], "there"),
        ([FailingPicture], "there (not all of it, see above)"),
        ([FailingHeatmap], "there (not all of it, see above)"),
        ([FailingPicture, FailingHeatmap], "could not be written, see above"),
    ],
)
def test_at_the_end_it_is_known_how_much_of_the_picture_there_is(optimizer, sink, sinks, told):
    """Two sinks make it; either may have failed, and whatever else has failed is none of it."""
    ends = []
    sink.end = lambda *ending: ends.append(ending)
    record = Record(Settings(), Teller())
    record.open([sink, Fails(), *(kind() for kind in sinks)])
    record.begin(["(root)"], several=False)
    settle(record, optimizer, 0)
    assert record.close("error", "KeyError", "there") == told
    assert ends == [("error", "KeyError")]
    settle(record, optimizer, 1)
    assert len(sink.reports) == 1
