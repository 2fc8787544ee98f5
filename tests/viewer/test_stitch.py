"""Test ``lightning_gradwatch.viewer.stitch``."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.report.pyramid import Pyramid
from lightning_gradwatch.viewer.metadata import SeriesMetadata
from lightning_gradwatch.viewer.stitch import Outline, Tag, in_order, needed, stitch
from lightning_gradwatch.viewer.windows import bundle, pack, pack_reading, summarize

LAYERS = ("head", "fc1", "fc2")
ORDER = (1, 2, 0)


def about(**changes: Any) -> SeriesMetadata:
    """Return metadata of three layers, of which the last is registered first."""
    return replace(SeriesMetadata("norms", 0, "a", 1.0, 0, LAYERS, ORDER, ("A", "B", "C")), **changes)


def tag(steps: Sequence[int], value: float = 1.0, *, time: float = 0.0, **changes: Any) -> Tag:
    """Return a tag in which layer ``i`` has ``10 ** (value + i)`` in each of the steps, written a second apart."""
    metadata = about(**changes)
    norms = 10.0 ** (value + np.arange(len(metadata.layers)))
    table = pack_reading(norms, np.ones(len(norms), dtype=bool))
    return Tag.of(metadata, [(step, time + i, table) for i, step in enumerate(steps)])


def seen(tags: Sequence[Tag], layer: str = "head") -> list[tuple[int, float]]:
    """Return the steps of the one series that these tags make, each with a layer's median."""
    (series,) = stitch(tags)
    column = series.windows.median[:, series.layers.index(layer)]
    return list(zip(series.windows.steps.tolist(), column.tolist(), strict=True))


class TestTag:
    """The records of a tag."""

    def test_records_of_another_shape_or_type_are_dropped(self) -> None:
        """A layer more, a row less, whole numbers or texts: none of them can be shown."""
        good = pack_reading(np.ones(3), np.ones(3, dtype=bool))
        odd = [
            np.ones((1, 4), np.float16),
            np.ones((2, 3), np.float16),
            np.ones(3),
            np.array("x", object),
            good.astype(int),
        ]
        assert Tag.of(about(), [(i, 0.0, table) for i, table in enumerate([good, *odd, good])]).steps.tolist() == [0, 6]

    def test_single_readings_and_windows_may_alternate(self) -> None:
        """The order is that of the file, whatever the height of a record."""
        rng = np.random.default_rng(0)
        rows, expected = [], []
        for step in range(9):
            norms = 10 ** rng.uniform(-3, 3, (1, 3))
            window = summarize(step, norms, np.ones((1, 3), dtype=bool))
            rows.append(
                (step, 0.0, pack(window)[0] if rng.integers(2) else pack_reading(norms[0], np.ones(3, dtype=bool)))
            )
            expected.append(window.median[0])
        assert len({len(record) for _, _, record in rows}) == 2
        np.testing.assert_allclose(Tag.of(about(), rows).windows.median, expected, rtol=1e-3)

    def test_readings_of_one_record_take_its_place_in_the_file(self) -> None:
        """Several readings in a record, one alone and windows: all in the order of the file."""
        rows = [pack_reading(np.full(3, 10.0**power), np.ones(3, dtype=bool)) for power in range(5)]
        window = pack(summarize(9, np.full((1, 3), 1e5), np.ones((1, 3), dtype=bool)))[0]
        made = Tag.of(about(), [(4, 0.0, bundle([1, 2, 4], rows[:3])), (6, 1.0, rows[3]), (9, 2.0, window)])
        assert made.steps.tolist() == [1, 2, 4, 6, 9]
        assert made.windows.median[:, 0].tolist() == [0, 1, 2, 3, 5]
        assert made.times.tolist() == [0, 0, 0, 1, 2]

    def test_a_bundle_of_another_width_is_dropped(self) -> None:
        """A record that holds a layer more or less, or readings of four rows."""
        good = bundle([0, 1], [pack_reading(np.ones(3), np.ones(3, dtype=bool))] * 2)
        odd = [good[:, :, 1:], np.concatenate([good, good], axis=1), good.astype(np.float32)]
        assert Tag.of(about(), [(i, 0.0, table) for i, table in enumerate(odd)]).steps.tolist() == []

    def test_a_state_that_is_no_number_is_no_error(self) -> None:
        """Another program may have written anything into a float."""
        table = np.full((4, 3), np.nan, np.float16)
        assert len(Tag.of(about(), [(0, 0.0, table)]).windows) == 1

    def test_what_is_written_later_holds_from_its_step_on(self) -> None:
        """A loop that begins anew under the same tag writes over what it had written."""
        assert tag([0, 1, 2, 3, 1, 2]).steps.tolist() == [0, 1, 2]

    def test_time_counts_and_not_the_place_in_the_file(self) -> None:
        """Of a repeated step the record that was written last holds, wherever it was read."""
        rows = [(5, 9.0, 1.0), (5, 3.0, 7.0), (6, 4.0, 7.0), (6, 10.0, 2.0)]
        read = Tag.of(about(), [(s, t, np.full((1, 3), v, np.float16)) for s, t, v in rows])
        assert (read.windows.steps.tolist(), read.windows.median[:, 0].tolist()) == ([5, 6], [1.0, 2.0])


