"""Test ``lightning_gradwatch.report.optional``."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from lightning_gradwatch import GradWatch, Report
from lightning_gradwatch.report.optional import drawing


@pytest.fixture
def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that matplotlib is not installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("figure", "plot", "depth_plot"):
        monkeypatch.delitem(sys.modules, f"lightning_gradwatch.report.{name}", raising=False)
    monkeypatch.setattr(sys, "meta_path", [_Missing(), *sys.meta_path])


class _Missing:
    """Finds nothing of matplotlib, as where it is not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.usefixtures("without_matplotlib")
def test_without_matplotlib_the_error_says_what_to_install() -> None:
    """Whoever asks for a plot is told the one command; everything else goes on."""
    words = r"matplotlib is not installed.*pip install lightning-gradwatch\[plot\]"
    with pytest.raises(ImportError, match=words):
        GradWatch().plot()
    report = Report(("a",), np.ones(1), np.ones(1))
    with pytest.raises(ImportError, match=words):
        report.plot()
    assert report.to_markdown()


def test_another_missing_module_is_not_taken_for_matplotlib() -> None:
    """A mistake of ours is told as it is."""
    with pytest.raises(ModuleNotFoundError, match=r"report\.nothing"):
        drawing("nothing")
