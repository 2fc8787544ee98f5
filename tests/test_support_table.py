"""Test that docs/support.md says just what the tests prove."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent
TABLE = TESTS.parent / "docs" / "support.md"
TESTED, GPU, REFUSED = "supported and tested", "supported, not testable without a GPU", "refused"
STRANGERS = "supported, tested by `make test-strangers`"


def marks(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of every pytest mark under a node; the text is empty where a mark has none."""
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Attribute) and part.value.attr == "mark":
            yield part.attr, ""
        if isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute):
            for argument in part.args:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield part.func.attr, argument.value


def proven() -> dict[str, str]:
    """Read from the tests' source what is supported or refused; a GPU test alone proves nothing on other machines."""
    found: set[tuple[str, str]] = set()
    for path in sorted(TESTS.rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        if "strangers" in path.parts:
            found |= {("stranger" if name == "supports" else name, text) for name, text in marks(tree)}
            continue
        for test in [part for part in ast.walk(tree) if isinstance(part, ast.FunctionDef)]:
            decorators = {mark for decorator in test.decorator_list for mark in marks(decorator)}
            test.decorator_list = []
            found |= {("gpu" if ("gpu", "") in decorators and n == "supports" else n, text) for n, text in decorators}
        # Parameters with marks may also stand in a list of their own.
        found |= set(marks(tree))
    states = {text: GPU for name, text in found if name == "gpu" and text}
    states |= {text: STRANGERS for name, text in found if name == "stranger" and text}
    states |= {text: TESTED for name, text in found if name == "supports" and text}
    return states | {text: REFUSED for name, text in found if name == "refuses" and text}


def written() -> dict[str, str]:
    """Read the rows of the table."""
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| [^|]* \|$", TABLE.read_text(), flags=re.MULTILINE)
    rows = [(what, state) for what, state in rows if what != "what" and not what.startswith("---")]
    assert len(rows) == len(dict(rows)), "a row stands twice"
    return dict(rows)


def test_every_row_of_the_table_is_proven_and_every_proof_has_its_row():
    """The states in the table are those that the marks of the tests give."""
    assert written() == proven()
