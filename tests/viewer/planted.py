"""Runs with planted features at known cells, in memory and as event files: ``from viewer.planted import planted_run``.

Four kinds, all with six or seven series (``norms``, ``ratios``, ``signal``, ``delta``, ``updates``; ``time``):

- ``"sigmoid"``: a deep net whose delta falls by a factor of 0.2 a layer back; diagnosed ``vanishing.depth``, open.
- ``"relu"``: healthy; no diagnosis.
- ``"mixed"``: healthy but for the cells below, in ``norms`` and ``ratios``; several diagnoses, one of them over, one
  muted.
- ``"recurrent"``: three LSTMs whose gradient falls by a factor of 0.6 a time step back; ``vanishing.time``, open.

Rows are counted in forward order, 0 is the input; the head is registered first, so that registration order differs.
The probe's series (``signal``, ``delta``, ``updates``, ``time``) have a quarter of the columns. Cells that do not fit
into ``num_layers`` or ``num_columns`` are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from lightning_gradwatch.viewer.metadata import PLUGIN_NAME, EventsMetadata, SeriesMetadata
from lightning_gradwatch.viewer.run import Run, Series
from lightning_gradwatch.viewer.windows import INF, NAN, PRESENT, ZERO, Windows, pack

# Where the features of ``"mixed"`` are: rows, then columns.
VANISHING_BLOCK = (slice(4, 8), slice(60, 120))  # six decades too small
SPIKE_COLUMN = 150  # every layer, four decades too large, a single reading
NAN_CELL = (10, 30)
INF_CELL = (12, 90)
ZERO_CELLS = (15, slice(40, 80))
ABSENT_ROW = 17  # frozen: no value in any column

HOSTILE_NAME = "<img src=x onerror=alert(1)>"
HOSTILE_MESSAGE = "<script>alert(2)</script><b>bold</b> & \"quoted\" 'text' `code` | pipe"
HOSTILE_ROWS = {2: HOSTILE_NAME, 3: '"/><svg onload=alert(3)>.a&amp;b`c`|d\u202e\u2207'}

STARTED = 1_700_000_000.0
NUM_TIME_STEPS = 40
Logs = npt.NDArray[np.float64]


def planted_run(
    name: str = "sigmoid",
    *,
    kind: str = "sigmoid",
    num_layers: int = 20,
    num_columns: int = 200,
    stride: int = 1,
    resolution: int = 0,
    first_step: int = 0,
    session: str = "a1",
    started: float = STARTED,
    hostile: bool = False,
    ended: bool = True,
    seed: int = 0,
) -> Run:
    """Plant a run.

    Args:
        name: Of the run.
        kind: ``"sigmoid"``, ``"relu"``, ``"mixed"`` or ``"recurrent"``.
        num_layers: How many layers, the head included.
        num_columns: How many columns the gradient norms have.
        stride: Steps between two readings.
        resolution: A column is a window of ``2**resolution`` readings; above 0 the ends differ from the median, and the
            spike is in ``high`` alone.
        first_step: Step of the first column.
        session: Names the session.
        started: When it began, seconds since 1970.
        hostile: Whether some names and messages look like HTML.
        ended: Whether the run has come to an end.
        seed: Of the noise.
    """
    rng = np.random.default_rng(seed)
    layers, kinds = _layers(kind, num_layers, hostile=hostile)
    steps = first_step + np.arange(num_columns) * stride * 2**resolution
    probed = first_step + np.arange(max(num_columns // 4, 1)) * stride * 2**resolution * 4
    spread = 0.15 * min(resolution, 4)
    series = []
    for quantity, logs in _profiles(kind, num_layers).items():
        probe = quantity in {"signal", "delta", "updates"}
        columns = len(probed) if probe else num_columns
        table = logs + rng.normal(0, 0.08, (columns, num_layers)) + _settling(columns)
        windows = _windows(probed if probe else steps, table, spread)
        if kind == "mixed":
            _plant(windows, everything=not probe)
        about = _about(quantity, layers, kinds, session, started, resolution)
        series.append(Series(about, layers, kinds, windows))
    if kind == "recurrent":
        series.extend(_time_series(row, layers, probed, rng, (session, started, resolution)) for row in range(3))
    events = _events(kind, layers, stride * 2**resolution, first_step, started, hostile=hostile)
    last = int(steps[-1]) if num_columns else first_step
    end = {"event": "end", "step": last, "time": started + num_columns, "reason": "completed"}
    return Run(name, tuple(series), (*events, *([end] if ended else [])))


def _layers(kind: str, num_layers: int, *, hostile: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return names and classes in forward order, the head last."""
    parts = ("linear1", "linear2")
    if kind == "mixed":
        parts = ("self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2")
    names = [f"encoder.layers.{row // len(parts)}.{parts[row % len(parts)]}" for row in range(num_layers - 1)]
    kinds = ["Linear"] * num_layers
    if kind == "recurrent":
        names[:3] = [f"encoder.lstm.{row}" for row in range(min(3, len(names)))]
        kinds[: min(3, num_layers - 1)] = ["LSTM"] * min(3, num_layers - 1)
    names.append("head")
    for row, name in HOSTILE_ROWS.items() if hostile else ():
        if row < num_layers - 1:
            names[row] = name
    return tuple(names), tuple(kinds)


