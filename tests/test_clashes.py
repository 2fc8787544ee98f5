"""Test ``lightning_gradwatch.clashes``."""

from __future__ import annotations

import pytest
from models import module_in, trainer_in

from lightning_gradwatch import ClipByGlobalNorm, ClipByValue, GradWatch


@pytest.mark.parametrize("clipper", [ClipByGlobalNorm(1.0), ClipByValue(1.0)])
def test_two_clippers_are_refused_before_training(pl, tmp_path, data, clipper):
    """A clipper beside ``gradient_clip_val`` is refused with both ways out."""
    trainer = trainer_in(pl, tmp_path, GradWatch(clipper=clipper), gradient_clip_val=1.0)
    with pytest.raises(ValueError, match=r"Remove `clipper`.* or remove `gradient_clip_val`"):
        trainer.fit(module_in(pl), data)


def test_two_gradwatches_are_refused_in_our_words(lightning, tmp_path, data):
    """A second GradWatch in one Trainer is refused with what to do instead."""
    trainer = trainer_in(lightning, tmp_path, GradWatch(), GradWatch())
    with pytest.raises(ValueError, match="Two GradWatch callbacks in one Trainer"):
        trainer.fit(module_in(lightning), data)


def test_a_clipper_set_late_is_refused_before_training(pl, tmp_path, data):
    """``gradient_clip_val`` may be set until training starts."""

    class SetsLate(pl.Callback):
        def on_fit_start(self, trainer, pl_module):
            trainer.gradient_clip_val = 0.5

    trainer = trainer_in(pl, tmp_path, GradWatch(clipper=ClipByGlobalNorm(1.0)), SetsLate())
    with pytest.raises(ValueError, match="would clip the same gradients"):
        trainer.fit(module_in(pl), data)
