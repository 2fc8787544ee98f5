"""Test that what README.md and docs/ show runs."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from models import deep_net, module_in, trainer_in
from torch import nn

from lightning_gradwatch import GradWatch

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(page: Path) -> str:
    """Return what a page is called here."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks_run_in_their_order(page, pl, tmp_path, data, monkeypatch):
    """Each block runs after those before it; what a block makes of GradWatch trains a sick network."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"GradWatch": GradWatch}
    for block in blocks(page, "python"):
        if re.search(r"^watch\.assert_healthy\(\)", block, flags=re.MULTILINE):
            trainer_in(pl, tmp_path, names["watch"]).fit(module_in(pl, deep_net(nn.Sigmoid, 12)), data)
            with pytest.raises(AssertionError, match="VANISHING"):
                exec(block, names)
        else:
            exec(block, names)


def test_the_rule_and_the_sink_of_the_reference_work(pl, tmp_path, data, capsys):
    """A person who copies them gets what the page says."""
    names: dict[str, Any] = {}
    for block in blocks(ROOT / "docs" / "reference.md", "python"):
        exec(block, names)
    watch = GradWatch(rules=[names["head_too_loud"]], sinks=[names["Beep"]()])

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        return 1e3 * self.net[-1].bias.sum() + self.net(batch[0]).mean()

    trainer_in(pl, tmp_path, watch, max_steps=4).fit(module_in(pl, training_step=training_step), data)
    assert [(d.rule, d.layers) for d in watch.diagnoses] == [("head.loud", ("net.2",))]
    assert capsys.readouterr().out.count("\a") == 1


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    """Every relative link of a page is a file of the repository."""
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_argument_is_in_the_reference():
    """The table of arguments and the class agree."""
    table = re.findall(r"^\| `(\w+)` \| `", (ROOT / "docs" / "reference.md").read_text(), flags=re.MULTILINE)
    assert table == list(inspect.signature(GradWatch.__init__).parameters)[1:]
