"""Test ``lightning_gradwatch.report.nonfinite``."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_gradwatch import Diagnosis, Symptom
from lightning_gradwatch.measure.snapshot import GradientSnapshot
from lightning_gradwatch.report import nonfinite
from lightning_gradwatch.report.nonfinite import MAX_FILES, NonFiniteFiles, NonFiniteStep
from lightning_gradwatch.report.origin import Witness

NAN = float("nan")


@pytest.fixture
def sick() -> NonFiniteStep:
    """Return a step in which two of three layers are not finite, and one rank of two was the cause."""
    norms = np.array([NAN, 1.0, np.inf])
    snapshot = GradientSnapshot(12, 0, norms, norms, norms, norms, np.ones(3, dtype=np.bool_), norms, loss=NAN)
    return NonFiniteStep(
        step=12,
        optimizer=0,
        optimizer_kind="AdamW",
        on_nonfinite="warn",
        witnesses=(
            Witness(0, "a", "cpu", 12, 1, (4, 4), 0.5, num_broken_weights=0, seed=7),
            Witness(1, "b", "cpu", 12, 1, (4, 4), NAN, broken_weights=("net.2",), num_broken_weights=1, seed=8),
        ),
        num_processes=2,
        snapshot=snapshot,
        layers=("net.0", "net.1", "net.2"),
        diagnosis=Diagnosis("non_finite", Symptom.NON_FINITE, layers=("net.2", "net.0"), step=12),
        clean_steps=((10, 1.5, 0.7), (11, 1.25, NAN)),
        checkpoint=("runs/epoch=0.ckpt", 8),
    )


def test_the_text_says_who_whether_and_where_to(sick):
    """Which process it was, whether training can recover, and which checkpoint is the way back."""
    assert sick.text("optimizer_1") == (
        "GradWatch  step 12 [optimizer_1]  not finite: where it came from\n"
        "  from       rank 1 (b, cpu) epoch 1, batch 4: loss nan; 1 other finite\n"
        "  step       used by the optimizer as it is\n"
        "  weights    are not finite any more in net.2: training cannot recover; "
        "checkpoints saved from here are poisoned\n"
        "  saved      last clean checkpoint: runs/epoch=0.ckpt (step 8)"
    )
    before = replace(sick, on_nonfinite="skip", before_step=True, checkpoint=None, not_asked="later")
    assert "from       in this process epoch 1, batch 4: loss 0.5; later" in before.text()
    assert "weights    were not finite already in net.2: training cannot recover" in before.text()
    assert "saved      no checkpoint is known from before it" in before.text()
    many = Witness(batches=(4, 4), loss=NAN, broken_weights=("a", "b", "c"), num_broken_weights=5)
    assert "are not finite any more in a, b, c and 2 more: " in replace(sick, witnesses=(many,)).text()
    unknown = replace(sick, witnesses=(Witness(),))
    assert "weights    could not be looked at" in unknown.text()


def test_the_file_is_read_back(tmp_path, sick):
    """Everything that reproducing it takes, as strict JSON: NaN is written as a word."""
    path = NonFiniteFiles(tmp_path).write(sick)
    assert path == tmp_path / "gradwatch" / "nonfinite-step-12.json"
    read = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert (read["format_version"], read["step"], read["on_nonfinite"]) == (1, 12, "warn")
    assert read["optimizer"] == {"number": 0, "kind": "AdamW"}
    assert read["origin"] == "rank 1 (b, cpu) epoch 1, batch 4: loss nan; 1 other finite"
    assert [(row["rank"], row["batches"], row["loss"], row["seed"]) for row in read["processes"]] == [
        (0, [4, 4], 0.5, 7),
        (1, [4, 4], "nan", 8),
    ]
    assert read["layers"] == [{"name": "net.2", "norm": "inf"}, {"name": "net.0", "norm": "nan"}]
    assert read["diagnosis"]["layers"] == ["net.2", "net.0"]
    assert read["clean_steps"] == [
        {"step": 10, "global_norm": 1.5, "loss": 0.7},
        {"step": 11, "global_norm": 1.25, "loss": "nan"},
    ]
    assert read["weights"] == {"finite": False, "looked_at": "after the step", "broken_in": ["net.2"]}
    assert read["last_clean_checkpoint"] == {"path": "runs/epoch=0.ckpt", "step": 8}
    assert read["environment"]["versions"]["torch"].startswith(torch.__version__.partition("+")[0])


def test_what_is_not_known_is_null(tmp_path, sick):
    """A step that could not be measured, without diagnosis and checkpoint, is written down all the same."""
    bare = replace(sick, snapshot=None, diagnosis=None, checkpoint=None, witnesses=(Witness(),))
    path = NonFiniteFiles(tmp_path).write(bare)
    assert path is not None
    read = json.loads(path.read_text())
    assert (read["layers"], read["diagnosis"], read["last_clean_checkpoint"]) == ([], None, None)
    assert read["weights"]["finite"] is None


def test_more_knowledge_takes_the_place_of_less_and_other_runs_stay(tmp_path, sick):
    """One file a step; the file that an earlier run wrote of the same step is left alone."""
    files = NonFiniteFiles(tmp_path)
    first = files.write(replace(sick, not_asked="later"))
    assert files.write(sick) == first
    again = NonFiniteFiles(tmp_path).write(sick)
    names = sorted(path.name for path in (tmp_path / "gradwatch").iterdir())
    assert names == ["nonfinite-step-12-2.json", "nonfinite-step-12.json"]
    assert again is not None
    assert again.name == names[0]


def test_there_are_at_most_so_many(tmp_path, sick):
    """A run that fails at every restart does not fill the directory."""
    paths = [NonFiniteFiles(tmp_path).write(replace(sick, step=step % 3)) for step in range(MAX_FILES + 5)]
    assert [path is None for path in paths] == [False] * MAX_FILES + [True] * 5
    assert len(list((tmp_path / "gradwatch").iterdir())) == MAX_FILES


def test_a_file_appears_whole_or_not_at_all(tmp_path, sick, monkeypatch):
    """Where writing fails half way nothing is left, and what was there before stays."""
    files = NonFiniteFiles(tmp_path)
    path = files.write(sick)
    assert path is not None
    before = path.read_text()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(nonfinite.Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        files.write(replace(sick, optimizer_kind="SGD"))
    assert [each.name for each in (tmp_path / "gradwatch").iterdir()] == [path.name]
    assert path.read_text() == before


def test_without_a_directory_nothing_is_written(sick):
    """``fast_dev_run`` leaves no file behind."""
    assert NonFiniteFiles(None).write(sick) is None
