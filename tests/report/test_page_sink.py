"""Test ``lightning_gradwatch.report.page_sink``."""

from __future__ import annotations

from lightning_gradwatch.report.page_sink import PageSink


def test_the_page_is_made_once_at_the_end(reports_of) -> None:
    """Twenty readings make no page; the end makes one, at the last reading's place; a second end makes none."""
    shown: list[tuple[str, int]] = []
    made: list[int] = []
    sink = PageSink(lambda page, step: shown.append((page, step)), lambda: made.append(1) or "page")
    for report in reports_of([[1.0]] * 20):
        sink.write(report)
    assert made == []
    sink.close()
    sink.close()
    assert shown == [("page", 19)]
    assert made == [1]


def test_a_run_without_a_reading_has_no_page() -> None:
    """Nothing is made where nothing was measured."""
    called: list[str] = []
    PageSink(lambda *_: called.append("shown"), lambda: called.append("made") or "page").close()
    assert called == []
