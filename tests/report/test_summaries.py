"""Test ``lightning_gradwatch.report.summaries``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR
from tensorboard.util.tensor_util import make_ndarray

from lightning_gradwatch.report.summaries import LoggerFile, OwnFile, OwnTag

TABLE = np.array([[1.0, -np.inf], [np.nan, 65504.0]], dtype=np.float16)


def assert_read_back(directory: Path) -> None:
    """Read a table and a text with TensorBoard's own reader."""
    events = EventAccumulator(str(directory), size_guidance={"tensors": 0}).Reload()
    first, second = events.Tensors("gradwatch/a")
    assert (first.step, second.step) == (7, 9)
    assert make_ndarray(second.tensor_proto).dtype == np.float16
    np.testing.assert_array_equal(make_ndarray(second.tensor_proto), TABLE)
    assert json.loads(events.Tensors("gradwatch/b")[0].tensor_proto.string_val[0]) == {"event": "end"}
    about = events.SummaryMetadata("gradwatch/a")
    assert (about.plugin_data.plugin_name, about.plugin_data.content) == ("gradwatch", b"about it")
    assert about.data_class == DATA_CLASS_TENSOR


def test_a_tensorboard_logger_s_own_file_takes_our_summaries(lightning, tmp_path: Path):
    """Fails where torch's SummaryWriter or Lightning's logger no longer lead to the file writer as we ask for it."""
    logger = lightning.loggers.TensorBoardLogger(tmp_path, name="", version="")
    file, tag = LoggerFile(logger), OwnTag("gradwatch/a", b"about it")
    assert list(tmp_path.iterdir()) == []
    for step in (7, 9):
        file.add(tag.table(TABLE), step)
    file.add(OwnTag("gradwatch/b", b"").text({"event": "end"}), 0)
    file.flush()
    assert_read_back(tmp_path)
    file.close()
    # It is the person's: they may go on writing.
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.finalize("success")
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1
    assert EventAccumulator(str(tmp_path)).Reload().Scalars("loss")[0].value == 1


def test_a_file_of_ours_is_made_when_something_is_written(tmp_path: Path):
    """Nothing is left by a run in which there was nothing to write."""
    file, tag = OwnFile(tmp_path / "gradwatch"), OwnTag("gradwatch/a", b"about it")
    file.flush()
    file.close()
    assert list(tmp_path.iterdir()) == []
    for step in (7, 9):
        file.add(tag.table(TABLE), step)
    file.add(OwnTag("gradwatch/b", b"").text({"event": "end"}), 0)
    file.flush()
    assert_read_back(tmp_path / "gradwatch")
    file.close()


def test_a_number_that_no_browser_reads_is_refused():
    """JSON knows no NaN, though Python writes it."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        OwnTag("gradwatch/b", b"").text({"loss": float("nan")})
