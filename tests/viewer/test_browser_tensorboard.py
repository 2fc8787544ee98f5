"""Test ``lightning_gradwatch.viewer.plugin`` in a real TensorBoard, with what a real training run has written."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from viewer.browser import tab_of
from viewer.looking import Heatmap
from viewer.planted import planted_run, write_series

from lightning_gradwatch import GradWatch

NUM_STEPS, DEPTH, WIDTH = 40, 10, 16


class Deep(pl.LightningModule):
    """A stack of linear layers with an activation behind each."""

    def __init__(self, activation: type[nn.Module]) -> None:
        super().__init__()
        parts = [part for _ in range(DEPTH) for part in (nn.Linear(WIDTH, WIDTH), activation())]
        self.net = nn.Sequential(*parts, nn.Linear(WIDTH, 2))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss."""
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return plain gradient descent."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, GradWatch]]:
    """Train a sigmoid and a ReLU network as a person would, and return the log directory and what watched."""
    logdir, watches = tmp_path_factory.mktemp("logs"), {}
    torch.manual_seed(0)
    inputs = torch.randn(NUM_STEPS * 4, WIDTH)
    loader = DataLoader(TensorDataset(inputs, (inputs[:, 0] > 0).long()), batch_size=4)
    for name, activation in {"sigmoid": nn.Sigmoid, "relu": nn.ReLU}.items():
        watches[name] = GradWatch()
        trainer = pl.Trainer(
            accelerator="cpu",
            max_steps=NUM_STEPS,
            callbacks=[watches[name]],
            logger=pl.loggers.TensorBoardLogger(logdir, name="", version=name),
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            log_every_n_steps=5,
        )
        trainer.fit(Deep(activation), loader)
    return logdir, watches


@pytest.mark.parametrize(
    ("fast", "flags"), [(True, ["--path_prefix=/deep/down"]), (False, [])], ids=["fast-with-prefix", "python"]
)
def test_plain_tensorboard_has_the_tab_with_the_right_picture(
    trained: tuple[Path, dict[str, GradWatch]], visit: Any, tensorboard: Any, fast: bool, flags: list[str]
) -> None:
    """After training, ``tensorboard --logdir`` has the tab, and a cell has the norm that the callback remembers."""
    logdir, watches = trained
    server = tensorboard(logdir, fast=fast, flags=flags)
    server.wait_for_runs("sigmoid", "relu")
    page = visit(server.url, height=1200)
    page.get_by_role("tab", name="Gradients").click()
    frame = tab_of(page)
    frame.get_by_role("heading", name="Vanishing gradient").wait_for()
    frame.get_by_role("radio", name="gradient norm").check(force=True)
    frame.get_by_text("L2 norm of each layer's gradient").wait_for()
    for name, watch in watches.items():
        history = watch.history
        layers = tuple(history.layers[place] for place in history.order)
        heatmap = Heatmap(frame, name, layers, num_steps=NUM_STEPS)
        said = heatmap.point(*heatmap.find(3, 20))
        expected = history.norms[list(history.steps).index(20), history.order[3]]
        assert float(said.split("\n")[1].split()[0]) == pytest.approx(float(expected), rel=0.06)


def test_a_tensorboard_that_saw_nothing_shows_a_run_that_begins_and_grows(
    tmp_path: Path, visit: Any, tensorboard: Any
) -> None:
    """An empty directory says how to begin; a run that appears in it is drawn, and grows, without a reload."""
    server = tensorboard(tmp_path, fast=False)
    frame = tab_of(visit(server.url + "#gradwatch"))
    frame.get_by_role("heading", name="No data yet").wait_for()
    assert "GradWatch()" in frame.locator("body").inner_text()
    series = planted_run("grows", kind="relu", num_columns=60).series[0]
    writer = EventFileWriter(str(tmp_path / "grows"))
    write_series(writer, replace(series, windows=series.windows.take(slice(0, 40))))
    writer.flush()
    frame.get_by_text("steps 0 to 39").wait_for()
    about = replace(series.about, started=series.about.started + 40)
    write_series(writer, replace(series, about=about, windows=series.windows.take(slice(40, 60))))
    writer.flush()
    frame.get_by_text("steps 0 to 59").wait_for()
    writer.close()


def test_tensorboard_starts_without_the_tab_when_ours_is_broken(
    trained: tuple[Path, dict[str, GradWatch]], tmp_path: Path, visit: Any, tensorboard: Any
) -> None:
    """An error while our plugin is imported costs the tab, and nothing else; TensorBoard's own tabs are there."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['lightning_gradwatch.viewer.plugin'] = None  # importing it raises ImportError\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    server = tensorboard(trained[0], fast=False, environment={**os.environ, "PYTHONPATH": path})
    listed = json.loads(server.get("data/plugins_listing"))
    assert "scalars" in listed
    assert "gradwatch" not in listed
    page = visit(server.url)
    page.get_by_role("tab", name="Time Series").wait_for()
    assert page.get_by_role("tab", name="Gradients").count() == 0