def _profiles(kind: str, num_layers: int) -> dict[str, Logs]:
    """Return log10 of each quantity in forward order, at the end of a run."""
    back = np.arange(num_layers)[::-1].astype(np.float64)  # layers to the output
    wave = 0.15 * np.sin(np.arange(num_layers) * 1.7)  # layers of several sizes
    # float32 ends at 1e-45: a net of hundreds of layers falls more slowly, or nothing would be left to see.
    fall = {"sigmoid": min(-np.log10(0.2), 30 / num_layers), "recurrent": 0.05}.get(kind, 0.02)
    delta = -2.5 - fall * back
    signal = np.full(num_layers, -0.3) if kind == "sigmoid" else -0.05 + wave / 3
    norms = delta + 1.4 + wave
    ratios = norms - 0.7
    return {"norms": norms, "ratios": ratios, "signal": signal, "delta": delta, "updates": ratios - 2.2}


def _settling(columns: int) -> Logs:
    """Return how much larger everything is at the beginning, ``[columns, 1]``."""
    return 0.6 * np.exp(-np.arange(columns) / max(columns / 8, 1))[:, None]


def _windows(steps: npt.NDArray[np.int64], logs: Logs, spread: float) -> Windows:
    median = logs.astype(np.float32)
    state = np.full(median.shape, PRESENT, dtype=np.uint8)
    return Windows(steps.astype(np.int64), median, median - np.float32(spread), median + np.float32(spread), state)


def _plant(windows: Windows, *, everything: bool) -> None:
    """Put the features of ``"mixed"`` into a table, in place."""
    num_columns, num_layers = windows.median.shape
    if everything:
        rows, columns = VANISHING_BLOCK
        for table in (windows.median, windows.low, windows.high):
            table[columns, rows] -= 6
        if num_columns > SPIKE_COLUMN:
            single = bool((windows.high == windows.median).all())
            for table in (windows.median, windows.low, windows.high) if single else (windows.high,):
                table[SPIKE_COLUMN] += 4
        for (row, column), bit in ((NAN_CELL, NAN), (INF_CELL, INF)):
            if row < num_layers and column < num_columns:
                _fill(windows, (column, row), np.nan, PRESENT | bit)
        if ZERO_CELLS[0] < num_layers:
            _fill(windows, ZERO_CELLS[::-1], -np.inf, PRESENT | ZERO)
    if num_layers - 1 > ABSENT_ROW:
        _fill(windows, (slice(None), ABSENT_ROW), np.nan, 0)


def _fill(windows: Windows, where: tuple[Any, Any], value: float, state: int) -> None:
    for table in (windows.median, windows.low, windows.high):
        table[where] = value
    windows.state[where] = state


def _about(
    quantity: str, layers: tuple[str, ...], kinds: tuple[str, ...], session: str, started: float, resolution: int
) -> SeriesMetadata:
    """Return the metadata of layers of which the last, the head, is registered first."""
    order = (*range(1, len(layers)), 0)
    return SeriesMetadata(
        quantity,
        0,
        session,
        started,
        resolution,
        (layers[-1], *layers[:-1]),
        order,
        (kinds[-1], *kinds[:-1]),
        optimizer_label="Adam",
    )


