"""Who serves the tab to the tests in a browser.

``Stand`` serves it over planted runs as TensorBoard would, in the same frame, under the same content policy;
``TensorBoard`` is the real one, as a process of its own.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from lightning_gradwatch.viewer import wire
from lightning_gradwatch.viewer.run import Run

STATIC = Path(wire.__file__).with_name("static")
# A machine that is busy takes long; a test that waits for what never comes fails after so many seconds.
PATIENCE = 20.0

# TensorBoard puts the tab into such a frame; it toggles the class of the body when a person switches to dark.
_HOST = """<!doctype html><html lang="en"><title>stand</title><body class="{theme}" style="margin:0"><tb-webapp>
<iframe src="data/plugin_entry.html?name=gradwatch" title="tab" style="border:0;width:100vw;height:100vh;display:block">
</iframe></tb-webapp>"""
_ENTRY = """<!doctype html><head><meta charset="utf-8"><base href="plugin/gradwatch/"></head><body>
<script type="module">import("./static/index.js").then((m) => void m.render());</script>"""
# As TensorBoard sends it, but for the hash of its one script.
_POLICY = (
    "default-src 'self';font-src 'self' data:;frame-ancestors *;frame-src 'self';img-src 'self' data: blob:;"
    "object-src 'none';style-src 'self' data: 'unsafe-inline';connect-src 'self';"
    "script-src 'self' 'unsafe-eval' 'unsafe-inline'"
)
_HOME = "/data/plugin/gradwatch/"
_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}


class Stand:
    """The tab over runs that lie in memory, behind the same three routes as the plugin's.

    Attributes:
        runs: What is served; may be replaced while a page looks at it.
        asked: Paths that were asked for, oldest first.
        url: Where the host's page is.
    """

    def __init__(self, runs: Sequence[Run], *, dark: bool = False) -> None:
        self.runs = list(runs)
        self.asked: list[str] = []
        self.theme = "dark-mode" if dark else ""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Return status, content type and body of a path."""
        place, query = urlsplit(path).path, parse_qs(urlsplit(path).query)
        told = {"format_version": 1, "runs": [wire.describe(run) for run in self.runs]}
        pages = {
            "/": ("text/html", _HOST.format(theme=self.theme)),
            "/data/plugin_entry.html": ("text/html", _ENTRY),
            "/data/environment": ("application/json", '{"data_location": "logs"}'),
            f"{_HOME}runs": ("application/json", json.dumps(told)),
        }
        if place in pages:
            kind, text = pages[place]
            return 200, kind, text.encode()
        if place == f"{_HOME}series":
            return self._series(query)
        file = STATIC / place.removeprefix(f"{_HOME}static/")
        if file.parent == STATIC and file.is_file():
            return 200, _TYPES[file.suffix], file.read_bytes()
        return (204 if place == "/favicon.ico" else 404), "text/plain", b""

    def _series(self, query: dict[str, list[str]]) -> tuple[int, str, bytes]:
        wanted, name, most = query["run"][0], query["name"][0], query.get("most")
        for run in self.runs:
            for series in run.series:
                if (run.name, series.name) == (wanted, name):
                    return 200, "application/octet-stream", wire.encode(series, int(most[0]) if most else None)
        return 404, "text/plain", b"no such series"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stand = self

        class Handler(BaseHTTPRequestHandler):
            """Hands on what ``Stand.answer`` says, without a log."""

            def do_GET(self) -> None:
                """Answer."""
                stand.asked.append(self.path)
                status, kind, body = stand.answer(self.path)
                zipped = kind == "application/octet-stream"
                body = gzip.compress(body, 1) if zipped else body
                self.send_response(status)
                headers = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-cache"}
                headers |= {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
                headers |= {"Content-Encoding": "gzip"} if zipped else {}
                for header, value in headers.items():
                    self.send_header(header, value)
                self.end_headers()
                with suppress(BrokenPipeError, ConnectionResetError):
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        return Handler


class TensorBoard:
    """A real TensorBoard over a directory, as a person starts it; ended at the exit, also on failure.

    Args:
        logdir: What it shows.
        fast: Whether its loader is the one in Rust.
        flags: More of its flags, such as ``"--path_prefix=/deep/down"``.
        environment: In place of this process's own.
        cwd: Where it is started.
    """

    def __init__(
        self,
        logdir: Path,
        *,
        fast: bool = True,
        flags: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        command = [sys.executable, "-m", "tensorboard.main", f"--logdir={logdir}", "--host=127.0.0.1", "--port=0"]
        # Runs that grow are read each second, so that a test needs not wait.
        command += [f"--load_fast={str(fast).lower()}", "--reload_interval=1", *flags]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=cwd)
        self._said: list[str] = []
        self._told = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self.url = ""

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._said.append(line)
            found = re.search(r"TensorBoard \S+ at (http://\S+)", line)
            if found:
                self.url = found[1].rstrip("/") + "/"
                self._told.set()
        self._told.set()

    @property
    def said(self) -> str:
        """What it has written so far."""
        return "".join(self._said)

    def __enter__(self):
        self._reader.start()
        self._told.wait(3 * PATIENCE)
        if not self.url:
            self.__exit__()
            raise AssertionError(f"TensorBoard did not start:\n{self.said}")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        assert self._process.stderr is not None
        self._process.stderr.close()

    def get(self, path: str) -> bytes:
        """Return what it answers to a path below its own address."""
        with urllib.request.urlopen(self.url + path, timeout=PATIENCE) as answer:
            body: bytes = answer.read()
            return gzip.decompress(body) if answer.headers.get("Content-Encoding") == "gzip" else body

    def wait_for_runs(self, *names: str) -> None:
        """Wait until the tab knows these runs; the loader reads them while TensorBoard already answers."""
        end, known = time.monotonic() + 2 * PATIENCE, set()
        while time.monotonic() < end:
            with suppress(OSError):
                known = {run["name"] for run in json.loads(self.get("data/plugin/gradwatch/runs"))["runs"]}
            if known >= set(names):
                return
            time.sleep(0.1)
        raise AssertionError(f"expected the runs {names}, got {sorted(known)}:\n{self.said}")


def main() -> None:
    """Serve planted runs for a person: ``PYTHONPATH=tests python -m viewer.hosts [dark]``."""
    from viewer.planted import planted_run

    runs = [planted_run("sigmoid"), planted_run("relu", kind="relu")]
    with Stand(runs, dark="dark" in sys.argv[1:]) as served:
        sys.stdout.write(f"{served.url}\n")
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    main()
