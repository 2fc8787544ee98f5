"""Test ``lightning_gradwatch.agreement``."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gradwatch.agreement import EVERY_N_BATCHES, Agreement, Exchange, Failure

NAN = float("nan")


WELL = Failure(anywhere=False, told=False)


def end_batch(
    processes: Sequence[Agreement], off: Sequence[bool] | None = None, unclipped: Sequence[bool] | None = None
) -> list[Exchange | None]:
    """End a batch in all processes, the first of which writes the log; each gets the mean over all of them."""
    off = [False] * len(processes) if off is None else off
    unclipped = [False] * len(processes) if unclipped is None else unclipped
    sent: list[list[float]] = []

    def keep(numbers: Sequence[float]) -> Sequence[float]:
        sent.append(list(numbers))
        return numbers

    for number, process in enumerate(processes):
        copy.deepcopy(process).end_batch(keep, off=off[number], unclipped=unclipped[number], tells=number == 0)
    mean = np.mean(sent, axis=0).tolist() if sent else []
    return [
        process.end_batch(lambda _: mean, off=off[number], unclipped=unclipped[number], tells=number == 0)
        for number, process in enumerate(processes)
    ]


def test_nothing_is_exchanged_between():
    """Only after every 20th batch all processes meet; between them nobody is asked."""
    agreement, asked = Agreement(), []
    for batch in range(1, 3 * EVERY_N_BATCHES + 1):
        agreement.note(0, batch, 1.0)
        before = len(asked)
        known = agreement.end_batch(lambda numbers: asked.append(1) or numbers, off=False, unclipped=False, tells=True)
        exchanged = batch % 20 == 0
        assert (known is not None) == exchanged
        assert len(asked) - before == int(exchanged)


def test_each_reading_gets_the_mean_loss_of_its_batch():
    """All processes know the same means, each for its optimizer and step."""
    processes = [Agreement(), Agreement()]
    for exchange in range(2):
        for batch in range(20):
            step = 20 * exchange + batch
            processes[0].note(0, step, float(step))
            processes[1].note(0, step, float(3 * step))
            known = end_batch(processes)
        steps = range(20 * exchange, 20 * exchange + 20)
        for each in known:
            assert each is not None
            assert each.losses == [(0, step, 2.0 * step) for step in steps]


def test_of_several_readings_in_a_batch_no_loss_is_known():
    """One number a batch is exchanged, and would be told of the wrong optimizer or step."""
    agreement = Agreement()
    agreement.note(0, 0, 1.0)
    agreement.note(1, 0, 2.0)
    agreement.note(1, 1, 3.0)
    for _ in range(20):
        (known,) = end_batch([agreement])
    assert known is not None
    assert [row[:2] for row in known.losses] == [(0, 0), (1, 0), (1, 1)]
    assert np.isnan([loss for *_, loss in known.losses]).all()


def test_batches_without_a_reading_are_nan():
    """While gradients are accumulated there is nothing to exchange; every exchange has the same length."""
    agreement, sent = Agreement(), []
    for batch in range(40):
        if batch in {3, 25}:
            agreement.note(0, batch, float(batch))
        known = agreement.end_batch(
            lambda numbers: sent.append(list(numbers)) or numbers, off=False, unclipped=False, tells=True
        )
        if batch == 19:
            assert known is not None
            assert known.losses == [(0, 3, 3.0)]
    assert known is not None
    assert known.losses == [(0, 25, 25.0)]
    for numbers, place, loss in zip(sent, (3, 5), (3.0, 25.0), strict=True):
        assert np.flatnonzero(~np.isnan(numbers[:20])).tolist() == [place]
        assert numbers[place] == loss
        assert numbers[20:] == [0.0] * 5


def test_without_any_reading_processes_meet_all_the_same():
    """Nothing is known then, and nothing is wrong."""
    agreement = Agreement()
    for _ in range(20):
        known = end_batch([agreement])
    assert known == [Exchange([], WELL, WELL)]


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_a_loss_that_is_not_finite_in_one_process_is_so_in_all(value):
    """The mean says that something is wrong, and only in that batch."""
    processes = [Agreement(), Agreement()]
    for batch in range(20):
        processes[0].note(0, batch, 1.0)
        processes[1].note(0, batch, value if batch == 4 else 3.0)
        known = end_batch(processes)
    for each in known:
        assert each is not None
        np.testing.assert_equal([loss for *_, loss in each.losses], [2.0] * 4 + [value] + [2.0] * 15)


@pytest.mark.parametrize(
    ("off", "told"), [([False, False], False), ([True, False], True), ([False, True], False), ([True, True], True)]
)
def test_all_learn_that_one_was_switched_off_and_whether_the_log_has_the_reason(off, told):
    """A process that was switched off goes on exchanging; all know at the same batch."""
    processes = [Agreement(), Agreement()]
    for batch in range(20):
        known = end_batch(processes, off if batch >= 7 else None)
        assert (known[0] is None) == (known[1] is None) == (batch < 19)
    assert known == [Exchange([], Failure(any(off), told), WELL)] * 2


@pytest.mark.parametrize(("unclipped", "told"), [([True, False], True), ([False, True], False)])
def test_all_learn_that_a_clipper_failed(unclipped, told):
    """That is known apart from being switched off."""
    processes = [Agreement(), Agreement()]
    for _ in range(20):
        known = end_batch(processes, unclipped=unclipped)
    assert known == [Exchange([], WELL, Failure(anywhere=True, told=told))] * 2


def test_one_of_many_that_was_switched_off_is_heard():
    """Its share is small and still counts."""
    processes = [Agreement() for _ in range(64)]
    for _ in range(20):
        known = end_batch(processes, [False] * 63 + [True])
    assert known == [Exchange([], Failure(anywhere=True, told=False), WELL)] * 64


def test_a_question_of_one_process_reaches_all():
    """One has seen a step that is not finite: all learn it at the same exchange, and may ask each other then."""
    processes = [Agreement() for _ in range(3)]
    sent = []
    for batch in range(20):
        asks = [batch == 19 and number == 1 for number in range(3)]
        for process, poisoned in zip(processes, asks, strict=True):
            copied = copy.deepcopy(process)
            copied.end_batch(
                lambda n: sent.append(list(n)) or n, off=False, unclipped=False, tells=True, poisoned=poisoned
            )
        mean = np.mean(sent, axis=0).tolist() if sent else []
        known = [p.end_batch(lambda _: mean, off=False, unclipped=False, tells=True) for p in processes]  # noqa: B023
    assert known == [Exchange([], WELL, WELL, poisoned=True)] * 3


def test_processes_that_all_stop_exchange_at_once():
    """A batch that was counted is not counted again, and what is open is known."""
    agreement = Agreement()
    agreement.note(0, 0, 3.0)
    told = {"off": False, "unclipped": False, "tells": True}
    assert agreement.end_batch(list, **told) is None
    assert agreement.end_batch(list, **told, now=True) == Exchange([(0, 0, 3.0)], WELL, WELL)
    assert [agreement.end_batch(list, **told) is None for _ in range(19)] == [True] * 18 + [False]


batches = st.lists(
    st.lists(
        st.tuples(st.integers(0, 2), st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)),
        max_size=3,
    ),
    min_size=1,
    max_size=70,
)


@given(batches)
@settings(deadline=None, max_examples=50)
def test_two_processes_always_know_the_same(batches):
    """Whatever readings the batches hold, each is known once, in order; a loss only where it is alone in its batch."""
    processes = [Agreement(), Agreement()]
    step, waiting, expected, known = 0, [], [], []
    for batch in batches:
        rows = []
        for optimizer, first, second in batch:
            processes[0].note(optimizer, step, first)
            processes[1].note(optimizer, step, second)
            rows.append((optimizer, step))
            step += 1
        mean = (batch[0][1] + batch[0][2]) / 2 if len(batch) == 1 else NAN
        waiting += [(*row, mean) for row in rows]
        exchanged = end_batch(processes)
        assert str(exchanged[0]) == str(exchanged[1])
        if exchanged[0] is not None:
            known += exchanged[0].losses
            expected += waiting
            waiting = []
    assert known == [(optimizer, step, pytest.approx(loss, nan_ok=True)) for optimizer, step, loss in expected]
