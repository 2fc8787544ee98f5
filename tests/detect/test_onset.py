"""Test ``lightning_gradwatch.detect.onset``."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.detect.onset import Changes, OnsetTracker


def sick(*layers: str, rule: str = "vanishing.threshold", **more: object) -> Diagnosis:
    """Say that layers are sick now; the symptom is the rule's family."""
    return Diagnosis(rule, Symptom(rule.partition(".")[0]), layers=layers, **more)


def notice(*layers: str, rule: str = "vanishing.depth", **more: object) -> Diagnosis:
    """Say that layers look poor now."""
    return sick(*layers, rule=rule, severity="notice", **more)


class Run:
    """A run that hands its readings to a tracker, counting which layers were present."""

    def __init__(self, patience: int = 3, warmup_steps: int = 0, layers: str = "abcdef") -> None:
        self.tracker = OnsetTracker(patience, warmup_steps)
        self.layers = tuple(layers)
        self.step = -1
        self.seen: dict[int, np.ndarray] = {}
        self.onsets: list[Diagnosis] = []
        self.recoveries: list[Diagnosis] = []

    def read(self, *findings: Diagnosis, present: str | None = None, optimizer: int = 0, times: int = 1) -> Changes:
        """Take in a reading, several times; return what the last one changed."""
        changes = Changes()
        for _ in range(times):
            self.step += 1
            here = {name: i for i, name in enumerate(self.layers) if present is None or name in present}
            seen = self.seen.setdefault(optimizer, np.zeros(len(self.layers), dtype=np.int64))
            seen[list(here.values())] += 1
            now = [Diagnosis(**{**f.__dict__, "step": self.step, "optimizer": optimizer}) for f in findings]
            changes = self.tracker.update(now, optimizer, self.step, here, seen.tolist())
            self.onsets += changes.onsets
            self.recoveries += changes.recoveries
        return changes

    @property
    def told(self) -> int:
        """How many lines a person has read."""
        return len(self.onsets) + len(self.recoveries)


class TestPatience:
    """Readings in a row."""

    @pytest.mark.parametrize("patience", [1, 3, 7])
    def test_a_layer_is_sick_after_patience_readings_in_a_row(self, patience: int) -> None:
        """The onset is told at the reading that fills patience, and once."""
        run = Run(patience)
        run.read(sick("a"), times=patience - 1)
        assert run.onsets == []
        assert [d.layers for d in run.read(sick("a")).onsets] == [("a",)]
        run.read(sick("a"), times=50)
        assert [d.step for d in run.onsets] == [patience - 1]

    def test_a_healthy_reading_begins_the_count_anew(self) -> None:
        """Two sick readings, a healthy one and two sick ones are not three in a row."""
        run = Run()
        for findings in ([sick("a")], [sick("a")], [], [sick("a")], [sick("a")]):
            run.read(*findings)
        assert run.onsets == []
        assert run.read(sick("a")).onsets

    def test_absence_neither_counts_nor_resets(self) -> None:
        """Readings without the layer change nothing: it fills patience with those in which it is present."""
        run = Run()
        run.read(sick("a"), times=2)
        run.read(present="bc", times=20)
        run.read(sick("a"), present="bc", times=20)  # a rule that speaks of an absent layer is not heard
        assert run.onsets == []
        assert run.read(sick("a")).onsets

    def test_layers_fill_patience_one_by_one(self) -> None:
        """A diagnosis names the layers that have been sick long enough; later ones join it in silence."""
        run = Run()
        run.read(sick("a"))
        run.read(sick("a", "b"))
        assert [d.layers for d in run.read(sick("a", "b")).onsets] == [("a",)]
        run.read(sick("a", "b"))
        assert (len(run.onsets), run.tracker.diagnoses[0].layers) == (1, ("a", "b"))

    def test_two_findings_of_one_rule_count_a_reading_once(self) -> None:
        """A rule that names a layer twice in a reading does not halve its patience."""
        run = Run()
        run.read(sick("a", "b"), sick("a"), times=2)
        assert run.onsets == []
        assert len(run.read(sick("a", "b"), sick("a")).onsets) == 1

    def test_rules_do_not_help_each_other_to_fill_patience(self) -> None:
        """Each rule has its own count."""
        run = Run()
        run.read(sick("a"), times=2)
        assert run.read(sick("a", rule="vanishing.depth")).onsets == ()

    def test_suspicion_begins_with_the_first_finding(self) -> None:
        """A finding that patience holds back is suspicious, a healthy reading ends the suspicion."""
        run = Run()
        assert not run.tracker.suspicious
        run.read(sick("a"))
        assert run.tracker.suspicious
        run.read()
        assert not run.tracker.suspicious

    @given(
        readings=st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60),
        patience=st.integers(1, 4),
        warmup=st.integers(0, 5),
    )
    def test_the_first_onset_is_where_counting_by_hand_puts_it(
        self, readings: list[tuple[bool, bool]], patience: int, warmup: int
    ) -> None:
        """Whatever comes, the first onset is at the reading that a simple count of present readings gives."""
        run, expected, row, seen = Run(patience, warmup), None, 0, 0
        for step, (ill, here) in enumerate(readings):
            run.read(*([sick("a")] if ill else []), present="ab" if here else "b")
            if here:
                seen += 1
                row = row + 1 if ill and seen > warmup else 0
                expected = step if expected is None and row == patience else expected
        assert (run.onsets[0].step if run.onsets else None) == expected


