"""The diagnoses as a file: one JSON object a line, for programs and for the day after."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lightning_gradwatch.detect.diagnosis import Diagnosis
from lightning_gradwatch.report.step_report import StepReport

# Raised when a reader of an older file would misunderstand a newer one.
FORMAT_VERSION = 1


class JsonlSink:
    """Append each onset and recovery that is told to ``gradwatch/diagnoses.jsonl`` in the log directory.

    At the end comes the onset of what has come back so often that it was not told any more, and lasts.

    The file is appended to, never overwritten: two runs in one directory are told apart by ``run``, the time at which
    watching began. It is made with the first diagnosis.

    Args:
        directory: The log directory.
    """

    def __init__(self, directory: str | Path) -> None:
        self.path = Path(directory) / "gradwatch" / "diagnoses.jsonl"
        self._run = _now()
        self._told: set[tuple[str, int, int]] = set()
        self._faults: Sequence[Diagnosis] = ()

    def write(self, report: StepReport) -> None:
        """Append what began and what ended."""
        self._faults = report.diagnoses
        self._append([("onset", d) for d in report.onsets] + [("recovery", d) for d in report.recoveries])

    def _append(self, events: Sequence[tuple[str, Diagnosis]]) -> None:
        self._told |= {_key(diagnosis) for _, diagnosis in events}
        if events:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(self._line(event, d), allow_nan=False) + "\n" for event, d in events)

    def _line(self, event: str, diagnosis: Diagnosis) -> dict[str, Any]:
        head = {"format_version": FORMAT_VERSION, "run": self._run, "time": _now(), "event": event}
        return {**head, **diagnosis.to_dict()}

    def close(self) -> None:
        """Append what lasts and was not told."""
        lasting = [d for d in self._faults if d.recovered_at is None and d.severity == "warning"]
        self._append([("onset", d) for d in lasting if d.count > 1 and _key(d) not in self._told])


def _key(diagnosis: Diagnosis) -> tuple[str, int, int]:
    return diagnosis.rule, diagnosis.optimizer, diagnosis.step


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
