"""Take the pictures of ``docs/pictures/``: real training runs, in a real TensorBoard, in a real browser.

Run it: ``make screenshots``. It trains for a few minutes; nothing in the pictures is planted.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from playwright.sync_api import sync_playwright
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from viewer.browser import ARGUMENTS, chromium_at, tab_of
from viewer.hosts import TensorBoard

from lightning_gradwatch import GradWatch

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs" / "pictures"
# As wide as a page of GitHub's can show sharply on most screens.
WIDTH = 1280
NUM_BLOCKS, WIDTH_OF_BLOCK = 500, 16


class PostNormBlock(nn.Module):
    """Three linear layers in a residual branch, and the normalization behind the sum, as in the first transformers."""

    def __init__(self) -> None:
        super().__init__()
        linear = (nn.Linear(WIDTH_OF_BLOCK, WIDTH_OF_BLOCK) for _ in range(3))
        self.linear1, self.linear2, self.linear3 = linear
        self.norm = nn.LayerNorm(WIDTH_OF_BLOCK)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the inputs of the next block."""
        hidden = torch.relu(self.linear2(torch.relu(self.linear1(inputs))))
        return self.norm(inputs + self.linear3(hidden))


class PostNormNetwork(pl.LightningModule):
    """500 such blocks, 2,000 layers: what normalization behind the sum does to depth (Xiong et al., 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*(PostNormBlock() for _ in range(NUM_BLOCKS)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss: is the first number larger than the second?"""
        return nn.functional.cross_entropy(self.encoder(batch[0])[:, :2], batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def train_deep(logdir: Path, num_steps: int = 60) -> None:
    """Train 2,000 layers for a while."""
    pl.seed_everything(0, verbose=False)
    inputs = torch.randn(num_steps * 8, WIDTH_OF_BLOCK)
    data = TensorDataset(inputs, (inputs[:, 0] > inputs[:, 1]).long())
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=num_steps,
        # So short a run would be over before the second of the usual probes.
        callbacks=[GradWatch(probe_every_n_steps=5)],
        logger=pl.loggers.TensorBoardLogger(logdir, name="", version="post-norm"),
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(PostNormNetwork(), DataLoader(data, batch_size=8))


def train_examples(logdir: Path) -> None:
    """Train the three networks of ``examples/sigmoid_vs_relu.py``."""
    example = ROOT / "examples" / "sigmoid_vs_relu.py"
    subprocess.run([sys.executable, str(example), "--max_steps=300", f"--directory={logdir}"], check=True)


def opened(browser: Any, url: str, height: int) -> tuple[Any, Any]:
    """Open TensorBoard at the tab and return the page and the tab's frame."""
    page = browser.new_page(viewport={"width": WIDTH, "height": height})
    page.goto(url + "#gradwatch")
    frame = tab_of(page)
    frame.get_by_role("application").first.wait_for()
    return page, frame


def show_runs(frame: Any, *names: str) -> None:
    """Show these runs and no others."""
    frame.get_by_text("Runs", exact=True).click()
    frame.get_by_role("button", name=f"Show only {names[0]}").click()
    for name in names[1:]:
        frame.get_by_role("checkbox", name=name, exact=True).check()
    frame.get_by_role("heading", level=1).click()
    for name in names:
        frame.get_by_role("region", name=f"Run {name}", exact=True).get_by_role("application").wait_for()


def go_dark(page: Any) -> None:
    """Switch TensorBoard to dark, as a person does."""
    page.locator("app-header-dark-mode-toggle button").click()
    page.get_by_role("menuitem", name="Dark").click()


def click_cell(frame: Any, run: str, across: float, down: float) -> None:
    """Click at a part of a run's picture."""
    canvas = frame.get_by_role("region", name=f"Run {run}", exact=True).get_by_role("application")
    box = canvas.bounding_box()
    canvas.click(position={"x": across * box["width"], "y": down * box["height"]})


def shoot(page: Any, name: str) -> None:
    """Take a picture once everything stands still."""
    page.mouse.move(1, 400)
    page.wait_for_timeout(500)
    path = PICTURES / f"{name}.png"
    page.screenshot(path=path)
    sys.stdout.write(f"{path.relative_to(ROOT)}  {path.stat().st_size // 1000} kB\n")


def shoot_examples(browser: Any, logdir: Path) -> None:
    """Take the pictures of the three small networks."""
    with TensorBoard(logdir) as server:
        server.wait_for_runs("sigmoid", "relu-he", "relu-default")
        page, frame = opened(browser, server.url, 940)
        show_runs(frame, "sigmoid")
        shoot(page, "tab")
        go_dark(page)
        shoot(page, "tab-dark")
        page.close()
        page, frame = opened(browser, server.url, 1500)
        show_runs(frame, "sigmoid", "relu-he")
        shoot(page, "sigmoid-beside-relu")
        page.close()
        page, frame = opened(browser, server.url, 1100)
        show_runs(frame, "sigmoid")
        click_cell(frame, "sigmoid", 0.6, 0.5)
        shoot(page, "depth-profile")
        page.close()


def shoot_deep(browser: Any, logdir: Path) -> None:
    """Take the picture of 2,000 layers."""
    with TensorBoard(logdir) as server:
        server.wait_for_runs("post-norm")
        page, _ = opened(browser, server.url, 1020)
        shoot(page, "layers-2000")
        page.close()


def main() -> None:
    """Train, then take all pictures."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        small, deep = Path(directory) / "small", Path(directory) / "deep"
        train_examples(small)
        train_deep(deep)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium_at(), args=ARGUMENTS)
            shoot_examples(browser, small)
            shoot_deep(browser, deep)
            browser.close()


if __name__ == "__main__":
    main()