class TestWarmup:
    """Readings that are not judged."""

    def test_warm_up_comes_before_patience(self) -> None:
        """With ten readings of warm-up and a patience of three the first onset is at the thirteenth reading."""
        run = Run(warmup_steps=10)
        run.read(sick("a"), times=12)
        assert run.onsets == []
        assert run.read(sick("a")).onsets

    def test_warm_up_counts_the_readings_in_which_the_layer_is_present(self) -> None:
        """A layer that comes late has its own warm-up."""
        run = Run(patience=1, warmup_steps=4)
        run.read(present="b", times=10)
        run.read(sick("a"), times=4)
        assert run.onsets == []
        assert run.read(sick("a")).onsets

    def test_non_finite_ignores_warm_up_and_patience(self) -> None:
        """A gradient that is not finite is told in the very first reading."""
        assert Run(patience=5, warmup_steps=100).read(sick("a", rule="non_finite")).onsets

    def test_an_overwriting_step_ignores_patience_but_not_warm_up(self) -> None:
        """One overwriting step destroys what the layer knew; during warm-up that is not much."""
        assert Run(patience=5).read(sick("a", rule="exploding.update")).onsets
        assert not Run(patience=5, warmup_steps=1).read(sick("a", rule="exploding.update")).onsets


class TestMerging:
    """One fault, one diagnosis."""

    def test_overlapping_layers_with_one_symptom_are_one_fault(self) -> None:
        """Two rules that see the same symptom in overlapping layers are told once; their layers are joined."""
        run = Run()
        run.read(sick("a", "b"), sick("b", "c", rule="vanishing.depth"), times=3)
        assert [d.rule for d in run.onsets] == ["vanishing.threshold"]
        assert [d.layers for d in run.tracker.diagnoses] == [("a", "b", "c")]

    def test_other_layers_symptoms_and_optimizers_are_other_faults(self) -> None:
        """What differs in one of the three is told on its own."""
        run = Run(patience=1)
        run.read(sick("a"), sick("b"), sick("a", rule="dead"))
        run.read(sick("a"), optimizer=1)
        told = [(d.optimizer, d.symptom.value, d.layers) for d in run.onsets]
        assert told == [
            (0, "vanishing", ("a",)),
            (0, "vanishing", ("b",)),
            (0, "dead", ("a",)),
            (1, "vanishing", ("a",)),
        ]
        assert [d.optimizer for d in run.tracker.open()] == [0, 0, 0, 1]
        assert [d.optimizer for d in run.tracker.open(1)] == [1]

    def test_a_fault_that_lasts_is_preferred_to_one_that_is_over(self) -> None:
        """A finding that overlaps both a lasting fault and a newer one that is over joins the lasting one."""
        run = Run(patience=1)
        run.read(sick("a"))
        run.read(sick("a"), sick("b"))
        run.read(sick("a"))
        assert [d.recovered_at for d in run.tracker.diagnoses] == [None, 2]
        assert run.read(sick("a", "b")).onsets == ()
        assert len(run.tracker.diagnoses) == 2

    def test_many_faults_of_one_symptom_are_told_in_part(self) -> None:
        """Five faults in different layers are told one by one, then the 10th; untold ones recover in silence."""
        run = Run(patience=1, layers="abcdefghijkl")
        for name in run.layers:
            run.read(sick(name))
        run.read(times=2)
        assert [d.layers[0] for d in run.onsets] == ["a", "b", "c", "d", "e", "j"]
        assert [d.layers[0] for d in run.recoveries] == ["a", "b", "c", "d", "e", "j"]
        assert len(run.tracker.diagnoses) == 12
        for name in run.layers:  # all of them once more: the told ones are told again, the others are not
            run.read(sick(name))
        assert [d.layers[0] for d in run.onsets[6:]] == ["a", "b", "c", "d", "e"]


