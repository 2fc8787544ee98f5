"""How a series and an event become summaries in TensorBoard's event files, and the one place that writes them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_HALF, DT_STRING

from lightning_gradwatch.viewer.metadata import PLUGIN_NAME


class EventFile(Protocol):
    """Where summaries go."""

    def add(self, summary: Summary, step: int) -> None:
        """Take a summary."""
        ...

    def flush(self) -> None:
        """Have everything on disk."""
        ...

    def close(self) -> None:
        """The same, at the end."""
        ...


class LoggerFile:
    """The event file that a TensorBoard logger writes anyway.

    Not a second one in the same directory: TensorBoard's Python loader would stop to follow the older of the two.

    Args:
        logger: Has ``experiment``, torch's ``SummaryWriter``; asked for when something is written, since making it may
            fail.
    """

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def add(self, summary: Summary, step: int) -> None:
        """Take a summary."""
        # SummaryWriter.add_tensor has no way to name a plugin; Lightning itself writes hyperparameters like this.
        self._logger.experiment._get_file_writer().add_summary(summary, step)

    def flush(self) -> None:
        """Have everything on disk."""
        self._logger.experiment.flush()

    def close(self) -> None:
        """The same; the file is not ours to close."""
        self.flush()


class OwnFile:
    """An event file of ours, for a run without a TensorBoard logger; made when something is written.

    Args:
        directory: Its directory, which TensorBoard shows as a run.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writer: Any = None

    def add(self, summary: Summary, step: int) -> None:
        """Take a summary."""
        if self._writer is None:
            # Only here: it takes longer to import than all of ours.
            from tensorboard.summary.writer.event_file_writer import EventFileWriter  # noqa: PLC0415

            self._directory.mkdir(parents=True, exist_ok=True)
            self._writer = EventFileWriter(str(self._directory))
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        """Have everything on disk."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """The same, and end the thread that writes."""
        if self._writer is not None:
            self._writer.close()


class OwnTag:
    """A tag of ours; only its first record carries the metadata's content, since TensorBoard keeps no other.

    Args:
        name: The tag.
        content: Of the metadata.

    Example:
        >>> tag = OwnTag("gradwatch/x", b"about it")
        >>> first, second = tag.table(np.zeros((4, 2), dtype=np.float16)), tag.text({"event": "end"})
        >>> [summary.value[0].metadata.plugin_data.content for summary in (first, second)]
        [b'about it', b'']
    """

    def __init__(self, name: str, content: bytes) -> None:
        self.name = name
        self._content = content
        # Values without numbers, by the shape of their table: to copy one takes a tenth of the time of making it.
        self._blanks: dict[tuple[int, ...], Summary.Value] = {}

    def table(self, table: npt.NDArray[np.float16], beside: Summary | None = None) -> Summary:
        """Return a summary of a table.

        Args:
            table: The numbers.
            beside: A summary of other tags at the same step, which gets this one too.
        """
        summary = Summary() if beside is None else beside
        value = summary.value.add()
        value.CopyFrom(self._blank(table.shape))
        value.tensor.tensor_content = table.astype("<f2", copy=False).tobytes()
        if self._content:
            value.metadata.plugin_data.content, self._content = self._content, b""
        return summary

    def text(self, values: Mapping[str, Any]) -> Summary:
        """Return a summary of plain values, as JSON.

        Raises:
            ValueError: If a number is not finite: no browser would read it.
        """
        text = json.dumps(values, allow_nan=False).encode()
        content, self._content = self._content, b""
        return Summary(value=[self._value(TensorProto(dtype=DT_STRING, string_val=[text]), content)])

    def _blank(self, shape: tuple[int, ...]) -> Summary.Value:
        if shape not in self._blanks:
            sizes = [TensorShapeProto.Dim(size=size) for size in shape]
            tensor = TensorProto(dtype=DT_HALF, tensor_shape=TensorShapeProto(dim=sizes))
            self._blanks[shape] = self._value(tensor, b"")
        return self._blanks[shape]

    def _value(self, tensor: TensorProto, content: bytes) -> Summary.Value:
        about = SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME, content=content)
        metadata = SummaryMetadata(plugin_data=about, data_class=DATA_CLASS_TENSOR)
        return Summary.Value(tag=self.name, metadata=metadata, tensor=tensor)
