"""Test ``viewer.browser`` and ``viewer.hosts``: what the tests in a browser stand on."""

from __future__ import annotations

import shutil

import pytest
from viewer.browser import Witness, chromium_at


def test_without_chromium_the_tests_fail_and_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing browser is a failure with a sentence, not a skip."""
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(pytest.fail.Exception, match="apt-get install chromium"):
        chromium_at()


def test_what_a_page_asks_of_other_hosts_is_seen(browser, witness: Witness) -> None:
    """A picture of another host is told as a request abroad, and does not leave: no name is resolved."""
    page = browser.new_page()
    witness.watch(page)
    page.set_content('<img src="http://example.com/pixel.png">')
    page.close()
    assert witness.abroad == ["http://example.com/pixel.png"]
    assert "ERR_NAME_NOT_RESOLVED" in witness.complaints[0]


def test_what_a_page_says_and_throws_is_seen(browser, witness: Witness) -> None:
    """Errors and warnings in the console, uncaught errors and dialogs are complaints."""
    page = browser.new_page()
    witness.watch(page)
    page.set_content("<script>console.error('one'); console.warn('two'); alert('three'); throw Error('four')</script>")
    page.close()
    assert [said.split(" (")[0] for said in witness.complaints] == [
        "console error: one",
        "console warning: two",
        "dialog: three",
        "uncaught: four",
    ]
