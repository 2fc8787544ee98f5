"""Test ``lightning_gradwatch.report.visible``."""

from __future__ import annotations

import ast

from hypothesis import given
from hypothesis import strategies as st

from lightning_gradwatch.report.visible import visible


@given(st.text())
def test_what_is_returned_can_be_printed_and_is_what_repr_writes(text: str) -> None:
    """Python itself reads it back, where nothing in it looks like an escape already."""
    plain = text.replace("\\", "").replace("'", "").replace('"', "")
    assert visible(text).isprintable()
    assert ast.literal_eval(f"'{visible(plain)}'") == plain


@given(st.text(alphabet=st.characters(categories=["L", "N", "P", "S"])))
def test_letters_of_any_script_stay_as_they_are(text: str) -> None:
    """A layer may have a name in any language."""
    assert visible(text) == text


def test_what_is_kept_stays() -> None:
    """A block has line breaks, and code in it has tabs."""
    assert visible("a\n\tb\x1b", kept="\n\t") == "a\n\tb\\x1b"
