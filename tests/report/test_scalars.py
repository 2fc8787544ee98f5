"""Test ``lightning_gradwatch.report.scalars``."""

from __future__ import annotations

import dataclasses
import math
import pickle

import numpy as np
import pytest

from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.report.scalars import CLIP_SCALARS, SCALARS, ScalarSink, clip_coefficient, scalars

NORMS = [3.0, 4.0, 0.0, np.nan]
PRESENT = [True, True, True, False]


class Book:
    """A logger that keeps what it gets."""

    def __init__(self) -> None:
        self.rows: list[tuple[dict[str, float], int]] = []

    def __call__(self, values: dict[str, float], step: int) -> None:
        """Keep a row."""
        self.rows.append((dict(values), step))


def test_the_numbers_are_those_computed_by_hand(report_of) -> None:
    """Global norms are norms of all present layers, percentiles are over the positive finite ones."""
    faults = (
        Diagnosis("dead", Symptom.DEAD),
        Diagnosis("dead", Symptom.DEAD, recovered_at=3),
        Diagnosis("dead", Symptom.DEAD, severity="notice"),
    )
    report = report_of([NORMS], present=[PRESENT], clipped=[[0.6, 0.8, 0.0, np.nan]], diagnoses=faults, skipped_steps=2)
    logs = np.log10([3.0, 4.0])
    expected = [5.0, 1.0, *(float(np.percentile(logs, q)) for q in (5, 50, 95)), 1.0, 2.0, 1.0]
    assert scalars(report) == pytest.approx(dict(zip(SCALARS, expected, strict=True)))


@pytest.mark.parametrize("norms", [[0.0, 0.0], [np.nan, np.inf]])
def test_percentiles_of_nothing_are_nan(report_of, norms: list[float]) -> None:
    """Where no norm is positive and finite the percentiles are NaN, without a warning."""
    values = scalars(report_of([norms]))
    assert all(math.isnan(values[f"gradwatch/log10_norm_{p}"]) for p in ("p05", "median", "p95"))
    assert values["gradwatch/active"] == 1


def test_the_list_of_keys_is_constant(reports_of) -> None:
    """Every row has the same keys in the same order, whatever the gradients are."""
    book = Book()
    sink = ScalarSink(book)
    table = np.array([[1.0, 2.0], [np.nan, np.inf], [0.0, 0.0], [1.0, 1e300]])
    for report in reports_of(table, due=True):
        sink.write(report)
    sink.close()
    assert [tuple(row) for row, _ in book.rows] == [SCALARS] * 4
    assert [step for _, step in book.rows] == [0, 1, 2, 3]


def test_rows_follow_the_logging_interval(report_of) -> None:
    """A report that is not due is not logged."""
    book = Book()
    ScalarSink(book).write(report_of([[1.0]], due=False))
    assert book.rows == []


def test_each_layer_goes_along_where_asked(report_of) -> None:
    """With per_layer every layer has its norm, NaN where it is absent."""
    book = Book()
    sink = ScalarSink(book, per_layer=True)
    sink.write(report_of([NORMS], present=[PRESENT], due=True))
    sink.close()
    values = book.rows[0][0]
    assert tuple(values) == (*SCALARS, *(f"gradwatch/norm/fc{i}" for i in range(4)))
    assert values["gradwatch/norm/fc1"] == 4.0
    assert math.isnan(values["gradwatch/norm/fc3"])


def test_several_optimizers_have_keys_of_their_own(report_of) -> None:
    """The optimizer's label ends each key."""
    book = Book()
    sink = ScalarSink(book)
    sink.write(report_of([[1.0]], due=True, optimizer_label="optimizer_1"))
    sink.flush()
    assert tuple(book.rows[0][0]) == tuple(f"{name}/optimizer_1" for name in SCALARS)


def test_a_watch_that_is_switched_off_logs_that_it_is(report_of) -> None:
    """Active becomes 0, also where nothing was logged before."""
    book = Book()
    ScalarSink(book).deactivate(7)
    assert book.rows == [({"gradwatch/active": 0.0}, 7)]


def test_switched_off_is_logged_under_the_keys_in_use(report_of) -> None:
    """With several optimizers each one's own key becomes 0, and no new key appears."""
    book = Book()
    sink = ScalarSink(book)
    for number in (0, 1, 0):
        sink.write(report_of([[1.0]], due=True, optimizer_label=f"optimizer_{number}"))
    sink.deactivate(9)
    assert book.rows[1:] == [({"gradwatch/active/optimizer_0": 0.0, "gradwatch/active/optimizer_1": 0.0}, 9)]


