"""Test ``lightning_gradwatch.viewer.timeline``."""

from __future__ import annotations

from lightning_gradwatch.viewer.metadata import EventsMetadata
from lightning_gradwatch.viewer.timeline import Told, stitch_events


class TestStitchEvents:
    """The events of several sessions."""

    @staticmethod
    def told(session: str, started: float, *steps: int) -> Told:
        """Return a session that starts at the first of the steps and tells of something at each of the others."""
        events = [{"event": "onset" if i else "start", "step": step, "in": session} for i, step in enumerate(steps)]
        return Told(EventsMetadata(session, started), events)

    def test_what_was_trained_again_is_told_by_the_later_session(self) -> None:
        """Events of steps that a later session has repeated are left out, in whatever order sessions are read."""
        told = [self.told("b", 2.0, 10, 12), self.told("c", 3.0, 20), self.told("a", 1.0, 0, 9, 10, 11)]
        assert [(e["in"], e["step"]) for e in stitch_events(told)] == [
            ("a", 0),
            ("a", 9),
            ("b", 10),
            ("b", 12),
            ("c", 20),
        ]

    def test_a_session_without_a_beginning_covers_nothing(self) -> None:
        """Where its first event is lost, nobody knows where it went on."""
        lost = Told(EventsMetadata("b", 2.0), [{"event": "onset", "step": 1}])
        assert len(stitch_events([self.told("a", 1.0, 0, 5), lost])) == 3

    def test_events_without_a_step_are_kept(self) -> None:
        """Another version may tell what has none."""
        odd = Told(EventsMetadata("a", 1.0), [{"event": "x"}, {"step": "NaN"}])
        assert len(stitch_events([odd, self.told("b", 2.0, 5)])) == 3
