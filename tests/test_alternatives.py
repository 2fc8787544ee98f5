"""Test that ``docs/alternatives.md`` and the table of README.md say what is true of others' tools and of the ward."""

from __future__ import annotations

import re
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import wandb
from models import module_in, trainer_in
from pytorch_lightning.utilities import grad_norm
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.profiler import ProfilerActivity, profile
from wandb.integration.torch.wandb_torch import TorchHistory

ROOT = Path(__file__).parents[1]
PAGES = {
    name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/alternatives.md", "docs/ward.md")
}
TOTAL = "grad_2.0_norm_total"
SCALE = 1024.0


def net():
    """Return a network of six parameter tensors."""
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))


def backward(model, factor=1.0):
    """Send a loss back, and return the true norm of the gradients that are there then."""
    (factor * model(torch.randn(8, 4)).square().mean()).backward()
    return float(torch.nn.utils.get_total_norm([weight.grad for weight in model.parameters()]))


def reads(act):
    """Return how many single numbers of a tensor are asked for."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        act()
    return sum(event.count for event in seen.key_averages() if event.key == "aten::_local_scalar_dense")


@pytest.fixture
def hooked(monkeypatch):
    """Return what hooks a model as `wandb.watch` does, and the norms of the gradients that its hooks are given."""
    monkeypatch.setattr(wandb, "run", Mock())
    norms: list[float] = []
    log = TorchHistory.log_tensor_stats

    def keep(self, tensor, name):
        norms.append(float(tensor.norm()))
        log(self, tensor, name)

    monkeypatch.setattr(TorchHistory, "log_tensor_stats", keep)
    return lambda model: TorchHistory().add_log_gradients_hook(model, log_freq=1), norms


def test_lightning_s_grad_norm_asks_for_each_parameter_s_number():
    """Six tensors, six reads."""
    model = net()
    true = backward(model)
    assert grad_norm(model, 2)[TOTAL] == pytest.approx(true)
    assert reads(lambda: grad_norm(model, 2)) == 6


@pytest.mark.parametrize("clip_", [nn.utils.clip_grad_norm_, nn.utils.clip_grad_value_])
def test_torch_s_clippers_ask_for_none(clip_):
    """Nothing waits for the device."""
    model = net()
    backward(model)
    assert reads(lambda: clip_(model.parameters(), 1.0)) == 0


def test_lightning_s_grad_norm_mixes_optimizers():
    """It reads the whole module, with gradients that another optimizer left."""
    pair = nn.ModuleDict({"generator": nn.Linear(4, 1), "critic": nn.Linear(4, 1)})
    own = backward(pair["generator"])
    backward(pair["critic"], 1e3)
    assert grad_norm(pair, 2)[TOTAL] > 100 * own


@pytest.mark.parametrize(("fused", "factor"), [(False, 1.0), (True, SCALE)])
def test_under_a_loss_scaler_lightning_s_grad_norm_is_true_unless_the_optimizer_is_fused(
    fused, factor, pl, tmp_path, data
):
    """Beside a run in full precision, of which it has the first step."""
    seen: dict[bool, list[float]] = {True: [], False: []}
    for scaled in (False, True):
        torch.manual_seed(0)
        scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
        plugins = [pl.plugins.precision.MixedPrecision("16-mixed", "cpu", scaler)] if scaled else None
        module = module_in(
            pl,
            optimizer=lambda weights: torch.optim.SGD(weights, lr=0.1, fused=fused),
            on_before_optimizer_step=lambda self, _, norms=seen[scaled]: norms.append(float(grad_norm(self, 2)[TOTAL])),
        )
        trainer_in(pl, tmp_path, max_steps=1, plugins=plugins).fit(module, data)
    assert seen[True][0] / seen[False][0] == pytest.approx(factor, rel=0.02)


def test_wandb_s_hooks_ask_for_four_numbers_of_each_gradient_and_see_it_scaled(hooked):
    """They run before a loss scaler divides the gradients again."""
    hook, norms = hooked
    model = net()
    hook(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    loss = scaler.scale(model(torch.randn(8, 4)).square().mean())
    assert reads(loss.backward) == 6 * (4 + 1)  # one of the five is this test's own
    scaler.unscale_(torch.optim.SGD(model.parameters(), lr=0.1))
    true = [float(weight.grad.norm()) for weight in model.parameters()]
    assert sorted(norms) == pytest.approx(sorted(SCALE * norm for norm in true))


def test_wandb_s_hooks_see_every_backward_pass_by_itself(hooked):
    """Neither the sum of accumulated batches nor one optimizer's loss alone."""
    hook, norms = hooked
    model = nn.Linear(4, 1, bias=False)
    hook(model)
    parts = torch.randn(2, 8, 4)
    for part in parts:
        model(part).mean().backward()
    assert norms == pytest.approx([float(part.mean(dim=0).norm()) for part in parts])
    assert float(model.weight.grad.norm()) == pytest.approx(float(parts.mean(dim=1).sum(dim=0).norm()))