class TestSeverity:
    """From notice to warning."""

    def test_escalation_is_told_once(self) -> None:
        """A notice is told, its becoming a warning is told, and a few notices among the warnings are not."""
        run = Run()
        run.read(notice("a"), times=5)
        run.read(sick("a", rule="vanishing.depth"), times=5)
        run.read(notice("a"), times=2)
        run.read(sick("a", rule="vanishing.depth"), times=5)
        assert [(d.severity, d.step) for d in run.onsets] == [("notice", 2), ("warning", 5)]
        assert run.recoveries == []
        (only,) = run.tracker.diagnoses
        assert (only.severity, only.count) == ("warning", 1)

    @pytest.mark.parametrize("patience", [1, 3, 7])
    def test_a_warning_of_which_notices_are_left_is_over(self, patience: int) -> None:
        """After patience readings with notices only the warning is told to be over, and the notice lasts in silence."""
        run = Run(patience)
        run.read(sick("a", "b"), times=patience)
        run.read(notice("a"), times=patience - 1)
        assert run.recoveries == []
        (over,) = run.read(notice("a")).recoveries
        assert (over.severity, over.step, over.recovered_at) == ("warning", patience - 1, 2 * patience - 1)
        run.read(notice("a"), times=20)
        assert run.told == 2
        assert [(d.severity, d.recovered_at is None) for d in run.tracker.diagnoses] == [
            ("warning", False),
            ("notice", True),
        ]

    def test_a_warning_that_comes_back_after_notices_is_told_again(self) -> None:
        """Once it was told to be over, the notice that was left may become a warning, which is told as the second."""
        run = Run()
        for _ in range(2):
            run.read(sick("a", rule="vanishing.depth"), times=3)
            run.read(notice("a"), times=5)
        assert [(d.severity, d.count) for d in run.onsets] == [("warning", 1), ("warning", 2)]
        assert [d.recovered_at for d in run.recoveries] == [5, 13]

    def test_a_notice_ends_in_silence(self) -> None:
        """Only the recovery of a warning is told; a notice that comes and goes is told once."""
        run = Run(patience=1)
        for _ in range(50):
            run.read(notice("a"))
            run.read()
        assert (len(run.onsets), run.recoveries) == (1, [])
        assert run.tracker.diagnoses[-1].count == 50
        assert len(run.tracker.diagnoses) == 3

    def test_the_first_warning_after_many_notices_is_told(self) -> None:
        """However often it was a notice before, that it became a warning is told, and that it is over, too."""
        run = Run(patience=1)
        for _ in range(7):
            run.read(notice("a"))
            run.read()
        run.read(sick("a"))
        run.read()
        assert [(d.severity, d.count) for d in run.onsets] == [("notice", 1), ("warning", 8)]
        assert [d.count for d in run.recoveries] == [8]

    def test_escalation_that_flaps_is_counted(self) -> None:
        """Notice, warning, recovery a hundred times: warnings are told three times, at the 10th and at the 100th."""
        run = Run(patience=1)
        for _ in range(100):
            run.read(notice("a"))
            run.read(sick("a", rule="vanishing.depth"))
            run.read()
        told = [(d.severity, d.count) for d in run.onsets]
        assert told == [("notice", 1), *(("warning", n) for n in (1, 2, 3, 10, 100))]
        assert [d.count for d in run.recoveries] == [1, 2, 3, 10, 100]
        assert len(run.tracker.diagnoses) <= 5

    def test_a_notice_never_hides_the_only_warning(self) -> None:
        """However a fault goes on as a notice, the list still tells that it was a warning."""
        run = Run(patience=1)
        for number in range(30):
            run.read(sick("a") if number == 5 else notice("a"))
            run.read()
        assert [d.severity for d in run.tracker.diagnoses].count("warning") == 1
        assert len(run.tracker.diagnoses) <= 5


