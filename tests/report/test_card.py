"""Test ``lightning_gradwatch.report.card``."""

from __future__ import annotations

from dataclasses import replace

from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.remedy.remedy import Remedy
from lightning_gradwatch.report.card import CardSink, card

SICK = Diagnosis(
    "vanishing.depth", Symptom.VANISHING, layers=tuple("abcdefg"), step=3, message="little", measured="1e-9"
)


def test_the_card_is_a_table_with_a_section_for_each_diagnosis() -> None:
    """Every diagnosis has a row, which says until when it lasted, and a section with its numbers and ways out."""
    remedies = (Remedy("use relu", "keeps its slope", SICK, code="F.relu(x)"), Remedy("wait", "may pass", SICK))
    over = replace(SICK, severity="notice", layers=("a",), recovered_at=9, measured="", cause="sigmoid")
    assert card([replace(SICK, remedies=remedies), over], 40).split("\n") == [
        "**VANISHING since step 3, 1 notice**",
        "",
        "| when | what | layers | rule |",
        "|---|---|---|---|",
        "| since step 3 | **VANISHING**: little | `a`, `b`, `c`, `d`, `e` and 2 more | vanishing.depth |",
        "| steps 3 to 9 | notice, vanishing: little | `a` | vanishing.depth |",
        "",
        "#### step 3: vanishing",
        "- measured: 1e-9",
        "- do: **use relu** (keeps its slope)",
        "",
        "```python",
        "F.relu(x)",
        "```",
        "- do: **wait** (may pass)",
        "",
        "#### step 3: vanishing",
        "- why: sigmoid",
    ]


def test_bars_in_words_do_not_break_the_table() -> None:
    """A bar is escaped in every cell that holds words."""
    row = card([replace(SICK, message="|g| is low", layers=("a|b",))], 1).split("\n")[4]
    assert row.replace("\\|", "").count("|") == 5


def test_the_card_is_renewed_at_onsets_recoveries_and_the_end(reports_of) -> None:
    """In between it is left alone; at the end it is shown once more, that of a healthy run too."""
    shown: list[tuple[str, int]] = []
    sink = CardSink(lambda text, step: shown.append((text, step)))
    for step, report in enumerate(reports_of([[1.0]] * 5)):
        changes = {1: {"onsets": (SICK,)}, 3: {"recoveries": (SICK,)}}.get(step, {})
        sink.write(replace(report, diagnoses=(SICK,) if step else (), **changes))
    sink.close()
    assert [step for _, step in shown] == [1, 3, 4]
    assert shown[-1][0] == card([SICK], 5)


def test_a_long_run_counts_the_readings_that_its_history_has_lost(report_of) -> None:
    """The card tells how many readings were judged, not how many rows are kept of them."""
    shown: list[str] = []
    sink = CardSink(lambda text, _: shown.append(text))
    sink.write(report_of([[1.0]] * 3, num_readings=70_000))
    sink.close()
    assert shown == ["No fault in 70000 readings."]


def test_a_run_without_a_reading_shows_nothing() -> None:
    """A card of nothing is not shown."""
    shown: list[str] = []
    CardSink(lambda text, _: shown.append(text)).close()
    assert shown == []
