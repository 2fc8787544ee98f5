"""Count what a step of training costs with GradWatch: operations, transfers to the host, hooks that stay.

No clock: these numbers are the same on every machine, so that a change that makes each step dearer fails here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gradwatch import ClipByGlobalNorm, ClipByLayerNorm, ClipByValue, GradWatch

# By then weights have been measured five times, probes are over, and the 50th step is far.
FIRST, LAST = 8, 16
# What only looks, or makes a tensor of another's memory.
VIEWS = {"alias", "detach", "lift_fresh", "promote_types", "select", "slice", "split", "squeeze", "unbind", "view"}


class Module(pl.LightningModule):
    """Some linear layers and a loss that falls slowly."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(depth)))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the loss."""
        return self.net(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Counting(TorchDispatchMode):
    """Counts operations between two steps."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.on = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note one."""
        if self.on:
            self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


class Window(pl.Callback):
    """Switches the counting on for the steps in the middle."""

    def __init__(self, switch: Callable[[bool], None]) -> None:
        self.switch = switch

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        """Count from the first to the last."""
        self.switch(FIRST <= trainer.global_step < LAST)


def fit(callbacks: list[Any], depth: int, switch: Callable[[bool], None]) -> None:
    """Train for some steps."""
    torch.manual_seed(0)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=LAST + 2,
        callbacks=[Window(switch), *callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = torch.utils.data.DataLoader(torch.ones(LAST + 2, 4, 4), batch_size=None)
    trainer.fit(Module(depth), data)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def operations(callbacks: list[Any], depth: int) -> Counter[str]:
    """Return the operations of the steps in the middle."""
    mode = Counting()
    with mode:
        fit(callbacks, depth, lambda on: setattr(mode, "on", on))
    return mode.counts


def added(watch: GradWatch, depth: int) -> dict[str, float]:
    """Return what each step does more with GradWatch, views left out."""
    bare, watched = operations([], depth), operations([watch], depth)
    assert not bare - watched, "training does less than without GradWatch"
    assert watch.disabled_reason is None
    assert len(watch.history) > LAST
    return {name: count / (LAST - FIRST) for name, count in (watched - bare).items() if name not in VIEWS}


# One pass over the gradients, their norms side by side, the loss beside them; a copy of the loss.
READING = Counter(_foreach_norm=1, stack=1, cat=1, _to_copy=1)
# The coefficient of all gradients, or of each layer's, in a handful of operations on a few numbers, and one call that
# multiplies; the norms after it follow from those before. After clipping by value they have to be measured.
_COEFFICIENT = Counter(linalg_vector_norm=1, add=1, nan_to_num=2, reciprocal=1, clamp=1, mul=2, _foreach_mul_=1)
CLIPPERS = {
    ClipByGlobalNorm(1e-3): _COEFFICIENT + Counter(_to_copy=1),
    # Norms of layers are those of their tensors, side by side.
    ClipByLayerNorm(1e-3): _COEFFICIENT + Counter(cat=1, new_zeros=1, index=2, amax=1, clamp=1, div=1, mul=1),
    ClipByValue(1e-6): Counter(_foreach_norm=1, stack=1, _foreach_clamp_min_=1, _foreach_clamp_max_=1),
}
# The norm of the output, that of the gradient, and a sample of the weights before and after the step.
PROBE_OPERATIONS = 4


@pytest.mark.parametrize("depth", [2, 30])
def test_a_step_between_probes_adds_four_operations_however_many_layers(depth):
    """Nothing is done for each layer: the count is that of the design, for 2 layers and for 30."""
    assert added(GradWatch(), depth) == READING


@pytest.mark.parametrize("clipper", CLIPPERS, ids=lambda clipper: type(clipper).__name__)
def test_a_clipper_adds_operations_that_do_not_grow_with_the_layers(clipper):
    """All gradients are changed by one fused call, for 2 layers and for 30."""
    for depth in (2, 30):
        assert added(GradWatch(clipper=clipper), depth) == READING + CLIPPERS[clipper]


def test_a_probe_adds_the_same_operations_for_each_layer():
    """What a probe costs beyond a reading grows with the layers, and only with them."""
    totals = [sum(added(GradWatch(probe_every_n_steps=1), depth).values()) for depth in (10, 20, 30)]
    assert totals[2] - totals[1] == totals[1] - totals[0] == 10 * PROBE_OPERATIONS


@pytest.mark.parametrize("probe", [None, 1], ids=["no probe", "probe"])
def test_a_reading_and_a_probe_are_one_transfer_to_the_host_each(monkeypatch, probe):
    """Of all ways in which numbers come to the host one is used, and a probe of all layers uses it once."""
    counts: Counter[str] = Counter()
    on = [False]

    def counting(name: str) -> Callable[..., Any]:
        original = getattr(Tensor, name)

        def counted(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            counts[name] += on[0]
            return original(self, *args, **kwargs)

        return counted

    for name in ("cpu", "item", "tolist", "__float__", "__bool__", "__int__", "__index__"):
        monkeypatch.setattr(Tensor, name, counting(name))
    seen = []
    for callbacks in ([], [GradWatch(probe_every_n_steps=probe)]):
        counts.clear()
        fit(callbacks, 5, lambda value: on.__setitem__(0, value))
        seen.append(counts.copy())
    bare, watched = seen
    assert {name: count / (LAST - FIRST) for name, count in (watched - bare).items()} == {
        "cpu": 1 if probe is None else 2
    }
