"""A real Trainer on graphs that are cut by mistake, and on those that are cut or left at rest on purpose."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import CLASSES, WIDTH, module_in, trainer_in
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everywhere

from lightning_gradwatch import GradWatch

# As many readings as it takes to tell that layers are not used.
LONG = 22


def trunk() -> nn.Module:
    """Return two layers."""
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.Tanh())


class Cut(nn.Module):
    """Does something between a trunk and a head."""

    def __init__(self, step: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.trunk, self.head = trunk(), nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))
        self.step = step

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.head(self.step(self.trunk, inputs)), labels)


def without_graph(part: nn.Module, inputs: Tensor) -> Tensor:
    """Call a module as a teacher is called."""
    with torch.no_grad():
        return part(inputs)


CUTS = {
    "detach": lambda part, x: part(x).detach(),
    "data, and more behind it": lambda part, x: torch.cat([part(x).data.relu() + 1, x], 1)[:, :WIDTH],
    "no_grad": without_graph,
    "numpy": lambda part, x: torch.from_numpy(part(x).detach().cpu().numpy()),
    "argmax": lambda part, x: F.one_hot(part(x).argmax(1), WIDTH).float(),
}


def watched(pl: Any, directory: Any, data: Any, net: Any, max_steps: int, *callbacks: Any) -> GradWatch:
    """Train everything that the network has with one optimizer, on the loss that it tells."""
    watch = GradWatch(probe_every_n_steps=1)
    module = module_in(pl, net, training_step=lambda self, batch, _: self.net.loss(*batch))
    trainer_in(pl, directory, watch, *callbacks, max_steps=max_steps, max_epochs=-1).fit(module, data)
    assert watch.disabled_reason is None
    return watch


def fed(watch: GradWatch) -> set[str]:
    """Name the layers that were fed, in any probe, by a cut tensor of layers that do not learn."""
    return {name for p in watch.probes for name, flag in zip(p.layers, p.fed_by_cut, strict=True) if flag == 1}


@pytest.mark.parametrize("name", CUTS)
def test_a_trunk_that_is_cut_off_is_a_warning_within_five_steps(pl, tmp_path, data, name):
    """Its layers are named, nearest to the cut first, and what it feeds is the head's first layer alone."""
    torch.manual_seed(0)
    watch = watched(pl, tmp_path, data, Cut(CUTS[name]), 5)
    assert fed(watch) == {"net.head.0"}
    (finding,) = [d for d in watch.diagnoses if d.rule == "disconnected"]
    assert (finding.severity, finding.layers) == ("warning", ("net.trunk.2", "net.trunk.0"))
    assert finding.evidence["next_layer"] == "net.head.0"


class Distilled(Cut):
    """Learns from a teacher that is called first; teacher and student are held by the same optimizer."""

    def __init__(self) -> None:
        super().__init__(lambda part, x: part(x))
        self.teacher = nn.Sequential(trunk(), nn.Linear(WIDTH, CLASSES))

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        wanted = without_graph(self.teacher, inputs).softmax(1)
        return super().loss(inputs, labels) + F.cross_entropy(self.head(self.trunk(inputs)), wanted)


class Bootstrapped(nn.Module):
    """Predicts what a moving average of itself says of another view (BYOL); the average is called first."""

    def __init__(self) -> None:
        super().__init__()
        self.online, self.predictor = trunk(), nn.Linear(WIDTH, WIDTH)
        self.target = copy.deepcopy(self.online)

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            for average, weight in zip(self.target.parameters(), self.online.parameters(), strict=True):
                average.mul_(0.99).add_(weight, alpha=0.01)
        wanted = without_graph(self.target, inputs + 0.1 * torch.randn_like(inputs))
        found = self.predictor(self.online(inputs + 0.1 * torch.randn_like(inputs)))
        return -F.cosine_similarity(found, wanted).mean()


class DoubleQ(nn.Module):
    """Asks a target network first, then itself which action is best, and learns from both (double DQN)."""

    def __init__(self) -> None:
        super().__init__()
        self.online = nn.Sequential(trunk(), nn.Linear(WIDTH, CLASSES))
        self.target = copy.deepcopy(self.online)

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        values = without_graph(self.target, inputs.flip(0))
        best = without_graph(self.online, inputs.flip(0)).argmax(1, keepdim=True)
        wanted = labels.float() + 0.9 * values.gather(1, best).squeeze(1)
        return F.smooth_l1_loss(self.online(inputs).gather(1, labels[:, None]).squeeze(1), wanted)


