"""What a record of an event file holds of ours: a table of floats, or an event as a line of JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from tensorboard.compat.proto import tensor_pb2, types_pb2

_TYPES: dict[int, np.dtype[Any]] = {types_pb2.DT_HALF: np.dtype("<f2"), types_pb2.DT_FLOAT: np.dtype("<f4")}


def floats_of(tensor: tensor_pb2.TensorProto) -> npt.NDArray[Any] | None:
    """Return a tensor of floats; None for what is none.

    Args:
        tensor: As the writer wrote it: its bytes in one piece.

    Example:
        >>> tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, tensor_content=np.ones(2, "<f4").tobytes())
        >>> tensor.tensor_shape.dim.add(size=2).size, floats_of(tensor).tolist()
        (2, [1.0, 1.0])
    """
    dtype = _TYPES.get(tensor.dtype)
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    if dtype is None or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(tensor.tensor_content):
        return None
    table: npt.NDArray[Any] = np.frombuffer(tensor.tensor_content, dtype=dtype).reshape(shape)
    return table


def read_event(text: bytes | str) -> dict[str, Any] | None:
    """Read a line that the writer wrote as JSON; None where it is none.

    Numbers that are not finite become strings: a browser's JSON knows none.

    Example:
        >>> read_event(b'{"event": "onset", "step": 3, "loss": NaN}')
        {'event': 'onset', 'step': 3, 'loss': 'NaN'}
    """
    try:
        values = json.loads(text, parse_constant=str, parse_float=_finite_or_text)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _finite_or_text(text: str) -> float | str:
    return float(text) if math.isfinite(float(text)) else text
