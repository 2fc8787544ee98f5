"""Test that the recipes of docs/testing.md and docs/alerts.md do what the pages say."""

from __future__ import annotations

import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from forked import python
from models import deep_net, module_in, trainer_in
from torch import nn

from lightning_gradwatch import GradWatch

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page: str) -> list[str]:
    """Return the Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)


def named(page: str, name: str) -> dict[str, Any]:
    """Return what a page's block that defines a class makes."""
    names: dict[str, Any] = {"GradWatch": GradWatch}
    exec(next(block for block in blocks(page) if f"class {name}" in block), names)
    return names


# Their networks are drawn anew each time, and of a hundred sick ones one is dead instead, which is no warning at once.
SEED = """

@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
"""


def suite(directory: Path, *tests: str) -> str:
    """Run a test suite as a person has it, and return what pytest says."""
    fixture, *_ = blocks("testing.md")
    (directory / "conftest.py").write_text("import torch\n" + fixture + SEED)
    (directory / "test_mine.py").write_text("\n\n".join(tests))
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", directory]
    # The summary is cut at the width of the terminal.
    wide = {**os.environ, "COLUMNS": "200"}
    return python(*command, cwd=directory, environment=wide).stdout


def test_the_fixture_has_five_lines():
    """It is short enough to be copied."""
    body = blocks("testing.md")[0].partition("@pytest.fixture")[2]
    assert len([line for line in ("@pytest.fixture" + body).splitlines() if line.strip()]) == 5


def test_a_suite_with_the_fixture_fails_for_sick_models_only(tmp_path):
    """Of the page's tests the sick ones fail and explain themselves, and so does one that trains nothing."""
    _, mine, loop, examined = blocks("testing.md")
    nothing = "def test_forgotten(gradwatch):\n    pass\n"
    cured = mine.partition("def test_")[2].replace("my_model_learns", "cured").replace("Mine(nn.Sigmoid)", "cured()")
    healthy = (
        "from lightning_gradwatch import he_init_\n\n"
        "def cured():\n    model = Mine(nn.ReLU)\n    he_init_(model.net)\n    return model\n\ndef test_" + cured
    )
    out = suite(tmp_path, mine, loop, examined, nothing, healthy)
    assert re.search(r"1 failed, 4 passed, 2 errors", out), out
    assert "ERROR test_mine.py::test_my_model_learns - AssertionError: GradWatch  step 3" in out
    assert "ERROR test_mine.py::test_forgotten - AssertionError: GradWatch saw no gradient" in out
    assert "FAILED test_mine.py::test_my_model_at_its_start - AssertionError: GradWatch  step" in out
    assert re.search(r"^E +why +12 x sigmoid \(slope at most 0\.25\)", out, flags=re.MULTILINE)


class Inbox(BaseHTTPRequestHandler):
    """Takes messages as a chat does."""

    messages: ClassVar[list[tuple[str, Any]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.messages.append((self.headers["Content-Type"], json.loads(body)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Stay quiet."""


def test_a_chat_hears_of_an_onset_once(pl, tmp_path, data):
    """Twenty sick steps are one message, in the form that chats take."""
    Inbox.messages.clear()
    server = HTTPServer(("127.0.0.1", 0), Inbox)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    others = set(threading.enumerate())
    try:
        chat = named("alerts.md", "Chat")["Chat"](f"http://127.0.0.1:{server.server_port}/hook")
        trainer = trainer_in(pl, tmp_path, GradWatch(sinks=[chat]), max_steps=20)
        trainer.fit(module_in(pl, deep_net(nn.Sigmoid, 12)), data)
        for thread in set(threading.enumerate()) - others:
            thread.join(10)
    finally:
        server.shutdown()
        serving.join()
        server.server_close()
    kinds, messages = zip(*Inbox.messages, strict=True)
    assert kinds == ("application/json",)
    assert messages[0]["text"].startswith("warning: vanishing at step 3: the first layers get almost no gradient")


def test_a_file_has_the_onsets(pl, tmp_path, data):
    """A line for each, as the class writes itself."""
    sink = named("alerts.md", "File")["File"](tmp_path / "faults.jsonl")
    watch = GradWatch(sinks=[sink])
    trainer_in(pl, tmp_path, watch, max_steps=8).fit(module_in(pl, deep_net(nn.Sigmoid, 12)), data)
    lines = (tmp_path / "faults.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == json.loads(json.dumps([d.to_dict() for d in watch.diagnoses]))


def test_prometheus_finds_how_many_warnings_last(pl, tmp_path, data):
    """The file is whole, has the text format, and follows the run at the logging interval."""
    sink = named("alerts.md", "Prometheus")["Prometheus"](tmp_path / "gradwatch.prom")
    trainer_in(pl, tmp_path, GradWatch(sinks=[sink]), max_steps=12, log_every_n_steps=5).fit(
        module_in(pl, deep_net(nn.Sigmoid, 12)), data
    )
    assert (tmp_path / "gradwatch.prom").read_text() == "gradwatch_open_warnings 1\n"
    assert not (tmp_path / "gradwatch.prom.new").exists()


def test_an_own_line_is_told_for_each_onset(pl, tmp_path, data, capsys):
    """`on_diagnosis` is called once."""
    watch = named("alerts.md", "Tells")["Tells"]()
    trainer_in(pl, tmp_path, watch, max_steps=8).fit(module_in(pl, deep_net(nn.Sigmoid, 12)), data)
    assert capsys.readouterr().out.startswith("warning vanishing ('net.0', ")


@pytest.mark.parametrize("name", ["Chat", "File", "Prometheus"])
def test_a_recipe_has_ten_lines_at_most(name):
    """Lines that say something, without the imports above."""
    block = next(block for block in blocks("alerts.md") if f"class {name}" in block)
    body = block.partition("\n\n\n")[2].partition("\n\n\n")[0]
    assert 5 < len([line for line in body.splitlines() if line.strip()]) <= 10
