"""Test ``lightning_gradwatch.resuming``: what a checkpoint gives back."""

from __future__ import annotations

import torch
from models import module_in, trainer_in

from lightning_gradwatch import ClipByQuantile, ClipByZScore, GradWatch


def test_a_checkpoint_of_another_kind_starts_afresh(pl, tmp_path, data, caplog):
    """What an older or newer version remembered is left aside in words, and the resume goes on."""
    trainer = trainer_in(pl, tmp_path, GradWatch(), max_steps=8)
    trainer.fit(module_in(pl), data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    checkpoint["lightning_gradwatch"]["version"] = 0
    torch.save(checkpoint, tmp_path / "last.ckpt")
    watch = GradWatch()
    trainer_in(pl, tmp_path, watch, max_steps=10).fit(module_in(pl), data, ckpt_path=str(tmp_path / "last.ckpt"))
    assert "starts afresh" in caplog.text
    assert watch.history.steps.tolist() == [8, 9]


class Counts:
    """A clipper that counts its calls, and remembers them in a checkpoint."""

    def __init__(self, error: Exception | None = None):
        self.calls = 0
        self.error = error

    def clip_(self, norms):
        self.calls += 1
        return norms.norms

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        if self.error:
            raise self.error
        self.calls = state["calls"]


def test_a_clipper_has_its_memory_back_whatever_the_version_of_a_checkpoint(pl, tmp_path, data, caplog):
    """How a step is clipped is part of training, and depends on no form in which readings are kept."""
    trainer = trainer_in(pl, tmp_path, GradWatch(clipper=Counts()), max_steps=8)
    trainer.fit(module_in(pl), data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    checkpoint["lightning_gradwatch"]["version"] = 0
    torch.save(checkpoint, tmp_path / "last.ckpt")
    clipper = Counts()
    more = trainer_in(pl, tmp_path, GradWatch(clipper=clipper), max_steps=10)
    more.fit(module_in(pl), data, ckpt_path=str(tmp_path / "last.ckpt"))
    assert "starts afresh, what this checkpoint remembers" in caplog.text
    assert clipper.calls == 10


def test_a_clipper_that_cannot_take_its_memory_back_costs_nothing_else(pl, tmp_path, data, caplog):
    """It is told, and the readings go on where they were."""
    trainer = trainer_in(pl, tmp_path, GradWatch(clipper=Counts()), max_steps=8)
    trainer.fit(module_in(pl), data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    watch = GradWatch(clipper=Counts(RuntimeError("another size")))
    more = trainer_in(pl, tmp_path, watch, max_steps=10)
    more.fit(module_in(pl), data, ckpt_path=str(tmp_path / "last.ckpt"))
    assert "clipper starts afresh: RuntimeError: another size" in caplog.text
    assert watch.history.steps.tolist() == list(range(10))


def test_a_checkpoint_of_another_clipper_is_told_in_words(pl, tmp_path, data, caplog):
    """The person has exchanged it on purpose, and need not read a KeyError."""
    trainer = trainer_in(pl, tmp_path, GradWatch(clipper=ClipByQuantile()), max_steps=8)
    trainer.fit(module_in(pl), data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    more = trainer_in(pl, tmp_path, GradWatch(clipper=ClipByZScore()), max_steps=10)
    more.fit(module_in(pl), data, ckpt_path=str(tmp_path / "last.ckpt"))
    said = "clipper starts afresh: the checkpoint is of another one than ClipByZScore, it has no 'moments'"
    assert said in caplog.text
    assert "KeyError" not in caplog.text


def test_what_a_clipper_remembers_is_saved_after_a_failure_of_ours(pl, tmp_path, data, monkeypatch):
    """The clipper goes on when GradWatch is switched off, and so does what it remembers."""
    from lightning_gradwatch.judging import Judge

    def fail(self, *args):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(Judge, "judge", fail)
    trainer = trainer_in(pl, tmp_path, GradWatch(clipper=Counts()), max_steps=6)
    trainer.fit(module_in(pl), data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["lightning_gradwatch"]["clipper"] == {"calls": 6}