def _time_series(
    row: int,
    layers: tuple[str, ...],
    steps: npt.NDArray[np.int64],
    rng: np.random.Generator,
    of: tuple[str, float, int],
) -> Series:
    """Return the gradient of an LSTM along time: a factor of 0.6 a time step back."""
    session, started, resolution = of
    back = np.arange(NUM_TIME_STEPS)[::-1]
    logs = -3 + np.log10(0.6) * back + rng.normal(0, 0.05, (len(steps), NUM_TIME_STEPS))
    names = tuple(f"t {time}" for time in range(NUM_TIME_STEPS))
    order = tuple(range(NUM_TIME_STEPS))
    module = layers[min(row, len(layers) - 1)]
    about = SeriesMetadata("time", 0, session, started, resolution, names, order, module=module, optimizer_label="Adam")
    return Series(about, names, (), _windows(steps, logs, 0.0))


def _events(
    kind: str, layers: tuple[str, ...], stride: int, first_step: int, started: float, *, hostile: bool
) -> list[dict[str, Any]]:
    """Return the beginning, onsets and recoveries, oldest first."""

    def event(what: str, column: int, diagnosis: Mapping[str, Any]) -> dict[str, Any]:
        return {"event": what, "step": first_step + column * stride, "time": started + column, "diagnosis": diagnosis}

    def found(rule: str, column: int, **more: Any) -> dict[str, Any]:
        values = planted_diagnosis(rule, step=first_step + column * stride, **more)
        return {**values, "message": HOSTILE_MESSAGE} if hostile else values

    start = {"event": "start", "step": first_step, "time": started, "version": "0.1.0"}
    half = layers[: max(len(layers) // 2, 1)]
    if kind == "sigmoid":
        return [start, event("onset", 3, found("vanishing.depth", 3, layers=half))]
    if kind == "recurrent":
        return [start, event("onset", 4, found("vanishing.time", 4, layers=layers[:1]))]
    if kind == "relu":
        return [start]
    block = found("vanishing.depth", 60, layers=layers[VANISHING_BLOCK[0]] or half)
    muted = {**found("dead", 40, layers=layers[ZERO_CELLS[0] :][:1] or half), "muted": True}
    nan = found("non_finite", 30, layers=layers[NAN_CELL[0] :][:1] or half)
    spike = found("spike", SPIKE_COLUMN, layers=layers[:1])
    over = first_step + 120 * stride
    return [
        start,
        event("onset", 30, nan),
        event("recovery", 31, {**nan, "recovered_at": first_step + 31 * stride}),
        event("onset", 40, muted),
        event("onset", 60, block),
        event("recovery", 120, {**block, "recovered_at": over}),
        event("onset", SPIKE_COLUMN, spike),
    ]


_TOLD: Mapping[str, tuple[str, str, str, str, str]] = {
    "vanishing.depth": (
        "vanishing",
        "warning",
        "the first layers get almost no gradient and hardly move",
        "every layer back multiplies the gradient by 0.2 (R2 1.00); the input gets 5e-14 of what the output gets",
        "20 x sigmoid (slope at most 0.25); weights stand at PyTorch's default, std 0.1, Xavier would give 0.18",
    ),
    "vanishing.time": (
        "vanishing",
        "warning",
        "the gradient is lost along time: early time steps do not count",
        "every time step back multiplies the gradient by 0.6 (R2 1.00); nothing older than 18 steps is learned from",
        "an LSTM whose forget gate begins half closed",
    ),
    "spike": (
        "spike",
        "notice",
        "a single step's gradient was far larger than all others",
        "the global norm was 1e4 times its median",
        "",
    ),
    "non_finite": (
        "non_finite",
        "warning",
        "the gradient has NaN",
        "1 of 20 layers had NaN in this step",
        "a division by zero or an overflow in the layer where it began",
    ),
    "dead": ("dead", "notice", "the layer gets no gradient at all", "exactly zero in 40 steps in a row", ""),
}


def planted_diagnosis(
    rule: str, *, step: int, layers: Iterable[str], optimizer: int = 0, **more: Any
) -> dict[str, Any]:
    """Return what ``Diagnosis.to_dict()`` gives: plain values, two remedies, the first of them rehearsed."""
    symptom, severity, message, measured, cause = _TOLD[rule]
    remedies = [
        {
            "title": "nn.BatchNorm1d between 19 layers and their activations, then start again",
            "reason": "a unit's inputs then have mean 0 and variance 1 in each batch (Ioffe and Szegedy, 2015)",
            "code": "self.net = nn.Sequential(\n    nn.Linear(32, 32), nn.BatchNorm1d(32), nn.Sigmoid(),\n)",
            "effect": {
                "first_over_last_before": 5e-14,
                "first_over_last_after": 0.3,
                "loss_before": 0.72,
                "loss_after": 0.31,
                "steps": 100,
            },
        },
        {
            "title": "ReLU in place of sigmoid, with He initialization",
            "reason": "its slope is 1 where it is on, and He et al. (2015) keep the variance",
            "code": "nn.init.kaiming_normal_(layer.weight, nonlinearity='relu')",
        },
    ]
    values = {
        "rule": rule,
        "severity": severity,
        "optimizer": optimizer,
        "layers": list(layers),
        "step": step,
        "message": message,
        "measured": measured,
        "cause": cause,
        "evidence": {"factor": 0.2, "r2": 0.999},
        "count": 1,
        "recovered_at": None,
        "symptom": symptom,
        "remedies": [] if severity == "notice" else remedies,
    }
    return {**values, **more}


def planted_logdir(path: Path | str, runs: Iterable[Run]) -> Path:
    """Write runs as event files, each in the directory of its name, and return the path."""
    for run in runs:
        writer = EventFileWriter(str(Path(path) / run.name))
        for series in run.series:
            write_series(writer, series)
        session = run.series[0].about if run.series else SeriesMetadata("norms", 0, "a1", STARTED, 0, (), ())
        write_events(writer, EventsMetadata(session.session, session.started), run.events)
        writer.close()
    return Path(path)


def write_series(writer: EventFileWriter, series: Series, *, resolution: int | None = None) -> None:
    """Write a series: its columns in registration order, the metadata's content with the first record only."""
    about = series.about if resolution is None else replace(series.about, resolution=resolution)
    registered = series.windows.columns(np.argsort(about.order))
    for number, (step, record) in enumerate(zip(registered.steps, pack(registered), strict=True)):
        tensor = tensor_pb2.TensorProto(
            dtype=types_pb2.DT_HALF, tensor_shape=_shape(record.shape), tensor_content=record.astype("<f2").tobytes()
        )
        content = about.content() if number == 0 else b""
        _add(writer, about.tag, tensor, content, int(step), about.started + number)


def write_events(writer: EventFileWriter, about: EventsMetadata, events: Iterable[Mapping[str, Any]]) -> None:
    """Write events of a session as JSON texts."""
    for number, event in enumerate(events):
        tensor = tensor_pb2.TensorProto(
            dtype=types_pb2.DT_STRING, tensor_shape=_shape(()), string_val=[json.dumps(event).encode()]
        )
        content = about.content() if number == 0 else b""
        # Numbered: of two at one step TensorBoard would forget the first.
        _add(writer, about.tag, tensor, content, number, about.started + number)


def _shape(sizes: tuple[int, ...]) -> tensor_shape_pb2.TensorShapeProto:
    return tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=size) for size in sizes])


def _add(
    writer: EventFileWriter, tag: str, tensor: tensor_pb2.TensorProto, content: bytes, step: int, time: float
) -> None:
    plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME, content=content)
    metadata = summary_pb2.SummaryMetadata(plugin_data=plugin, data_class=summary_pb2.DATA_CLASS_TENSOR)
    value = summary_pb2.Summary.Value(tag=tag, metadata=metadata, tensor=tensor)
    writer.add_event(event_pb2.Event(wall_time=time, step=step, summary=summary_pb2.Summary(value=[value])))
