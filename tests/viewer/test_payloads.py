"""Test ``lightning_gradwatch.viewer.payloads``."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.compat.proto import tensor_pb2, types_pb2

from lightning_gradwatch.viewer.payloads import floats_of, read_event


class TestFloatsOf:
    """A table of floats."""

    @pytest.mark.parametrize(
        ("kind", "content", "sizes", "expected"),
        [
            (types_pb2.DT_HALF, b"\x00\x3c\x00\xc0", [2], [1.0, -2.0]),
            (types_pb2.DT_HALF, b"\x00\x3c", [1, 1], [[1.0]]),
            (types_pb2.DT_FLOAT, b"\x00\x00\x80\x3f", [1], [1.0]),
            (types_pb2.DT_HALF, b"", [0, 3], []),
        ],
    )
    def test_it_reads_bytes_as_they_are_written(
        self, kind: int, content: bytes, sizes: list[int], expected: list[Any]
    ) -> None:
        """Little-endian, in the shape that is told."""
        table = floats_of(tensor(kind, content, sizes))
        assert table is not None
        assert table.tolist() == expected

    @pytest.mark.parametrize(
        ("kind", "content", "sizes"),
        [
            (types_pb2.DT_INT32, bytes(4), [1]),
            (types_pb2.DT_HALF, bytes(3), [1]),
            (types_pb2.DT_HALF, bytes(4), [3]),
            (types_pb2.DT_HALF, bytes(4), [-1, -2]),
            (types_pb2.DT_HALF, b"", [2**62, 2**62]),
            (99, b"", []),
        ],
    )
    def test_what_is_no_table_of_floats_is_none(self, kind: int, content: bytes, sizes: list[int]) -> None:
        """Another type, too few bytes or too many, a shape that cannot be."""
        assert floats_of(tensor(kind, content, sizes)) is None


def tensor(kind: int, content: bytes, sizes: list[int]) -> Any:
    """Return a tensor as it stands in a record."""
    made = tensor_pb2.TensorProto(dtype=kind, tensor_content=content)
    for size in sizes:
        made.tensor_shape.dim.add(size=size)
    return made


class TestReadEvent:
    """An event as a line of JSON."""

    @given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=3)))
    def test_what_comes_out_is_plain_json(self, value: Any) -> None:
        """A browser can read it, also where a number was not finite."""
        event = read_event(json.dumps({"event": "x", "value": value}).encode())
        assert event is not None
        assert read_event(json.dumps(event, allow_nan=False)) == event

    @pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"3", b"\xff", b"[" * 100_000])
    def test_what_is_no_object_is_none(self, text: bytes) -> None:
        """A line that another program has written, or half of one."""
        assert read_event(text) is None

    def test_numbers_that_are_too_large_become_texts(self) -> None:
        """JSON may hold 1e999, of which Python makes infinity."""
        assert read_event(b'{"a": 1e999, "b": -Infinity, "c": 1.5}') == {"a": "1e999", "b": "-Infinity", "c": 1.5}
