"""Test ``lightning_gradwatch.report.report``."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lightning_gradwatch import Diagnosis, Remedy, Report, Symptom
from lightning_gradwatch.report.ways_out import HOW

SICK = Diagnosis(
    "vanishing.depth",
    Symptom.VANISHING,
    layers=("a.0", "a.1"),
    message="the first layers get almost no gradient",
    measured="by 0.1 a layer",
    cause="12 x sigmoid",
)
DID = {
    "loss_before": 2.3,
    "loss_after": 1.71,
    "loss_untreated": 2.3,
    "first_over_last_before": 4e-10,
    "first_over_last_after": 0.6,
    "steps": 10,
}
TRIED = Remedy("nn.ReLU + He", "He et al., 2015", SICK, code="he_init_(model)\nmodel.train()", effect=DID)
WORDS = Remedy("look at the data", "it may be wrong", SICK)
ADVISED, REHEARSED = (replace(SICK, remedies=remedies) for remedies in ((WORDS,), (TRIED, WORDS)))


def report_of(num_layers: int = 2, **more: object) -> Report:
    """Return a report of a few layers."""
    names = tuple(f"a.{number}" for number in range(num_layers))
    return Report(names, np.full(num_layers, 1.0), np.full(num_layers, 0.25), **more)  # type: ignore[arg-type]


def test_warnings_make_it_sick_and_notices_do_not():
    """``healthy`` and ``assert_healthy`` agree."""
    notice = Diagnosis("vanishing.time", Symptom.VANISHING, "notice", layers=("a.0",), message="fades")
    assert report_of().healthy
    report_of(diagnoses=(notice,)).assert_healthy()
    sick = report_of(diagnoses=(REHEARSED, notice), remedies=(TRIED,), notes=("a note",))
    assert not sick.healthy
    with pytest.raises(AssertionError) as raised:
        sick.assert_healthy()
    assert "VANISHING: the first layers get almost no gradient" in str(raised.value)
    assert str(raised.value).count("first/last gradient 4e-10 -> 0.6, loss 2.3 -> 1.71 in 10 steps") == 1
    assert str(raised.value).endswith("\nnote: a note")
    sick.assert_healthy(symptoms=["exploding"])
    with pytest.raises(ValueError, match="vanished"):
        sick.assert_healthy(symptoms=["vanished"])


def test_nothing_measured_is_not_healthy():
    """A test suite must not pass because nobody looked."""
    empty = Report(("a",), np.full(1, np.nan), np.full(1, np.nan))
    with pytest.raises(AssertionError, match="saw no gradient"):
        empty.assert_healthy()
    assert not empty.healthy
    assert str(empty) == "not judged along depth: no warning in 1 layer"


def test_markdown_has_everything():
    """What is wrong, ways out with their lines, what was not done, and a row for each layer."""
    text = report_of(diagnoses=(SICK,), remedies=(TRIED, WORDS), notes=("not done",), factor=0.1).to_markdown()
    assert text.startswith("**1 warning in 2 layers; the gradient is multiplied by 0.1 a layer back**\n")
    for line in (
        "**VANISHING**: the first layers get almost no gradient (a.0, a.1)",
        "- measured: by 0.1 a layer",
        "- why: 12 x sigmoid",
        "Ways out, rehearsed on this batch, each on a copy of the model:",
        "1. **nn.ReLU + He**",
        "   - rehearsed: first/last gradient 4e-10 -> 0.6, loss 2.3 -> 1.71 in 10 steps (2.3 without it)",
        "2. **look at the data**",
        "   - why: it may be wrong",
        "   he_init_(model)",
        "*not done*",
        "| layer | signal | gradient reaching it |",
        "| a.1 | 1 | 0.25 |",
    ):
        assert line in text.splitlines()


def test_a_person_reads_it_without_explanation():
    """A block for each fault: what, in numbers, why, what each way out did, and where the lines to paste are."""
    assert str(report_of(diagnoses=(REHEARSED,), remedies=(TRIED, WORDS), notes=("not done",))).splitlines() == [
        "1 warning in 2 layers",
        "VANISHING: the first layers get almost no gradient (2 of 2 layers: a.0, a.1)",
        "  measured   by 0.1 a layer",
        "  why        12 x sigmoid",
        f"  tried      {HOW}; first/last gradient: what reaches the first layer, as a share of what reaches the last",
        "  try 1      nn.ReLU + He",
        "             first/last gradient 4e-10 -> 0.6, loss 2.3 -> 1.71 in 10 steps (2.3 without it)",
        "  try 2      look at the data",
        "             not rehearsed",
        "  more       lines to paste: print(report.to_markdown())",
        "note: not done",
    ]


def test_without_a_rehearsal_it_says_do():
    """What nobody has tried is not called a try, and ways out are alternatives."""
    assert "do         look at the data" in str(report_of(diagnoses=(ADVISED,), remedies=(WORDS,)))
    several = replace(SICK, remedies=(WORDS, WORDS, WORDS, WORDS))
    text = str(report_of(diagnoses=(several,)))
    assert text.count("\n  or         look at the data") == 2
    assert text.endswith("more       1 more way out: print(report.to_markdown())")
    assert "tried" not in text


def test_the_headline_counts_notices_apart():
    """They do not make a model sick."""
    notice = Diagnosis("vanishing.time", Symptom.VANISHING, "notice", layers=("a.0",), message="fades")
    assert str(report_of()) == "healthy: no warning in 2 layers"
    assert str(report_of(diagnoses=(notice,))).startswith("healthy: no warning and 1 notice in 2 layers\nnotice, van")
    assert str(report_of(diagnoses=(SICK, notice))).startswith("1 warning and 1 notice in 2 layers\n")


def test_html_escapes_what_a_person_has_named():
    """A layer's name and a message may hold any characters."""
    odd = Report(("<b>|x",), np.ones(1), np.ones(1), diagnoses=(Diagnosis("r", Symptom.SPIKE, message="1 < 2"),))
    page = odd._repr_html_()
    assert "&lt;b&gt;|x" in page
    assert "1 &lt; 2" in page
    assert "<b>" not in page
    assert "| <b>\\|x |" in odd.to_markdown()


def test_a_large_model_shows_its_first_layers():
    """Five hundred rows are counted, not shown."""
    report = report_of(500)
    assert report.to_markdown().count("\n| a.") == 40
    assert "and 460 more layers" in report.to_markdown()
    assert "and 460 more layers" in report._repr_html_()
