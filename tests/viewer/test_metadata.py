"""Test ``lightning_gradwatch.viewer.metadata``."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.viewer.metadata import FORMAT_VERSION, QUANTITIES, EventsMetadata, SeriesMetadata

ABOUT = SeriesMetadata("norms", 1, "a1", 5.0, 2, ("fc1", "<b>"), (1, 0), ("Linear", "LSTM"), "", "Adam", 1e-8, None)


def changed(**values: Any) -> bytes:
    """Return the content of ``ABOUT`` with some values in place of its own."""
    return json.dumps({**json.loads(ABOUT.content()), **values}).encode()


@st.composite
def abouts(draw: Any) -> SeriesMetadata:
    """Draw metadata of layers with any names in any order."""
    layers = tuple(draw(st.lists(st.text(), max_size=6)))
    finite = st.floats(allow_nan=False, allow_infinity=False)
    return SeriesMetadata(
        draw(st.sampled_from(list(QUANTITIES))),
        draw(st.integers(0, 9)),
        draw(st.text()),
        draw(finite),
        draw(st.integers(0, 30)),
        layers,
        tuple(draw(st.permutations(range(len(layers))))),
        module=draw(st.text()),
        vanishing_threshold=draw(st.none() | finite),
    )


class TestSeriesMetadata:
    """What stands in a series' metadata."""

    @given(abouts())
    def test_what_is_written_is_read_back(self, about: SeriesMetadata) -> None:
        """Any names, in any order, survive."""
        assert SeriesMetadata.from_content(about.content()) == about

    def test_a_newer_writer_may_add_what_this_viewer_does_not_know(self) -> None:
        """Unknown values are passed over as long as the format's version is known."""
        assert SeriesMetadata.from_content(changed(color="red")) == ABOUT

    def test_an_older_writer_may_lack_what_has_a_default(self) -> None:
        """Values that came later have defaults."""
        values = json.loads(ABOUT.content())
        del values["kinds"], values["optimizer_label"]
        assert SeriesMetadata.from_content(json.dumps(values).encode()) == replace(ABOUT, kinds=(), optimizer_label="")

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\xff\xfe",
            b"[]",
            b"null",
            b'"series"',
            b"[" * 100_000,
            EventsMetadata("a1", 0.0).content(),
            changed(format_version=FORMAT_VERSION + 1),
            changed(format_version="1"),
            changed(quantity="taste"),
            changed(optimizer=-1),
            changed(optimizer="0"),
            changed(layers="ab"),
            changed(layers=["fc1", 2]),
            changed(layers=["fc1"]),
            changed(order=[0, 0]),
            changed(order=[0, 2]),
            changed(order=["0", 1]),
            changed(order=None),
            changed(started=float("nan")),
            changed(started=10**400),
            changed(vanishing_threshold=float("inf")),
            changed(module=7),
            b'{"kind": "series", "format_version": 1}',
        ],
    )
    def test_nonsense_is_no_series(self, content: bytes) -> None:
        """What a viewer could not rely on is None, never an error."""
        assert SeriesMetadata.from_content(content) is None

    @pytest.mark.parametrize(
        "change",
        [{"layers": ("fc1", "fc2")}, {"order": (0, 1)}, {"module": "lstm"}, {"session": "b2"}, {"resolution": 3}],
    )
    def test_other_rows_sessions_and_resolutions_have_other_tags(self, change: dict[str, Any]) -> None:
        """Records of another shape or meaning never share a tag."""
        assert replace(ABOUT, **change).tag != ABOUT.tag

    def test_kinds_and_thresholds_do_not_change_the_tag(self) -> None:
        """They do not change what the records mean."""
        assert replace(ABOUT, kinds=(), vanishing_threshold=1.0).tag == ABOUT.tag


class TestEventsMetadata:
    """What stands in the metadata of events."""

    def test_what_is_written_is_read_back(self) -> None:
        """Session, time and what else was noted survive."""
        about = EventsMetadata("a1", 7.5, {"host": "node<3>"})
        assert EventsMetadata.from_content(about.content()) == about

    @pytest.mark.parametrize(
        "content",
        [
            b"{",
            ABOUT.content(),
            b'{"kind": "events", "format_version": 1}',
            b'{"kind": "events", "format_version": 99, "session": "a", "started": 0}',
            b'{"kind": "events", "format_version": 1, "session": 3, "started": 0}',
            b'{"kind": "events", "format_version": 1, "session": "a", "started": NaN}',
            b'{"kind": "events", "format_version": 1, "session": "a", "started": 0, "more": []}',
        ],
    )
    def test_nonsense_is_no_events(self, content: bytes) -> None:
        """What a viewer could not rely on is None, never an error."""
        assert EventsMetadata.from_content(content) is None