def test_optimizers_of_one_batch_stand_in_one_row(report_of) -> None:
    """What several optimizers tell in a batch is logged once, when the batch is over; of one optimizer the last."""
    book = Book()
    sink = ScalarSink(book)
    for label, norm in (("optimizer_0", 1.0), ("optimizer_1", 2.0), ("optimizer_0", 3.0)):
        sink.write(report_of([[norm]], optimizer_label=label, log_step=4, due=True))
    assert book.rows == []
    sink.flush()
    sink.flush()
    ((values, step),) = book.rows
    assert step == 4
    assert values["gradwatch/global_norm/optimizer_0"] == 3.0
    assert values["gradwatch/global_norm/optimizer_1"] == 2.0


def test_nothing_is_lost_where_no_flush_came(report_of) -> None:
    """A later batch, the end and a failure log what was kept."""
    for end in (lambda sink: sink.close(), lambda sink: sink.deactivate(9)):
        book = Book()
        sink = ScalarSink(book)
        sink.write(report_of([[1.0]], log_step=1, due=True))
        sink.write(report_of([[2.0]], log_step=2, due=True))
        end(sink)
        assert [step for _, step in book.rows][:2] == [1, 2]
        assert [row["gradwatch/global_norm"] for row, _ in book.rows[:2]] == [1.0, 2.0]


def test_the_coefficient_is_that_of_the_most_clipped_layer(report_of) -> None:
    """Smallest ratio of norms after and before; a layer without a gradient, or with a zero one, does not count."""
    report = report_of([[4.0, 2.0, 0.0, np.nan]], present=[PRESENT], clipped=[[1.0, 1.0, 0.0, np.nan]], clips=True)
    assert clip_coefficient(report) == 0.25
    assert clip_coefficient(report_of([[4.0, 0.0]])) == 1.0
    assert clip_coefficient(report_of([[0.0, 0.0]])) == 1.0
    assert math.isnan(clip_coefficient(report_of([[np.inf, 1.0]])))


def test_the_rate_is_over_the_readings_since_the_last_row(reports_of) -> None:
    """Also over those that were not logged themselves; what is not finite does not count."""
    norms = np.array([[1.0], [2.0], [4.0], [8.0], [np.nan], [16.0], [1.0]])
    clipped = np.minimum(norms, 2.0)
    book = Book()
    sink = ScalarSink(book)
    for number, report in enumerate(reports_of(norms, clipped=clipped, clips=True)):
        sink.write(dataclasses.replace(report, due=number in (3, 5, 6)))
        sink.flush()
    rows = [values for values, _ in book.rows]
    assert [row["gradwatch/clipping_rate"] for row in rows] == [0.5, 1.0, 0.0]
    assert [row["gradwatch/clip_coefficient"] for row in rows] == [0.25, 0.125, 1.0]
    assert [tuple(row) for row in rows] == [(*SCALARS, *CLIP_SCALARS)] * 3


def test_several_optimizers_have_rates_of_their_own(report_of) -> None:
    """One that is not logged in a row keeps what it has counted."""
    book = Book()
    sink = ScalarSink(book)
    for label, after, due in (("optimizer_0", 1.0, False), ("optimizer_1", 2.0, True), ("optimizer_0", 2.0, True)):
        sink.write(report_of([[2.0]], clipped=[[after]], clips=True, optimizer_label=label, due=due))
        sink.flush()
    (first, _), (second, _) = book.rows
    assert first["gradwatch/clipping_rate/optimizer_1"] == 0.0
    assert second["gradwatch/clipping_rate/optimizer_0"] == 0.5


def test_no_finite_reading_has_no_rate(report_of) -> None:
    """It is NaN, and not 0 as in a healthy run."""
    book = Book()
    sink = ScalarSink(book)
    sink.write(report_of([[np.nan]], clips=True, due=True))
    sink.close()
    assert math.isnan(book.rows[0][0]["gradwatch/clipping_rate"])


def test_a_run_that_is_never_logged_keeps_two_counts(report_of) -> None:
    """Where no row is ever due nothing grows, and a row that comes after all has the rate of all steps."""
    book = Book()
    sink = ScalarSink(book)
    sizes = []
    for step in range(2000):
        clipped = [[1.0]] if step % 2 == 0 else [[4.0]]
        sink.write(report_of([[4.0]], clipped=clipped, clips=True, due=False))
        sizes.append(len(pickle.dumps(sink._clipped)))
    assert sizes[-1] == sizes[999]
    sink.write(report_of([[4.0]], clipped=[[4.0]], clips=True, due=True))
    sink.flush()
    assert book.rows[0][0]["gradwatch/clipping_rate"] == pytest.approx(1000 / 2001)
