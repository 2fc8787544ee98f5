"""Test ``benchmarks.ward.rivals.autotrainer``."""

from __future__ import annotations

import pytest

from benchmarks.ward.rivals.autotrainer import AutoTrainer

NAN, INF = float("nan"), float("inf")
SOUND = [[1.0, 1.0], [1.0, 1.0]]
VANISHED = [[5e-5], [1.0]]
EXPLODED = [[71.0], [1.0]]


def raw(look, gradients, loss: float = 1.0) -> set[str]:
    """Return what the raw rules say of one look."""
    flags = AutoTrainer(gate=False, every_n_steps=1).observe(look(gradients, loss=loss))
    assert all(flag.layers == () for flag in flags)
    return {flag.symptom.value for flag in flags}


@pytest.mark.parametrize(
    ("gradients", "symptoms"),
    [
        (SOUND, set()),
        # The ratio is below 1e-3 only, then the first norm below 1e-4 only, then both.
        ([[1.0], [1001.0]], set()),
        ([[9e-5], [1e-3]], set()),
        ([[9e-5], [0.1]], {"vanishing"}),
        ([[1e-4], [1.0]], set()),
        ([[70.0], [1.0]], set()),
        ([[70.1], [1.0]], {"exploding"}),
        # Only first and last count.
        ([[1.0], [1e9], [1.0]], set()),
        # Seven of ten numbers are zero; six are not enough.
        ([[0.0, 0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0, 1.0]], {"dead"}),
        ([[0.0, 0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0, 1.0]], set()),
        # x / 0 is infinite and 0 / 0 no number.
        ([[1.0], [0.0]], {"exploding"}),
        ([[0.0], [0.0]], {"dead"}),
        ([[NAN], [1.0]], {"non_finite"}),
        ([[1.0], [INF]], {"non_finite"}),
    ],
)
def test_the_raw_rules_have_the_published_bounds(look, gradients, symptoms: set[str]) -> None:
    """Ratio of first to last below 1e-3 with the first below 1e-4, above 70, seven tenths of zeros, and NaN."""
    assert raw(look, gradients) == symptoms


@pytest.mark.parametrize(
    ("loss", "symptoms"),
    [(99_999.0, set()), (1e5, {"exploding"}), (NAN, {"non_finite"}), (INF, {"non_finite"})],
)
def test_the_loss_has_its_bound(look, loss: float, symptoms: set[str]) -> None:
    """A loss of 1e5 explodes, and one that is no number is not finite."""
    assert raw(look, SOUND, loss) == symptoms


def run(look, steps, *, gate: bool = True, every: int = 10, total: int = 100) -> list[tuple[int, str]]:
    """Let a rule watch ``(gradients, loss, accuracy)`` step by step; return steps and symptoms of its flags."""
    rule = AutoTrainer(gate=gate, every_n_steps=every)
    return [
        (number, flag.symptom.value)
        for number, (gradients, loss, accuracy) in enumerate(steps)
        for flag in rule.observe(
            look(gradients, number=number, loss=loss, accuracy=accuracy, progress=(number + 1) / total)
        )
    ]


def test_it_looks_at_checks_only(look) -> None:
    """What happens between two checks is not seen."""
    steps = [(VANISHED if number != 9 else SOUND, 1.0, 0.1) for number in range(19)]
    assert run(look, steps, gate=False) == []
    assert run(look, [*steps, (VANISHED, 1.0, 0.1)], gate=False) == [(19, "vanishing")]


def test_the_gate_waits_for_three_tenths_of_the_training(look) -> None:
    """A vanished gradient is told from the check at 30% on while the best accuracy is below 0.7."""
    assert run(look, [(VANISHED, 1.0, 0.69)] * 30)[0] == (29, "vanishing")


@pytest.mark.parametrize("accuracy", [0.7, 0.95])
def test_the_gate_holds_back_what_learns(look, accuracy: float) -> None:
    """Where one check had an accuracy of 0.7 nothing is told."""
    assert run(look, [(VANISHED, 1.0, accuracy if number < 10 else 0.1) for number in range(100)]) == []


def test_the_gate_remembers(look) -> None:
    """What was found before the judgment point is told at it, although it is over by then."""
    steps = [(VANISHED if number < 10 else SOUND, 1.0, 0.1) for number in range(30)]
    assert run(look, steps) == [(29, "vanishing")]


def test_the_gate_tells_the_first_of_dying_exploding_vanishing(look) -> None:
    """Of several one is told, in the order of its code."""
    dead, order = [[0.0], [0.0]], []
    for several in ([VANISHED, EXPLODED, dead], [VANISHED, EXPLODED, SOUND], [VANISHED, SOUND, SOUND]):
        steps = [(gradients, 1.0, 0.1) for gradients in several for _ in range(10)]
        order += run(look, steps)
    assert order == [(29, "dead"), (29, "exploding"), (29, "vanishing")]


def test_nan_and_a_large_loss_do_not_wait_for_the_gate(look) -> None:
    """Both are told at the first check, however good the accuracy."""
    assert run(look, [(SOUND, NAN, 0.9)] * 10) == [(9, "non_finite")]
    assert run(look, [(SOUND, 2e5, 0.9)] * 10) == [(9, "exploding")]


def test_slow_convergence_is_a_best_gain_below_a_hundredth(look) -> None:
    """Without a fault of the gradients a check that gained 0.01 is enough, and less is not."""

    def climbing(gain: float) -> list[tuple[list[list[float]], float, float]]:
        return [(SOUND, 1.0, 0.1 + gain * (number // 10)) for number in range(30)]

    assert run(look, climbing(0.009)) == [(29, "vanishing")]
    assert run(look, climbing(0.011)) == []


def test_without_accuracies_the_loss_stands_in(look) -> None:
    """In a regression a check whose loss is below 60% of the first one's opens the gate for good."""
    falls = [(VANISHED, 1.0 if number < 10 else 0.59, NAN) for number in range(30)]
    stays = [(VANISHED, 1.0 if number < 10 else 0.61, NAN) for number in range(30)]
    assert run(look, falls) == []
    assert run(look, stays) == [(29, "vanishing")]
