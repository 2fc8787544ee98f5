"""Series as the page in a browser reads them: one block of bytes, the same over HTTP and inside an HTML file.

``uint32`` length of the head, the head as JSON (padded with blanks so that the numbers begin at a multiple of 8), then
``float64 steps[n]``, then ``int16 median[num_layers][n]``, ``low`` and ``high``, then ``uint8 state[num_layers][n]``,
all little-endian. An ``int16`` is log10 times ``SCALE``; two of them stand for what has no logarithm.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_gradwatch.viewer.metadata import FORMAT_VERSION, QUANTITIES, SeriesMetadata
from lightning_gradwatch.viewer.run import Run, Series, newest_step, quantity_of_rule
from lightning_gradwatch.viewer.windows import merge_pairs

# 1/256 of a decade is 0.9% of the value, no more than the event file has lost already.
SCALE = 256
NOTHING = -32768
ZERO = -32767


def encode(series: Series, most: int | None = None) -> bytes:
    """Encode a series.

    Args:
        series: The series.
        most: Columns at most; neighbors are merged, so that no spike is lost. None for all.

    Returns:
        The bytes described above.

    Example:
        >>> from lightning_gradwatch.viewer.metadata import SeriesMetadata
        >>> from lightning_gradwatch.viewer.windows import Windows
        >>> about = SeriesMetadata("norms", 0, "a1", 0.0, 0, ("fc1",), (0,))
        >>> block = encode(Series(about, about.layers, (), Windows.empty(1)))
        >>> json.loads(block[4 : 4 + int.from_bytes(block[:4], "little")])["num_columns"]
        0
    """
    windows = series.windows
    while most is not None and len(windows) > max(most, 1):
        windows = merge_pairs(windows)
    about = _head(series, len(windows)) | {
        "single": series.about.resolution == 0 and windows is series.windows,
        "last_step": series.last_step,
    }
    head = json.dumps(about).encode()
    head += b" " * (-(len(head) + 4) % 8)
    tables = [_table(table) for table in (windows.median, windows.low, windows.high)]
    state = np.ascontiguousarray(windows.state.T)
    steps = windows.steps.astype("<f8")
    return b"".join([struct.pack("<I", len(head)), head, *(part.tobytes() for part in (steps, *tables, state))])


def _table(logs: npt.NDArray[np.floating]) -> npt.NDArray[np.int16]:
    scaled = np.rint(np.nan_to_num(logs.T, nan=0.0, posinf=0.0, neginf=0.0) * SCALE)
    numbers = np.clip(scaled, ZERO + 1, -ZERO)
    numbers[np.isneginf(logs.T)] = ZERO
    numbers[np.isnan(logs.T)] = NOTHING
    return np.ascontiguousarray(numbers.astype("<i2"))


def _head(series: Series, num_columns: int) -> dict[str, Any]:
    about = series.about
    quantity = QUANTITIES[about.quantity]
    return {
        "format_version": FORMAT_VERSION,
        "name": series.name,
        "quantity": about.quantity,
        "title": quantity.title,
        "explanation": quantity.explanation,
        "optimizer": about.optimizer,
        "optimizer_label": about.optimizer_label,
        "module": about.module,
        "layers": list(series.layers),
        "kinds": list(series.kinds),
        "num_columns": num_columns,
        "low": quantity.low,
        "high": quantity.high,
        "vanishing_threshold": about.vanishing_threshold,
        "exploding_threshold": about.exploding_threshold,
    }


def describe(run: Run, series: Sequence[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Return what the page needs to know of a run before it asks for a series, as plain values.

    Args:
        run: The run.
        series: Its series as ``brief`` describes them; None for those that the run holds.

    Returns:
        ``name``, ``series`` (each as ``brief`` describes it), ``diagnoses`` (each with the ``view`` that shows it),
        ``opens_on``, the view of the worst of them, ``last_step``, the newest that is known to have been trained,
        ``began``, when the newest session is told to have begun (seconds since 1970), ``disabled``, why GradWatch
        switched itself off, and ``ended``, the event that ended the run; each None where nothing is known of it.

    Example:
        >>> describe(Run("version_0"))["opens_on"]
        ''
    """
    if series is None:
        series = [{**brief(one.about, one.windows.steps), "last_step": one.last_step} for one in run.series]
    diagnoses = [{**diagnosis, "view": _view(diagnosis, series)} for diagnosis in run.diagnoses]
    worst = min(diagnoses, key=_harm, default=None)
    first = series[0]["name"] if series else ""
    return {
        "name": run.name,
        "series": list(series),
        "diagnoses": diagnoses,
        "opens_on": worst["view"] if worst else first,
        "last_step": newest_step([one["last_step"] for one in series], run.events),
        "began": _began(run.events),
        "disabled": next((str(e["disabled"]) for e in reversed(run.events) if e.get("disabled")), None),
        "ended": _ended(run.events),
    }


