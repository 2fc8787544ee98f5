"""Test ``lightning_gradwatch.report.jsonl_sink``."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np

from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.report.jsonl_sink import FORMAT_VERSION, JsonlSink

SICK = Diagnosis("dead", Symptom.DEAD, layers=("fc\u00e9",), step=3, evidence={"worst": np.float64("nan")})


def lines(path: Path) -> list[dict[str, object]]:
    """Read all lines, refusing NaN, which is no JSON."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    return [json.loads(line, parse_constant=refuse) for line in path.read_text(encoding="utf-8").splitlines()]


def test_onsets_and_recoveries_are_a_line_each(report_of, tmp_path: Path) -> None:
    """Each line has a version, the run, the time, the event and the whole diagnosis."""
    sink = JsonlSink(tmp_path)
    over = Diagnosis(**{**SICK.__dict__, "recovered_at": 9})
    sink.write(report_of([[1.0]], onsets=(SICK,)))
    sink.write(report_of([[1.0]], recoveries=(over,), onsets=(SICK,)))
    sink.close()
    written = lines(tmp_path / "gradwatch" / "diagnoses.jsonl")
    assert [line["event"] for line in written] == ["onset", "onset", "recovery"]
    assert {line["format_version"] for line in written} == {FORMAT_VERSION}
    assert len({line["run"] for line in written}) == 1
    assert datetime.fromisoformat(written[0]["time"]).tzinfo is not None
    assert written[0]["evidence"] == {"worst": "nan"}
    assert [Diagnosis.from_dict({k: line[k] for k in SICK.to_dict()}).layers for line in written] == [("fc\u00e9",)] * 3


def test_a_healthy_run_makes_no_file(report_of, tmp_path: Path) -> None:
    """Without a diagnosis nothing is written, not even a folder."""
    sink = JsonlSink(tmp_path)
    sink.write(report_of([[1.0]], diagnoses=(SICK,)))
    sink.close()
    assert list(tmp_path.iterdir()) == []


def test_what_came_back_unheard_and_lasts_is_told_at_the_end(report_of, tmp_path: Path) -> None:
    """Else the last line of a fault that flaps would be a recovery, and the file would say that it is over."""
    again = replace(SICK, step=70, count=4)
    sink = JsonlSink(tmp_path)
    sink.write(report_of([[1.0]], onsets=(SICK,), diagnoses=(SICK,)))
    sink.write(report_of([[1.0]], recoveries=(replace(SICK, recovered_at=9),)))
    unheard = (replace(again, recovered_at=80), replace(again, step=90, severity="notice"), again)
    sink.write(report_of([[1.0]], diagnoses=(replace(SICK, recovered_at=9), *unheard)))
    sink.close()
    written = [(line["event"], line["step"], line["count"]) for line in lines(tmp_path / "gradwatch/diagnoses.jsonl")]
    assert written == [("onset", 3, 1), ("recovery", 3, 1), ("onset", 70, 4)]


def test_a_second_run_is_appended(report_of, tmp_path: Path) -> None:
    """A second run in one directory keeps the first one's lines."""
    for _ in range(2):
        JsonlSink(str(tmp_path)).write(report_of([[1.0]], onsets=(SICK,)))
    assert len(lines(tmp_path / "gradwatch" / "diagnoses.jsonl")) == 2
