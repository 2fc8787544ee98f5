"""Test ``lightning_gradwatch.optimizers``: each optimizer keeps its place, and silent ones are read as well."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import deep_net, module_in, trainer_in
from torch import nn

from lightning_gradwatch import GradWatch


class Silent:
    """Meets Lightning's protocol of an optimizer and has none of torch's hooks."""

    def __init__(self, parameters):
        self.inner = torch.optim.SGD(parameters, lr=0.1)

    param_groups = property(lambda self: self.inner.param_groups)
    state = property(lambda self: self.inner.state)
    defaults = property(lambda self: self.inner.defaults)

    def step(self, closure=None):
        return self.inner.step(closure)

    def zero_grad(self, set_to_none=True):
        self.inner.zero_grad(set_to_none)

    def state_dict(self):
        return self.inner.state_dict()

    def load_state_dict(self, state):
        self.inner.load_state_dict(state)


def test_a_wrapper_that_is_no_optimizer_of_torch_is_watched(pl, tmp_path, data):
    """One that has the methods and never called ``Optimizer.__init__`` (Lookahead) is read like any other."""

    class Wrapper(Silent, torch.optim.Optimizer):
        pass

    watch = GradWatch()
    trainer_in(pl, tmp_path, watch).fit(module_in(pl, optimizer=Wrapper), data)
    assert watch.disabled_reason is None
    assert len(watch.history) == 5


def test_an_optimizer_that_tells_of_no_step_is_read_at_the_end_of_the_batch(pl, tmp_path, data):
    """Without torch's hook the clipped gradients are still there then."""
    watch = GradWatch()
    trainer_in(pl, tmp_path, watch, gradient_clip_val=1e-3).fit(module_in(pl, optimizer=Silent), data)
    assert np.sqrt((watch.history.clipped_norms**2).sum(axis=1)) == pytest.approx(np.full(5, 1e-3), rel=1e-3)


def test_an_optimizer_that_tells_of_no_step_is_no_overflow(pl, tmp_path, data):
    """Under a loss scaler its steps count unless their gradients are not finite."""
    watch = GradWatch()
    plugin = pl.plugins.precision.MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=8.0))
    trainer = trainer_in(pl, tmp_path, watch, plugins=[plugin])
    trainer.fit(module_in(pl, optimizer=Silent), data)
    assert watch.overflowed_steps == 0


def test_optimizers_that_are_made_anew_keep_their_places(pl, tmp_path, data):
    """Stages that set up their optimizers again are one run: one fault, one column, clipped norms right throughout."""

    def on_train_epoch_start(self):
        if self.current_epoch:
            self.trainer.strategy.setup_optimizers(self.trainer)

    module = module_in(pl, deep_net(nn.Sigmoid, 12), on_train_epoch_start=on_train_epoch_start)
    watch = GradWatch()
    trainer_in(pl, tmp_path, watch, max_steps=-1, max_epochs=4, gradient_clip_val=1e-3).fit(module, data)
    assert set(watch.history.optimizers.tolist()) == {0}
    assert len(watch.diagnoses) == 1
    assert np.sqrt((watch.history.clipped_norms**2).sum(axis=1)) == pytest.approx(np.full(32, 1e-3), rel=1e-3)