def brief(about: SeriesMetadata, steps: npt.NDArray[np.int64] | int | None, version: str = "") -> dict[str, Any]:
    """Return what the page needs to know of a series, as plain values.

    Args:
        about: The series.
        steps: First step of each column; or, where it has not been read, of the last one alone.
        version: Changes when it has grown; made of the steps where none is given.

    Returns:
        ``name``, ``quantity``, ``title``, ``optimizer``, ``optimizer_label``, ``module``, ``num_layers``,
        ``num_columns`` (None where that is not known), ``last_step``, ``started`` (of its newest session, seconds since
        1970) and ``version``.

    Example:
        >>> about = SeriesMetadata("norms", 0, "a1", 0.0, 0, ("fc1", "fc2"), (0, 1))
        >>> short = brief(about, np.array([0, 50]))
        >>> short["name"], short["num_columns"], short["last_step"]
        ('norms/0', 2, 50)
    """
    num_columns, last = None, steps
    if isinstance(steps, np.ndarray):
        num_columns, last = len(steps), int(steps[-1]) if len(steps) else None
    return {
        "name": about.name,
        "quantity": about.quantity,
        "title": QUANTITIES[about.quantity].title,
        "optimizer": about.optimizer,
        "optimizer_label": about.optimizer_label,
        "module": about.module,
        "num_layers": len(about.layers),
        "num_columns": num_columns,
        "last_step": last,
        "started": about.started,
        "version": version or f"{about.session}/{about.resolution}/{num_columns}/{last}",
    }


def _began(events: Sequence[Mapping[str, Any]]) -> float | None:
    """Return when the newest session began; one without a reading has only told that it was switched off."""
    told = [event.get("time") for event in events if event.get("event") in {"start", "off"}]
    return max((time for time in told if isinstance(time, (int, float))), default=None)


def _harm(diagnosis: Mapping[str, Any]) -> tuple[bool, bool, bool]:
    """Put warnings before notices, and what lasts before what is over; what was muted comes last."""
    is_over = diagnosis.get("recovered_at") is not None
    return bool(diagnosis.get("muted")), diagnosis.get("severity") != "warning", is_over


def _ended(events: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return how a run ended; one that has gone on since then has not."""
    newest = next((event for event in reversed(events) if event.get("event") in {"start", "end"}), None)
    return dict(newest) if newest is not None and newest["event"] == "end" else None


def _view(diagnosis: Mapping[str, Any], series: Sequence[Mapping[str, Any]]) -> str:
    """Find the series that a diagnosis rests on, else the gradient norms of its optimizer, else any."""
    quantity, optimizer = quantity_of_rule(str(diagnosis.get("rule", ""))), diagnosis.get("optimizer", 0)
    layers = diagnosis.get("layers") or [""]

    wanted = {"norms": 1, quantity: 0}

    def distance(one: Mapping[str, Any]) -> tuple[bool, int, bool]:
        of_another = one["optimizer"] != optimizer
        return of_another, wanted.get(one["quantity"], len(wanted)), one["module"] not in {"", layers[0]}

    return str(min(series, key=distance)["name"]) if series else ""
