"""Test ``benchmarks.ward.repair``."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from benchmarks.ward import repair as command
from benchmarks.ward.case import Case
from benchmarks.ward.recipes import Recipe, sick, well
from benchmarks.ward.repair import attempt, repair
from benchmarks.ward.strategies import Proposal
from benchmarks.ward.treatment import NeedsEditError, Treated, treat
from lightning_gradwatch import Diagnosis, Remedy, Symptom

_PLAIN = Recipe(data="circle", depth=2, width=16, rate=1e-2, num_steps=60)
_SLOW = replace(_PLAIN, optimizer="momentum", rate=1e-12)
WELL = well("family/well", _PLAIN)
ILL = sick("family/ill", _SLOW, Symptom.VANISHING, ("0",), {"rate": 0.05}, decided="start")
# Neither it nor its cure trains.
HOPELESS = sick("other/in-vain", _SLOW, Symptom.VANISHING, ("0",), {"rate": 2e-12}, decided="start")
CASES = (WELL, ILL, HOPELESS)


def remedy(title: str, **what: Any) -> Remedy:
    """Make a remedy for a diagnosis."""
    return Remedy(title, "it helps", Diagnosis("vanishing.update", Symptom.VANISHING), **what)


def does(what: Remedy, words_only: bool = False):
    """Make a strategy that always proposes a remedy."""
    proposal = Proposal(what.title, lambda lesson: treat(lesson, what), "a.rule", "warning", words_only)
    return lambda _: proposal


def nothing(model: nn.Module) -> None:
    """Leave a model as it is."""


@pytest.fixture
def strategies(monkeypatch):
    """Return the strategies, to be replaced for a test."""
    found = dict(command.STRATEGIES)
    monkeypatch.setattr(command, "STRATEGIES", found)
    return found


def tried(case: Case, seed: int = 0) -> dict[str, Any]:
    """Return the result of our strategy."""
    (result,) = repair(case, seed, ["ours"])
    return result


def test_a_remedy_that_equals_the_cure_has_cured(strategies) -> None:
    """An oracle that changes what the cure changes reaches the very score of the healthy twin."""
    strategies["ours"] = does(remedy("0.05", optimizer_changes={"lr": 0.05}))
    result = tried(ILL)
    assert json.loads(json.dumps(result)) == result
    assert (result["label"], result["grade"], result["title"], result["rule"]) == ("sick", "cured", "0.05", "a.rule")
    assert result["after"] == result["twin"] > 0.85 > result["score"]
    assert result["chance"] == 0.5
    assert result["note"] == ""


def test_a_remedy_that_changes_nothing_has_not_helped(strategies) -> None:
    """A treatment that leaves all as it was ends in the sick run's own score, as do words, which train nothing."""
    strategies["ours"] = does(remedy("leave it", change=nothing))
    result = tried(ILL)
    assert (result["grade"], result["after"], result["words_only"]) == ("not helped", result["score"], False)
    strategies["ours"] = does(remedy("look at it"), words_only=True)
    words = tried(ILL)
    assert (words["grade"], words["after"], words["note"]) == ("not helped", words["score"], "words only")


def test_the_first_remedy_of_the_watch_is_what_is_tried() -> None:
    """With GradWatch's own advice the title is that of a real remedy, for the diagnosis that was open at the end."""
    result = tried(ILL)
    assert result["rule"] == "vanishing.update"
    assert "learning rate" in result["title"]
    assert [rule for rule, _, _, end in result["said"] if end is None] == ["vanishing.update"]


def test_no_remedy_is_no_advice_and_a_refusal_needs_an_edit(strategies) -> None:
    """Neither is trained."""

    def refuse(lesson) -> Treated:
        raise NeedsEditError("edit model.py:3")

    strategies["ours"] = lambda _: None
    result = tried(ILL)
    assert (result["grade"], result["title"], result["after"]) == ("no advice", None, None)
    strategies["ours"] = lambda _: Proposal("edit it", refuse)
    result = tried(ILL)
    assert (result["grade"], result["note"], result["after"]) == ("needs an edit", "edit model.py:3", None)


