"""What the tests in a real browser share: Debian's chromium, and pages that are watched.

``visit`` opens a page and, when the test is over, fails it if the page wrote an error to the console, opened a dialog
or asked any other host for anything.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from viewer.hosts import PATIENCE

NO_CHROMIUM = "The tests in a browser need chromium on the PATH. Debian: apt-get install chromium"
# A browser that stays at home: it resolves no name, so a request that would leave the host fails and is told.
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-color-profile=srgb",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]


def chromium_at() -> str:
    """Return where chromium is; fail where it is not."""
    return shutil.which("chromium") or pytest.fail(NO_CHROMIUM, pytrace=False)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start chromium once for each file of tests.

    Not once for all: Playwright's event loop runs in this thread for as long as it is open, and another file's test
    that starts one of its own would fail.
    """
    chromium = chromium_at()
    # Imported here, so that the other tests of the viewer run where nobody has installed it.
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield started
        started.close()


@dataclass
class Witness:
    """What a page did that a person would not see."""

    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def watch(self, page: Any) -> None:
        """Write down from now on what the page and its frames do."""
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        page.on("dialog", self._on_dialog)
        page.on("request", lambda request: self.requests.append(request.url))

    def _on_console(self, message: Any) -> None:
        place = str(message.location.get("url"))
        # TensorBoard's own page warns of itself, and below a path prefix does not find its own fonts and icon.
        is_theirs = any(part in place for part in ("/index.js?_file_hash=", "/font-roboto/", "/favicon.ico"))
        if message.type in {"error", "warning"} and not is_theirs:
            self.complaints.append(f"console {message.type}: {message.text} ({place})")

    def _on_dialog(self, dialog: Any) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    @property
    def abroad(self) -> list[str]:
        """What was asked of other hosts."""
        home = ("http://127.0.0.1:", "http://localhost:", "file:", "data:", "blob:", "about:")
        return [url for url in self.requests if not url.startswith(home)]


Visit = Callable[..., Any]


@contextmanager
def visiting(browser: Any, witness: Witness) -> Iterator[Visit]:
    """Yield a function that opens a page and watches it, ``visit(url, width=1280, height=800, dark=False)``.

    At the end all pages are closed, and what they did is looked at.
    """
    with ExitStack() as open_ones:

        def opened(url: str, *, width: int = 1280, height: int = 800, dark: bool = False) -> Any:
            scheme = "dark" if dark else "light"
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
            open_ones.callback(context.close)
            context.set_default_timeout(1000 * PATIENCE)
            page = context.new_page()
            witness.watch(page)
            page.goto(url)
            return page

        yield opened
    assert not witness.complaints, "\n".join(witness.complaints)
    assert not witness.abroad, "\n".join(witness.abroad)


@pytest.fixture
def witness() -> Witness:
    """Return what the pages of this test did; a test that provokes a complaint may clear it."""
    return Witness()


@pytest.fixture
def visit(browser: Any, witness: Witness, stand: Any, tensorboard: Any) -> Iterator[Visit]:
    """Return the function of ``visiting``.

    It names those who serve pages so that its own are closed first: one that still asks a server that has just ended
    would write an error to its console.
    """
    with visiting(browser, witness) as opened:
        yield opened


def tab_of(page: Any) -> Any:
    """Return the frame in which TensorBoard, or ``Stand``, shows the tab; waits until it is there."""
    page.wait_for_selector("iframe", state="attached")
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        for frame in page.frames:
            if "plugin_entry.html?name=gradwatch" in frame.url:
                return frame
        page.wait_for_timeout(50)
    raise AssertionError(f"no frame of GradWatch among {[frame.url for frame in page.frames]}")
