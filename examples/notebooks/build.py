"""Make each notebook of this folder from the Markdown beside it: prose stays prose, a Python block becomes a cell.

The text is edited in ``NAME.md``; ``python examples/notebooks/build.py`` writes ``NAME.ipynb``, without outputs. The
tests run the notebooks and fail where one is older than its text. This script needs nothing but Python.
"""

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def cells(text: str) -> list[dict[str, Any]]:
    """Cut a page into cells.

    Args:
        text: Markdown.

    Returns:
        Cells as the format of notebooks has them, named by their place.
    """
    made: list[dict[str, Any]] = []
    for place, part in enumerate(re.split(r"```python\n(.*?)```\n", text, flags=re.DOTALL)):
        source = part.strip().splitlines(keepends=True)
        # Between two blocks there may be nothing to say.
        if source:
            code: dict[str, Any] = {"execution_count": None, "outputs": []} if place % 2 else {}
            kind = "code" if place % 2 else "markdown"
            made.append({"cell_type": kind, "id": f"cell-{len(made)}", "metadata": {}, "source": source, **code})
    return made


def notebook(text: str) -> str:
    """Write a page as a notebook.

    Args:
        text: Markdown.

    Returns:
        JSON, in the form in which Jupyter saves it.
    """
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    whole = {"cells": cells(text), "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write all notebooks."""
    for page in sorted(HERE.glob("*.md")):
        page.with_suffix(".ipynb").write_text(notebook(page.read_text()))


if __name__ == "__main__":
    main()
