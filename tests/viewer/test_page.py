"""Test ``lightning_gradwatch.viewer.page``; what a browser makes of it is in ``test_browser_page``."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from viewer.planted import planted_run

from lightning_gradwatch.viewer import page as module
from lightning_gradwatch.viewer.markdown import to_markdown
from lightning_gradwatch.viewer.page import MARK, finite, html_page
from lightning_gradwatch.viewer.run import Run
from lightning_gradwatch.viewer.wire import describe, encode


class Page(HTMLParser):
    """What a browser's parser finds: each element, and what is in scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        tag, attributes = self.elements[-1] if self.elements else ("", {})
        self.inside.setdefault(attributes.get("id") or tag, data)

    @property
    def data(self) -> dict[str, Any]:
        """The numbers."""
        return json.loads(self.inside["gradwatch-data"])


def columns(block: bytes) -> int:
    """Return how many columns a block of bytes has."""
    return json.loads(block[4 : 4 + int.from_bytes(block[:4], "little")])["num_columns"]


def unpacked(text: str) -> bytes:
    """Undo base64 and gzip."""
    return gzip.decompress(base64.b64decode(text))


def test_the_numbers_are_those_of_the_tab():
    """Byte for byte what the server would send, with each run as Markdown."""
    runs = [planted_run("sigmoid"), planted_run("a/relu", kind="relu")]
    data = Page(html_page(runs)).data
    assert data["runs"] == json.loads(json.dumps([describe(run) for run in runs]))
    assert data["markdown"] == {run.name: to_markdown(run) for run in runs}
    for run in runs:
        assert {name: unpacked(text) for name, text in data["series"][run.name].items()} == {
            series.name: encode(series) for series in run.series
        }


def test_the_file_asks_for_nothing():
    """No address in it but the names of standards; no element that loads; a policy that forbids it."""
    text = html_page([planted_run()])
    found = Page(text)
    assert not [tag for tag, attributes in found.elements if {"src", "href", "action"} & set(attributes)]
    assert not re.findall(r"(?:https?:)?//(?!www\.w3\.org/)[a-z0-9-]+\.[a-z]{2,}", text)
    assert "@import" not in found.inside["style"]
    assert "url(" not in found.inside["style"]


def test_the_policy_allows_this_script_and_this_style_alone():
    """By the digest of what stands in the page (Content Security Policy Level 3, 8.3)."""
    found = Page(html_page([planted_run(hostile=True)]))
    policy = next(a["content"] for tag, a in found.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for name, directive in (("script", "script-src"), ("style", "style-src")):
        digest = base64.b64encode(hashlib.sha256(found.inside[name].encode()).digest()).decode()
        assert rules[directive] == f"'sha256-{digest}'"
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert "connect-src" not in rules


def test_a_layers_name_cannot_end_its_element():
    """Nor can a run's name, a message or the title: the page has the elements that a plain one has."""
    evil = "</script><script>alert(1)</script><!--\u2028&"
    run = planted_run(hostile=True)
    run = replace(run, name=evil, series=tuple(replace(s, layers=(evil, *s.layers[1:])) for s in run.series))
    text = html_page([run], title=evil)
    plain = html_page([planted_run()], title="t")
    assert [tag for tag, _ in Page(text).elements] == [tag for tag, _ in Page(plain).elements]
    assert Page(text).data["runs"][0]["name"] == evil
    assert "<!--" not in text


def test_numbers_that_json_cannot_hold_are_texts():
    """A browser's parser would refuse the whole page."""
    assert finite({1: (math.nan, {"a": -math.inf}), "b": True}) == {"1": ["nan", {"a": "-inf"}], "b": True}
    sick = {"rule": "spike", "symptom": "spike", "step": 1, "layers": [], "evidence": {"factor": math.inf}}
    (run,) = Page(html_page([Run("r", (), ({"event": "onset", "diagnosis": sick},))])).data["runs"]
    assert run["diagnoses"][0]["evidence"] == {"factor": "inf"}


def test_a_large_page_has_its_columns_merged_and_says_so():
    """No spike is lost: the largest value of each layer stays."""
    runs = [planted_run(name, kind="mixed", num_layers=100, num_columns=600) for name in ("a", "b")]
    found = Page(html_page(runs, max_bytes=400_000))
    packed = found.data["series"]
    assert sum(len(text) for of in packed.values() for text in of.values()) <= 400_000
    block = unpacked(packed["a"]["norms/0"])
    count = columns(block)
    assert 1 < count < 600
    start = 4 + int.from_bytes(block[:4], "little") + 8 * count + 2 * (2 * 100 * count)
    high = np.frombuffer(block, "<i2", 100 * count, start).reshape(100, count)
    expected = np.fmax.reduce(runs[0].series[0].windows.high, axis=0)
    for layer in range(100):
        if np.isfinite(expected[layer]):
            assert high[layer].max() / 256 == pytest.approx(expected[layer], abs=1 / 256)
    note = found.data["note"]
    assert re.fullmatch(
        r"To keep this file small \(numbers below 0.4 MB\), columns were merged: at most \d+ of 600 .*", note
    )
    assert note in html_page(runs, max_bytes=400_000).split('id="gradwatch-data"')[0]


def test_a_small_page_says_nothing_of_it():
    """It has all columns."""
    found = Page(html_page([planted_run(num_columns=300)]))
    assert found.data["note"] == ""
    assert "p" not in [tag for tag, _ in found.elements]
    assert columns(unpacked(found.data["series"]["sigmoid"]["norms/0"])) == 300


def test_what_does_not_fit_with_one_column_is_refused():
    """With the way out."""
    with pytest.raises(ValueError, match=r"2 runs with 10 series do not fit .*Choose fewer runs"):
        html_page([planted_run("a"), planted_run("b")], max_bytes=1000)


def test_runs_of_one_name_are_refused():
    """The page could not tell them apart."""
    with pytest.raises(ValueError, match='"a" more than once'):
        html_page([Run("a"), Run("b"), Run("a")])


def test_a_run_without_data_and_no_run_at_all_make_a_page():
    """Nothing is an error to look at."""
    assert Page(html_page([])).data["runs"] == []
    assert Page(html_page([Run("r")])).data["runs"][0]["series"] == []


def test_two_thousand_layers_fit():
    """In a file that GitHub takes (25 MB)."""
    text = html_page([planted_run(num_layers=2000, num_columns=500)])
    assert len(text.encode()) < 25_000_000
    assert len(Page(text).data["runs"][0]["series"]) == 5


def test_the_same_run_is_the_same_file():
    """No time of day in it: it can be kept under version control. And it is known as ours."""
    assert html_page([planted_run()]) == html_page([planted_run()])
    assert MARK in html_page([])[:2000]


@pytest.mark.parametrize("ends", ["</SCRIPT", "<!--"])
def test_a_script_that_would_end_its_element_is_refused(monkeypatch, ends):
    """It would break the page in the browser only."""
    monkeypatch.setattr(module, "bundle", lambda _: f"const a = '{ends}';")
    with pytest.raises(ValueError, match="the script holds"):
        html_page([])