class TestResolutions:
    """One session in ever coarser windows."""

    @staticmethod
    def written(num_readings: int, at_once: int | None) -> tuple[list[Tag], Pyramid]:
        """Write as the sink does: what is pending after a merge goes out a few records with each reading."""
        pyramid, pending, records = Pyramid(3), [], {}
        rng = np.random.default_rng(0)
        for time in range(num_readings):
            before = pyramid.resolution
            new = pyramid.add(10 * time, 10 ** rng.uniform(-3, 3, 3), np.ones(3, dtype=bool))
            pending = new if pyramid.resolution != before else pending + new
            for record in pending[:at_once]:
                records.setdefault(pyramid.resolution, []).append((record.step, float(time), record.table))
            pending = pending[at_once:] if at_once else []
        return [Tag.of(about(resolution=level), rows) for level, rows in records.items()], pyramid

    @pytest.mark.parametrize("num_readings", [1, 2048, 2049, 2100, 2300, 5000])
    def test_at_any_moment_nothing_is_missing_and_nothing_is_there_twice(self, num_readings: int) -> None:
        """Also while a merged picture is still being written, columns follow each other up to the newest record."""
        tags, pyramid = self.written(num_readings, at_once=8)
        (series,) = stitch(tags)
        steps = series.windows.steps
        assert steps[0] == 0
        assert set(np.diff(steps)) <= {10 * 2**level for level in range(pyramid.resolution + 1)}
        assert steps[-1] == max(int(each.steps.max()) for each in tags)

    def test_when_all_is_written_the_newest_alone_is_shown(self) -> None:
        """Finer windows, written before, add nothing."""
        tags, pyramid = self.written(5000, at_once=None)
        assert len(tags) == 3
        (series,) = stitch(random.Random(0).sample(tags, 3))
        assert series.windows.steps.tolist() == [record.step for record in pyramid.records]
        highest = np.stack([record.table[2] for record in pyramid.records])
        np.testing.assert_array_equal(series.windows.high, highest[:, list(ORDER)])

    def test_a_file_that_was_cut_off_shows_the_finer_windows(self) -> None:
        """Of the coarser picture only the beginning is left; the end comes from the one before."""
        coarse, fine = tag([0, 2], 5.0, resolution=1, time=100), tag(range(8))
        assert seen([coarse, fine]) == [(0, 5), (2, 5), (4, 1), (5, 1), (6, 1), (7, 1)]

    def test_a_loop_that_begins_anew_in_fine_windows_writes_over_a_coarse_picture(self) -> None:
        """What was written after a coarser picture is not its finer beginning."""
        coarse, fine = tag([0, 4, 8, 12], 5.0, resolution=2), tag([8, 9], time=100)
        assert seen([coarse, fine]) == [(0, 5), (4, 5), (8, 1), (9, 1)]


class TestSessions:
    """A run that was stopped and resumed."""

    def test_a_later_session_holds_from_its_first_step_on(self) -> None:
        """What was trained after the checkpoint, and then trained again, is shown once."""
        tags = [tag(range(6)), tag([4, 5, 6], 2.0, session="b", started=2.0)]
        for order in (tags, tags[::-1]):
            assert seen(order) == [(0, 1), (1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2)]

    def test_a_session_that_began_anew_covers_all_before_it(self) -> None:
        """Of three sessions the last one began at 0."""
        tags = [tag([0, 1], started=3.0, session="c"), tag([3, 4], started=2.0, session="b"), tag(range(4))]
        assert seen(tags) == [(0, 1), (1, 1)]

    def test_the_clock_of_a_record_does_not_count_between_sessions(self) -> None:
        """When a session began decides, not when a record was written."""
        assert seen([tag([0, 1], time=1e9), tag([1], 2.0, session="b", started=2.0)]) == [(0, 1), (1, 2)]

    def test_layers_are_matched_by_name(self) -> None:
        """The newest session's layers are shown; one that an older session did not have is absent there."""
        new = tag([1], 2.0, session="b", started=2.0, layers=("fc2", "new", "head"), order=(1, 0, 2), kinds=())
        (series,) = stitch([tag([0]), new])
        assert (series.layers, series.kinds) == (("new", "fc2", "head"), ())
        np.testing.assert_array_equal(series.windows.median, [[np.nan, 3, 1], [3, 2, 4]])
        assert series.windows.state.tolist() == [[0, 1, 1], [1, 1, 1]]

    def test_a_session_without_any_of_the_layers_is_empty(self) -> None:
        """Its steps are there, and nothing in them."""
        new = tag([1], session="b", started=2.0, layers=("x",), order=(0,), kinds=())
        (series,) = stitch([tag([0]), new])
        assert series.windows.state.tolist() == [[0], [1]]

    def test_layers_that_appear_in_a_session_keep_the_picture_of_the_others(self) -> None:
        """While the wider picture is being written, its end is still that of the narrower one."""
        wider = tag([0, 1], 2.0, time=50, layers=(*LAYERS, "late"), order=(0, 1, 2, 3), kinds=())
        assert seen([tag(range(4)), wider]) == [(0, 2), (1, 2), (2, 1), (3, 1)]
        assert [value for _, value in seen([tag(range(4)), wider], "late")][:2] == [5, 5]


