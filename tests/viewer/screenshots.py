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
NUM_BLOCKS, WIDTH_OF_BLOCK, NUM_TOKENS = 250, 16, 4


class PostNormBlock(nn.Module):
    """A transformer's block with its normalization behind each sum, as Vaswani et al. (2017) had it: 8 layers."""

    def __init__(self) -> None:
        super().__init__()
        linear = (nn.Linear(WIDTH_OF_BLOCK, WIDTH_OF_BLOCK) for _ in range(6))
        self.query, self.key, self.value, self.out, self.linear1, self.linear2 = linear
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH_OF_BLOCK), nn.LayerNorm(WIDTH_OF_BLOCK)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the tokens of the next block."""
        attended = nn.functional.scaled_dot_product_attention(self.query(tokens), self.key(tokens), self.value(tokens))
        tokens = self.norm1(tokens + self.out(attended))
        return self.norm2(tokens + self.linear2(torch.relu(self.linear1(tokens))))


class PostNormTransformer(pl.LightningModule):
    """250 such blocks, 2,000 layers: far deeper than post-norm carries a gradient (Xiong et al., 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*(PostNormBlock() for _ in range(NUM_BLOCKS)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss: is the first token's first number larger than the second's?"""
        return nn.functional.cross_entropy(self.encoder(batch[0]).mean(dim=1)[:, :2], batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def train_deep(logdir: Path, num_steps: int = 60) -> None:
    """Train 2,000 layers for a while."""
    pl.seed_everything(0, verbose=False)
    tokens = torch.randn(num_steps * 8, NUM_TOKENS, WIDTH_OF_BLOCK)
    data = TensorDataset(tokens, (tokens[:, 0, 0] > tokens[:, 0, 1]).long())
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=num_steps,
        callbacks=[GradWatch()],
        logger=pl.loggers.TensorBoardLogger(logdir, name="", version="post-norm"),
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(PostNormTransformer(), DataLoader(data, batch_size=8))


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
        page, frame = opened(browser, server.url, 860)
        show_runs(frame, "sigmoid")
        shoot(page, "tab")
        go_dark(page)
        shoot(page, "tab-dark")
        page.close()
        page, frame = opened(browser, server.url, 1240)
        show_runs(frame, "sigmoid", "relu-he")
        shoot(page, "sigmoid-beside-relu")
        page.close()
        page, frame = opened(browser, server.url, 960)
        show_runs(frame, "sigmoid")
        click_cell(frame, "sigmoid", 0.6, 0.5)
        shoot(page, "depth-profile")
        page.close()


def shoot_deep(browser: Any, logdir: Path) -> None:
    """Take the pictures of 2,000 layers."""
    with TensorBoard(logdir) as server:
        server.wait_for_runs("post-norm")
        page, frame = opened(browser, server.url, 860)
        shoot(page, "layers-2000")
        frame.get_by_role("checkbox", name="group by module").check()
        shoot(page, "layers-2000-grouped")
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
