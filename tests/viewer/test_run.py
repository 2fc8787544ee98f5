"""Test ``lightning_gradwatch.viewer.run``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from viewer.planted import planted_diagnosis, planted_run

from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.detect.onset import OnsetTracker
from lightning_gradwatch.detect.rules import RULE_IDS
from lightning_gradwatch.viewer.metadata import QUANTITIES
from lightning_gradwatch.viewer.run import Run, is_open_warning, newest_step, quantity_of_rule


def found(step: int = 3, **values: Any) -> dict[str, Any]:
    """Return a diagnosis as it is written."""
    return {**planted_diagnosis("vanishing.depth", step=step, layers=["a", "b"]), **values}


def diagnoses(*events: tuple[str, dict[str, Any]]) -> list[tuple[int, Any]]:
    """Return onset and end of each diagnosis of a run with these events."""
    run = Run("r", (), [{"event": event, "step": 0, "diagnosis": diagnosis} for event, diagnosis in events])
    return [(diagnosis["step"], diagnosis["recovered_at"]) for diagnosis in run.diagnoses]


class TestDiagnoses:
    """From events to what was diagnosed."""

    def test_an_onset_lasts_until_its_recovery(self) -> None:
        """The recovery tells when it was over."""
        assert diagnoses(("onset", found())) == [(3, None)]
        assert diagnoses(("onset", found()), ("recovery", found(recovered_at=8))) == [(3, 8)]

    def test_the_layers_are_those_that_it_had_in_the_end(self) -> None:
        """A fault may have spread since its onset; its remedies are those of the onset."""
        more = found(layers=["a", "b", "c"], recovered_at=8, remedies=[])
        run = Run("r", (), [{"event": "onset", "diagnosis": found()}, {"event": "recovery", "diagnosis": more}])
        assert run.diagnoses[0]["layers"] == ["a", "b", "c"]
        assert run.diagnoses[0]["remedies"] == found()["remedies"]

    def test_faults_of_other_layers_rules_and_optimizers_are_told_apart(self) -> None:
        """A recovery ends the one whose rule, optimizer, onset and layers it names."""
        for other in ({"layers": ["c"]}, {"optimizer": 1}, {"rule": "vanishing.time"}):
            events = [("onset", found()), ("onset", found(**other)), ("recovery", found(recovered_at=8, **other))]
            assert diagnoses(*events)[-1] == (3, 8)
            assert "rule" in other or diagnoses(*events)[0] == (3, None)

    def test_a_fault_that_begins_again_has_not_lasted(self) -> None:
        """A killed session cannot tell of a recovery; the next onset shows that there was one."""
        assert diagnoses(("onset", found()), ("onset", found(step=50))) == [(3, 50), (50, None)]
        assert diagnoses(("onset", found()), ("onset", found(step=50, count=2))) == [(3, 50), (50, None)]

    def test_a_notice_that_becomes_a_warning_is_one_fault(self) -> None:
        """It is told twice and counted once; where it was over in between it is counted again."""
        notice = found(severity="notice")
        assert diagnoses(("onset", notice), ("onset", found(step=9))) == [(9, None)]
        assert diagnoses(("onset", notice), ("onset", found(step=9, count=2))) == [(3, 9), (9, None)]

    def test_a_muted_fault_does_not_end_one_that_is_not(self) -> None:
        """Whether a rule is muted is told with each event, and kept."""
        muted = {"event": "onset", "muted": True, "diagnosis": found(step=5)}
        run = Run("r", (), [{"event": "onset", "diagnosis": found()}, muted])
        assert [(d["step"], d["recovered_at"], is_open_warning(d)) for d in run.diagnoses] == [
            (3, None, True),
            (5, None, False),
        ]

    @pytest.mark.parametrize(
        "event", [{}, {"event": "onset"}, {"event": "onset", "diagnosis": 3}, {"event": "recovery", "diagnosis": {}}]
    )
    def test_events_without_a_diagnosis_are_passed_over(self, event: dict[str, Any]) -> None:
        """What another version has written is no reason to show nothing."""
        assert Run("r", (), [event, {"event": "onset", "diagnosis": found()}]).diagnoses == [found()]

    def test_a_diagnosis_with_little_in_it_is_shown(self) -> None:
        """A person's own program may leave out what it does not know."""
        assert Run("r", (), [{"event": "onset", "diagnosis": {"rule": "x"}}]).diagnoses == [{"rule": "x"}]

    def test_it_agrees_with_the_tracker_that_told_the_events(self) -> None:
        """Replayed from onsets and recoveries alone, a run has the faults that the tracker had in the end."""
        tracker, events = OnsetTracker(patience=1), []
        sick = {"warning": [0, 1, 7, 8], "notice": [4, 5, 6]}
        for step in range(12):
            severities = [severity for severity, steps in sick.items() if step in steps]
            findings = [
                Diagnosis("vanishing.depth", Symptom.VANISHING, severity, layers=("a",), step=step)  # type: ignore[arg-type]
                for severity in severities
            ]
            changes = tracker.update(findings, 0, step, {"a": 0}, [step + 1])
            events += [{"event": "onset", "diagnosis": d.to_dict()} for d in changes.onsets]
            events += [{"event": "recovery", "diagnosis": d.to_dict()} for d in changes.recoveries]
        warnings = [d for d in tracker.diagnoses if d.severity == "warning"]
        told = [(d["step"], d["recovered_at"]) for d in Run("r", (), events).diagnoses if d["severity"] == "warning"]
        assert told == [(d.step, d.recovered_at) for d in warnings]
        assert len(told) == 2


class TestQuantityOfRule:
    """Which picture shows what a rule speaks of."""

    def test_each_rule_of_ours_has_one(self) -> None:
        """Those that judge a profile have its quantity, all others the norms."""
        found = {rule: quantity_of_rule(rule) for rule in RULE_IDS}
        assert set(found.values()) <= set(QUANTITIES)
        assert {rule for rule, quantity in found.items() if quantity == "norms"} == {
            "non_finite",
            "vanishing.threshold",
            "exploding.threshold",
            "dead",
            "disconnected",
            "spike",
        }


class TestNewestStep:
    """How far a run is known to have come."""

    def test_the_end_tells_the_last_reading_of_the_last_window(self) -> None:
        """A record has the first step of its window alone."""
        run = planted_run(kind="relu", resolution=3, num_columns=10)
        assert (run.series[0].last_step, run.last_step) == (72, 72)
        assert replace(run, events=[{"event": "end", "step": 75, "num_readings": 76}]).last_step == 75

    def test_a_session_without_a_reading_has_trained_nothing(self) -> None:
        """The step at which it was switched off may never have been taken."""
        off = [{"event": "off", "step": 500, "num_readings": 0}, {"event": "end", "step": 500, "num_readings": 0}]
        assert newest_step([96, None], off) == 96
        assert newest_step([], [{"event": "onset", "step": 9}]) is None

    @pytest.mark.parametrize("step", ["99", 99.5, None, True, [99]])
    def test_a_step_that_is_no_whole_number_is_another_programs(self, step: Any) -> None:
        """Nothing is concluded from it."""
        assert newest_step([1], [{"event": "end", "step": step}]) == 1
