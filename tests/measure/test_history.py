"""Test ``lightning_gradwatch.measure.history``."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gradwatch.detect.progress import loss_has_fallen
from lightning_gradwatch.measure.history import FIRST_LOSSES, GradientHistory
from lightning_gradwatch.measure.snapshot import GradientSnapshot

COLUMNS = ("norms", "clipped_norms", "bias_norms", "weight_norms", "learning_rates")


def snapshot(step: int, optimizer: int = 0, num_layers: int = 1) -> GradientSnapshot:
    """Make a snapshot whose every number tells where it belongs."""
    base = step + np.arange(num_layers) / 10
    tables = {name: base + 1000 * number for number, name in enumerate(COLUMNS)}
    present = (np.arange(num_layers) + step) % 2 == 0
    return GradientSnapshot(step=step, optimizer=optimizer, present=present, loss=-float(step), **tables)


def filled(num_rows: int, num_layers: int = 1, **settings: int) -> GradientHistory:
    """Make a history of one optimizer's first steps."""
    history = GradientHistory([f"l{i}" for i in range(num_layers)], **settings)
    for step in range(num_rows):
        history.append(snapshot(step, 0, num_layers))
    return history


def num_bytes(history: GradientHistory) -> int:
    """Count the bytes of all arrays that a history holds, but for the few losses that it keeps apart."""
    assert len(history._first_losses) <= FIRST_LOSSES
    held = {name: value for name, value in vars(history).items() if name != "_first_losses"}
    arrays = [value for value in held.values() if isinstance(value, np.ndarray)]
    return sum(array.nbytes for array in [*arrays, *history._tables.values()])


def check_rows(history: GradientHistory) -> None:
    """Check that every row still holds what was appended at its step."""
    for row, step in enumerate(history.steps.tolist()):
        expected = snapshot(step, 0, len(history.layers))
        for name in (*COLUMNS, "present"):
            np.testing.assert_array_equal(getattr(history, name)[row], getattr(expected, name))
        assert history.losses[row] == expected.loss


def test_rows_come_back_as_they_were_appended():
    """Every column of every row is what the snapshot held."""
    history = filled(200, num_layers=3)
    assert len(history) == 200
    assert history.steps.tolist() == list(range(200))
    check_rows(history)