class TestRecovery:
    """When it is over."""

    def test_a_fault_is_over_after_patience_readings_without_it(self) -> None:
        """The recovery is told once, with the step at which patience was filled."""
        run = Run()
        run.read(sick("a"), times=3)
        assert run.read(times=2).recoveries == ()
        (over,) = run.read().recoveries
        assert (over.step, over.recovered_at) == (2, 5)
        run.read(times=20)
        assert len(run.recoveries) == 1
        assert run.tracker.diagnoses == [over]
        assert run.tracker.open() == []

    def test_one_sick_reading_keeps_it_open(self) -> None:
        """A finding in between begins the count of healthy readings anew."""
        run = Run()
        run.read(sick("a"), times=3)
        for _ in range(10):
            run.read(times=2)
            run.read(sick("a"))
        assert run.recoveries == []
        assert len(run.onsets) == 1

    def test_absent_layers_do_not_recover(self) -> None:
        """Readings in which none of its layers is present say nothing about a fault."""
        run = Run()
        run.read(sick("a"), times=3)
        run.read(present="bc", times=20)
        assert run.recoveries == []
        run.read(times=3)
        assert len(run.recoveries) == 1

    def test_a_layer_that_turns_nan_has_not_recovered(self) -> None:
        """A vanishing layer whose gradient is NaN can show no other symptom: its fault stays open."""
        run = Run()
        run.read(sick("a"), times=3)
        run.read(sick("a", rule="non_finite"), times=20)
        assert run.recoveries == []
        assert {d.symptom for d in run.tracker.open()} == {Symptom.VANISHING, Symptom.NON_FINITE}

    def test_the_other_optimizer_says_nothing(self) -> None:
        """Readings of another optimizer end no fault."""
        run = Run()
        run.read(sick("a"), times=3)
        run.read(optimizer=1, times=20)
        assert run.recoveries == []


class TestFlapping:
    """A fault that comes and goes."""

    def test_it_is_counted_and_told_at_the_tenth_and_the_hundredth(self) -> None:
        """Three onsets are told, then the 10th and the 100th, and the recoveries of just these."""
        run = Run()
        for _ in range(120):
            run.read(sick("a"), times=3)
            run.read(times=3)
        assert [d.count for d in run.onsets] == [1, 2, 3, 10, 100]
        assert [d.count for d in run.recoveries] == [1, 2, 3, 10, 100]
        assert [d.count for d in run.tracker.diagnoses] == [1, 2, 120]

    def test_a_sick_run_of_a_thousand_readings_tells_a_handful(self) -> None:
        """Sixty layers that fall ill at random for 1,000 readings are no storm, in the log or in the list."""
        names = "".join(chr(0x100 + i) for i in range(60))
        for share in (0.1, 0.5):
            run, rng = Run(layers=names), np.random.default_rng(0)
            for _ in range(1000):
                ill = [names[i] for i in np.flatnonzero(rng.random(60) < share)]
                run.read(*([sick(*ill)] if ill else []))
            assert run.told <= 30, share
            assert len(run.tracker.diagnoses) <= 4 * len(names)

    def test_sixty_layers_that_fall_ill_in_turn_tell_a_handful(self) -> None:
        """Sixty faults, each of which comes and goes on its own, are no storm either."""
        names = "".join(chr(0x100 + i) for i in range(60))
        run = Run(layers=names)
        for reading in range(1000):
            run.read(sick(names[reading // 4 % 60]))
        assert [d.count for d in run.onsets].count(1) == 6
        assert run.told <= 35


class TestMemory:
    """What a checkpoint keeps."""

    def test_a_restored_tracker_goes_on_as_if_nothing_had_happened(self) -> None:
        """Saved as JSON at any reading and restored, the run tells the same onsets and recoveries."""
        rng = np.random.default_rng(3)
        plan = []
        for _ in range(120):
            names = [name for name in "abcdef" if rng.random() < 0.4]
            plan.append([notice(*names) if rng.random() < 0.5 else sick(*names)] if names else [])
        plan = [findings for findings in plan for _ in range(3)]
        whole, broken = Run(patience=2), Run(patience=2)
        for number, findings in enumerate(plan):
            whole.read(*findings)
            broken.read(*findings)
            if number % 7 == 0:
                state = json.loads(json.dumps(broken.tracker.state_dict(), allow_nan=False))
                broken.tracker = OnsetTracker(2)
                broken.tracker.load_state_dict(state)
        assert len(whole.onsets) > 3
        assert broken.onsets == whole.onsets
        assert broken.recoveries == whole.recoveries
        assert broken.tracker.diagnoses == whole.tracker.diagnoses

    def test_an_advised_diagnosis_takes_the_place_of_the_bare_one(self) -> None:
        """Exchange replaces the very object, and no other that equals it."""
        tracker = OnsetTracker(patience=1)
        bare = tracker.update([sick("a")], 0, 0, {"a": 0}, [1]).onsets[0]
        advised = sick("a", cause="sigmoid")
        tracker.exchange(sick("a"), advised)
        assert tracker.diagnoses == [bare]
        tracker.exchange(bare, advised)
        assert tracker.diagnoses == [advised]
