"""Test ``pages.gallery``, ``pages.figures``, ``pages.panels``: ``docs/gallery.md`` shows what scripts print today."""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from lightning_gradwatch import GradWatch, examine
from lightning_gradwatch.report.log import TrainingLogHandler
from pages.__main__ import DOCS, excerpts
from pages.figures import FIGURES
from pages.gallery import EXAMPLES, GALLERY, run
from pages.panels import heatmaps, profiles, save

PAGE = (DOCS / "gallery.md").read_text()
SHOWN = excerpts(PAGE)
MAX_BYTES = 120_000


def masked(text: str) -> str:
    """Hide numbers, and how far they push what comes after them: a short run and another processor have others."""
    return re.sub(r" +", " ", re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "#", text))


def section(name: str) -> str:
    """Return what the page says of a script, from its heading to the next."""
    (found,) = [part for part in re.split(r"^##+ ", PAGE, flags=re.MULTILINE) if f": gallery:{name} -->" in part]
    return found


@pytest.mark.parametrize("name", GALLERY)
def test_the_page_shows_what_a_script_prints(name, tmp_path):
    """With the least to do it prints the same lines, each diagnosis among them; ``make pages`` renews the numbers."""
    assert masked(run(name, tmp_path, quick=True).text) == masked(SHOWN[f"gallery:{name}"])


def test_every_script_is_on_the_page():
    """The scripts, the loops, the YAML and the notebooks, each once and in the order of the gallery."""
    scripts = {*EXAMPLES.glob("*.py"), *EXAMPLES.glob("loops/*.py"), *EXAMPLES.glob("cli_yaml/*.py")}
    scripts |= set(EXAMPLES.glob("notebooks/*.md"))
    assert {EXAMPLES / script.path for script in GALLERY.values()} == scripts
    assert list(SHOWN) == [f"gallery:{name}" for name in GALLERY]
    assert list(FIGURES) == list(GALLERY)


@pytest.mark.parametrize("name", GALLERY)
def test_a_section_has_its_command_and_its_picture(name):
    """The command is that of the script's own docstring, and the picture lies in the repository and is small."""
    text, script = section(name), EXAMPLES / GALLERY[name].path
    (command,) = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    if script.suffix == ".md":
        assert f"examples/notebooks/{name}.ipynb" in command
    else:
        line = next(line for line in command.splitlines() if line.startswith("python "))
        assert line.split("   #")[0] in script.read_text()
    assert f"](pictures/gallery-{name}.png)" in text
    assert 0 < (DOCS / "pictures" / f"gallery-{name}.png").stat().st_size < MAX_BYTES


def test_running_a_script_leaves_no_trace(tmp_path, monkeypatch):
    """Folder, command line, environment and log are as before; what it printed is without the folder's name."""
    logger = logging.getLogger("lightning_gradwatch")
    monkeypatch.setattr(logger, "level", logging.WARNING)
    # GradWatch brings its own handler when it first speaks.
    monkeypatch.setattr(logger, "handlers", [TrainingLogHandler()])
    before = Path.cwd(), list(sys.argv), dict(os.environ), logger.level, list(logger.handlers)
    ran = run("own_rule_and_sink", tmp_path, quick=True)
    assert before == (Path.cwd(), sys.argv, dict(os.environ), logger.level, logger.handlers)
    assert (tmp_path / "runs" / "own_rule_and_sink" / "norms.csv").is_file()
    assert str(tmp_path) not in ran.text
    assert "main" in ran.names


def test_what_a_script_wrote_is_drawn(tmp_path):
    """A figure is made from the event files of the run alone."""
    figure = FIGURES["mixed_precision"](run("mixed_precision", tmp_path, quick=True))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[:2] == ["without a scaler\nDEAD since step 4", "with a GradScaler\nno warning"]


def two_stacks() -> list[nn.Sequential]:
    """Return a stack that is well, and one that is not."""
    depth = 8
    return [
        nn.Sequential(*(part for _ in range(depth) for part in (nn.Linear(8, 8), kind())))
        for kind in (nn.Tanh, nn.Sigmoid)
    ]


def test_profiles_stand_on_one_scale():
    """Two networks that are compared have the same axis, and each has its own factor above it."""
    points = torch.randn(16, 8)
    reports = [examine(net, lambda net: net(points).square().mean(), rehearse=False) for net in two_stacks()]
    first, second = profiles(dict(zip("ab", reports, strict=True))).axes
    assert first.get_ylim() == second.get_ylim()
    assert first.get_title(loc="left").startswith(f"a\nx {reports[0].factor:.2g} a layer back: ")
    assert second.get_title(loc="left").startswith(f"b\nx {reports[1].factor:.2g} a layer back: ")


def test_heatmaps_share_the_scale_of_the_last_one():
    """Of two panels and two scales one scale is left."""
    watches = {}
    for name, net in zip("ab", two_stacks(), strict=True):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with GradWatch().attach(net, optimizer) as watches[name]:
            for _ in range(5):
                optimizer.zero_grad()
                net(torch.randn(16, 8)).square().mean().backward()
                optimizer.step()
    figure = heatmaps(watches, "delta")
    assert [axes.get_title(loc="left").split("\n")[0] for axes in figure.axes] == ["a", "b", ""]


def test_a_picture_of_lines_has_few_colors_and_a_heatmap_keeps_its_own(tmp_path):
    """What is drawn with a color scale is saved as it is."""
    for kind, mode in (("plot", "P"), ("pcolormesh", "RGB")):
        figure = Figure()
        getattr(figure.subplots(), kind)([[0.0, 1.0], [2.0, 3.0]])
        save(figure, tmp_path / "picture.png")
        with Image.open(tmp_path / "picture.png") as picture:
            assert picture.mode == mode
            assert np.ptp(np.asarray(picture.convert("RGB"))) > 100