@pytest.mark.no_cover
def test_a_long_run_stays_in_its_bytes_and_keeps_a_uniform_picture():
    """After 100,000 rows the first row, a uniform picture and the newest window are there, in the bytes allowed."""
    history = GradientHistory(["l0"], window=16, max_bytes=8192)
    largest, yes = 0, np.array([True])
    for step in range(100_000):
        row = np.array([float(step)])
        history.append(GradientSnapshot(step, 0, row, row, row, row, yes, row, -float(step)))
        if step % 1000 == 0:
            largest = max(largest, num_bytes(history))
    assert max(largest, num_bytes(history)) <= 8192
    steps = history.steps
    assert steps[0] == 0
    assert steps[-16:].tolist() == list(range(99_984, 100_000))
    picture = steps[steps <= steps[-1] // 2]
    gaps = np.diff(picture)
    assert len(picture) >= 8
    assert (gaps == gaps[0]).all()
    assert np.diff(steps).max() == gaps[0]
    np.testing.assert_array_equal(history.norms[:, 0], steps)
    np.testing.assert_array_equal(history.losses, -steps)


def test_the_newest_window_is_always_exact():
    """At no time is one of the newest ``window`` rows missing, and steps never repeat or turn back."""
    history = GradientHistory(["l0"], window=10, max_bytes=60 * 81)
    for step in range(700):
        history.append(snapshot(step))
        newest = history.readings(0).steps
        assert newest.tolist() == list(range(max(0, step - 9), step + 1))
        assert (np.diff(history.steps) > 0).all()
        assert history.steps[0] == 0


def test_interleaved_optimizers_keep_their_own_window_and_first_row():
    """A generator that steps once for four steps of its critic keeps its newest rows and its first."""
    history = GradientHistory(["l0"], window=8, max_bytes=120 * 81)
    own: dict[int, list[int]] = {0: [], 1: []}
    for step in range(5000):
        number = int(step % 5 == 4)
        own[number].append(step)
        history.append(snapshot(step, number))
    for number, steps in own.items():
        assert history.readings(number).steps.tolist() == steps[-8:]
        kept = history.steps[history.optimizers == number]
        assert kept[0] == steps[0]
        assert set(kept.tolist()) <= set(steps)
    assert num_bytes(history) <= history.max_bytes


def test_an_optimizer_that_has_finished_keeps_its_picture():
    """Rows of an optimizer that no longer steps are not thinned away by the one that goes on."""
    history = GradientHistory(["l0"], window=4, max_bytes=100 * 81)
    for step in range(30):
        history.append(snapshot(step, 0))
    for step in range(30, 5000):
        history.append(snapshot(step, 1))
    kept = history.steps[history.optimizers == 0]
    assert kept[0] == 0
    assert len(kept) >= 15


@pytest.mark.parametrize("max_bytes", [1, 200, 300])
def test_a_model_that_leaves_room_for_two_rows_keeps_the_newest(max_bytes):
    """With room for hardly any row the newest ones are kept."""
    history = filled(9, max_bytes=max_bytes)
    assert history.capacity == max(2, max_bytes // 81)
    assert history.steps[-1] == 8
    assert len(history) <= history.capacity
    check_rows(history)


def test_readings_of_an_optimizer_that_never_stepped_are_empty():
    """An unknown optimizer has no readings and no losses."""
    history = filled(5)
    assert len(history.readings(7)) == 0
    assert history.losses_of(7).tolist() == []


def test_losses_of_a_single_optimizer_reach_back_to_the_start():
    """With one optimizer the first losses and the newest are returned; with two, none, as each works on another's."""
    history = filled(30, window=30)
    assert history.losses_of(0).tolist() == [-float(step) for step in range(30)]
    for step in range(30, 200):
        history.append(snapshot(step))
    assert history.losses_of(0).tolist() == [-float(step) for step in (*range(FIRST_LOSSES), *range(170, 200))]
    history.append(snapshot(200, 1))
    assert np.isnan(history.losses_of(0)).all()


@pytest.mark.parametrize(("fall", "fallen"), [(0.0, False), (1e-2, True)])
def test_a_plateau_is_judged_the_same_however_the_run_was_kept(fall, fallen):
    """In one run, in a thinned table, and after two checkpoints the early losses are there, and the verdict is one."""
    losses = np.concatenate([np.linspace(9.0, 1.0, 10), 1.0 - fall * np.minimum(np.arange(390) / 10, 20.0)])
    runs = {
        "one": GradientHistory(["l0"], window=64),
        "thinned": GradientHistory(["l0"], window=64, max_bytes=150 * 81),
        "restored": GradientHistory(["l0"], window=64),
    }
    for step, loss in enumerate(losses.tolist()):
        for history in runs.values():
            history.append(replace(snapshot(step), loss=loss))
        if step in (12, 300):
            state = runs["restored"].state_dict()
            runs["restored"] = GradientHistory(["l0"], window=64)
            runs["restored"].load_state_dict(state)
    expected = [*losses[:FIRST_LOSSES], *losses[-64:]]
    assert len(runs["thinned"]) < len(runs["one"]) == 400
    assert {name: run.losses_of(0).tolist() for name, run in runs.items()} == dict.fromkeys(runs, expected)
    assert loss_has_fallen(np.array(expected), 80) is fallen


def test_a_loss_that_comes_later_goes_to_its_row():
    """Only the row of that optimizer and step gets the loss, and nothing else of it changes."""
    history = filled(30)
    history.set_loss(0, 7, 5.0)
    expected = [-float(step) for step in range(30)]
    expected[7] = 5.0
    assert history.losses.tolist() == expected
    assert history.losses_of(0).tolist() == expected
    np.testing.assert_array_equal(history.norms[:, 0], np.arange(30.0))


@pytest.mark.parametrize(("optimizer", "step"), [(0, 30), (0, -1), (1, 7)])
def test_a_loss_of_a_row_that_is_gone_goes_nowhere(optimizer, step):
    """An unknown step, or another optimizer's, changes nothing."""
    history = filled(30)
    before = history.state_dict()
    history.set_loss(optimizer, step, 5.0)
    np.testing.assert_equal(history.state_dict(), before)


def test_each_optimizer_of_a_batch_gets_its_own_loss():
    """Two optimizers that stepped at the same ``global_step`` are told apart."""
    history = GradientHistory(["l0"])
    for step in range(4):
        for number in (0, 1):
            history.append(snapshot(step, number))
    history.set_loss(0, 2, 5.0)
    history.set_loss(1, 3, 6.0)
    assert history.losses.tolist() == [0, 0, -1, -1, 5, -2, -3, 6]
    assert history.optimizers.tolist() == [0, 1] * 4
    assert np.isnan(history.losses_of(0)).all()


def test_a_loss_that_comes_later_is_not_put_into_an_earlier_run():
    """In a second run steps count from 0 again: the loss belongs to the newest row of that step."""
    history = GradientHistory(["l0"])
    for _ in range(2):
        for step in range(5):
            history.append(snapshot(step))
    history.set_loss(0, 3, 5.0)
    assert history.losses.tolist() == [0, -1, -2, -3, -4, 0, -1, -2, 5, -4]
    assert history.losses_of(0).tolist() == history.losses.tolist()


def test_a_loss_that_comes_later_is_not_seen_by_a_state_that_was_saved():
    """A checkpoint keeps what was known when it was written."""
    history = filled(5)
    state = history.state_dict()
    history.set_loss(0, 1, 5.0)
    assert state["losses"].tolist() == [0, -1, -2, -3, -4]
    assert state["first_losses"].tolist() == [0, -1, -2, -3, -4]


@given(
    num_rows=st.integers(1, 260),
    every=st.integers(1, 20),
    capacity=st.sampled_from([40, 64, 150, 1000]),
    saved_at=st.integers(0, 260),
)
@settings(deadline=None, max_examples=60)
def test_losses_that_come_later_are_as_if_they_had_been_known_at_once(num_rows, every, capacity, saved_at):
    """In exchanges of up to 20 rows, thinned or not, after a checkpoint or not, nothing but the moment differs."""
    known, later = (GradientHistory(["l0"], window=32, max_bytes=capacity * 81) for _ in range(2))
    waiting = []
    for step in range(num_rows):
        known.append(snapshot(step))
        later.append(replace(snapshot(step), loss=float("nan")))
        waiting.append(step)
        if len(waiting) == every or step == num_rows - 1:
            for late in waiting:
                later.set_loss(0, late, snapshot(late).loss)
            waiting.clear()
        if step == saved_at:
            restored = []
            for history in (known, later):
                state = history.state_dict()
                fresh = GradientHistory(["l0"], window=32, max_bytes=capacity * 81)
                fresh.load_state_dict(state)
                restored.append(fresh)
            known, later = restored
    np.testing.assert_array_equal(later.losses, known.losses)
    np.testing.assert_array_equal(later.losses_of(0), known.losses_of(0))
    np.testing.assert_equal(later.state_dict(), known.state_dict())


def test_ordinals_go_on_after_a_restore():
    """The first row restored is not taken for the first of the run: thinning keeps the readings that it would have."""
    whole, restored = (GradientHistory(["l0"], window=8, max_bytes=60 * 81) for _ in range(2))
    for step in range(1001):
        whole.append(snapshot(step))
        restored.append(snapshot(step))
        if step == 36:
            state = restored.state_dict()
            restored = GradientHistory(["l0"], window=8, max_bytes=60 * 81)
            restored.load_state_dict(state)
            assert restored.steps.tolist() == list(range(29, 37))
    assert restored.state_dict()["counts"] == [[0, 1001]]
    strides = {int(gap) for gap in np.diff(restored.steps[:-20])}
    assert len(strides) == 1
    assert (restored.steps[:-20] % strides.pop() == 0).all()


def test_early_losses_are_copied_into_a_state():
    """A state does not share its early losses with the history that goes on."""
    history = filled(5)
    state = history.state_dict()
    fresh = GradientHistory(["l0"])
    fresh.load_state_dict(state)
    fresh.append(snapshot(5))
    assert state["first_losses"].tolist() == [-float(step) for step in range(5)]
    assert fresh.state_dict()["first_losses"].tolist() == [-float(step) for step in range(6)]


def test_appended_layers_have_no_past():
    """Columns are appended; in earlier rows they are NaN and not present, and old columns stay."""
    history = filled(6, num_layers=2)
    before = history.norms.copy()
    history.add_layers(["new"])
    assert history.layers == ("l0", "l1", "new")
    assert history.order == (0, 1, 2)
    np.testing.assert_array_equal(history.norms[:, :2], before)
    assert np.isnan(history.norms[:, 2]).all()
    assert not history.present[:, 2].any()
    history.append(snapshot(6, 0, 3))
    np.testing.assert_array_equal(history.norms[-1], snapshot(6, 0, 3).norms)


def test_appended_layers_keep_the_bound():
    """More columns mean fewer rows: the table is thinned until it fits again."""
    history = filled(100, window=5, max_bytes=100 * 81)
    history.add_layers([f"n{i}" for i in range(9)])
    assert len(history) <= history.capacity
    assert num_bytes(history) <= history.max_bytes
    assert history.steps[0] == 0
    assert history.steps[-4:].tolist() == [96, 97, 98, 99]


def test_a_state_round_trip_keeps_the_window():
    """What a checkpoint keeps comes back bit for bit, and appending goes on from there."""
    history = filled(50, num_layers=2, window=8)
    fresh = GradientHistory(history.layers, window=8)
    fresh.load_state_dict(history.state_dict())
    assert fresh.steps.tolist() == list(range(42, 50))
    check_rows(fresh)
    for step in range(50, 60):
        fresh.append(snapshot(step, 0, 2))
    assert fresh.readings(0).steps.tolist() == list(range(52, 60))
    check_rows(fresh)


def test_a_state_is_a_copy():
    """A state does not change when the history goes on."""
    history = filled(5)
    state = history.state_dict()
    history.load_state_dict(filled(9).state_dict())
    assert state["steps"].tolist() == [0, 1, 2, 3, 4]


def test_a_state_of_other_layers_is_matched_by_name():
    """Layers that are gone are left out, moved ones move, new ones were not present."""
    history = filled(4, num_layers=3)
    fresh = GradientHistory(["l2", "new", "l0"])
    fresh.load_state_dict(history.state_dict())
    np.testing.assert_array_equal(fresh.norms[:, [0, 2]], history.norms[:, [2, 0]])
    np.testing.assert_array_equal(fresh.present[:, [0, 2]], history.present[:, [2, 0]])
    assert np.isnan(fresh.norms[:, 1]).all()
    assert not fresh.present[:, 1].any()


def test_a_state_without_a_common_layer_keeps_its_steps():
    """Nothing but the steps and losses is left of a state whose layers are all gone."""
    fresh = GradientHistory(["other"])
    fresh.load_state_dict(filled(4).state_dict())
    assert fresh.steps.tolist() == [0, 1, 2, 3]
    assert np.isnan(fresh.norms).all()


def test_an_empty_state_is_an_empty_history():
    """The state of a run that measured nothing can be taken back."""
    fresh = filled(3)
    fresh.load_state_dict(GradientHistory(["l0"]).state_dict())
    assert len(fresh) == 0
    fresh.append(snapshot(0))
    check_rows(fresh)


def test_a_state_larger_than_the_table_keeps_its_newest_rows():
    """A history with less room takes the newest rows that fit, and goes on within its bytes."""
    fresh = GradientHistory(["l0"], max_bytes=10 * 81)
    fresh.load_state_dict(filled(40).state_dict())
    assert fresh.steps.tolist() == list(range(30, 40))
    for step in range(40, 100):
        fresh.append(snapshot(step))
    assert num_bytes(fresh) <= fresh.max_bytes
    assert fresh.steps[-1] == 99
    check_rows(fresh)


def test_two_optimizers_go_on_after_a_round_trip():
    """Each optimizer of a restored history keeps its own window and is thinned on its own."""
    history = GradientHistory(["l0"], window=6, max_bytes=80 * 81)
    for step in range(20):
        history.append(snapshot(step, step % 2))
    fresh = GradientHistory(["l0"], window=6, max_bytes=80 * 81)
    fresh.load_state_dict(history.state_dict())
    assert fresh.steps.tolist() == list(range(8, 20))
    assert fresh.optimizers.tolist() == [0, 1] * 6
    for step in range(20, 900):
        fresh.append(snapshot(step, step % 2))
    assert fresh.readings(0).steps.tolist() == list(range(888, 900, 2))
    assert fresh.readings(1).steps.tolist() == list(range(889, 900, 2))