@pytest.mark.parametrize(("poisoned", "logged"), [(1, 1), (4, 0)])
def test_wandb_leaves_nan_out(hooked, poisoned, logged):
    """Of a gradient that is NaN throughout nothing is logged, of another one its other elements."""
    hook, _ = hooked
    model = nn.Linear(4, 1, bias=False)
    hook(model)
    inputs = torch.arange(4.0)
    inputs[:poisoned] = float("nan")
    (model.weight * inputs).sum().backward()
    calls = wandb.run._log.call_args_list
    assert len(calls) == logged
    assert all(sum(next(iter(call.args[0].values())).histogram) == 4 - poisoned for call in calls)


def test_under_fsdp2_lightning_s_grad_norm_raises_and_wandb_s_hooks_are_not_called(hooked, tmp_path):
    """Gradients come to sharded parameters past autograd, as DTensors."""
    from torch.distributed.fsdp import fully_shard

    hook, norms = hooked
    distributed.init_process_group("gloo", init_method=(tmp_path / "store").as_uri(), rank=0, world_size=1)
    try:
        model = net()
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        hook(model)
        model(torch.randn(8, 4)).square().mean().backward()
        with pytest.raises(RuntimeError, match="not allocated"):
            grad_norm(model, 2)
        total = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert float(total.full_tensor()) > 0
    finally:
        distributed.destroy_process_group()
    assert norms == []


def ward(detector):
    """Return the percentages of sick runs in which a detector warned, and of healthy ones in which it was silent."""
    row = next(line for line in PAGES["docs/ward.md"].splitlines() if line.startswith(f"| {detector} |"))
    cells = [cell.strip() for cell in row.split("|")]
    return round(100 * float(cells[3])), round(float(cells[9].rstrip("%")))


def test_what_is_said_of_the_ward_is_what_its_page_says():
    """In README.md of GradWatch, on the page of three."""
    (row,) = (line for line in PAGES["docs/alternatives.md"].splitlines() if line.startswith("| [the ward]"))
    told = [(int(sick), int(healthy)) for sick, healthy in re.findall(r"(\d+)%, (\d+)%", row)]
    assert told == [ward("GradWatch"), ward("ZClip's z-score"), ward("SageMaker Debugger")]
    sentence = re.search(r"On (\d+) sick and .* in (\d+)% of the sick .* in (\d+)% of", PAGES["README.md"])
    runs = re.search(r"runs: (\d+) sick .* (\d+) healthy", PAGES["docs/ward.md"])
    assert int(sentence[1]) == int(runs[1]) + int(runs[2])
    assert (int(sentence[2]), int(sentence[3])) == ward("GradWatch")


@pytest.mark.parametrize("page", ["README.md", "docs/alternatives.md"])
def test_the_tables_are_tables(page):
    """Every row has as many cells as the heading."""
    rows = [line for line in PAGES[page].splitlines() if line.startswith("| ") and not line.startswith("|---")]
    assert len(rows) > 14
    assert len({row.count("|") for row in rows}) == 1