def test_an_edit_by_hand_is_made_for_the_whole_of_the_treated_run(strategies, monkeypatch) -> None:
    """Functions are swapped while it trains and while it is scored, and not before or after; the result says so."""
    log: list[str] = []

    @contextmanager
    def swap():
        log.append("in")
        yield
        log.append("out")

    def treated(lesson) -> Treated:
        score = lambda _: log.append("score") or 1.0  # noqa: E731
        return Treated(replace(lesson, score=score), swap=swap(), by_hand=True)

    strategies["ours"] = lambda _: Proposal("edit it", treated)
    result = tried(ILL)
    assert (result["grade"], result["by_hand"]) == ("cured", True)
    assert log == ["in", "score", "out"]


def test_gradwatch_watches_the_treated_run_as_the_remedy_says(strategies, monkeypatch) -> None:
    """A clipper or a setting goes to a GradWatch of its own; without one nobody watches the second run."""
    made: list[dict[str, Any]] = []

    class Noted(command.GradWatch):
        def __init__(self, **settings: Any) -> None:
            made.append(settings)
            super().__init__(**settings)

    monkeypatch.setattr(command, "GradWatch", Noted)
    strategies["ours"] = does(remedy("skip", code='GradWatch(on_nonfinite="skip")'))
    assert tried(ILL)["grade"] == "not helped"
    strategies["ours"] = does(remedy("leave it", change=nothing))
    tried(ILL)
    assert made == [{}, {"on_nonfinite": "skip"}, {}]


def test_a_treatment_that_ends_training_is_no_cure(strategies) -> None:
    """A network that cannot run any more scores 0, and how it ended is written down."""
    strategies["ours"] = does(remedy("cut it", change=lambda model: model.net.pop(0)))
    result = tried(ILL)
    assert (result["grade"], result["after"]) == ("not helped", 0.0)
    assert result["note"].startswith("training ended: RuntimeError: ")


def test_a_healthy_run_is_treated_by_us_alone_and_must_stay_healthy(strategies) -> None:
    """With a remedy it keeps its score or it does not; the others are not asked, nor is anybody without a label."""
    strategies["ours"] = does(remedy("leave it", change=nothing))
    ours, clipped = repair(WELL, 0, ["ours", "clip"])
    assert (ours["label"], ours["grade"]) == ("healthy", "kept")
    assert ours["after"] == ours["score"]
    assert (clipped["label"], clipped["grade"], clipped["title"]) == ("healthy", "", None)
    strategies["ours"] = does(remedy("stop it", optimizer_changes={"lr": 1e-12}))
    assert tried(WELL)["grade"] == "worse"
    hopeless = tried(HOPELESS)
    assert (hopeless["label"], hopeless["grade"], hopeless["after"]) == ("undecided", "", None)


def test_the_strategies_are_tried_on_the_same_run(strategies) -> None:
    """Every strategy has a line with the same sick run and twin, and AUTOTRAINER's rules have watched that run."""
    results = repair(ILL, 0, list(command.DEFAULT))
    assert [result["strategy"] for result in results] == list(command.DEFAULT)
    assert len({(result["score"], result["twin"], result["label"]) for result in results}) == 1
    by_name = {result["strategy"]: result for result in results}
    # Nothing moves, so its check finds slow convergence, and another optimizer at its usual rate helps.
    assert by_name["autotrainer"]["title"] == "another optimizer"
    assert {by_name[name]["grade"] for name in ("xavier", "he", "clip")} == {"not helped"}


def test_a_remedy_that_two_strategies_propose_is_trained_once(strategies, monkeypatch) -> None:
    """The log's first remedy is the first one at the end of this run, and both have the same result."""
    runs: list[object] = []
    real = command.train

    def counted(lesson, callbacks=()) -> float:
        runs.append(lesson)
        return real(lesson, callbacks)

    monkeypatch.setattr(command, "train", counted)
    first, told = repair(ILL, 0, ["ours", "ours-told"])
    assert (first["title"], first["after"], first["grade"]) == (told["title"], told["after"], told["grade"])
    assert first["after"] is not None
    # The sick run and the treated one; the twin is trained by ``outcome``.
    assert len(runs) == 2