class Quantized(Cut):
    """Replaces features by the nearest of a codebook, straight through (VQ-VAE)."""

    def __init__(self) -> None:
        super().__init__(self.quantize)
        self.codes = nn.Embedding(16, WIDTH)

    def quantize(self, part: nn.Module, inputs: Tensor) -> Tensor:
        hidden = part(inputs)
        nearest = torch.cdist(hidden, self.codes.weight).argmin(1)
        self.chosen, self.hidden = self.codes(nearest), hidden
        return hidden + (self.chosen - hidden).detach()

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        loss = super().loss(inputs, labels)
        return (
            loss + F.mse_loss(self.chosen, self.hidden.detach()) + 0.25 * F.mse_loss(self.hidden, self.chosen.detach())
        )


class Frozen(Cut):
    """Has a trunk that stays in evaluation mode, without a graph, and is held by the optimizer all the same."""

    def __init__(self) -> None:
        super().__init__(without_graph)

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        self.trunk.eval()
        return super().loss(inputs, labels)


class Probed(Cut):
    """Has a second head on detached features, beside the one that teaches the trunk."""

    def __init__(self) -> None:
        super().__init__(lambda part, x: part(x))
        self.probe = nn.Linear(WIDTH, CLASSES)

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return super().loss(inputs, labels) + F.cross_entropy(self.probe(self.trunk(inputs).detach()), labels)


class BootstrappedAndProbed(Bootstrapped):
    """Has an online probe on detached features, beside the momentum encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.probe = nn.Linear(WIDTH, CLASSES)

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return super().loss(inputs, labels) + F.cross_entropy(self.probe(self.online(inputs).detach()), labels)


class QuantizedAndDistilled(Quantized):
    """Asks a teacher first, and feeds a codebook by the index of the nearest code."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = trunk()

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        wanted = without_graph(self.teacher, inputs)
        return super().loss(inputs, labels) + F.mse_loss(self.hidden, wanted)


TEACHER = {"net.teacher.0.0", "net.teacher.0.2", "net.teacher.1"}
AT_REST = {
    "teacher first": (Distilled, TEACHER, set()),
    "momentum encoder first": (Bootstrapped, {"net.target.0", "net.target.2"}, set()),
    "target network first": (DoubleQ, {"net.target.0.0", "net.target.0.2", "net.target.1"}, set()),
    # What is cut here stems from layers that learn on another way.
    "vector quantization": (Quantized, set(), set()),
    "probe on detached features": (Probed, set(), set()),
    "momentum encoder and a probe": (BootstrappedAndProbed, {"net.target.0", "net.target.2"}, set()),
    "teacher and a codebook": (QuantizedAndDistilled, {"net.teacher.0", "net.teacher.2"}, set()),
    "frozen trunk": (Frozen, {"net.trunk.0", "net.trunk.2"}, {"net.head.0"}),
}


@pytest.mark.parametrize("name", AT_REST)
def test_what_is_cut_or_at_rest_on_purpose_is_no_warning(pl, tmp_path, data, name):
    """The layers that nothing comes back to are a notice, once they had their time; the others are not named."""
    make, unused, expected = AT_REST[name]
    torch.manual_seed(0)
    watch = watched(pl, tmp_path, data, make(), LONG)
    assert fed(watch) == expected
    assert [d for d in watch.diagnoses if d.severity == "warning"] == []
    found = [d for d in watch.diagnoses if d.rule == "disconnected"]
    assert {name for d in found for name in d.layers} == unused


def test_a_callback_is_pickled_and_copied_while_cut_tensors_are_followed(pl, tmp_path, data):
    """Before a fit, in the middle of a forward pass and afterwards; the copies watch a fit of their own."""
    copies: list[GradWatch] = []

    class Keeps(pl.Callback):
        """Copies in the middle of each forward pass, behind the cut."""

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            pl_module.net.head.register_forward_pre_hook(lambda *_: self.copy(trainer.callbacks[0]))

        @staticmethod
        def copy(watch: GradWatch) -> None:
            copies.extend([pickle.loads(pickle.dumps(watch)), copy.deepcopy(watch)])

    pickle.loads(pickle.dumps(GradWatch(probe_every_n_steps=1)))
    watch = watched(pl, tmp_path, data, Cut(CUTS["numpy"]), 2, Keeps())
    assert len(copies) == 4
    for other in (*copies[-2:], pickle.loads(pickle.dumps(watch))):
        module = module_in(pl, Cut(CUTS["detach"]), training_step=lambda self, batch, _: self.net.loss(*batch))
        trainer_in(pl, tmp_path, other, max_steps=5, max_epochs=-1).fit(module, data)
        assert other.disabled_reason is None
        assert any(d.rule == "disconnected" and d.severity == "warning" for d in other.diagnoses)