class TestStitch:
    """Many series."""

    def test_rows_are_in_forward_order(self) -> None:
        """Names, classes and numbers are brought from registration order into that of the network."""
        (series,) = stitch([tag([0])])
        assert (series.layers, series.kinds) == (("fc1", "fc2", "head"), ("B", "C", "A"))
        assert series.windows.median.tolist() == [[2, 3, 1]]

    def test_each_quantity_optimizer_and_module_is_a_series(self) -> None:
        """They come in the order in which quantities are listed."""
        tags = [
            tag([0], quantity=quantity, optimizer=optimizer, module=module)
            for quantity, optimizer, module in [
                ("time", 0, "b"),
                ("delta", 0, ""),
                ("norms", 1, ""),
                ("time", 0, "a"),
                ("norms", 0, ""),
            ]
        ]
        assert [each.name for each in stitch(tags)] == ["norms/0", "norms/1", "delta/0", "time/0/a", "time/0/b"]

    def test_a_tag_without_records_is_no_series(self) -> None:
        """A run that was killed may have written metadata alone."""
        assert stitch([Tag.of(about(), [])]) == ()
        assert seen([tag([0]), Tag.of(about(resolution=1), [])]) == [(0, 1)]


class TestNeeded:
    """Which tags have to be read."""

    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 5)), min_size=1, max_size=6))
    def test_what_is_left_out_would_not_have_been_seen(self, drawn: list[tuple[int, int, int]]) -> None:
        """A picture from the needed tags alone is the picture from all, also while the coarsest is being written."""
        # A writer never goes back to a finer resolution, and finishes one before it begins the next.
        levels, lasts, times = (sorted(values) for values in zip(*drawn, strict=True))
        lasts[-1] = drawn[0][1]
        tags = {
            level: tag(range(0, last + 1, 2**level), float(level), time=float(time) * 100, resolution=level)
            for level, last, time in zip(levels, lasts, times, strict=True)
        }
        outlines = {Outline(each.about, int(each.steps.max()), float(each.times.max())): each for each in tags.values()}
        (few,), (all_,) = stitch([outlines[one] for one in needed(outlines)]), stitch(list(tags.values()))
        assert few.windows.steps.tolist() == all_.windows.steps.tolist()
        np.testing.assert_array_equal(few.windows.median, all_.windows.median)

    def test_in_the_ordinary_run_it_is_one(self) -> None:
        """Nine of ten tags of a long run need not be read."""
        outlines = [Outline(about(resolution=level), 2048 * 2**level, float(level)) for level in range(10)]
        assert needed(outlines) == outlines[-1:]


class TestInOrder:
    """In which order series are shown."""

    def test_recurrent_layers_come_as_they_run(self) -> None:
        """The forward order of the layers is that of the picture's rows; names that nobody knows come last, counted."""
        names = ("rnn10", "rnn2", "a", "b")
        norms = about(layers=names, order=(1, 0, 3, 2), kinds=())
        unknown = ["cell10", "cell9"]
        time = [about(quantity="time", layers=("t 0",), order=(0,), module=name) for name in (*unknown, *sorted(names))]
        found = in_order([*time, norms])
        assert [one.module for one in found] == ["", "rnn2", "rnn10", "b", "a", "cell9", "cell10"]
        series = stitch([tag([0]), *(Tag.of(one, [(0, 0.0, np.zeros((1, 1), np.float16))]) for one in time)])
        assert [one.name for one in series[1:]] == [
            "time/0/a", "time/0/b", "time/0/cell9", "time/0/cell10", "time/0/rnn2", "time/0/rnn10",
        ]  # fmt: skip

    def test_quantity_and_optimizer_go_first(self) -> None:
        """Whatever the names."""
        series = [about(quantity=quantity, optimizer=number) for quantity in ("delta", "norms") for number in (10, 2)]
        told = [(one.quantity, one.optimizer) for one in in_order(series)]
        assert told == [("norms", 2), ("norms", 10), ("delta", 2), ("delta", 10)]