def test_a_watch_that_has_switched_itself_off_is_an_error(monkeypatch) -> None:
    """A monitor that died must not look like one without advice."""

    class Off(command.GradWatch):
        @property
        def disabled_reason(self) -> str:
            return "no more"

    monkeypatch.setattr(command, "GradWatch", Off)
    with pytest.raises(RuntimeError, match="switched itself off in family/ill: no more"):
        tried(ILL)


@pytest.fixture
def ward(monkeypatch, tmp_path: Path, capsys):
    """Return what runs the command on three short cases in this process, and what it has printed."""
    monkeypatch.setattr(command, "all_cases", lambda: CASES)

    def call(*arguments: str) -> str:
        out = ["--processes", "1", "--seeds", "1", "--out", str(tmp_path / "runs" / "out.jsonl")]
        monkeypatch.setattr(sys, "argv", ["repair", *out, *arguments])
        command.main()
        return capsys.readouterr().out

    return call


def lines(tmp_path: Path) -> list[tuple[str, str]]:
    """Return which runs and strategies the file holds."""
    found = [json.loads(line) for line in (tmp_path / "runs" / "out.jsonl").read_text().splitlines()]
    return [(result["case"], result["strategy"]) for result in found]


def test_the_command_goes_on_where_it_stopped(ward, tmp_path: Path) -> None:
    """What the file holds is not done again, a new strategy is added to it, and the page has them all."""
    assert "1 of 1 runs" in ward("--only", "family/ill", "--strategies", "ours")
    assert "2 of 2 runs" in ward("--sick", "--strategies", "ours,clip", "--table", str(tmp_path / "repair.md"))
    assert lines(tmp_path) == [
        ("family/ill", "ours"),
        ("family/ill", "clip"),
        ("other/in-vain", "ours"),
        ("other/in-vain", "clip"),
    ]
    assert "of" not in ward("--sick", "--strategies", "ours,clip").partition("|")[0]
    page = (tmp_path / "repair.md").read_text()
    assert "`make repair`" in page
    assert "1 cases, 1 sick runs" in page


def test_tuning_leaves_out_what_is_held_back(ward, tmp_path: Path) -> None:
    """With ``--tuning`` advice is tried only on the cases on which it may be chosen."""
    held = {case.name for case in CASES if case.held_back}
    assert 0 < len(held) < 3
    ward("--tuning", "--strategies", "ours")
    assert {name for name, _ in lines(tmp_path)} == {case.name for case in CASES} - held


def test_a_strategy_that_is_not_known_is_refused(ward, capsys) -> None:
    """The message names those that there are."""
    with pytest.raises(SystemExit):
        ward("--strategies", "ours,prayer")
    assert "must be names out of ours, xavier, he, clip, autotrainer" in capsys.readouterr().err


def test_a_case_that_breaks_is_named_and_the_others_are_kept(ward, monkeypatch, tmp_path: Path) -> None:
    """The command fails and writes no page; an attempt says what broke."""

    def broken(seed: int) -> None:
        raise KeyError("a typing error")

    monkeypatch.setattr(command, "all_cases", lambda: (Case("bad/x", broken), ILL))
    with pytest.raises(SystemExit, match=r"(?s)bad/x, seed 0:.*a typing error"):
        ward("--strategies", "ours", "--table", str(tmp_path / "repair.md"))
    assert lines(tmp_path) == [("family/ill", "ours")]
    assert not (tmp_path / "repair.md").exists()
    assert attempt(("bad/x", 3, ("ours",)))[0]["seed"] == 3


def test_processes_of_their_own_run_the_real_cases(monkeypatch, tmp_path: Path, capsys) -> None:
    """With two processes a real case comes back with its result."""
    out = ["--seeds", "1", "--processes", "2", "--out", str(tmp_path / "out.jsonl")]
    monkeypatch.setattr(sys, "argv", ["repair", *out, "--only", "training/sgd-1e-9", "--strategies", "ours"])
    command.main()
    assert "1 of 1 runs" in capsys.readouterr().out
    (result,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert (result["case"], result["label"], result["rule"]) == ("training/sgd-1e-9", "sick", "vanishing.update")
