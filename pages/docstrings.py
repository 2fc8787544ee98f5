"""Docstrings as the API page reads them."""

from __future__ import annotations

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^Example:$", flags=re.MULTILINE)


class OneExample(griffe.Extension):  # type: ignore[misc, unused-ignore]
    """Show an ``Example:`` as what it is, a doctest; griffe knows the section in the plural alone."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Rename the section of one object."""
        if obj.docstring:
            obj.docstring.value = _EXAMPLE.sub("Examples:", obj.docstring.value)
