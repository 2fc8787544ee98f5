"""What the tests of other people's libraries share: no network, a folder of their own, their warnings ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
pytest.register_assert_rewrite("strangers.witness")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the libraries warn of what they like: only a warning from our own code is an error here."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore", r"error:::lightning_gradwatch\..*"))


@pytest.fixture(autouse=True)
def _on_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Let the libraries write into a folder of the test, and refuse every download."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
