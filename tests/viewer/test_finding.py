"""Test ``lightning_gradwatch.viewer.finding`` and ``lightning_gradwatch.viewer.symptoms``."""

from __future__ import annotations

from viewer.planted import planted_diagnosis, planted_run

from lightning_gradwatch import Diagnosis, Remedy, Symptom
from lightning_gradwatch.viewer.finding import Finding, findings
from lightning_gradwatch.viewer.symptoms import SYMPTOMS


def test_the_viewer_has_the_rules_words():
    """It cannot import them, so they are held against each other here."""
    assert set(SYMPTOMS) == {symptom.value for symptom in Symptom}


def test_what_a_rule_said_comes_back_whole():
    """From ``Diagnosis.to_dict``."""
    sick = Diagnosis("vanishing.depth", Symptom.VANISHING, optimizer=1, layers=("a", "b"), step=3, message="fades")
    effect = {"loss_before": 2.3, "loss_after": 1.71, "loss_untreated": 2.3, "steps": 10}
    effect |= {"first_over_last_before": 4e-10, "first_over_last_after": 0.6}
    written = Diagnosis(**{**sick.__dict__, "remedies": (Remedy("ReLU", "slope 1", sick, code="x", effect=effect),)})
    found = Finding.read(written.to_dict())
    assert (found.rule, found.symptom, found.optimizer, found.layers, found.step) == (
        "vanishing.depth",
        "vanishing",
        1,
        ("a", "b"),
        3,
    )
    (way,) = found.ways_out
    assert (way.title, way.reason, way.code) == ("ReLU", "slope 1", "x")
    assert way.effect == "first/last gradient 4e-10 -> 0.6, loss 2.3 -> 1.71 in 10 steps (2.3 without it)"


def test_warnings_come_first_and_what_was_muted_last():
    """Among warnings those that last."""
    told = [(f.rule, f.is_warning, f.is_muted, f.until) for f in findings(planted_run(kind="mixed"))]
    assert told == [
        ("non_finite", True, False, "step 31"),
        ("vanishing.depth", True, False, "step 120"),
        ("spike", False, False, "lasts"),
        ("dead", False, True, "lasts"),
    ]


def test_a_muted_warning_is_none():
    """Neither in words nor for a gate."""
    muted = Finding.read({**planted_diagnosis("vanishing.depth", step=1, layers=["a"]), "muted": True})
    assert (muted.is_warning, muted.word) == (False, "muted, vanishing")


def test_odd_values_are_left_out():
    """A file may be damaged, or another program's."""
    odd = {
        "rule": None,
        "layers": 7,
        "step": "x",
        "remedies": ["x", {"effect": {"loss_before": "nan", "loss_after": []}}],
    }
    found = Finding.read({**odd, "recovered_at": float("inf")})
    assert (found.rule, found.symptom, found.layers, found.step, found.recovered_at) == ("", "unknown", (), 0, None)
    assert found.ways_out[0].effect == "loss nan -> unknown"
