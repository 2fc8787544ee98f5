"""Test the types of the public names as a type checker of a person sees them: ``tests/typed``."""

from __future__ import annotations

import re
from pathlib import Path

from mypy import api

ROOT = Path(__file__).parents[1]
TYPED = ROOT / "tests" / "typed"


def test_a_type_checker_accepts_the_documented_uses_and_names_each_mistake():
    """mypy, as strict as it can be, has nothing against the one file, and of the other names just the marked lines."""
    # With the cache of `make lint`, so that torch is not read again.
    settings = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    told, error, _ = api.run([str(TYPED / "accepted.py"), str(TYPED / "rejected.py"), *settings])
    assert not error
    found = re.findall(r"(\w+)\.py:(\d+): error: .* \[([\w-]+)\]$", told, flags=re.MULTILINE)
    marked = [
        ("rejected", str(number), mark[1])
        for number, line in enumerate((TYPED / "rejected.py").read_text().splitlines(), start=1)
        if (mark := re.search(r"# error: ([\w-]+)$", line))
    ]
    assert found == marked, told
    assert len(marked) > 20
